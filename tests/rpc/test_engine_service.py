"""EngineService over a real socket."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from ktd.client import KtdClient
from ktd.engine.status import EnginePhase, LoadProgress
from ktd.errors import EngineNotStopped, InvalidArgument, KtdError, NotFound
from ktd.v1 import engine_pb2
from ktd.version import __version__


async def test_status_carries_everything(client):
    """Model, memory, ranks and the placement's revision."""
    await client.apply_and_wait(strategy="random")
    status = await client.status()
    assert status.phase == engine_pb2.ENGINE_PHASE_READY
    assert status.name == "engines/default"
    assert (status.model.num_experts, status.memory.total_slots) == (8, 8)
    assert status.ranks[0].isa == "avx512_bf16"
    assert status.placement_revision == 2
    assert status.versions.sglang == "0.5.23"
    assert not status.HasField("progress")
    assert not status.HasField("next_start_time")


async def test_ranks_say_how_prefills_run(daemon, client):
    """What their hello said of graphs, threshold and buffer."""
    (rank,) = daemon.engine.status().ranks
    gpu = replace(rank, prefill_graphs=True, prefill_threshold=1024, prefill_buffer_bytes=7)
    daemon.engine.set(ranks=(gpu,))
    (told,) = (await client.status()).ranks
    assert (told.prefill_graphs, told.prefill_threshold, told.prefill_buffer_bytes) == (
        True,
        1024,
        7,
    )


async def test_optional_parts_appear_when_they_are_known(daemon, client):
    """Progress while loading, the next start in backoff."""
    daemon.engine.set(
        phase=EnginePhase.BACKOFF, progress=LoadProgress(3, 9), next_start_time=99.5, model=None
    )
    status = await client.status()
    assert (status.progress.bytes_done, status.progress.bytes_total) == (3, 9)
    assert status.next_start_time.ToMilliseconds() == 99500
    assert not status.HasField("model")


@pytest.mark.parametrize("phase", EnginePhase)
async def test_phases_have_the_apis_numbers(daemon, client, phase):
    """The domain's and the proto's enum are one."""
    daemon.engine.set(phase=phase)
    name = engine_pb2.EnginePhase.Name((await client.status()).phase)
    assert name == f"ENGINE_PHASE_{phase.name}"


async def test_watch_sends_the_present_then_changes(daemon, client):
    """A client that connects late knows everything at once."""
    async with aclosing(client.watch_status()) as changes:
        assert (await anext(changes)).message == "Serving."
        daemon.engine.set(phase=EnginePhase.DRAINING, message="Finishing.")
        assert (await anext(changes)).message == "Finishing."


async def test_engine_is_stopped_and_started(daemon, client):
    """The drain time is handed on; unset means the daemon's own."""
    assert (await client.stop(drain=2.5)).phase == engine_pb2.ENGINE_PHASE_STOPPED
    assert (await client.start()).phase == engine_pb2.ENGINE_PHASE_READY
    assert (await client.restart()).phase == engine_pb2.ENGINE_PHASE_READY
    assert daemon.engine.drains == [2.5, None]


async def test_start_of_a_running_engine_is_refused(client):
    """FAILED_PRECONDITION with its reason."""
    with pytest.raises(EngineNotStopped, match="READY"):
        await client.start()


@pytest.mark.parametrize("drain", [-1.0, float("nan")])
async def test_impossible_drain_time_is_refused(daemon, client, drain):
    """Before anything is drained."""
    with pytest.raises(InvalidArgument, match="drain_timeout_seconds"):
        await client.stop(drain=drain)
    assert daemon.engine.drains == []


async def test_stop_goes_on_when_the_caller_hangs_up(daemon):
    """Half a stop is no state to leave an engine in."""
    daemon.engine.stop_gate.clear()
    async with KtdClient(daemon.socket) as client:
        stopping = asyncio.ensure_future(client.stop())
        async with aclosing(client.watch_status()) as changes:
            async for status in changes:
                if status.phase == engine_pb2.ENGINE_PHASE_DRAINING:
                    break
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    daemon.engine.stop_gate.set()
    async with KtdClient(daemon.socket) as client, aclosing(client.watch_status()) as changes:
        async for status in changes:
            if status.phase == engine_pb2.ENGINE_PHASE_STOPPED:
                break
    assert daemon.engine.stopped == 1


async def test_version_needs_no_engine(client):
    """The daemon's own."""
    version = await client.version()
    assert version.ktd == __version__
    assert list(version.api_versions) == ["ktd.v1"]


async def test_other_engine_is_not_found(client):
    """Unary and streaming."""
    with pytest.raises(NotFound, match="engines/other"):
        await client._answer(
            client._engine.GetStatus(engine_pb2.GetStatusRequest(name="engines/other"))
        )
    with pytest.raises(NotFound):
        await anext(
            client._stream(
                client._engine.WatchStatus(engine_pb2.WatchStatusRequest(name="engines/other"))
            )
        )


async def test_bug_is_internal_without_a_traceback(daemon, client, capsys):
    """The client gets one sentence; the log gets the traceback."""

    def broken():
        raise RuntimeError("secret detail")

    daemon.engine.status = broken
    with pytest.raises(KtdError) as failure:
        await client.status()
    assert (failure.value.code, failure.value.reason) == ("INTERNAL", "INTERNAL")
    assert "GetStatus (RuntimeError); the daemon's log" in str(failure.value)
    assert "secret detail" not in str(failure.value)
    assert "secret detail" in capsys.readouterr().out


async def test_bug_in_a_stream_is_internal_too(daemon, client):
    """Streaming handlers are wrapped as well."""

    async def broken():
        yield daemon.engine.status()
        raise RuntimeError("secret detail")

    daemon.engine.watch = broken
    async with aclosing(client.watch_status()) as changes:
        await anext(changes)
        with pytest.raises(KtdError, match=r"WatchStatus \(RuntimeError\)") as failure:
            await anext(changes)
    assert failure.value.code == "INTERNAL"
