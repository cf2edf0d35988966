"""The composition root of ``ktd serve``: builds the parts, joins them, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from ktd.app.device import detect_device
from ktd.app.engines import JoinedEngines
from ktd.app.evidence import LiveEvidence, Pairs, StartEvidence
from ktd.app.fitting import RunningFit, usual_chunk
from ktd.app.lock import state_lock
from ktd.app.logs import to_standard_error
from ktd.app.notify import Notifier
from ktd.app.observe import Observer
from ktd.app.policies import (
    HubCounters,
    copy_pairs,
    never_fires,
    options_of,
    usual_copy_cost,
)
from ktd.app.starts import DEFERRAL_WARNING, EngineStarts
from ktd.app.statistics import KnownCounts, Statistics
from ktd.config.settings import Settings
from ktd.config.sources import unknown_variables
from ktd.engine.board import StatusBoard
from ktd.engine.launcher import HOST_COMMAND
from ktd.engine.leftovers import clear
from ktd.engine.ports import Log
from ktd.engine.status import EngineStatus, Versions
from ktd.engine.supervisor import Supervisor, Timings
from ktd.enginespec import Bench
from ktd.errors import ConfigError, DoesNotFit, EngineFailed, KtdError, StrategyUnknown
from ktd.http.auth import KeyCheck
from ktd.http.gate import Gate
from ktd.http.metrics import Metrics
from ktd.http.passthrough import Passthrough
from ktd.http.server import HttpFront, address_of, bind
from ktd.model.hub import download
from ktd.model.source import folder_or_id
from ktd.placement.cost import default_costs
from ktd.placement.cost_meter import CostMeter
from ktd.placement.manager import PlacementManager
from ktd.placement.store import PlacementStore
from ktd.placement.strategies.registry import plugins, strategy_named
from ktd.placement.swap import BatchLimits
from ktd.policy.loop import PolicyLoop
from ktd.rpc.server import RpcServer
from ktd.stats.hub import StatsHub
from ktd.stats.profile_store import ProfileStore
from ktd.stats.profiles import Profiles
from ktd.stats.recording import RecordingOptions, Recordings
from ktd.version import __version__

_RPC_GRACE_SECONDS = 1.0
_BENCH_WARNING = (
    "ktd bench table replaces this model's routing: answers have no meaning, do not use them."
)


def serve(
    settings: Settings, *, command: Sequence[str] = HOST_COMMAND, bench: Bench | None = None
) -> int:
    """Runs the daemon until it is told to stop; returns 0.

    Args:
        settings: What it was told.
        command: Starts an engine host.
        bench: For :mod:`ktd.app.bench_daemon` alone.

    Raises:
        KtdError: what kept it from starting; the daemon is gone and has left nothing.
    """
    with (
        to_standard_error(settings.log_format, settings.log_level) as log,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        return runner.run(_serve(settings, log, command, bench))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop where that is installed, as it is with the engine; else Python's.

    It is one more step of making the front quick (docs/results/bench.md); nothing depends on it.
    """
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(settings: Settings, log: Log, command: Sequence[str], bench: Bench | None) -> int:
    _say_notices(settings, log)
    _check_strategy(settings)
    notifier = Notifier.from_environment()
    with state_lock(settings.state_dir):
        _make_runtime_dir(settings.runtime_dir)
        # Held before the long start, so that a port or socket in use is said at once.
        sock = bind(settings.host, settings.port)
        try:
            async with _daemon(settings, log, sock, command, bench) as (supervisor, rpc):
                return await _run(supervisor, rpc, notifier, log)
        finally:
            sock.close()


@contextlib.asynccontextmanager
async def _daemon(
    settings: Settings,
    log: Log,
    sock: socket.socket,
    command: Sequence[str],
    bench: Bench | None,
) -> AsyncIterator[tuple[Supervisor, RpcServer]]:
    """All parts, joined; they are ended in the reverse order."""
    ended = await clear(settings.state_dir, settings.runtime_dir)
    if ended:
        log.warning("processes of an earlier daemon were ended", pids=ended)
    gate, hub = Gate(), StatsHub()
    store = ProfileStore(settings.state_dir)
    profiles = Profiles(store, hub, settings.model)
    address = address_of(sock)
    board = StatusBoard(EngineStatus(http_address=address, versions=Versions(ktd=__version__)))
    device, pairs = detect_device(settings.device), Pairs()
    meter = CostMeter(default_costs(device))
    evidence = LiveEvidence(hub, meter, pairs)
    manager = PlacementManager(
        store=PlacementStore(settings.state_dir),
        model=settings.model,
        evidence=evidence,
        on_condition=board.report,
        on_copied=meter.copied,
        limits=BatchLimits.of_operator(device, settings.swap_rate),
    )
    starts = EngineStarts(
        settings,
        device=device,
        manager=manager,
        find_model=lambda wanted: find_model(wanted, board.say),
        evidence=StartEvidence(settings, device, KnownCounts(store, profiles), pairs),
        bench=bench,
    )
    if bench is not None:
        log.warning("bench", warning=_BENCH_WARNING)
        board.report("BENCH_ROUTING", _BENCH_WARNING)
    if settings.max_deferred_experts_per_token:
        board.report("EXPERTS_DEFERRED", DEFERRAL_WARNING)
    evidence.follow(lambda: starts.facts)
    for sentence in plugins().broken.values():
        log.warning("placement strategy", problem=sentence)
        board.report("STRATEGY_BROKEN", sentence)
    recordings = Recordings(
        RecordingOptions(
            mode=settings.expert_distribution_recorder_mode,
            folder=settings.recordings_dir,
            gpu_masks=settings.record_gpu_expert_distribution,
            buffer_passes=settings.expert_distribution_recorder_buffer_size,
        )
    )
    engines = JoinedEngines(
        starts,
        gate=gate,
        manager=manager,
        statistics=Statistics(hub, recordings, profiles),
        describe=board.update,
    )
    supervisor = Supervisor(
        engines,
        log=log,
        num_ranks=settings.tp,
        board=board,
        timings=Timings(start=settings.start_timeout, drain=settings.shutdown_timeout),
        command=command,
        in_flight=lambda: gate.in_flight,
    )
    chunk = usual_chunk(device, settings.sglang_args, settings.tp)
    policies = PolicyLoop(
        manager,
        HubCounters(hub),
        options_of(settings, device),
        on_condition=board.report,
        copy_pairs=lambda: copy_pairs(evidence.costs(), manager.placement().shape.expert_bytes),
        advice=lambda options: never_fires(settings, options, chunk),
        limits=BatchLimits.of_policy(device, settings.swap_rate),
        usual_copy_cost=usual_copy_cost(device),
        exchanges_only=bench is not None,
    )
    observer = Observer(supervisor, manager, hub, gate)
    metrics = Metrics(observer)
    passthrough = Passthrough(gate, KeyCheck(settings.api_key), metrics)
    async with (
        manager,
        HttpFront(sock, passthrough, observer, metrics),
        RpcServer(
            settings.socket,
            supervisor,
            manager,
            hub,
            recordings=recordings,
            profiles=profiles,
            policies=policies,
            fit=RunningFit(lambda: starts.facts, manager, settings, device),
            grace=_RPC_GRACE_SECONDS,
        ) as rpc,
    ):
        running = [
            asyncio.create_task(policies.run(), name="policy"),
            asyncio.create_task(evidence.run(), name="evidence"),
        ]
        # What exists now stays: going through it each time holds tokens up for 30 ms.
        gc.collect()
        gc.freeze()
        log.info("listening", http=address, grpc=str(settings.socket))
        try:
            yield supervisor, rpc
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


async def _run(supervisor: Supervisor, rpc: RpcServer, notifier: Notifier, log: Log) -> int:
    """Runs the engine until a signal, or until its first start has failed."""
    engine = asyncio.create_task(supervisor.run(), name="supervisor")
    helpers = [
        asyncio.create_task(notifier.follow(supervisor.watch()), name="sd_notify"),
        asyncio.create_task(notifier.beat(), name="watchdog"),
    ]
    closing: list[asyncio.Task[None]] = []

    def stop(name: str) -> None:
        if closing:
            log.warning("stopping at once", signal=name)
            supervisor.force()
            return
        log.info("stopping", signal=name, in_flight=supervisor.status().requests_in_flight)
        notifier.send(STOPPING=1, STATUS="Finishing requests in flight.")
        rpc.drain()
        closing.append(asyncio.create_task(supervisor.close(), name="stop"))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    try:
        await engine
    except EngineFailed as error:
        raise _as_refusal(error) from error
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        for task in helpers:
            task.cancel()
        await asyncio.gather(*closing, *helpers, return_exceptions=True)
    log.info("stopped")
    return 0


async def find_model(settings: Settings, say: Callable[[str], None]) -> Path:
    """The model's folder, downloaded if it is not here.

    Raises:
        ModelUnsupported, DoesNotFit: it cannot be had.
    """
    found = folder_or_id(settings.model)
    if isinstance(found, Path):
        return found
    return await download(
        found, revision=settings.revision, cache_dir=settings.download_dir, say=say
    )


def _as_refusal(error: EngineFailed) -> KtdError:
    """The error whose exit code says what kind of failure it was."""
    kind = error.metadata.get("kind")
    if kind == "usage":
        return ConfigError(str(error))
    return KtdError(str(error)) if kind == "internal" else error


def _say_notices(settings: Settings, log: Log) -> None:
    for notice in settings.notices:
        log.warning("configuration", notice=notice)
    for name in unknown_variables(os.environ):
        log.warning("configuration", notice=f"The variable {name} is none of ktd's.")


def _check_strategy(settings: Settings) -> None:
    """Refuses an unknown strategy before anything long begins."""
    try:
        strategy_named(settings.expert_placement_strategy)
    except StrategyUnknown as error:
        name = settings.named("expert_placement_strategy")
        raise ConfigError(f"{name} cannot be followed: {error}") from None


def _make_runtime_dir(runtime_dir: Path) -> None:
    try:
        runtime_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        owner = runtime_dir.stat().st_uid
    except OSError as error:
        raise DoesNotFit(
            f"The runtime folder {runtime_dir} cannot be made ({error.strerror}); choose another "
            "one with --runtime-dir."
        ) from error
    if owner not in (os.getuid(), 0):
        raise DoesNotFit(
            f"The runtime folder {runtime_dir} belongs to user {owner}, not to {os.getuid()}; "
            "choose another one with --runtime-dir."
        )
