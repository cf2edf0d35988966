"""Who asks for a change, as the history and the log remember it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc.aio

KEY = "ktd-actor"
UNKNOWN = "unknown"
_FORM = re.compile(r"uid=\d{1,10} pid=\d{1,10}")


def actor_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """What the caller says it is, like ``"uid=1000 pid=42"``, or ``"unknown"``.

    gRPC does not hand out the credentials of a Unix socket's peer, so this is for people who look
    for a colleague, not a proof: whoever may open the socket may change the placement anyway.
    """
    for key, value in context.invocation_metadata() or ():
        if key == KEY and isinstance(value, str) and _FORM.fullmatch(value):
            return value
    return UNKNOWN
