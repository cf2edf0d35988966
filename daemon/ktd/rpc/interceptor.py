"""One place where an exception becomes an answer; servicers raise and never call ``abort``."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog

from ktd.errors import KtdError
from ktd.rpc.status import DETAILS_KEY, code_of, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_log = structlog.get_logger(__name__)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers ``KtdError`` with its code, reason and sentence; anything else with INTERNAL.

    The traceback of anything else goes to the log only.
    """

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps unary and server-streaming handlers; others (reflection) are left as they are."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return handler


def _unary(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  # the one place that turns errors into answers
            await _abort(context, error, method)

    return answer


def _stream(behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def answer(
        request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        try:
            async with aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    yield message
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  # the one place that turns errors into answers
            await _abort(context, error, method)

    return answer


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str
) -> None:
    if not isinstance(error, KtdError):
        _log.error("unexpected error in a call", method=method, exc_info=error)
        error = KtdError(
            f"ktd failed unexpectedly in {method} ({type(error).__name__}); the daemon's log has "
            "the details."
        )
    await context.abort(
        code_of(error),
        str(error),
        trailing_metadata=((DETAILS_KEY, status_of(error).SerializeToString()),),
    )
