"""Ends streams when the daemon stops, so that an open watch never holds it up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

T = TypeVar("T")


async def until(stop: asyncio.Event, items: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items up to their end, or until ``stop`` is set; closes ``items`` in either case."""
    stopping = asyncio.ensure_future(stop.wait())
    upcoming: asyncio.Future[T] | None = None
    try:
        while not stop.is_set():
            upcoming = asyncio.ensure_future(_next(items))
            either: set[asyncio.Future[Any]] = {upcoming, stopping}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not upcoming.done():
                return
            try:
                item = upcoming.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        stopping.cancel()
        if upcoming is not None:
            # Also when it is done: an exception that nobody reads would be logged.
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        if (close := getattr(items, "aclose", None)) is not None:
            await close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)
