"""Timed calls of the pool: what the engine does for one layer of one step, again and again."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ktd.bench.kernels.layers import LayerSet
from ktd.bench.kernels.routing import Routing
from ktd.experts.pool import ExpertPool

_REST_CACHES = 2  # last-level caches of other experts between two reads of one
_MOST_CALLS = 2048
_WAKE_SECONDS = 0.01  # calls longer than this do not notice that the pool's threads had slept
_SLACK = 2.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its seconds, and the bytes of the distinct experts that it read."""

    seconds: float
    bytes: int


class Calls:
    """Calls of one pool on one set of layers with so many tokens.

    The extension is called by address, with everything allocated and drawn beforehand: what is
    timed is the pool and about a microsecond of Python.

    Args:
        pool: Has no layers yet, or others.
        layers: Registered with it here.
        tokens: Of each call.
        cache: Bytes of the last-level cache.
    """

    def __init__(self, pool: ExpertPool, layers: LayerSet, tokens: int, *, cache: int) -> None:
        shape, plan = layers.shape, layers.plan
        self.layers = layers
        self.tokens = tokens
        self.top_k = min(shape.top_k, plan.experts)
        self.operations = shape.operations(tokens)
        self.pool = pool
        self._handles = [pool.add_layer(layer) for layer in layers.layers]
        self._routing = Routing(
            layers=plan.layers,
            experts=plan.experts,
            top_k=self.top_k,
            expert_bytes=plan.expert_bytes,
            rest_bytes=_REST_CACHES * cache,
        )
        self.x = torch.randn(tokens, shape.hidden).bfloat16()
        self._weights = np.full((tokens, self.top_k), 1 / self.top_k, dtype=np.float32)
        self._out = np.empty((tokens, shape.hidden), dtype=np.float32)
        self._typical = 0.0  # seconds of a call, once known

    def draw(self) -> tuple[int, npt.NDArray[np.int32]]:
        """The next call's layer (of ``layers``) and experts."""
        return self._routing.draw(self.tokens)

    def window(self, seconds: float) -> list[Call]:
        """About as many calls as fit into ``seconds``, at least one."""
        if self._typical == 0.0:
            self._typical = self._run(1)[0].seconds  # not counted: first touch of everything
        warm = 1 if self._typical < _WAKE_SECONDS else 0
        count = min(_MOST_CALLS, max(1, round(seconds / self._typical)))
        calls = self._run(warm + count, seconds * _SLACK)[warm:]
        self._typical = sorted(call.seconds for call in calls)[len(calls) // 2]
        return calls

    def _run(self, count: int, limit: float = float("inf")) -> list[Call]:
        drawn = [self.draw() for _ in range(count)]
        prepared = [(self._handles[layer], ids.ctypes.data, ids) for layer, ids in drawn]
        x, weights, out = self.x.data_ptr(), self._weights.ctypes.data, self._out.ctypes.data
        tokens, top_k, forward = self.tokens, self.top_k, self.pool.native.forward
        calls: list[Call] = []
        with pinned(self.pool.native.cpus[0]):
            began = time.perf_counter()
            for layer, ids, _ in prepared:
                before = time.perf_counter_ns()
                size = forward(layer, x, ids, weights, out, tokens, top_k)
                took = time.perf_counter_ns() - before
                calls.append(Call(took / 1e9, size))
                if len(calls) > 1 and time.perf_counter() - began > limit:
                    break
        return calls


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Keeps this thread on ``cpu``, which the pool leaves to its caller; nothing is collected."""
    before = os.sched_getaffinity(0)
    gc.collect()
    gc.disable()
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        gc.enable()
