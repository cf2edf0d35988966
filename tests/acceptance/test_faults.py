"""Failures at every point of a swap and of a step: no wrong answer, no hang, the old placement."""

import asyncio
import contextlib
import random
import re
from dataclasses import dataclass, field

import aiohttp
import pytest

from ktd.client import KtdClient
from ktd.engine.bridge import EngineBridge
from ktd.sgl.cores import cores_allowed
from ktd.v1 import placement_pb2
from tests.acceptance.agreement import GreedyStreams
from tests.acceptance.conftest import TOKENS
from tests.acceptance.openai import Streamed, stream
from tests.acceptance.reference import TEXTS
from tests.device import on_gpu
from tests.faults.armed import Fault
from tests.faults.live import FaultyDaemon
from tests.live import READY_SECONDS
from tests.skips import repeats, two_ranks

pytestmark = pytest.mark.engine

STREAMS = 4
LENGTH = 48
# A swap of most slots takes seconds, so that a step can fail in the middle of one.
RATE = "3000000"
LIVES = frozenset({placement_pb2.SWAP_STATE_STAGING, placement_pb2.SWAP_STATE_COMMITTING})
# Of the batches of a swap, or of the copies into slots: behind one that is done.
LATER = 2
# On GPUs a rank may be the first to see that another one has no answer.
OR_SEEN_BY_ANOTHER = "|has no answer for a layer" if on_gpu() else ""
# Longer than any failure may go unnoticed, and a roll-back takes.
SWAP_SECONDS = 90


def faulty_daemon(ranks):
    """A slow one, with its placement not from a flag: those on the command line beat the stored."""
    threads = ("--tp", str(ranks), "--cpu-threads", str(2 * ranks))
    return FaultyDaemon(
        *threads, *TOKENS, "--swap-rate", RATE, env={"KTD_GPU_EXPERTS_RATIO": "0.37"}
    )


@dataclass
class Scene:
    """A daemon that serves, and what its streams say when nothing happens."""

    daemon: FaultyDaemon
    ranks: int
    prompts: list
    compare: GreedyStreams
    chance: random.Random = field(default_factory=lambda: random.Random(11))


@dataclass
class Outcome:
    """What happened around one failure."""

    swap: placement_pb2.Swap
    before: placement_pb2.Placement
    after: placement_pb2.Placement
    slots: dict
    restarts: int
    met: bool
    streams: list


ONE_RANK = pytest.param(1, id="one-rank")


@pytest.fixture(scope="module", params=[ONE_RANK, pytest.param(2, id="two-ranks", marks=two_ranks)])
def scene(request, reference, stock_url):
    ranks = request.param
    prompts = []
    for number in range(STREAMS):
        ids = reference.text(TEXTS[number % len(TEXTS)])
        prompts.append(reference.tokenizer.decode(ids[30 * number : 30 * number + 24]))
    with faulty_daemon(ranks) as daemon:
        quiet = asyncio.run(once(daemon, prompts))
        assert all(whole(run) for run in quiet)
        compare = GreedyStreams(reference, stock_url, prompts, [run.ids for run in quiet])
        yield Scene(daemon, ranks, prompts, compare)


def whole(run):
    """Whether a stream says itself that it is complete."""
    return run.finish_reason == "length"


async def attempt(session, daemon, prompt):
    """One stream as far as it came: an engine that ends cuts it, and refuses until it is back."""
    run = Streamed()
    with contextlib.suppress(aiohttp.ClientError, AssertionError, KeyError):
        await stream(session, daemon.http_url, prompt, LENGTH, into=run)
    return run


async def once(daemon, prompts):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SWAP_SECONDS)) as session:
        return await asyncio.gather(*(attempt(session, daemon, prompt) for prompt in prompts))


async def streams_until(scene, done):
    """Every prompt again and again; a stream that hangs fails by the session's timeout."""
    runs = [[] for _ in scene.prompts]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SWAP_SECONDS)) as session:

        async def repeat(number):
            while not done.is_set():
                run = await attempt(session, scene.daemon, scene.prompts[number])
                runs[number].append(run)
                if not whole(run):
                    await asyncio.sleep(0.2)

        await asyncio.gather(*(repeat(number) for number in range(len(runs))))
    return runs


def other_placement(scene, placement):
    """Most slots of every layer get other experts."""
    target = {}
    for layer in placement.layers:
        free = sorted(set(range(layer.num_experts)) - set(layer.gpu_experts))
        target[layer.layer] = scene.chance.sample(free, layer.slots)
    return target


async def until_ended(client, name):
    async with asyncio.timeout(SWAP_SECONDS):
        async with contextlib.aclosing(client.watch_swap(name)) as changes:
            async for swap in changes:
                if swap.state not in LIVES:
                    return swap
    raise AssertionError("the daemon stopped")


async def until_restarted(client, before):
    """Returns when the engine has been given up."""
    async with asyncio.timeout(READY_SECONDS):
        async with contextlib.aclosing(client.watch_status()) as changes:
            async for status in changes:
                if status.restarts > before:
                    return


async def slots_of(client, daemon):
    """Experts in slots by layer, as every rank of the engine holds them."""
    engine = (await client.status()).engine_id
    async with EngineBridge(daemon.runtime_dir / engine / "control.sock") as bridge:
        tables = await bridge.slots()
    return {layer: sorted(e for e in experts if e >= 0) for layer, experts in tables.items()}


async def fail(scene, fault, *, in_step, restarts):
    """Streams run, a swap is under way, and the fault is met."""
    daemon, done = scene.daemon, asyncio.Event()
    async with KtdClient(daemon.socket) as client:
        before, restarted = await client.placement(), (await client.status()).restarts
        streams = asyncio.create_task(streams_until(scene, done))
        await asyncio.sleep(0.5)
        if not in_step:
            fault.arm(daemon.runtime_dir)
        swap = await client.apply(layers=other_placement(scene, before))
        if in_step:
            await asyncio.sleep(0.3)
            assert (await client.swap(swap.name)).state in LIVES, "the swap was over too early"
            fault.arm(daemon.runtime_dir)
        swap = await until_ended(client, swap.name)
        if restarts:
            await until_restarted(client, restarted)
            await asyncio.to_thread(daemon.wait_ready)
        await asyncio.sleep(1)
        after, slots = await client.placement(), await slots_of(client, daemon)
        status = await client.status()
        done.set()
        runs = await streams
    return Outcome(
        swap=swap,
        before=before,
        after=after,
        slots=slots,
        restarts=status.restarts - restarted,
        met=fault.met(daemon.runtime_dir),
        streams=runs,
    )


def experts_of(placement):
    return {layer.layer: sorted(layer.gpu_experts) for layer in placement.layers}


def require_right(scene, outcome, cause):
    """What holds after every failure."""
    assert outcome.met, "the failure was never met"
    assert outcome.swap.state == placement_pb2.SWAP_STATE_FAILED
    print(f"the swap failed: {outcome.swap.error.message}")
    assert re.search(cause, outcome.swap.error.message)
    assert outcome.after.etag == outcome.before.etag
    assert experts_of(outcome.after) == experts_of(outcome.before)
    assert outcome.slots == experts_of(outcome.before)
    quiet = asyncio.run(once(scene.daemon, scene.prompts))
    counted = cut = differing = 0
    for number, runs in enumerate(outcome.streams):
        for run in [*runs, quiet[number]]:
            counted += 1
            cut += not whole(run)
            differing += scene.compare.differs(number, run.ids)
            if whole(run):
                assert run.completion_tokens == len(run.ids) == LENGTH
    assert all(whole(run) for run in quiet)
    print(f"{counted} streams, {cut} were cut or refused, {differing} differ within rounding")
    if outcome.restarts == 0:
        assert cut == 0
    moved = asyncio.run(move_everything(scene))
    assert moved.state == placement_pb2.SWAP_STATE_SUCCEEDED


async def move_everything(scene):
    async with KtdClient(scene.daemon.socket) as client:
        swap = await client.apply(layers=other_placement(scene, await client.placement()))
        swap = await until_ended(client, swap.name)
        assert await slots_of(client, scene.daemon) == experts_of(await client.placement())
    return swap


@pytest.mark.parametrize(
    ("point", "nth", "cause"),
    [
        ("prepare", 5, "prepare failed: a planted failure"),
        ("copy", LATER, "copying into a slot failed: a planted failure"),
        # The call that publishes a batch may prepare another.
        ("publish", 5, "(publish|prepare) failed: a planted failure"),
    ],
    ids=["prepare", "copy", "publish"],
)
def test_a_step_of_a_swap_that_fails_is_taken_back(scene, point, nth, cause):
    """The engine goes on, with every stream."""
    fault = Fault(point, rank=scene.ranks - 1, nth=nth)
    outcome = asyncio.run(fail(scene, fault, in_step=False, restarts=False))
    require_right(scene, outcome, cause)
    assert outcome.restarts == 0


# It costs two ranks another start; in the default run they have the tests before and after.
@pytest.mark.parametrize(
    "scene",
    [ONE_RANK, pytest.param(2, id="two-ranks", marks=(two_ranks, *repeats))],
    indirect=True,
)
def test_tables_that_do_not_reach_the_gpu_end_the_engine(scene):
    """Where experts are is not known any more, so nothing is computed by it."""
    fault = Fault("table-upload", rank=scene.ranks - 1)
    outcome = asyncio.run(fail(scene, fault, in_step=False, restarts=True))
    require_right(scene, outcome, "a planted failure")
    assert outcome.restarts == 1


@pytest.mark.parametrize(
    ("point", "cause"),
    [
        ("cpu-task", f"asks for expert 1048576{OR_SEEN_BY_ANOTHER}"),
        ("pool-thread", f"thread of the CPU pool|heart has stood still{OR_SEEN_BY_ANOTHER}"),
        ("rank-death-in-step", "scheduler of rank . .* has gone"),
    ],
    ids=["cpu-task", "pool-thread", "rank-death"],
)
def test_a_step_that_fails_ends_the_engine_and_not_the_service(scene, point, cause):
    """In the middle of a swap, which ends with it."""
    if point == "pool-thread" and scene.ranks > 1 and len(cores_allowed()) < 2 * scene.ranks:
        pytest.skip("with fewer than two cores for each rank pools have no threads of their own")
    fault = Fault(point, rank=scene.ranks - 1, nth=3)
    outcome = asyncio.run(fail(scene, fault, in_step=True, restarts=True))
    require_right(scene, outcome, cause)
    assert outcome.restarts == 1


def test_a_rank_that_dies_between_copying_and_publishing(scene):
    """The half of a swap that was published on no rank, or on the other alone, goes with it."""
    fault = Fault("rank-death", rank=scene.ranks - 1, nth=LATER)
    outcome = asyncio.run(fail(scene, fault, in_step=False, restarts=True))
    require_right(scene, outcome, "scheduler of rank . .* has gone")
    assert outcome.restarts == 1
