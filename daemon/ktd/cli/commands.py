"""The list of commands. A command's module is imported only when that command is run.

A module has ``add_parser(subparsers)`` and ``run(args, rest) -> exit code``; ``rest`` holds the
arguments that its parser does not know and is empty for every command that does not take any.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import argparse

    from ktd.cli.arguments import Subparsers


class CommandModule(Protocol):
    """What a command's module offers."""

    def add_parser(self, subparsers: Subparsers) -> object:
        """Adds the command's parser."""

    def run(self, args: argparse.Namespace, rest: list[str]) -> int:
        """Runs the command and returns the exit code."""


@dataclass(frozen=True, slots=True)
class Command:
    """One entry of the list.

    Attributes:
        name: What a user types.
        summary: A few words for `ktd --help`.
        passes_rest: Arguments that the command does not know go to SGLang instead of being errors.
    """

    name: str
    summary: str
    passes_rest: bool = False

    def load(self) -> CommandModule:
        """Imports the command's module."""
        return cast("CommandModule", import_module(self.module))

    @property
    def module(self) -> str:
        """Where the command is."""
        return f"ktd.cli.{self.name.replace('-', '_')}"


COMMANDS = {
    command.name: command
    for command in (
        Command("serve", "serve a model", passes_rest=True),
        Command("status", "what the engine is doing"),
        Command("placement", "which experts are on the GPU, and changing that"),
        Command("policy", "what moves experts while serving, and why"),
        Command("stats", "what the router chose and where it was computed"),
        Command("watch", "statistics as they come, a line at a time"),
        Command("record", "record which experts each pass chose, into files for SGLang's tools"),
        Command("profile", "statistics with a name: save, compare, use again"),
        Command("simulate", "replay recorded routing through a policy"),
        Command("top", "the live monitor"),
        Command("chat", "talk to the model"),
        Command("demo", "serve a small model and show what placement does"),
        Command("bench", "measure", passes_rest=True),
        Command("make-model", "a model of a published shape with generated weights"),
        Command("doctor", "what this host can run, and why not"),
        Command("config", "the configuration and where each value comes from"),
        Command("version", "versions of the client and the daemon"),
    )
}
