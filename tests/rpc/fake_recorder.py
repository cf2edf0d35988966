"""A recorder in memory that writes small text files and fails when it is told to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ktd.engine.bridge import HostRecording
from ktd.errors import RecordingFailed

NOTHING = HostRecording(
    recording=False,
    mode="",
    gpu_masks=False,
    passes=0,
    dropped_passes=0,
    tokens=0,
    bytes=0,
    files=(),
)


class FakeRecorder:
    """Satisfies ``ktd.stats.recording.RecordingTarget``.

    Attributes:
        state: What it says about itself.
        fails: A sentence: dumps fail with it.
        started: The options of each start.
    """

    def __init__(self) -> None:
        self.state = NOTHING
        self.fails = ""
        self.started: list[dict[str, object]] = []

    def run(self, passes: int, *, tokens: int = 0, dropped: int = 0) -> None:
        """As when the engine computes."""
        if self.state.recording:
            self.state = replace(
                self.state,
                passes=self.state.passes + passes,
                tokens=self.state.tokens + (tokens or passes),
                dropped_passes=self.state.dropped_passes + dropped,
            )

    async def start_recording(
        self, mode: str, *, buffer_passes: int, max_bytes: int, gpu_masks: bool
    ) -> HostRecording:
        self.started.append({"mode": mode, "buffer_passes": buffer_passes})
        self.state = replace(NOTHING, recording=True, mode=mode, gpu_masks=gpu_masks)
        return self.state

    async def stop_recording(self) -> HostRecording:
        self.state = replace(self.state, recording=False)
        return self.state

    async def dump_recording(self, folder: str) -> HostRecording:
        if self.fails:
            raise RecordingFailed(self.fails)
        path = Path(folder) / "expert_distribution_recorder_1.0.pt"
        path.write_text("recorded")
        written = replace(self.state, files=(str(path),))
        self.state = replace(self.state, passes=0, tokens=0, dropped_passes=0)
        return written

    async def recording(self) -> HostRecording:
        return self.state
