"""What ktd keeps in one SGLang scheduler process: its layers, pool, copier and rank file."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

import torch

from ktd.enginespec import EngineSpec, report_failure
from ktd.experts._native import cpu_quota
from ktd.experts.pool import ExpertPool, Split, split
from ktd.experts.store import HostStore
from ktd.rankfile import KINDS, TIERS, Kind, RankFileWriter, Word, path_of
from ktd.sgl.copier import Copier
from ktd.sgl.cores import pool_cores
from ktd.sgl.expert_layer import EMPTY, ExpertLayer, MoveRefused, SlotCopy
from ktd.sgl.quantiser import Quantiser
from ktd.sgl.recorder import Recorder, RecordingRefused
from ktd.sgl.recording_calls import RecordingCalls
from ktd.sgl.weight_reader import WeightReader
from ktd.version import __version__

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """The last batch that this rank prepared."""

    id: int
    copies: Sequence[SlotCopy]
    published: bool = False


class StartRefused(RuntimeError):
    """The engine cannot go on; the sentence has been left for the daemon."""


class Rank:
    """State of this rank, and the control calls on it.

    It is created when the model's first MoE layer is built, when SGLang knows the rank. Every
    control call arrives in the scheduler's thread between two launches.
    """

    def __init__(self, spec: EngineSpec, *, rank: int, world_size: int) -> None:
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
        self.store = HostStore()
        self.reader: WeightReader | None = None  # while the model is loaded
        # int64 stands for uint64: torch has no view of a uint64 buffer in every release we run on.
        counters = torch.frombuffer(self.file.counters, dtype=torch.int64).view(
            len(KINDS), len(spec.moe_layers), spec.num_experts, len(TIERS)
        )
        # Addresses, because looking at a tensor in every layer of every step costs more than
        # counting does; the file keeps the memory.
        self._counters = [[row.data_ptr() for row in of_kind] for of_kind in counters]
        self._decode_rows: int | None = 0
        self.recording = RecordingCalls(
            Recorder(counters, self._experts_in_slots) if rank == 0 else None,
            Path(spec.runtime_dir),
            spec.moe_layers,
            spec.num_experts,
        )
        self._weight_bytes_at_reset = 0
        self._slot_weight_bytes = 0
        cores = pool_cores(spec.cpu_threads, rank, world_size, quota=cpu_quota())
        threads, cpus = cores.threads, cores.cpus
        if cores.note:
            logger.warning("%s", cores.note)
        self.pool = ExpertPool(threads=threads, isa=spec.isa or "", cpus=cpus)
        wanted = spec.cpu_expert_format
        self.quantiser = Quantiser(wanted, self.store, self.pool.place) if wanted else None
        self._copier = Copier(
            finished=self.file.acknowledge_copy,
            copied=lambda num_bytes: self._add(Word.SWAP_BYTES, num_bytes),
            bytes_per_second=spec.swap_rate,
        )
        self._batch: _Batch | None = None
        self._load_lock = threading.Lock()
        self._calls: dict[str, Callable[[dict[str, Any]], None]] = {
            "prepare": self._prepare,
            "publish": self._publish,
            "abort": self._abort,
            "reset_statistics": self._reset_statistics,
            "slots": self._report_slots,
            **self.recording.calls(),
        }

    # --- loading -------------------------------------------------------------------------

    def refuse(self, kind: str, message: str) -> StartRefused:
        """Leaves a sentence for the daemon and returns the exception to raise."""
        report_failure(self.spec, kind, message)
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
        self._add(Word.SLOT_BYTES, layer.num_slots * layer.expert_bytes)

    def say_hello(self, device: str) -> None:
        """Publishes the facts the daemon waits for before it declares the engine ready."""
        store = sum(layer.num_experts * layer.host_expert_bytes for layer in self.layers.values())
        slots = sum(layer.num_slots * layer.expert_bytes for layer in self.layers.values())
        self.file.beat()
        self.file.say_hello(
            {
                "ktd": __version__,
                "sglang": distribution_version("sglang"),
                "torch": torch.__version__,
                "rank": self.rank,
                "world_size": self.world_size,
                "pid": os.getpid(),
                "isa": self.pool.isa,
                "threads": self.pool.threads,
                "device": device,
                "moe_layers_hooked": len(self.layers),
                "host_store_bytes": store,
                "slot_bytes": slots,
            }
        )

    # --- steps ---------------------------------------------------------------------------

    def begin_step(self, *, decode_rows: int | None) -> None:
        """A forward pass starts.

        Args:
            decode_rows: How many rows, at the end, decode a token; None: all. A step that also
                prefills counts those as decode and the others as prefill.
        """
        self._decode_rows = decode_rows
        self.file.words[Word.IN_STEP] = 1
        self.file.beat()

    def end_step(self, *, tokens: int) -> None:
        """A forward pass has been launched (on a CPU host: has finished)."""
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
            return split(ids, table, self._counters[kind][position])
        # A mixed step is rare and large: counting it in parts costs nothing that shows.
        prefilled = ids.shape[0] - rows
        split(ids[:prefilled], table, self._counters[Kind.PREFILL][position])
        split(ids[prefilled:], table, self._counters[Kind.DECODE][position])
        return split(ids, table)

    # --- control calls -------------------------------------------------------------------

    def call(self, request: str) -> None:
        """Runs one control call and acknowledges it; never raises, so that all ranks answer.

        Args:
            request: JSON object with ``sequence``, ``call`` and the call's own fields.
        """
        fields = json.loads(request)
        try:
            self._calls[fields["call"]](fields)
        except RecordingRefused as refused:
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

    def _prepare(self, fields: dict[str, Any]) -> None:
        batch_id = fields["batch"]
        if self._batch is not None and not self._batch.published:
            sentence = f"batch {self._batch.id} is still open"
            self._copier.refuse(batch_id, f"rank {self.rank}: {sentence}")
            raise MoveRefused(sentence)
        unmapped: list[tuple[ExpertLayer, int, int]] = []
        copies: list[SlotCopy] = []
        try:
            for layer_id, evict, load in fields["moves"]:
                layer = self._layer(layer_id)
                layer.check(evict, load)
                slot = None
                if evict != EMPTY:
                    slot = layer.unmap(evict)
                    unmapped.append((layer, evict, slot))
                if load != EMPTY:
                    copies.append(layer.reserve(load, slot))
        except Exception as error:
            # Nothing has been copied yet, so the batch leaves no trace.
            for copy in copies:
                self.layers[copy.layer].release(copy.expert)
            for layer, expert, slot in reversed(unmapped):
                layer.restore(expert, slot)
            self._copier.refuse(batch_id, f"rank {self.rank}: {error}")
            raise
        self._batch = _Batch(batch_id, copies)
        self._copier.submit(batch_id, copies)

    def _layer(self, layer: int) -> ExpertLayer:
        if layer not in self.layers:
            raise MoveRefused(f"layer {layer} has no experts")
        return self.layers[layer]

    def _publish(self, fields: dict[str, Any]) -> None:
        batch = self._batch
        if batch is None or batch.id != fields["batch"] or batch.published:
            raise MoveRefused(f"batch {fields['batch']} was not prepared")
        for copy in batch.copies:
            self.layers[copy.layer].publish(copy.expert)
        batch.published = True

    def _abort(self, fields: dict[str, Any]) -> None:
        """Leaves the slots of a batch empty, whether it was prepared here, published, or neither.

        Ranks that came to different points agree again after it.
        """
        if self._batch is not None and self._batch.id == fields["batch"]:
            for copy in self._batch.copies:
                layer = self.layers[copy.layer]
                if self._batch.published:
                    layer.unmap(copy.expert)
                else:
                    layer.release(copy.expert)
            self._batch = None
        for layer_id, evict, _ in fields["moves"]:
            if layer_id in self.layers and self.layers[layer_id].is_mapped(evict):
                self.layers[layer_id].unmap(evict)

    def _reset_statistics(self, _: dict[str, Any]) -> None:
        """Forgets what warming up counted: statistics begin with the first request served."""
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
