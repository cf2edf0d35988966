"""What ktd keeps in one SGLang scheduler process: its layers, pool, copier and rank file."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ktd.cuda import host_memory
from ktd.enginespec import MMAP, EngineSpec, report_failure
from ktd.errors import CudaFailed
from ktd.experts._native import cpu_quota
from ktd.experts.pool import ExpertPool, Split, split
from ktd.experts.scattered import ExpertTensor
from ktd.experts.store import HostStore
from ktd.rankfile import KINDS, POOL_CALLS, TIERS, Kind, RankFileWriter, Word, path_of
from ktd.sgl.bench_routing import BenchRouting, BenchRoutingRefused, bench_routing_of
from ktd.sgl.copier import Copier
from ktd.sgl.copy_lane import lane_to
from ktd.sgl.cores import nodes_of_ranks, pool_cores
from ktd.sgl.expert_layer import ExpertLayer, MoveRefused
from ktd.sgl.hello import hello_of
from ktd.sgl.move_calls import MoveCalls
from ktd.sgl.pool_watch import PoolWatch
from ktd.sgl.quantiser import Quantiser
from ktd.sgl.recorder import Recorder, RecordingRefused
from ktd.sgl.recording_calls import RecordingCalls
from ktd.sgl.weight_reader import WeightReader

if TYPE_CHECKING:
    from ktd.sgl.cuda_side import CudaSide

logger = logging.getLogger(__name__)

# Beside a GPU the pool waits, between two layers of a decode step, while attention runs: a thread
# that slept then would be woken, in 50 to 150 us, once a layer.
_SPIN_US = 500


class StartRefused(RuntimeError):
    """The engine cannot go on; the sentence has been left for the daemon."""


class Rank:
    """State of this rank, and the control calls on it.

    It is created when the model's first MoE layer is built, when SGLang knows the rank. Every
    control call arrives in the scheduler's thread between two launches.

    Args:
        spec: What the engine was started with.
        rank: Which of its ranks this is.
        world_size: Of how many.
        chunk: Tokens of the largest prefill step, or None if there is no limit.
    """

    def __init__(
        self, spec: EngineSpec, *, rank: int, world_size: int, chunk: int | None = None
    ) -> None:
        self.spec = spec
        self.rank = rank
        self.world_size = world_size
        self.layers: dict[int, ExpertLayer] = {}
        self.file = RankFileWriter(
            path_of(Path(spec.runtime_dir), rank),
            rank=rank,
            num_layers=len(spec.moe_layers),
            num_experts=spec.num_experts,
        )
        self.store = HostStore(mapped=spec.host_memory == MMAP)
        self.copied_bytes = 0  # of experts: with a mapped store, what could not stay in its file
        self.side: CudaSide | None = None  # with a GPU, from the first MoE layer on
        self.bench_routing: BenchRouting | None = None  # for ktd bench table alone
        self._ending: str | None = None
        self._chunk = chunk
        self.reader: WeightReader | None = None  # while the model is loaded
        # int64 stands for uint64: torch has no view of a uint64 buffer in every release we run on.
        counters = torch.frombuffer(self.file.counters, dtype=torch.int64).view(
            len(KINDS), len(spec.moe_layers), spec.num_experts, len(TIERS)
        )
        # Addresses, because looking at a tensor in every layer of every step costs more than
        # counting does; the file keeps the memory.
        self._counter_addresses = [[row.data_ptr() for row in of_kind] for of_kind in counters]
        self._counters = counters
        self._decode_rows: int | None = 0
        self.recording = RecordingCalls(
            Recorder(counters, self._experts_in_slots) if rank == 0 else None,
            Path(spec.runtime_dir),
            spec.moe_layers,
            spec.num_experts,
            refresh=self._refresh_counters if self.on_gpu else None,
            routed=self._routed if self.on_gpu else None,
        )
        self._weight_bytes_at_reset = 0
        self._slot_weight_bytes = 0
        cores = pool_cores(
            spec.cpu_threads,
            rank,
            world_size,
            quota=cpu_quota(),
            gpu=self.on_gpu,
            nodes=nodes_of_ranks(),
        )
        if cores.note:
            logger.warning("%s", cores.note)
        self.pool = ExpertPool(
            threads=cores.threads,
            isa=spec.isa or "",
            cpus=cores.cpus,
            spin_us=_SPIN_US if self.on_gpu else None,
        )
        self.pool.native.log_calls(self.file.pool_calls_address(), POOL_CALLS)
        wanted = spec.cpu_expert_format
        self.quantiser = Quantiser(wanted, self.store, self.pool.place) if wanted else None
        self.lane = lane_to(spec.device)
        copier = Copier(
            finished=self.file.acknowledge_copy,
            copied=lambda num_bytes: self._add(Word.SWAP_BYTES, num_bytes),
            bytes_per_second=spec.swap_rate,
            lane=self.lane,
        )
        moves = MoveCalls(
            rank, self.layers, copier, moved=self._write_tables, took=self._move_call_took
        )
        if not self.on_gpu:  # a GPU gives a silent pool up by itself
            PoolWatch(self.pool, lambda why: self.refuse("internal", f"rank {rank}: {why}"))
        self._load_lock = threading.Lock()
        self._calls: dict[str, Callable[[dict[str, Any]], None]] = {
            **moves.calls(),
            "reset_statistics": self._reset_statistics,
            "slots": self._report_slots,
            **self.recording.calls(),
        }

    @property
    def on_gpu(self) -> bool:
        """Whether slots are on a GPU."""
        return self.spec.device != "cpu"

    # --- loading -------------------------------------------------------------------------

    def attach_gpu(self, *, hidden: int) -> None:
        """Called for each MoE layer before it is loaded; makes this rank's side of the GPU.

        Raises:
            StartRefused: The GPU or its driver does not do what is needed.
        """
        if not self.on_gpu or self.side is not None:
            return
        # Imported here: on a host without a GPU nothing of it is needed.
        from ktd.cuda import error_words
        from ktd.sgl.cuda_side import CudaSide, Streams

        errors = None
        try:
            if self.world_size > 1:
                path = error_words.path_of(Path(self.spec.runtime_dir))
                errors = error_words.ErrorWords(path, self.world_size)
            self.side = CudaSide(
                self.pool,
                self._counters,
                hidden=hidden,
                top_k=self.spec.experts_per_token,
                chunk=self._chunk,
                streams=Streams.of(self.spec),
                errors=errors,
                rank=self.rank,
                from_disk=self.store.mapped,
            )
        except CudaFailed as error:
            raise self.refuse("model", f"{error}") from error

    def attach_bench(self) -> None:
        """Called for each MoE layer before it is loaded; nothing unless ``ktd bench table`` runs.

        Raises:
            StartRefused: What it wrote is not for this engine.
        """
        bench, side = self.spec.bench, self.side
        if bench is None or self.bench_routing is not None:
            return
        device = torch.device("cpu") if side is None else side.device
        rows = 1 if side is None else side.max_rows
        try:
            routing = bench_routing_of(self.spec, bench, device=device, rows=rows)
        except BenchRoutingRefused as refused:
            raise self.refuse("usage", f"{refused}") from refused
        self.bench_routing = routing

    def register_memory(self, tensors: Iterable[ExpertTensor]) -> None:
        """Makes a layer's complete host memory readable for the GPU's copies; elsewhere nothing.

        What is scattered lies in mapped files and cannot be; what is quantised no copy reads.

        Raises:
            StartRefused: The driver refuses.
        """
        if self.side is None or self.quantiser is not None:
            return
        try:
            for tensor in tensors:
                if isinstance(tensor, torch.Tensor):
                    host_memory.register(tensor)
        except CudaFailed as error:
            raise self.refuse("memory", f"{error}") from error

    def refuse(self, kind: str, message: str) -> StartRefused:
        """Leaves a sentence for the daemon and returns the exception to raise.

        The daemon ends the engine a moment later; no control call is answered otherwise until then.
        """
        report_failure(self.spec, kind, message)
        self._ending = message
        return StartRefused(message)

    def position_of(self, layer: int) -> int:
        """Index of a model layer among the MoE layers."""
        return self.spec.moe_layers.index(layer)

    def expect_bytes(self, num_bytes: int) -> None:
        """Announces expert bytes that will be loaded."""
        self._add(Word.TOTAL_BYTES, num_bytes)

    def loaded_bytes(self, num_bytes: int) -> None:
        """Counts expert bytes that are in the host store; called from loader threads."""
        with self._load_lock:
            self._add(Word.LOADED_BYTES, num_bytes)

    def add_layer(self, layer: ExpertLayer) -> None:
        """Registers a layer whose store is complete and whose initial slots are filled."""
        self.layers[layer.layer] = layer
        self._write_tables()
        self._add(Word.SLOT_BYTES, layer.num_slots * layer.expert_bytes)

    def say_hello(self, device: str) -> None:
        """Publishes the facts the daemon waits for before it declares the engine ready."""
        self.file.beat()
        self.file.say_hello(hello_of(self, device))

    # --- steps ---------------------------------------------------------------------------

    def begin_step(self, *, rows: int, decode_rows: int | None) -> None:
        """A forward pass starts.

        Args:
            rows: Its tokens, without padding.
            decode_rows: How many rows, at the end, decode a token; None: all. A step that also
                prefills counts those as decode and the others as prefill.
        """
        self._decode_rows = decode_rows
        self.file.words[Word.IN_STEP] = 1
        self.file.beat()
        if self.side is not None:
            self.side.begin_step(rows, decode_rows, wants_ids=self.recording.wants_ids)
        if self.bench_routing is not None:
            self.bench_routing.advance(rows)

    def end_step(self, *, tokens: int) -> None:
        """A forward pass has been launched (on a CPU host: has finished)."""
        if self.side is not None:
            self.side.launched()
        decoded = self._decode_rows
        if decoded is None:
            self._add(Word.DECODE_STEPS, 1)
            self._add(Word.DECODE_TOKENS, tokens)
        else:
            self._add(Word.PREFILL_STEPS, 1)
            self._add(Word.DECODE_TOKENS, decoded)
            self._add(Word.PREFILL_TOKENS, tokens - decoded)
        self.file.words[Word.CPU_WEIGHT_BYTES] = self._weight_bytes() - self._weight_bytes_at_reset
        self.file.words[Word.IN_STEP] = 0
        self.file.beat()

    def idle(self) -> None:
        """The scheduler has nothing to do."""
        if self.side is not None:
            self.side.idle()
        self.file.beat()

    def check_results(self, done: Any) -> None:
        """Called before a step's results are used; see :meth:`CudaSide.check`.

        Raises:
            StartRefused: A layer had no answer: this engine has to be restarted.
        """
        if self.side is None:
            return
        try:
            self.side.check(done)
        except CudaFailed as error:
            raise self.refuse("internal", f"rank {self.rank}: {error}") from error

    def slots_read(self, num_bytes: int) -> None:
        """Takes bytes of weights that the pool has read for slots out of what the CPU reads."""
        self._slot_weight_bytes += num_bytes

    def _weight_bytes(self) -> int:
        return self.pool.bytes_read - self._slot_weight_bytes

    def route(self, position: int, ids: torch.Tensor, table: torch.Tensor) -> Split:
        """Divides one layer's routing ``[tokens, top_k]`` between slots and pool, and counts it."""
        if self.recording.wants_ids:
            self.recording.see(position, ids)
        rows = self._decode_rows
        if not rows or rows >= ids.shape[0]:
            kind = Kind.PREFILL if rows == 0 else Kind.DECODE
            return split(ids, table, self._counter_addresses[kind][position])
        # A mixed step is rare and large: counting it in parts costs nothing that shows.
        prefilled = ids.shape[0] - rows
        split(ids[:prefilled], table, self._counter_addresses[Kind.PREFILL][position])
        split(ids[prefilled:], table, self._counter_addresses[Kind.DECODE][position])
        return split(ids, table)

    # --- control calls -------------------------------------------------------------------

    def call(self, request: str) -> None:
        """Runs one control call and acknowledges it; never raises, so that all ranks answer.

        Args:
            request: JSON object with ``sequence``, ``call`` and the call's own fields.
        """
        fields = json.loads(request)
        if self._ending is not None:
            self.file.acknowledge_call(fields["sequence"], self._ending)
            return
        try:
            self._calls[fields["call"]](fields)
        except (RecordingRefused, StartRefused) as refused:
            self.file.acknowledge_call(fields["sequence"], f"{refused}")
        except MoveRefused as refused:
            self.file.acknowledge_call(fields["sequence"], f"rank {self.rank}: {refused}")
        except Exception as error:
            logger.exception("control call %s failed", fields["call"])
            self.file.acknowledge_call(
                fields["sequence"], f"rank {self.rank}: {fields['call']} failed: {error}"
            )
        else:
            self.file.acknowledge_call(fields["sequence"])

    def _move_call_took(self, nanoseconds: int) -> None:
        self._add(Word.MOVE_CALLS, 1)
        self._add(Word.MOVE_CALL_NS, nanoseconds)

    def _refresh_counters(self) -> None:
        if self.side is not None:
            self.side.refresh_counters()

    def _routed(self, rows: int) -> torch.Tensor:
        return torch.empty(0) if self.side is None else self.side.routed(rows)

    def _write_tables(self) -> None:
        """The GPU's tables follow, between two steps.

        Raises:
            StartRefused: They do not, so nobody knows any more what a slot computes.
        """
        try:
            self._upload_tables()
        except Exception as error:
            raise self.refuse(
                "internal", f"rank {self.rank}: the tables of slots cannot be written: {error}"
            ) from error

    def _upload_tables(self) -> None:
        if self.side is not None:
            self.side.write_tables(
                (self.position_of(layer), of_layer) for layer, of_layer in self.layers.items()
            )

    def _reset_statistics(self, _: dict[str, Any]) -> None:
        """Forgets what warming up counted: statistics begin with the first request served."""
        if self.side is not None:
            self.side.reset_counters()
        self.file.counters[:] = bytes(len(self.file.counters))
        for word in (
            Word.DECODE_STEPS,
            Word.PREFILL_STEPS,
            Word.DECODE_TOKENS,
            Word.PREFILL_TOKENS,
            Word.CPU_WEIGHT_BYTES,
        ):
            self.file.words[word] = 0
        self._weight_bytes_at_reset = self._weight_bytes()

    def _report_slots(self, fields: dict[str, Any]) -> None:
        slots = {layer: expert_layer.mapped() for layer, expert_layer in self.layers.items()}
        path = Path(self.spec.runtime_dir) / f"slots-{self.rank}.json"
        path.write_text(json.dumps({"sequence": fields["sequence"], "slots": slots}))

    def _experts_in_slots(self) -> torch.Tensor:
        """Bool ``[MoE layers, experts]``: those that a slot computes now."""
        return torch.stack([self.layers[layer].table >= 0 for layer in self.spec.moe_layers])

    def _add(self, word: Word, amount: int) -> None:
        self.file.words[word] += amount
