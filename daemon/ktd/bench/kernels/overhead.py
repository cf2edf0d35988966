"""What a call costs that computes nothing: every expert is somebody else's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ktd.bench.kernels.calls import pinned
from ktd.bench.kernels.spread import quantile
from ktd.experts.pool import ExpertPool

_WARM_UPS = 200
_CALLS = 3000


@dataclass(frozen=True, slots=True)
class Overhead:
    """Microseconds of an empty call of one token, median and 99th percentile of each way.

    Attributes:
        timer_us: Of nothing at all: what timing costs.
        native_us: By address, as the cells are timed.
        native_p99_us: The same.
        python_us: Through the pool's Python face, with its checks of tensors.
        python_p99_us: The same.
    """

    timer_us: float
    native_us: float
    native_p99_us: float
    python_us: float
    python_p99_us: float

    def as_json(self) -> dict[str, float]:
        """For ``--json``."""
        return asdict(self)

    @classmethod
    def of(cls, pool: ExpertPool, layer: int, hidden: int, top_k: int) -> Overhead:
        """Measures on a layer of the pool."""
        x = torch.randn(1, hidden).bfloat16()
        ids = torch.full((1, top_k), -1, dtype=torch.int32)
        weights = torch.from_numpy(np.ones((1, top_k), dtype=np.float32))
        out = torch.empty(1, hidden)
        addresses = (x.data_ptr(), ids.data_ptr(), weights.data_ptr(), out.data_ptr())
        forward = pool.native.forward
        with pinned(pool.native.cpus[0]):
            timer = _times(lambda: None)
            native = _times(lambda: forward(layer, *addresses, 1, top_k))
            python = _times(lambda: pool.forward(layer, x, ids, weights, out))
        return cls(
            timer_us=quantile(timer, 0.5),
            native_us=quantile(native, 0.5),
            native_p99_us=quantile(native, 0.99),
            python_us=quantile(python, 0.5),
            python_p99_us=quantile(python, 0.99),
        )


def _times(call: Callable[[], object]) -> list[float]:
    for _ in range(_WARM_UPS):
        call()
    times = []
    for _ in range(_CALLS):
        before = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - before) / 1e3)
    return times
