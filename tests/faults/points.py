"""Where a rank of a real engine can be made to fail: nothing of it is in ktd itself."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ktd.sgl.seam import SchedulerHooks
from tests.faults.armed import Watch

PLANTED = "a planted failure"
# Beside a GPU: that SGLang is of a release that ktd has run on none with, and that such a release
# takes pairs whose expert has no slot for those of the first slot.
RUNNER = "TESTS_RUNNER"
UNTRIED, WRONG = "untried", "wrong"
# That the CPU has half of what a layer has in no slot, of a pass that streams.
HALF = "TESTS_HALF"
# What layers have tried by then, a line each.
TRIED = "tried"
_NO_EXPERT = 1 << 20


class Planted(Exception):
    """Stands for whatever may go wrong at a point."""


def plant_in_ranks() -> None:
    """In this process, as soon as SGLang builds a model in it; in others nothing happens."""
    rank_of = SchedulerHooks.rank_of

    def planting(hooks: Any, layer: Any) -> Any:
        first = hooks._rank is None
        rank = rank_of(hooks, layer)
        if first:
            _plant(Watch(Path(rank.spec.runtime_dir).parent, rank.rank))
        return rank

    SchedulerHooks.rank_of = planting


def _plant(watch: Watch) -> None:
    _plant_runner(os.environ.get(RUNNER), watch.folder / TRIED)
    if HALF in os.environ:
        from ktd.sgl.prefill_share import PrefillShare

        PrefillShare.experts = lambda _share, _tokens, absent: absent // 2
    from ktd.sgl.copier import Copier
    from ktd.sgl.expert_layer import ExpertLayer
    from ktd.sgl.rank import Rank

    def fail_at(point: str) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            if watch.due(point):
                raise Planted(PLANTED)

        return fail

    def die_at(point: str) -> Callable[..., None]:
        def die(*_: Any, **__: Any) -> None:
            if watch.due(point):
                os.kill(os.getpid(), signal.SIGKILL)

        return die

    # Some experts of the batch have been unmapped and others have not, or published and others not.
    _before(ExpertLayer, "reserve", fail_at("prepare"))
    _before(ExpertLayer, "publish", fail_at("publish"))
    _before(Rank, "_upload_tables", fail_at("table-upload"))
    # Everything is copied and nothing is published.
    die = die_at("rank-death")
    _before(Rank, "call", lambda _, request: _publishes(request) and die())
    _before(Rank, "end_step", die_at("rank-death-in-step"))
    _fail_copies(Copier, watch)
    _fail_tasks(Rank, watch)
    _before(Rank, "begin_step", lambda *_, **__: watch.due("pool-thread") and end_a_pool_thread())


def _plant_runner(kind: str | None, tried: Path) -> None:
    if kind is None:
        return
    from ktd.sgl import absent_ids
    from ktd.sgl.sglang_slots import SglangSlots

    absent_ids.untried_on_gpus = lambda release: f"{release}, of which a test says so"
    try_slots = absent_ids.Trials.try_slots

    def try_and_tell(self: Any, *args: Any) -> None:
        try_slots(self, *args)
        with tried.open("a") as lines:
            lines.write(f"{self._layer.layer}\n")

    absent_ids.Trials.try_slots = try_and_tell
    if kind == WRONG:
        compute = SglangSlots.compute

        def compute_all(self: Any, layer: Any, rows: Any, slots: Any, weights: Any) -> Any:
            return compute(self, layer, rows, slots.clamp(min=0), weights)

        SglangSlots.compute = compute_all


def _before(owner: type, name: str, action: Callable[..., object]) -> None:
    """Every call of a method begins with ``action``, which is given the same arguments."""
    original = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        action(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, method)


def _publishes(request: str) -> bool:
    """Alone, or before it prepares the next batch."""
    fields = json.loads(request)
    return fields["call"] == "publish" or "publish" in fields


def _fail_copies(copier: Any, watch: Watch) -> None:
    """A batch is copied by half."""
    run_copies = copier._run_copies

    def run_half(self: Any, addresses: Any) -> None:
        if not watch.due("copy"):
            run_copies(self, addresses)
            return
        run_copies(self, addresses[: len(addresses) // 2])
        raise Planted(PLANTED)

    copier._run_copies = run_half


def _fail_tasks(rank: Any, watch: Watch) -> None:
    """The pool is asked for an expert that does not exist, and throws.

    On a host without a GPU through its call, beside one through the memory that the GPU writes.
    """
    route = rank.route

    def misroute(self: Any, *args: Any) -> Any:
        split = route(self, *args)
        if split.on_cpu and watch.due("cpu-task"):
            split.cpu_ids[split.cpu_ids >= 0] = _NO_EXPERT
        return split

    def spoil_ids(self: Any, **_: Any) -> None:
        if self.side is not None and watch.due("cpu-task"):
            _spoil_ids(self.side.channel)

    rank.route = misroute
    _before(rank, "begin_step", spoil_ids)


def _spoil_ids(channel: Any) -> None:
    """Calls of this step name other memory than the one into which the GPU writes experts' ids."""
    import ctypes

    import torch

    from ktd.cuda import layer_channel

    channel.planted = torch.full_like(channel._ids, _NO_EXPERT)
    request = (ctypes.c_uint64 * 4).from_address(
        channel._box.data_ptr() + layer_channel._REQUEST_OFFSET
    )
    request[1] = channel.planted.data_ptr()


def end_a_pool_thread() -> None:
    """Ends one of the pool's threads, which then never comes to a barrier again.

    Nothing but its own system call ends a thread alone. The pool's block every signal but faults,
    so one of these is given a handler that makes that call.
    """
    import ctypes
    import mmap

    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x3c\x00\x00\x00\x31\xff\x0f\x05")  # mov eax, SYS_exit; xor edi, edi; syscall
    libc = ctypes.CDLL(None, use_errno=True)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGFPE, ctypes.addressof(ctypes.c_char.from_buffer(code)))
    victim = min(filter(_is_of_pool, Path("/proc/self/task").iterdir()))
    if libc.tgkill(os.getpid(), int(victim.name), signal.SIGFPE) != 0:
        raise OSError(ctypes.get_errno(), "the pool's thread cannot be signalled")
    while victim.exists():  # the code must stay until it has run
        time.sleep(0.001)


def _is_of_pool(task: Path) -> bool:
    return (task / "comm").read_text().startswith("ktd-pool-")
