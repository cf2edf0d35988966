"""A rank's GPU: the channel to the pool, the tables and counters on the device, the copy stream.

Everything here is called by the scheduler's thread, unless it says otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ktd.cuda.error_words import ErrorWords
from ktd.cuda.layer_channel import GIVE_UP_S, ChannelError, DeviceLayer, LayerChannel
from ktd.cuda.streams import has_passed, new_event, new_stream
from ktd.enginespec import EngineSpec
from ktd.errors import CudaFailed
from ktd.experts import _native
from ktd.experts.pool import ExpertPool
from ktd.rankfile import Kind
from ktd.sgl.counter_copier import CounterCopier
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.prefill_clock import PrefillClock
from ktd.sgl.prefill_division import PrefillDivision
from ktd.sgl.prefill_stream import CpuHelp, PrefillStream
from ktd.sgl.scratch_expert import ScratchExpert

# Rows of a step beyond a chunk of prefill: with mixed batches each running request adds one.
_MIXED_ROWS = 1024
_ANSWER_BYTES = 4  # float32
# As long as a pool is waited for without a GPU (pool_watch.py), where the disk may be slow too.
_GIVE_UP_DISK_S = 20.0
# SGLang's own choices for the largest chunk, where nobody gave one: by the GPU's memory.
_CHUNK, _LARGE_CHUNK, _LARGE_GPU = 8192, 16384, 160_000 << 20


@dataclass(frozen=True, slots=True)
class Streams:
    """What a :class:`PrefillStream` is made with."""

    threshold: int
    buffer_bytes: int
    cpu_share: bool = False
    experts: int | None = None

    @classmethod
    def of(cls, spec: EngineSpec) -> Streams | None:
        """As the engine was started; None: long prefills are computed like others."""
        if spec.prefill_threshold is None:
            return None
        return cls(
            spec.prefill_threshold,
            spec.prefill_buffer_bytes,
            spec.prefill_cpu_share,
            spec.prefill_experts,
        )


class CudaSide:
    """What one rank has on its GPU beside SGLang's own; made with the first MoE layer.

    The pool is awake while a launched step is unfinished, if a layer may ask it. Until the
    scheduler is complete, steps run that nobody announces (kernels are warmed up for graphs); their
    rows count as padding.

    Args:
        pool: Computes what is in no slot.
        counters: int64 ``[kinds, MoE layers, E, tiers]`` in host memory, which the daemon reads.
        hidden: Width of the hidden states.
        top_k: Experts of a token.
        chunk: Rows of the largest prefill step, beyond which a step is computed in parts; None:
            SGLang's default for such a GPU.
        streams: Takes long prefills; None: they go to the pool like the others.
        errors: The words of all ranks; None: this is the only one.
        rank: Which one this is.
        from_disk: Experts may have to come from a disk, for which a pool is waited for longer.

    Attributes:
        channel: The way to the pool.
        num_tokens: int32 ``[1]`` on the device: rows of the step that runs; others are padding.
        first_decode_row: Of the step that is being launched: rows from it on decode a token.
        decoding: Whether that step reads no prompt.
        stream: The rank's buffer for long prefills, or None.
        streaming: Whether the step that is being launched passes through it.
        scratch: Through which experts pass into slots that hold them repacked, by what they are.
    """

    def __init__(
        self,
        pool: ExpertPool,
        counters: torch.Tensor,
        *,
        hidden: int,
        top_k: int,
        chunk: int | None,
        streams: Streams | None = None,
        errors: ErrorWords | None = None,
        rank: int = 0,
        from_disk: bool = False,
    ) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        total = torch.cuda.get_device_properties(self.device).total_memory
        default = _LARGE_CHUNK if total >= _LARGE_GPU else _CHUNK
        self.max_rows = (chunk or default) + _MIXED_ROWS
        self._errors = errors
        self.channel = LayerChannel(
            pool,
            hidden=hidden,
            max_tokens=self.max_rows,
            top_k=top_k,
            give_up_s=_GIVE_UP_DISK_S if from_disk else GIVE_UP_S,
            told=None if errors is None else errors.address(rank),
        )
        self.num_tokens = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.first_decode_row = 0
        self.decoding = False
        _, layers, experts, _ = counters.shape
        self.stream: PrefillStream | None = None
        if streams is not None:
            self.stream = PrefillStream(
                self.device,
                streams.threshold,
                streams.buffer_bytes,
                PrefillDivision(self.device, layers, experts),
                CpuHelp(self.channel.long_seconds, hidden * _ANSWER_BYTES, top_k)
                if streams.cpu_share
                else None,
                experts=streams.experts,
            )
        self.streaming = False
        self.scratch: dict[Hashable, ScratchExpert] = {}
        self._host_counters = counters
        self._tables = torch.full((layers, experts), -1, dtype=torch.int32, device=self.device)
        self._counters = torch.zeros(counters.shape, dtype=torch.int64, device=self.device)
        # Written by every step, for a graph cannot be told later that somebody asks.
        self._seen = torch.full(
            (layers, self.max_rows, top_k), -1, dtype=torch.int16, device=self.device
        )
        self._seen_apart: dict[int, torch.Tensor] = {}
        self._wants_ids = False
        self._copier = CounterCopier(self._counters, counters)
        self._running: deque[torch.cuda.Event] = deque()
        self._spare: list[torch.cuda.Event] = []
        self._beside = new_stream(self.device)
        self._starting = True
        self._asks_pool = False  # a layer has a CPU path
        self._rows = 0  # what num_tokens holds, or will
        # A layer of the model that is being loaded may be run to warm something up.
        self.channel.begin_step()

    def facts(self) -> dict[str, int | bool]:
        """What the rank's hello says of it."""
        # Options that turn them on are refused.
        found: dict[str, int | bool] = {"prefill_graphs": False}
        # Where every layer has all its experts in slots, nothing streams.
        if self.stream is not None and self.stream.num_bytes:
            found["prefill_threshold"] = self.stream.threshold
            found["prefill_buffer_bytes"] = self.stream.num_bytes
        return found

    # --- layers ----------------------------------------------------------------------------

    def layer(self, position: int, handle: int | None, *, deferred: int = 0) -> DeviceLayer:
        """One layer on the device.

        Args:
            position: Index among the MoE layers.
            handle: The pool's, or None if every expert has a slot for as long as the engine lives.
            deferred: As of :class:`DeviceLayer`.
        """
        self._asks_pool |= handle is not None
        return DeviceLayer(
            handle,
            self._tables[position],
            self._counters[Kind.PREFILL, position],
            self._counters[Kind.DECODE, position],
            map_padding=handle is None,
            seen=self._seen[position],
            deferred=deferred,
        )

    def streamed_layer(self, position: int, handle: int, table: torch.Tensor) -> DeviceLayer:
        """The same layer for steps that pass through the stream, divided by a table of its own.

        What is counted stays what is in slots.
        """
        self._asks_pool = True
        return DeviceLayer(
            handle,
            table,
            self._counters[Kind.PREFILL, position],
            self._counters[Kind.DECODE, position],
            resident=self._tables[position],
            seen=self._seen[position],
        )

    def write_tables(self, layers: Iterable[tuple[int, ExpertLayer]]) -> None:
        """Enqueues, on the current stream, what changed in the mapping of layers by position."""
        places: list[int] = []
        slots: list[int] = []
        experts = self._tables.shape[1]
        for position, layer in layers:
            for expert, slot in layer.take_changes().items():
                places.append(position * experts + expert)
                slots.append(slot)
        if not places:
            return
        self._tables.view(-1).index_copy_(
            0, self._to_device(places, torch.int64), self._to_device(slots, torch.int32)
        )

    def _to_device(self, values: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        # Pinned: a copy from other memory may make the host wait for the stream.
        pinned = torch.tensor(values, dtype=dtype, device="cpu").pin_memory()
        return pinned.to(self.device, non_blocking=True)

    # --- steps -----------------------------------------------------------------------------

    def begin_step(self, rows: int, decode_rows: int | None, *, wants_ids: bool = False) -> None:
        """A forward pass is about to be launched on the current stream.

        Args:
            rows: Its tokens, without padding.
            decode_rows: How many of them, at the end, decode a token; None: all, and it reads no
                prompt.
            wants_ids: Whether :meth:`routed` will be asked about this step.
        """
        self._retire()
        self._wants_ids = wants_ids
        if self._asks_pool:
            self.channel.begin_step()
        self.decoding = decode_rows is None
        self.first_decode_row = 0 if decode_rows is None else rows - decode_rows
        if rows != self._rows:
            self._rows = rows
            self.num_tokens.fill_(rows)
        stream = self.stream
        self.streaming = (
            stream is not None
            and self.first_decode_row >= stream.threshold
            and rows <= self.max_rows
        )
        if stream is None:
            return
        if self.streaming:
            stream.begin(rows, self._host_counters)
        elif self._clock is not None and rows >= _native.LONG_CALL:
            self._clock.begin()

    def launched(self) -> None:
        """It has been launched."""
        event = self._spare.pop() if self._spare else new_event()
        event.record()
        self._running.append(event)
        if self._clock is not None:
            self._clock.launched()
        self._copier.step_launched(event)

    @property
    def _clock(self) -> PrefillClock | None:
        return None if self.stream is None else self.stream.clock

    def idle(self) -> None:
        """The scheduler has nothing to do: what was launched ends, and the pool may sleep."""
        while self._running:
            self._running[0].synchronize()
            self._retire()

    def started(self) -> None:
        """The scheduler is complete: from now on steps are announced."""
        if self._starting:
            self._starting = False
            torch.cuda.synchronize(self.device)
            self.channel.end_step()
            self._copier.start()

    def _retire(self) -> None:
        while self._running and has_passed(self._running[0]):
            event = self._running.popleft()
            if self._asks_pool:
                self.channel.end_step()
            self._spare.append(event)

    def check(self, done: Any) -> None:
        """Looks whether the pool has answered every layer, before results are used.

        Args:
            done: SGLang's event behind the results' copy to the host, or None: the current stream
                is waited for.

        Raises:
            CudaFailed: It has not.
        """
        if done is None:
            torch.cuda.current_stream(self.device).synchronize()
        else:
            done.synchronize()
        if self._clock is not None:
            self._clock.look()
        self.channel.check()
        failed = None if self._errors is None else self._errors.first()
        if failed is not None:
            name = ChannelError(failed[1]).name
            raise CudaFailed(f"rank {failed[0]} has no answer for a layer ({name})")

    # --- routing ---------------------------------------------------------------------------

    def saw(self, position: int, ids: torch.Tensor) -> None:
        """A layer's routing in a step of more than ``max_rows`` rows, which nothing keeps else."""
        if self._wants_ids:
            self._seen_apart[position] = ids.to(torch.int16)

    def routed(self, rows: int) -> torch.Tensor:
        """Experts of the newest step, of so many rows: int16 ``[MoE layers, rows, K]``, -1: none.

        The step has to have ended; the answer is on the host.
        """
        if rows <= self.max_rows:
            return self._seen[:, :rows].cpu()
        layers, _, top_k = self._seen.shape
        found = torch.full((layers, rows, top_k), -1, dtype=torch.int16, device="cpu")
        for position, ids in self._seen_apart.items():
            found[position, :, : ids.shape[1]] = ids.cpu()
        self._seen_apart.clear()
        return found

    # --- statistics ------------------------------------------------------------------------

    def refresh_counters(self) -> None:
        """Brings the host's counters up to date; waits for the steps that run."""
        self._copier.copy_now()

    def reset_counters(self) -> None:
        """All counters begin again with the next step."""
        self._copier.reset()

    # --- streams ---------------------------------------------------------------------------

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is enqueued in the body runs beside what follows it, until :meth:`join`."""
        self._beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._beside):
            yield

    def join(self) -> None:
        """The current stream waits for the body of :meth:`beside`."""
        torch.cuda.current_stream(self.device).wait_stream(self._beside)

    @staticmethod
    def steps_on(scheduler: Any) -> AbstractContextManager[Any]:
        """Makes the stream of SGLang's steps the current one: work is ordered between two steps."""
        if getattr(scheduler, "enable_overlap", False):
            return torch.cuda.stream(scheduler.forward_stream)
        return torch.cuda.stream(torch.cuda.current_stream())

    def close(self) -> None:
        """Nothing is launched any more."""
        self._copier.stop()
        self.channel.close()
