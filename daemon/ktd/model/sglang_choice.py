"""What SGLang chooses by the size of a GPU where its command line does not say.

The rule is that of SGLang 0.5.23; 0.5.17 has smaller values for GPUs of 20 to 35 GiB and the same
for all others. A test compares it with SGLang's own.
"""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20
_MANY_RANKS = 4
# MiB that stay free beside weights and KV cache: for what is always there, a token of prefill, a
# row of the largest decode graph, and ranks that talk to each other; on a large GPU at least so
# many.
_ALWAYS = 512
_PER_TOKEN = 1.5
_FEWEST_TOKENS = 2048
_PER_ROW = 2
_PER_RANK = 128
_LARGE = 60 * 1024
_LEAST_OF_LARGE = 10 * 1024


@dataclass(frozen=True, slots=True)
class _Row:
    """Defaults of GPUs with less than ``below`` MiB."""

    below: float
    chunk: int
    graph_rows: int
    graph_rows_of_many: int


_ROWS = (
    _Row(20 * 1024, 2048, 8, 8),
    _Row(35 * 1024, 4096, 48, 160),
    _Row(60 * 1024, 4096, 32, 160),
    _Row(160 * 1024, 8192, 256, 512),
    _Row(float("inf"), 16384, 512, 512),
)
# Where it does not know the size.
_UNKNOWN = _Row(0, 4096, 160, 160)


def _row(gpu_bytes: int) -> _Row:
    if not gpu_bytes:
        return _UNKNOWN
    return next(row for row in _ROWS if gpu_bytes / _MIB < row.below)


def default_chunk(gpu_bytes: int) -> int:
    """Its ``--chunked-prefill-size``.

    Args:
        gpu_bytes: Memory of one GPU; 0: unknown.
    """
    return _row(gpu_bytes).chunk


def kept_free(gpu_bytes: int, *, chunk: int, ranks: int, graph_rows: int | None = None) -> int:
    """Bytes of one GPU that its ``--mem-fraction-static`` leaves free.

    Args:
        gpu_bytes: Memory of the GPU; 0: unknown.
        chunk: Tokens of the largest prefill step.
        ranks: Tensor-parallel ranks.
        graph_rows: Of the largest decode graph; None: its default.
    """
    row = _row(gpu_bytes)
    if graph_rows is None:
        graph_rows = row.graph_rows if ranks < _MANY_RANKS else row.graph_rows_of_many
    kept = _ALWAYS + max(chunk, _FEWEST_TOKENS) * _PER_TOKEN
    kept += ranks * _PER_RANK + graph_rows * _PER_ROW
    if gpu_bytes / _MIB > _LARGE:
        kept = max(kept, _LEAST_OF_LARGE)
    return int(kept * _MIB)
