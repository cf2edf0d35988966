"""Control calls from the engine host to every rank, through SGLang's own RPC broadcast.

SGLang runs such a call on every rank at the same point between two launches, which gives swaps
their order (invariant 3). Its reply speaks for rank 0 only, so each rank also acknowledges in its
rank file. The call blocks its caller: one thread owns it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ktd.rankfile import Ack, RankFileReader, Status, Word

# A scheduler between steps answers in milliseconds; one that neither computes nor goes round its
# loop for this long will not answer any more.
_SILENCE_SECONDS = 30.0
_POLL_SECONDS = 0.002
_LOOK_SECONDS = 1.0


class CallFailed(Exception):  # says what happened
    """A rank refused or failed; one sentence."""


class RanksSilent(CallFailed):
    """The schedulers do not answer any more; the engine has to be ended."""


class CollectiveCalls:
    """Calls ``Scheduler.ktd_call`` on every rank and collects the acknowledgements.

    Args:
        broadcast: Sends one request string to every rank and blocks for rank 0's reply.
        ranks: Rank files, one per rank.
    """

    def __init__(self, broadcast: Callable[[str], None], ranks: Sequence[RankFileReader]) -> None:
        self._broadcast = broadcast
        self._ranks = ranks
        self._sequence = itertools.count(1)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ktd-collective")

    async def call(self, name: str, **fields: Any) -> int:
        """Runs one call on every rank and returns its sequence number.

        Raises:
            CallFailed: a rank refused, with its sentence.
            RanksSilent: the schedulers have stopped.
        """
        sequence = next(self._sequence)
        request = json.dumps({"sequence": sequence, "call": name, **fields})
        loop = asyncio.get_running_loop()
        reply = loop.run_in_executor(self._thread, self._run, request)
        while not (await asyncio.wait({reply}, timeout=_LOOK_SECONDS))[0]:
            if all(self._silent(rank) for rank in self._ranks):
                raise RanksSilent(
                    f"SGLang's schedulers did not answer {name!r} within {_SILENCE_SECONDS:.0f} s"
                )
        try:
            acknowledged = await reply
        except Exception as error:
            # SGLang raises what rank 0 answered; our own calls never fail there.
            raise CallFailed(f"SGLang did not run {name!r} on its ranks: {error}") from error
        for rank, ack in zip(self._ranks, acknowledged, strict=True):
            self._require(ack, sequence, rank.rank)
        return sequence

    def _run(self, request: str) -> list[Ack]:
        """Broadcasts and reads the acknowledgements before the next call can overwrite them."""
        self._broadcast(request)
        return [rank.call_ack() for rank in self._ranks]

    async def copied(self, batch_id: int) -> None:
        """Waits until every rank has finished copying a batch that was prepared.

        The acknowledgement may be of a later batch already: one that is copied had all before it
        copied as well.

        Raises:
            CallFailed: a rank's copy failed, of this batch or of one that follows.
            RanksSilent: the schedulers have stopped.
        """
        await self.copying_ended(batch_id)
        for rank in self._ranks:
            ack = rank.copy_ack()
            if ack.status is not Status.OK:
                raise CallFailed(ack.text)

    async def copying_ended(self, batch_id: int) -> None:
        """Waits until no rank is copying the batch any more, whatever became of it.

        Raises:
            RanksSilent: the schedulers have stopped.
        """
        for rank in self._ranks:
            # The acknowledgement is a word in another process's memory: nothing can wake us.
            while rank.copy_ack().sequence < batch_id:
                if self._silent(rank):
                    raise RanksSilent(
                        f"rank {rank.rank} has not copied batch {batch_id} and does not answer"
                    )
                await asyncio.sleep(_POLL_SECONDS)

    def swap_bytes(self) -> int:
        """Bytes copied into slots so far, over all ranks."""
        return sum(rank.word(Word.SWAP_BYTES) for rank in self._ranks)

    @staticmethod
    def _require(ack: Ack, sequence: int, rank: int) -> None:
        if ack.sequence != sequence:
            raise CallFailed(f"rank {rank} did not acknowledge call {sequence}")
        if ack.status is not Status.OK:
            raise CallFailed(ack.text)

    @staticmethod
    def _silent(rank: RankFileReader) -> bool:
        age = (time.monotonic_ns() - rank.word(Word.HEARTBEAT_NS)) / 1e9
        return age > _SILENCE_SECONDS and not rank.word(Word.IN_STEP)
