"""A daemon without an engine: the real gRPC server and placement over fakes in memory.

For tests of clients: ``async with fake_daemon(tmp_path) as daemon: … daemon.socket``. By hand, with
traffic: ``PYTHONPATH=daemon python -m tests.rpc.fake_daemon --socket /tmp/ktd-fake.sock``, then
``ktd --socket /tmp/ktd-fake.sock status``.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.app.policies import HubCounters
from ktd.engine.status import EnginePhase
from ktd.model.fit import Fit
from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape
from ktd.placement.store import PlacementStore
from ktd.placement.strategies.registry import initial_placement
from ktd.placement.swap import BatchLimits
from ktd.policy.loop import PolicyLoop
from ktd.rpc.server import RpcServer
from ktd.stats.hub import StatsHub
from ktd.stats.profile import ProfileShape
from ktd.stats.profile_store import ProfileStore
from ktd.stats.profiles import Profiles
from ktd.stats.recording import RecordingOptions, Recordings
from ktd.stats.sampler import RankSampler
from tests.placement.fake_target import FakeTarget
from tests.rpc.fake_engine import FakeEngine, ready_status
from tests.rpc.fake_recorder import FakeRecorder
from tests.rpc.fake_traffic import FakeTraffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ktd.placement.model import Experts

SHAPE = ModelShape(moe_layers=(0, 1, 2, 3), num_experts=8, slots=(2, 2, 2, 2), expert_bytes=12_288)


@dataclass(frozen=True)
class FakeDaemon:
    """What a test can reach into; ``target`` fails, waits and is slow on request."""

    socket: Path
    shape: ModelShape
    engine: FakeEngine
    placement: PlacementManager
    target: FakeTarget
    traffic: FakeTraffic
    stats: StatsHub
    recorder: FakeRecorder
    recordings: Recordings
    profiles: Profiles
    policies: PolicyLoop
    server: RpcServer

    def engine_lost(self, reason: str = "The engine ended unexpectedly.") -> None:
        """As when the engine is killed."""
        self.placement.detach(reason)
        self.stats.detach()
        self.recordings.detach()
        self.profiles.detach()
        self.engine.set(phase=EnginePhase.BACKOFF, message=reason)


@dataclass(frozen=True)
class FakeFit:
    """A ``FitSource`` on a host where the whole model fits."""

    shape: ModelShape

    def fit(self) -> Fit:
        total = len(self.shape.moe_layers) * self.shape.num_experts
        return Fit(
            slots=total // 2,
            largest=total,
            total_experts=total,
            num_layers=len(self.shape.moe_layers),
            expert_bytes=self.shape.expert_bytes,
            free_bytes=1 << 30,
            room_bytes=1 << 29,
            assumptions=("1.0 GiB of host memory are free.",),
        )


@asynccontextmanager
async def fake_daemon(
    folder: Path,
    *,
    socket: Path | None = None,
    shape: ModelShape = SHAPE,
    experts: Experts | None = None,
    ready: bool = True,
    limits: BatchLimits | None = None,
) -> AsyncIterator[FakeDaemon]:
    """Runs a fake daemon whose files lie in ``folder``.

    Args:
        experts: In slots at the start; None: what ``uniform`` takes.
        ready: False: the engine is stopped and nothing is attached.
        limits: None: batches of two moves, so that a swap has several.
    """
    if experts is None:
        experts = initial_placement(
            "uniform", len(shape.moe_layers), shape.num_experts, shape.total_slots
        ).experts
    target = FakeTarget(shape, experts)
    engine = FakeEngine(ready_status(shape, "fake-1") if ready else None)
    traffic = FakeTraffic(folder, shape, lambda: target.experts)
    stats = StatsHub()
    recorder = FakeRecorder()
    recordings = Recordings(RecordingOptions(mode="stat", folder=folder / "recordings"))
    profiles = Profiles(ProfileStore(folder / "state"), stats, "ktd-tiny")
    async with AsyncExitStack() as stack:
        stack.callback(traffic.close)
        stack.callback(profiles.detach)
        stack.callback(stats.detach)
        placement = await stack.enter_async_context(
            PlacementManager(
                store=PlacementStore(folder / "state"),
                model="ktd-tiny",
                counts=stats.counts,
                on_condition=engine.set_condition,
                limits=limits or BatchLimits(moves=2),
            )
        )
        if ready:
            stats.attach(
                RankSampler(
                    engine_id="fake-1",
                    runtime_dir=folder,
                    num_ranks=1,
                    moe_layers=shape.moe_layers,
                )
            )
            profiles.attach(
                ProfileShape(len(shape.moe_layers), shape.moe_layers, shape.num_experts)
            )
            recordings.attach(recorder)
            await placement.attach(target, shape, experts)

        async def restarted() -> None:
            planned = placement.restarts.take()
            if planned is not None:
                target = FakeTarget(planned.shape, planned.experts)
                await placement.attach(
                    target, planned.shape, planned.experts, planned.origin, planned.actor
                )

        engine.on_start = restarted
        policies = PolicyLoop(placement, HubCounters(stats), on_condition=engine.set_condition)
        server = await stack.enter_async_context(
            RpcServer(
                socket or folder / "ktd.sock",
                engine,
                placement,
                stats,
                recordings=recordings,
                profiles=profiles,
                policies=policies,
                fit=FakeFit(shape),
            )
        )
        yield FakeDaemon(
            socket=socket or folder / "ktd.sock",
            shape=shape,
            engine=engine,
            placement=placement,
            target=target,
            traffic=traffic,
            stats=stats,
            recorder=recorder,
            recordings=recordings,
            profiles=profiles,
            policies=policies,
            server=server,
        )


async def _by_hand(socket: Path, layers: int, experts: int, copy_seconds: float) -> None:
    shape = ModelShape(tuple(range(layers)), experts, (experts // 4,) * layers, 12_288)
    with tempfile.TemporaryDirectory(prefix="ktd-fake-") as folder:
        async with fake_daemon(Path(folder), socket=socket, shape=shape) as daemon:
            daemon.target.delay["wait_copied"] = copy_seconds
            print(f"listening on {daemon.socket}; Ctrl-C stops", flush=True)
            while True:
                daemon.traffic.decode(10)
                await asyncio.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--copy-seconds", type=float, default=0.1, help="per batch of two moves")
    args = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(_by_hand(args.socket, args.layers, args.experts, args.copy_seconds))


if __name__ == "__main__":
    main()
