"""The control calls on a rank's recorder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ktd.sgl import recording_report
from ktd.sgl.recorder import (
    STAT_APPROX,
    Limits,
    Recorded,
    Recorder,
    as_list,
)
from ktd.sgl.recording_files import Layout, write

logger = logging.getLogger(__name__)


class RecordingCalls:
    """What the control channel may ask of a recorder; rank 0 records, the others agree.

    Tensor-parallel ranks see the same tokens, so one of them sees everything once.

    Attributes:
        active: Whether :meth:`end_pass` has to be called.
        wants_ids: Whether :meth:`begin_pass` and :meth:`see` have to be called.

    Args:
        recorder: Of this rank, or None on the ranks that do not record.
        runtime_dir: Of the engine.
        moe_layers: Model layer indices that have experts.
        num_experts: Per such layer.
        refresh: Brings counters up to date that a GPU grows, behind the newest pass; None: they
            always are.
        routed: Int16 ``[MoE layers, tokens, top_k]`` of the newest pass, which a GPU keeps; None:
            :meth:`see` is called.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        runtime_dir: Path,
        moe_layers: tuple[int, ...],
        num_experts: int,
        *,
        refresh: Callable[[], None] | None = None,
        routed: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        self._recorder = recorder
        self._refresh = refresh
        self._routed = routed
        self._runtime_dir = runtime_dir
        self._moe_layers = moe_layers
        self._num_experts = num_experts
        self.num_layers = max(moe_layers, default=-1) + 1
        # Plain attributes, because every layer of every step looks at them.
        self.active = False
        self.wants_ids = False

    def calls(self) -> dict[str, Callable[[dict[str, Any]], None]]:
        """By their names in a request."""
        return {
            "record_start": self._on_recorder(self._start),
            "record_stop": self._on_recorder(lambda recorder, _: recorder.stop()),
            "record_report": self._on_recorder(lambda _recorder, _fields: None),
            "record_dump": self._dump,
        }

    def begin_pass(self, batch: Any) -> None:
        """A pass of SGLang begins, of which tokens are recorded; ``batch`` is its ForwardBatch."""
        if self._recorder is not None:
            self._recorder.begin_pass(_metadata(batch))

    def see(self, position: int, ids: torch.Tensor) -> None:
        """One layer's routing of the pass that runs."""
        if self._recorder is not None:
            self._recorder.see(position, ids)

    def end_pass(self, pass_id: int, tokens: int) -> None:
        """SGLang's pass of that number has ended, or was launched on a GPU, which is waited for."""
        if self._recorder is not None:
            if self._recorder.mode != STAT_APPROX:
                self._bring_up_to_date()
            if self.wants_ids and self._routed is not None:
                for position, ids in enumerate(self._routed(tokens)):
                    self._recorder.see(position, ids)
            self._recorder.end_pass(pass_id, tokens)

    def _bring_up_to_date(self) -> None:
        if self._refresh is not None:
            self._refresh()

    def _on_recorder(
        self, act: Callable[[Recorder, dict[str, Any]], None]
    ) -> Callable[[dict[str, Any]], None]:
        def call(fields: dict[str, Any]) -> None:
            if self._recorder is not None:
                self._bring_up_to_date()
                act(self._recorder, fields)
                self.active = self._recorder.recording
                self.wants_ids = self._recorder.wants_ids
                self._answer(fields["sequence"], self._recorder.report())

        return call

    def _start(self, recorder: Recorder, fields: dict[str, Any]) -> None:
        limits = Limits(fields["buffer_passes"], fields["max_bytes"])
        recorder.start(fields["mode"], limits, gpu_masks=fields["gpu_masks"])

    def _dump(self, fields: dict[str, Any]) -> None:
        """Takes what was recorded at once and writes it beside the scheduler."""
        recorder = self._recorder
        if recorder is None:
            return
        self._bring_up_to_date()
        mode, limits = recorder.mode, recorder.limits
        taken = recorder.take()

        def run() -> None:
            try:
                folder = Path(fields["folder"])
                layout = Layout(self.num_layers, self._moe_layers, self._num_experts)
                files = write(folder, taken, mode, limits, layout)
            except Exception as error:
                logger.exception("a recording cannot be written")
                recorder.give_back(taken)
                # torch's words may be many lines.
                what = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
                self._answer(fields["sequence"], recorder.report() | {"error": what})
            else:
                self._answer(fields["sequence"], _written(recorder, taken) | {"files": files})

        threading.Thread(target=run, name="ktd-recording", daemon=True).start()

    def _answer(self, sequence: int, report: dict[str, Any]) -> None:
        recording_report.put(self._runtime_dir, sequence, report)


def _written(recorder: Recorder, taken: Recorded) -> dict[str, Any]:
    """The report of a dump: the recorder's state, with the numbers of what was written."""
    return recorder.report() | {
        "passes": taken.seen,
        "dropped_passes": taken.dropped,
        "tokens": taken.tokens,
        "bytes": taken.num_bytes,
    }


def _metadata(batch: Any) -> dict[str, Any]:
    """What SGLang's recorder keeps of a ``ForwardBatch`` beside the routing."""
    return {
        "input_ids": as_list(batch.input_ids),
        "positions": as_list(batch.positions),
        "extend_seq_lens": as_list(batch.extend_seq_lens_cpu),
        "forward_mode": int(batch.forward_mode.value),
    }
