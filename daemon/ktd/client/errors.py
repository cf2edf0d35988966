"""Turns what gRPC reports back into the error that the daemon raised."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # googleapis ships no stubs
    error_details_pb2,
    status_pb2,
)

from ktd import errors
from ktd.errors import KtdError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DETAILS = "grpc-status-details-bin"


class DaemonUnreachable(KtdError):
    """No daemon answers on the socket."""

    code = "UNAVAILABLE"
    reason = "DAEMON_UNREACHABLE"


class DaemonTooSlow(KtdError):
    """The daemon did not answer within the call's deadline."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


def _tree(root: type[KtdError]) -> Iterator[type[KtdError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def _by_reason() -> dict[str, type[KtdError]]:
    # Only classes of ktd.errors: a reason stands for exactly one of them.
    return {kind.reason: kind for kind in _tree(KtdError) if kind.__module__ == errors.__name__}


def error_of_status(status: status_pb2.Status) -> KtdError | None:
    """The ktd error in a ``google.rpc.Status``, or None if it carries no ErrorInfo of ktd.

    A reason that this version does not know becomes a plain ``KtdError`` with that reason.
    """
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == "ktd":
            kind = _by_reason().get(info.reason, KtdError)
            error = kind(status.message, **info.metadata)
            error.reason = info.reason
            error.code = _code_name(status.code)
            return error
    return None


def error_of_rpc(failure: grpc.aio.AioRpcError, socket: str) -> KtdError:
    """What to tell a user about a failed call to the daemon on ``socket``."""
    for key, value in failure.trailing_metadata():
        if key == _DETAILS and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                break
            if (error := error_of_status(status)) is not None:
                return error
    if failure.code() is grpc.StatusCode.UNAVAILABLE:
        if _denied(socket):
            return DaemonUnreachable(
                f"You may not open {socket}: become a member of the group that owns it, or run "
                "this as the user that runs the daemon."
            )
        return DaemonUnreachable(
            f"No daemon is listening on {socket}; start it with `ktd serve MODEL`, or say where "
            "it is with --socket or KTD_SOCKET."
        )
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DaemonTooSlow(f"The daemon on {socket} did not answer in time; see its log.")
    error = KtdError(f"The daemon on {socket} answered {failure.code().name}: {failure.details()}")
    error.code = failure.code().name
    error.reason = failure.code().name
    return error


def _denied(socket: str) -> bool:
    """Whether a socket is there, or may be, that this user must not open."""
    try:
        os.stat(socket)  # noqa: PTH116  # os.access does not tell missing from forbidden
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(socket, os.W_OK, effective_ids=True)


def _code_name(number: int) -> str:
    for code in grpc.StatusCode:
        if code.value[0] == number:
            return code.name
    return grpc.StatusCode.UNKNOWN.name
