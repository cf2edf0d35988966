"""The memory-mapped file through which a SGLang rank reports to the daemon.

One file per rank lies in the engine's runtime directory. The rank writes, everybody else maps it
read-only; nothing is sent per step, so a reader can never slow the engine. All integers are
little-endian. Layout, version 3:

====== ====== =========================================================================
offset type   meaning
====== ====== =========================================================================
0      8s     magic ``KTDRANK1``
8      u32×2  version, offset of the counters (4096)
16     u32×4  number of MoE layers, experts per layer, tiers (2: GPU slot, CPU), rank
32     u64×2  pid, start time in Unix nanoseconds
48     u32    kinds of work (2: prefill, decode)
64     u64×32 words, see :class:`Word`
512    -      acknowledgement of the last control call: u64 sequence, u32 status, u32 length, text
1536   -      the same for the last finished copy
2560   -      hello: u32 length, JSON text (0: the rank has not said hello)
4096   u64    counters ``[kind, layer, expert, tier]``: (token, expert) pairs since the start
then   u64    calls of the pool that read weights, since the start
then   u64×4  the newest 8192 of them, a ring: see :class:`PoolCall`
====== ====== =========================================================================

A block's sequence is written after its text, so a reader that sees a sequence sees its text; the
same goes for the number of calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"KTDRANK1"
VERSION = 3
TIERS = ("gpu", "cpu")
KINDS = ("prefill", "decode")
_WORDS = 64
_ACK = 512
_COPY = 1536
_HELLO = 2560
_COUNTERS = 4096
_BLOCK = struct.Struct("<QII")
_TEXT_MAX = 1024 - _BLOCK.size
POOL_CALLS = 8192
_POOL_CALL = struct.Struct("<QQQQ")


class Word(IntEnum):
    """Index of a u64 word; times are CLOCK_MONOTONIC nanoseconds."""

    HEARTBEAT_NS = 0
    DECODE_STEPS = 1
    PREFILL_STEPS = 2
    DECODE_TOKENS = 3
    PREFILL_TOKENS = 4
    LOADED_BYTES = 5
    TOTAL_BYTES = 6
    SWAP_BYTES = 7
    CPU_WEIGHT_BYTES = 8
    SLOT_BYTES = 9
    ERROR = 10
    # 1 while a forward pass runs: a long prefill is not a dead scheduler.
    IN_STEP = 11
    # Control calls that move experts, and what they took of the scheduler's time.
    MOVE_CALLS = 12
    MOVE_CALL_NS = 13


class Kind(IntEnum):
    """What a token is computed for: first index of the counters."""

    PREFILL = 0
    DECODE = 1


class Status(IntEnum):
    """Outcome in an acknowledgement block."""

    NONE = 0
    OK = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Ack:
    """One acknowledgement: the call's sequence number, its outcome and, on failure, a sentence."""

    sequence: int
    status: Status
    text: str


class PoolCall(NamedTuple):
    """One layer's call of a rank's pool.

    Attributes:
        began_ns: CLOCK_MONOTONIC, so calls of several ranks can be laid beside each other.
        ended_ns: The same.
        num_bytes: Of the distinct experts' weights.
        tokens: Rows of the step.
    """

    began_ns: int
    ended_ns: int
    num_bytes: int
    tokens: int


def _counters_end(num_layers: int, num_experts: int) -> int:
    return _COUNTERS + 8 * len(KINDS) * num_layers * num_experts * len(TIERS)


def _file_size(num_layers: int, num_experts: int) -> int:
    return _counters_end(num_layers, num_experts) + 8 + POOL_CALLS * _POOL_CALL.size


def path_of(runtime_dir: Path, rank: int) -> Path:
    """Where the file of ``rank`` lies."""
    return runtime_dir / f"rank-{rank}.ktd"


class RankFileReader:
    """Read-only view of one rank's file.

    Raises:
        OSError: the file does not exist (yet).
        ValueError: it is not a rank file of this version, or not complete yet.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._map[:8] != MAGIC:
            raise ValueError(f"{path} is not a rank file")
        version, offset = struct.unpack_from("<II", self._map, 8)
        if version != VERSION or offset != _COUNTERS:
            raise ValueError(f"{path} has rank file version {version}, expected {VERSION}")
        self.num_layers, self.num_experts, tiers, self.rank = struct.unpack_from(
            "<IIII", self._map, 16
        )
        self.pid, self.start_time_ns = struct.unpack_from("<QQ", self._map, 32)
        (kinds,) = struct.unpack_from("<I", self._map, 48)
        if (
            tiers != len(TIERS)
            or kinds != len(KINDS)
            or len(self._map) < _file_size(self.num_layers, self.num_experts)
        ):
            raise ValueError(f"{path} is truncated")
        self._calls = _counters_end(self.num_layers, self.num_experts)
        # A cast view reads a number in one load; struct would do it byte by byte, and see carries.
        self._words = memoryview(self._map)[_WORDS : _WORDS + 8 * 32].cast("Q")
        self._counters = memoryview(self._map)[_COUNTERS : self._calls].cast("Q")

    def word(self, word: Word) -> int:
        """Current value of one word."""
        return self._words[word]

    @property
    def counters(self) -> memoryview:
        """The counters themselves, u64: flat ``[kind, layer, expert, tier]``; release it soon."""
        return self._counters

    def call_ack(self) -> Ack:
        """Acknowledgement of the last control call."""
        return self._block(_ACK)

    def copy_ack(self) -> Ack:
        """Acknowledgement of the last finished copy."""
        return self._block(_COPY)

    @property
    def num_pool_calls(self) -> int:
        """Calls of the pool that read weights, since the start."""
        (count,) = struct.unpack_from("<Q", self._map, self._calls)
        return int(count)

    def pool_calls(self, since: int = 0) -> list[PoolCall]:
        """The newest of them, oldest first, at most ``POOL_CALLS``.

        Args:
            since: Without the first so many since the start.
        """
        count = self.num_pool_calls
        first = max(since, count - POOL_CALLS)
        found = [
            PoolCall._make(
                _POOL_CALL.unpack_from(
                    self._map, self._calls + 8 + index % POOL_CALLS * _POOL_CALL.size
                )
            )
            for index in range(first, count)
        ]
        # Those that may have been overwritten meanwhile, and the one that is being written.
        lost = self.num_pool_calls + 1 - POOL_CALLS - first
        return found[max(0, lost) :]

    def hello(self) -> dict[str, Any] | None:
        """What the rank said when its model was loaded, or None before that."""
        (length,) = struct.unpack_from("<I", self._map, _HELLO)
        if not length:
            return None
        value: dict[str, Any] = json.loads(self._map[_HELLO + 4 : _HELLO + 4 + length])
        return value

    def close(self) -> None:
        """Unmaps the file."""
        self._words.release()
        self._counters.release()
        self._map.close()

    def _block(self, offset: int) -> Ack:
        while True:
            sequence, status, length = _BLOCK.unpack_from(self._map, offset)
            start = offset + _BLOCK.size
            text = bytes(self._map[start : start + min(length, _TEXT_MAX)])
            if _BLOCK.unpack_from(self._map, offset)[0] == sequence:
                return Ack(sequence, Status(status), text.decode(errors="replace"))


class RankFileWriter:
    """Creates and writes one rank's file; the calls of the pool are written by native code."""

    def __init__(self, path: Path, *, rank: int, num_layers: int, num_experts: int) -> None:
        size = _file_size(num_layers, num_experts)
        self._calls = _counters_end(num_layers, num_experts)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w+b") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        struct.pack_into("<8sII", self._map, 0, MAGIC, VERSION, _COUNTERS)
        struct.pack_into("<IIII", self._map, 16, num_layers, num_experts, len(TIERS), rank)
        struct.pack_into("<QQ", self._map, 32, os.getpid(), time.time_ns())
        struct.pack_into("<I", self._map, 48, len(KINDS))
        self.words = memoryview(self._map)[_WORDS : _WORDS + 8 * 32].cast("Q")
        self.counters = memoryview(self._map)[_COUNTERS : self._calls]
        # The name appears when the header is complete.
        temporary.rename(path)

    def pool_calls_address(self) -> int:
        """Where native code writes them (csrc/call_log.h), for as long as this object lives."""
        return ctypes.addressof(ctypes.c_uint64.from_buffer(self._map, self._calls))

    def beat(self) -> None:
        """Says that the scheduler's loop is alive."""
        self.words[Word.HEARTBEAT_NS] = time.monotonic_ns()

    def say_hello(self, facts: dict[str, Any]) -> None:
        """Publishes the rank's facts; the daemon becomes ready only after every rank did."""
        data = json.dumps(facts).encode()
        if len(data) > _COUNTERS - _HELLO - 4:
            raise ValueError(f"hello of {len(data)} bytes does not fit into the rank file")
        self._map[_HELLO + 4 : _HELLO + 4 + len(data)] = data
        struct.pack_into("<I", self._map, _HELLO, len(data))

    def acknowledge_call(self, sequence: int, error: str | None = None) -> None:
        """Acknowledges a control call; ``error`` is one sentence."""
        self._write_block(_ACK, sequence, error)

    def acknowledge_copy(self, sequence: int, error: str | None = None) -> None:
        """Acknowledges a finished (or failed) copy."""
        self._write_block(_COPY, sequence, error)

    def close(self) -> None:
        """Releases what can be released; native code may still hold the address."""
        with contextlib.suppress(BufferError):
            self.words.release()
            self.counters.release()
            self._map.close()

    def _write_block(self, offset: int, sequence: int, error: str | None) -> None:
        text = (error or "").encode()[:_TEXT_MAX]
        start = offset + _BLOCK.size
        self._map[start : start + len(text)] = text
        status = Status.FAILED if error is not None else Status.OK
        struct.pack_into("<II", self._map, offset + 8, status, len(text))
        struct.pack_into("<Q", self._map, offset, sequence)
