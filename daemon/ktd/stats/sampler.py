"""Reads the rank files of one engine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ktd.rankfile import KINDS, TIERS, RankFileReader, Word, path_of
from ktd.stats.model import RankSample, Sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


class RankSampler:
    """Maps the files of every rank and reads them on demand; nothing is read in between.

    The maps stay valid when the files are removed, so the last counts of an engine that has ended
    can still be read.

    Raises:
        OSError: a rank has not made its file yet.
        ValueError: a file is not a rank file of this engine's shape.
    """

    def __init__(
        self,
        *,
        engine_id: str,
        runtime_dir: Path,
        num_ranks: int,
        moe_layers: tuple[int, ...],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.engine_id = engine_id
        self._moe_layers = moe_layers
        self._clock = clock
        self._readers: list[RankFileReader] = []
        try:
            for rank in range(num_ranks):
                self._readers.append(RankFileReader(path_of(runtime_dir, rank)))
        except (OSError, ValueError):
            self.close()
            raise
        self._first = self._readers[0]
        if self._first.num_layers != len(moe_layers):
            found = self._first.num_layers
            self.close()
            raise ValueError(f"the rank file has {found} MoE layers, the model {len(moe_layers)}")

    def sample(self) -> Sample:
        """Every counter now; well below 1 ms for 94 layers of 512 experts."""
        first = self._first
        return Sample(
            time=self._clock(),
            start_time=first.start_time_ns / 1e9,
            engine_id=self.engine_id,
            moe_layers=self._moe_layers,
            num_experts=first.num_experts,
            counts=_counts(first),
            decode_steps=first.word(Word.DECODE_STEPS),
            prefill_steps=first.word(Word.PREFILL_STEPS),
            decode_tokens=first.word(Word.DECODE_TOKENS),
            prefill_tokens=first.word(Word.PREFILL_TOKENS),
            cpu_weight_bytes=self._sum(Word.CPU_WEIGHT_BYTES),
            swap_bytes=self._sum(Word.SWAP_BYTES),
            move_calls=first.word(Word.MOVE_CALLS),
            move_call_seconds=self.move_call_seconds(),
            ranks=tuple(_rank_sample(reader) for reader in self._readers),
        )

    def steps(self) -> int:
        """Steps so far: while they stand still, nothing is counted."""
        return self._first.word(Word.DECODE_STEPS) + self._first.word(Word.PREFILL_STEPS)

    def move_call_seconds(self) -> float:
        """What moving experts has taken of the scheduler so far."""
        return self._first.word(Word.MOVE_CALL_NS) / 1e9

    def close(self) -> None:
        """Unmaps the files."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()

    def _sum(self, word: Word) -> int:
        return sum(reader.word(word) for reader in self._readers)


def _counts(reader: RankFileReader) -> NDArray[np.int64]:
    # Element by element, each in one load: the rank goes on counting meanwhile.
    flat = np.frombuffer(reader.counters, np.uint64).astype(np.int64)
    return flat.reshape(len(KINDS), reader.num_layers, reader.num_experts, len(TIERS))


def _rank_sample(reader: RankFileReader) -> RankSample:
    return RankSample(
        rank=reader.rank,
        pid=reader.pid,
        heartbeat_ns=reader.word(Word.HEARTBEAT_NS),
        in_step=bool(reader.word(Word.IN_STEP)),
        error=reader.word(Word.ERROR),
        loaded_bytes=reader.word(Word.LOADED_BYTES),
        total_bytes=reader.word(Word.TOTAL_BYTES),
        slot_bytes=reader.word(Word.SLOT_BYTES),
    )
