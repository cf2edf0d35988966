"""The supervisor over real processes: start, stop, crash, and what it says meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from ktd.engine.leftovers import id_prefix, processes_of
from ktd.engine.status import EnginePhase
from ktd.enginespec import PROCESS_ENDED, failure_text
from ktd.errors import EngineFailed, EngineNotStopped, ModelUnsupported

READY, BACKOFF, FAILED, STOPPED = (
    EnginePhase.READY,
    EnginePhase.BACKOFF,
    EnginePhase.FAILED,
    EnginePhase.STOPPED,
)


def living(rig) -> list[int]:
    return processes_of(id_prefix(rig.base / "state"))


class TestStart:
    async def test_is_ready_only_after_every_rank_said_hello(self, rig):
        """READY comes with the versions and both ranks known, after loading was shown."""
        rig.num_ranks = 2
        rig.misbehave(load=1.0)
        phases = []
        async with rig.supervised() as supervisor:
            async for status in supervisor.watch():
                phases.append(status.phase)
                if status.phase is READY:
                    break
            assert phases == sorted(phases)
            assert EnginePhase.LOADING in phases
            assert [rank.rank for rank in status.ranks] == [0, 1]
            assert status.ranks[0].isa == "scalar"
            assert status.versions.sglang == "0.0.fake"
            assert status.memory.slot_bytes == 2 * 4 * 1024
            assert rig.engines.events == ["attach"]

    async def test_ranks_tell_how_prefills_run(self, rig):
        """A hello without it is one of a rank that has no GPU."""
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            (rank,) = supervisor.status().ranks
            assert (rank.prefill_threshold, rank.prefill_buffer_bytes) == (0, 0)
        rig.misbehave(hello={"prefill_threshold": 1024, "prefill_buffer_bytes": 99})
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            (rank,) = supervisor.status().ranks
            assert (rank.prefill_threshold, rank.prefill_buffer_bytes) == (1024, 99)
            assert not rank.prefill_graphs

    async def test_shows_progress_while_loading(self, rig):
        """Bytes done grow up to the total while weights are loaded."""
        rig.misbehave(load=2.0)
        seen = []
        async with rig.supervised() as supervisor:
            async for status in supervisor.watch():
                if status.progress is not None:
                    seen.append(status.progress.bytes_done)
                if status.phase is READY:
                    break
        assert len(set(seen)) > 2
        assert seen == sorted(seen)

    async def test_fewer_layers_hooked_than_the_model_has_is_fatal(self, rig):
        """A plugin that hooks 1 of 2 layers ends the first start with both numbers."""
        rig.misbehave(hooked=1)
        async with rig.supervised():
            with pytest.raises(EngineFailed, match="hooked 1 of 2 MoE layers") as caught:
                await rig.task
        assert caught.value.metadata["kind"] == "plugin"
        assert living(rig) == []

    async def test_another_ktd_version_is_fatal(self, rig):
        """A host of another version is not served with."""
        rig.misbehave(version="9.9.9")
        async with rig.supervised():
            with pytest.raises(EngineFailed, match=r"runs ktd 9\.9\.9"):
                await rig.task

    @pytest.mark.parametrize("kind", ["usage", "incompatible", "model", "plugin"])
    async def test_a_reported_failure_ends_the_first_start_with_its_sentence(self, rig, kind):
        """The engine's own sentence and kind come out of run()."""
        rig.misbehave(fail=[kind, "unrecognized arguments: --nope"])
        async with rig.supervised():
            with pytest.raises(EngineFailed, match="unrecognized arguments: --nope") as caught:
                await rig.task
        assert caught.value.metadata["kind"] == kind

    async def test_too_little_memory_comes_with_advice(self, rig):
        """A failure of kind memory is followed by what to do about it."""
        rig.misbehave(fail=["memory", "The KV cache does not fit."])
        async with rig.supervised():
            with pytest.raises(EngineFailed, match=r"does not fit\. Use fewer slots\."):
                await rig.task

    async def test_an_engine_that_never_becomes_ready_is_given_up(self, rig):
        """Three crashes before the first ready end it, with what the engine printed."""
        rig.misbehave(crash="import")
        async with rig.supervised():
            with pytest.raises(EngineFailed, match=r"exit status 7.*no such device"):
                await rig.task
        assert len(rig.engines.specs) == 3

    async def test_no_progress_is_a_failure(self, rig):
        """A start that stands still is ended after the start timeout."""
        rig.misbehave(silent=True)
        rig.timings = type(rig.timings)(start=0.5, drain=1, backoff=(0.1,))
        async with rig.supervised():
            with pytest.raises(EngineFailed, match=r"no progress for 0\.5 s"):
                await rig.task

    async def test_a_failing_plan_is_reported_as_it_is(self, rig):
        """What next_spec raises ends the first start as it is."""

        async def refuse():
            raise ModelUnsupported("It is dense.")

        rig.engines.next_spec = refuse
        async with rig.supervised():
            with pytest.raises(ModelUnsupported, match=r"It is dense\."):
                await rig.task

    async def test_a_stop_cancels_what_comes_before_the_launch(self, rig):
        """A download in next_spec does not keep the daemon from stopping."""
        cancelled = asyncio.Event()

        async def forever():
            try:
                await asyncio.sleep(600)
            finally:
                cancelled.set()

        rig.engines.next_spec = forever
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, EnginePhase.STARTING)
            await asyncio.sleep(0.05)
            await supervisor.close()
            assert cancelled.is_set()


class TestCrash:
    async def restarted(self, rig, supervisor) -> None:
        status = await rig.until(supervisor, BACKOFF)
        assert status.next_start_time is not None
        status = await rig.until(supervisor, READY)
        assert status.restarts == 1
        assert len(rig.engines.specs) == 2
        assert rig.engines.specs[0].engine_id != rig.engines.specs[1].engine_id
        assert rig.engines.events == ["attach", "detach", "attach"]
        assert not Path(rig.engines.specs[0].runtime_dir).exists()
        assert processes_of(rig.engines.specs[0].engine_id) == []
        assert "ENGINE_RESTARTED" in [item.reason for item in status.conditions]

    async def test_a_killed_rank_is_noticed_and_the_engine_started_again(self, rig):
        """kill -9 of one scheduler ends the whole engine, and another one comes."""
        rig.num_ranks = 2
        async with rig.supervised() as supervisor:
            status = await rig.until(supervisor, READY)
            os.kill(status.ranks[1].pid, signal.SIGKILL)
            await self.restarted(rig, supervisor)
            assert "scheduler of rank 1" in supervisor.status().conditions[0].message
            # What runs on it, as a swap, fails with the cause.
            assert "scheduler of rank 1" in rig.engines.reasons[0]

    @pytest.mark.parametrize(
        ("before", "after", "cause"),
        [
            (None, "A connection was closed by its peer.", "scheduler of rank 0"),
            ("A step failed.", None, "A step failed."),
            (PROCESS_ENDED, None, "scheduler of rank 0"),
        ],
        ids=["death-first", "report-first", "host-heard-first"],
    )
    async def test_what_others_report_after_a_rank_has_gone_is_not_the_cause(
        self, rig, before, after, cause
    ):
        """They lose their connection to it; what is reported before a death explains that.

        But the host does not know more than that there was one.
        """
        async with rig.supervised() as supervisor:
            status = await rig.until(supervisor, READY)
            report = Path(rig.engines.specs[0].runtime_dir) / "failure-1.json"
            if before:
                report.write_text(failure_text("internal", before))
            os.kill(status.ranks[0].pid, signal.SIGKILL)
            if after:
                await asyncio.sleep(0.1)
                report.write_text(failure_text("internal", after))
            await self.restarted(rig, supervisor)
            assert cause in supervisor.status().conditions[0].message

    async def test_a_killed_host_leaves_no_orphan(self, rig):
        """kill -9 of the host takes ranks and renamed processes in other sessions along."""
        rig.misbehave(orphan=True)
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            # Host, rank and the orphan that calls itself something else.
            assert len(living(rig)) == 3
            host = next(
                fields["pid"] for _, event, fields in rig.log.entries if event == "engine started"
            )
            os.kill(host, signal.SIGKILL)
            await self.restarted(rig, supervisor)

    async def test_a_hanging_rank_is_ended(self, rig):
        """A rank without a heartbeat that is not in a step is as good as dead."""
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            (Path(rig.engines.specs[0].runtime_dir) / "stop-heartbeat").touch()
            await self.restarted(rig, supervisor)
            assert "has not shown life" in supervisor.status().conditions[0].message

    async def test_a_later_start_that_cannot_work_leaves_the_daemon_up(self, rig):
        """After a first success a fatal failure makes the engine FAILED; StartEngine retries."""
        async with rig.supervised() as supervisor:
            status = await rig.until(supervisor, READY)
            rig.misbehave(fail=["model", "The checkpoint has gone."])
            os.kill(status.ranks[0].pid, signal.SIGKILL)
            status = await rig.until(supervisor, FAILED)
            assert status.message == "The checkpoint has gone."
            assert not rig.task.done()
            rig.misbehave()
            await supervisor.start()
            await rig.until(supervisor, READY)


class TestStop:
    async def test_stop_drains_then_leaves_nothing(self, rig):
        """StopEngine drains with the time it is given; no process, socket or folder stays."""
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            status = await supervisor.stop(3.0)
            assert status.phase is STOPPED
            assert rig.engines.events == ["attach", "drain 3", "detach", "detach"]
            assert living(rig) == []
            assert not Path(rig.engines.specs[0].runtime_dir).exists()
            await supervisor.start()
            await rig.until(supervisor, READY)

    async def test_restart_runs_another_engine(self, rig):
        """RestartEngine is stop and start; it is not counted as a crash."""
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            status = await supervisor.restart(None)
            assert status.phase is EnginePhase.STARTING
            status = await rig.until(supervisor, READY)
            assert status.restarts == 0
            assert len(rig.engines.specs) == 2

    async def test_start_of_a_running_engine_is_refused(self, rig):
        """ENGINE_NOT_STOPPED names the phase."""
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            with pytest.raises(EngineNotStopped, match="READY"):
                await supervisor.start()

    async def test_stop_while_loading(self, rig):
        """A start can be stopped before it is ready."""
        rig.misbehave(load=30)
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, EnginePhase.LOADING)
            await supervisor.stop(None)
            assert living(rig) == []

    async def test_stop_in_backoff(self, rig):
        """An engine that waits for its next start can be stopped."""
        rig.timings = type(rig.timings)(start=20, drain=1, backoff=(600,))
        async with rig.supervised() as supervisor:
            status = await rig.until(supervisor, READY)
            os.kill(status.ranks[0].pid, signal.SIGKILL)
            await rig.until(supervisor, BACKOFF)
            status = await supervisor.stop(None)
            assert status.phase is STOPPED

    async def test_a_stubborn_host_is_killed(self, rig):
        """A host that ignores Shutdown and SIGTERM is gone all the same."""
        rig.misbehave(stubborn=True, orphan=True)
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            await supervisor.close()
            await rig.task
            assert living(rig) == []

    async def test_force_ends_a_drain(self, rig):
        """The second SIGTERM does not wait for requests."""
        rig.engines.drained.clear()
        rig.timings = type(rig.timings)(start=20, drain=600, backoff=(0.1,))
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
            closing = asyncio.create_task(supervisor.close())
            await rig.until(supervisor, EnginePhase.DRAINING)
            supervisor.force()
            await closing
            await rig.task
            assert living(rig) == []

    async def test_watchers_end_when_the_daemon_does(self, rig):
        """A Watch stream does not keep a stopping server waiting."""
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)

            async def follow() -> list[EnginePhase]:
                return [status.phase async for status in supervisor.watch()]

            watcher = asyncio.create_task(follow())
            await asyncio.sleep(0)
            await supervisor.close()
            await rig.task
            assert (await watcher)[-1] is STOPPED


class TestOutput:
    async def test_more_output_than_a_pipe_holds_does_not_stop_the_engine(self, rig):
        """A megabyte printed before anything else is relayed line by line."""
        rig.misbehave(noisy=10_000)
        async with rig.supervised() as supervisor:
            await rig.until(supervisor, READY)
        lines = [fields["line"] for _, event, fields in rig.log.entries if event == "engine"]
        assert sum(line.startswith("line ") for line in lines) == 10_000
