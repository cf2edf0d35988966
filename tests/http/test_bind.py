"""Addresses that cannot be had are said in one sentence."""

from __future__ import annotations

import socket

import pytest

from ktd.errors import DoesNotFit
from ktd.http.server import address_of, bind


def test_a_port_in_use_is_named():
    """The sentence has the port and the flag to change it."""
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DoesNotFit, match=rf"Port {port} of 127\.0\.0\.1 is in use.*--port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 70 + ".x"])
def test_a_foreign_address_is_named(host):
    """An address of another host, or none at all."""
    with pytest.raises(DoesNotFit, match="--host"):
        bind(host, 0)


def test_the_wildcard_is_shown_as_something_to_connect_to():
    """http_address can be pasted into a client."""
    with bind("0.0.0.0", 0) as sock:
        assert address_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_is_bracketed():
    """A URL needs brackets around colons."""
    with bind("::1", 0) as sock:
        assert address_of(sock).startswith("http://[::1]:")
