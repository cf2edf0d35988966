"""RecordingService over a real socket, with a recorder in memory."""

from __future__ import annotations

import pytest

from ktd.client import KtdClient, RecordingMode
from ktd.errors import (
    EngineNotReady,
    InvalidArgument,
    NothingRecorded,
    NotRecording,
    RecordingFailed,
    RecordingRuns,
)
from tests.rpc.fake_daemon import fake_daemon


async def test_a_dump_answers_with_the_path_it_wrote_and_what_it_holds(daemon, client, tmp_path):
    """The recording goes on and begins anew."""
    await client.start_recording(RecordingMode.RECORDING_MODE_PER_PASS, directory=str(tmp_path))
    daemon.recorder.run(7, tokens=40)
    answer = await client.dump_recording()
    (path,) = answer.paths
    assert path.startswith(str(tmp_path))
    assert (tmp_path / path).read_text() == "recorded"
    assert (answer.written.passes, answer.written.tokens) == (7, 40)
    after = await client.recording()
    assert (after.recording, after.passes) == (True, 0)
    assert after.mode == RecordingMode.RECORDING_MODE_PER_PASS


async def test_what_is_not_said_is_as_the_daemon_was_told(daemon, client, tmp_path):
    """Mode stat, a thousand passes, no masks, the folder of the settings."""
    started = await client.start_recording()
    assert started.mode == RecordingMode.RECORDING_MODE_STAT
    assert not started.gpu_masks
    assert started.directory == str(tmp_path / "recordings")
    assert daemon.recorder.started == [{"mode": "stat", "buffer_passes": 1000}]
    await client.stop_recording()
    assert (await client.start_recording(gpu_masks=True, buffer_passes=-1)).gpu_masks
    assert daemon.recorder.started[-1] == {"mode": "stat", "buffer_passes": -1}


async def test_a_running_recording_is_not_thrown_away(daemon, client):
    """It says how much there is and what to do."""
    await client.start_recording()
    daemon.recorder.run(3)
    with pytest.raises(RecordingRuns, match=r"for 3 passes.*ktd record dump"):
        await client.start_recording()
    assert (await client.recording()).passes == 3


async def test_a_new_start_says_what_it_forgets(daemon, client):
    """Passes that were recorded and never dumped."""
    await client.start_recording()
    daemon.recorder.run(3)
    await client.stop_recording()
    (note,) = (await client.start_recording()).notes
    assert note.startswith("3 passes that had been recorded and not been dumped")


async def test_what_was_dropped_is_said(daemon, client):
    """Buffers are bounded, and not silently."""
    await client.start_recording()
    daemon.recorder.run(1500, dropped=500)
    (note,) = (await client.recording()).notes
    assert note.startswith("500 of 1500 passes made room")
    assert list((await client.dump_recording()).written.notes) == [note]


async def test_stopping_and_dumping_nothing_are_refused(client):
    """With what to do."""
    with pytest.raises(NotRecording, match="No recording runs"):
        await client.stop_recording()
    with pytest.raises(NothingRecorded, match="ktd record start"):
        await client.dump_recording()
    await client.start_recording()
    with pytest.raises(NothingRecorded, match="No pass has run"):
        await client.dump_recording()


async def test_a_dump_that_fails_keeps_what_was_recorded(daemon, client, tmp_path):
    """The next one has it."""
    await client.start_recording()
    daemon.recorder.run(3)
    daemon.recorder.fails = "The recording cannot be written: No space left on device"
    with pytest.raises(RecordingFailed, match="No space left"):
        await client.dump_recording()
    daemon.recorder.fails = ""
    assert (await client.dump_recording()).written.passes == 3


async def test_a_folder_that_cannot_be_written_is_refused_at_the_start(daemon, client, tmp_path):
    """Not after an hour of recording."""
    (tmp_path / "file").touch()
    with pytest.raises(RecordingFailed, match=r"file/deeper cannot be written"):
        await client.start_recording(directory=str(tmp_path / "file" / "deeper"))
    assert daemon.recorder.started == []


@pytest.mark.parametrize("buffer_passes", [0, -2, 1 << 21])
async def test_a_buffer_of_no_size_is_refused(client, buffer_passes):
    """The value is named."""
    with pytest.raises(InvalidArgument, match=f"hold {buffer_passes} passes"):
        await client.start_recording(buffer_passes=buffer_passes)


async def test_a_relative_folder_is_refused(client):
    """The daemon's own folder means nothing to a client."""
    with pytest.raises(InvalidArgument, match="'traces' is not an absolute path"):
        await client.start_recording(directory="traces")


async def test_a_recording_that_ended_with_the_engine_is_said(daemon, client):
    """Nobody waits for a dump that cannot come."""
    await client.start_recording()
    daemon.recorder.run(3)
    daemon.engine_lost()
    with pytest.raises(EngineNotReady, match="lost when the engine ended"):
        await client.dump_recording()


async def test_without_an_engine_nothing_is_recorded(tmp_path):
    """The refusal says what to wait for."""
    async with fake_daemon(tmp_path, ready=False) as daemon, KtdClient(daemon.socket) as client:
        with pytest.raises(EngineNotReady, match="ktd status"):
            await client.start_recording()
