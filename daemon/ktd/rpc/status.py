"""Errors as AIP-193 wants them: ``google.rpc.Status`` with ``ErrorInfo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2
from google.rpc import (  # type: ignore[import-untyped]  # googleapis ships no stubs
    error_details_pb2,
    status_pb2,
)

if TYPE_CHECKING:
    from ktd.errors import KtdError

DOMAIN = "ktd"
# Where gRPC carries a whole google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"


def code_of(error: KtdError) -> grpc.StatusCode:
    """The gRPC code of ``error``."""
    return grpc.StatusCode[error.code]


def status_of(error: KtdError) -> status_pb2.Status:
    """``error`` with its reason and metadata."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata)
    )
    packed = any_pb2.Any()
    packed.Pack(info)
    return status_pb2.Status(code=code_of(error).value[0], message=str(error), details=[packed])
