"""What every call of the client shares: the engine's name, and errors as ``KtdError``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio

from ktd.client.errors import error_of_rpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

T = TypeVar("T")

NAME = "engines/default"


class Calls:
    """Answers and streams of the daemon on ``socket``."""

    socket: str
    _timeout: float

    async def _answer(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise error_of_rpc(failure, self.socket) from None

    async def _stream(self, call: grpc.aio.UnaryStreamCall[Any, T]) -> AsyncGenerator[T, None]:
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failure:
            raise error_of_rpc(failure, self.socket) from None
        finally:
            # Who stops listening says so, or the daemon would go on sampling for nobody.
            call.cancel()
