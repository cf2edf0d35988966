"""Typed async client of the ktd daemon, for the CLI, the TUI and tests."""

from ktd.client.client import KtdClient
from ktd.client.errors import DaemonUnreachable
from ktd.client.socket import default_socket

__all__ = ["DaemonUnreachable", "KtdClient", "default_socket"]
