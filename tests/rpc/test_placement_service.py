"""PlacementService over a real socket, as a client sees it."""

import asyncio
import os
from contextlib import aclosing

import pytest

from ktd.client import KtdClient
from ktd.errors import (
    EngineNotReady,
    EtagRequired,
    ExpertNotFound,
    InvalidArgument,
    KtdError,
    LayerNotFound,
    NotFound,
    NothingToUndo,
    PlacementDoesNotFit,
    PlacementStale,
    PlanNotFound,
    StrategyUnknown,
    SwapInProgress,
    SwapNotCancellable,
    SwapNotFound,
)
from ktd.v1 import placement_pb2
from tests.rpc.fake_daemon import fake_daemon


def _experts(message):
    return {layer.layer: list(layer.gpu_experts) for layer in message.layers}


async def test_placement_tells_layers_slots_and_experts(client):
    """Ascending, with name, revision, etag and origin."""
    placement = await client.placement()
    assert placement.name == "engines/default/placement"
    assert (placement.revision, placement.origin) == (1, "start")
    assert _experts(placement) == {0: [0, 1], 1: [0, 1], 2: [0, 1], 3: [0, 1]}
    assert [(layer.num_experts, layer.slots) for layer in placement.layers] == [(8, 2)] * 4
    assert placement.update_time.seconds > 0


async def test_apply_returns_at_once_and_the_swap_is_watched(daemon, client):
    """The swap has a name, states go forward, and the placement is what it committed."""
    gate = daemon.target.hold("publish")
    swap = await client.apply(strategy="random")
    assert swap.state == placement_pb2.SWAP_STATE_STAGING
    assert swap.name.startswith("engines/default/swaps/")
    gate.set()
    changes = [change async for change in client.watch_swap(swap.name)]
    last = changes[-1]
    assert last.state == placement_pb2.SWAP_STATE_SUCCEEDED
    assert (last.revision, last.moves_done, last.bytes_done) == (
        2,
        last.moves_total,
        last.bytes_total,
    )
    placement = await client.placement()
    assert (placement.etag, placement.origin) == (last.etag, "random")
    assert tuple(tuple(layer.gpu_experts) for layer in placement.layers) == daemon.target.experts


async def test_swap_outlives_the_client_that_asked(daemon):
    """Hanging up in the middle of a stream changes nothing for the swap."""
    gate = daemon.target.hold("wait_copied")
    async with KtdClient(daemon.socket) as client:
        swap = await client.apply(strategy="random")
        async with aclosing(client.watch_swap(swap.name)) as changes:
            await anext(changes)
    gate.set()
    async with KtdClient(daemon.socket) as client:
        assert (await client.wait_for_swap(swap.name)).revision == 2


async def test_apply_and_wait_reports_progress(client):
    """What the CLI does."""
    seen = []
    swap = await client.apply_and_wait(layers={1: [6, 7]}, partial=True, on_progress=seen.append)
    assert swap.state == placement_pb2.SWAP_STATE_SUCCEEDED
    assert seen[-1] == swap
    assert [(move.layer, move.evict, move.load) for move in swap.moves] == [(1, 0, 6), (1, 1, 7)]


async def test_watch_sends_moves_first_and_last(daemon, client):
    """Progress in between is a few numbers, however many moves there are."""
    gate = daemon.target.hold("publish")
    swap = await client.apply(strategy="random")
    seen = []
    async for change in client.watch_swap(swap.name):
        gate.set()
        seen.append(change)
    assert len(seen) > 2
    assert list(seen[0].moves) == list(seen[-1].moves) == list(swap.moves)
    assert all(not change.moves for change in seen[1:-1])
    assert all(change.moves_total == len(swap.moves) for change in seen)


async def test_move_without_victim_has_no_evict_field(client):
    """Expert 0 exists, so unset must not look like 0."""
    await client.apply_and_wait(layers={1: []}, partial=True)
    swap = await client.apply_and_wait(layers={1: [3]}, partial=True)
    (move,) = swap.moves
    assert not move.HasField("evict")
    assert move.load == 3


async def test_failed_swap_carries_the_error_as_a_status(daemon, client):
    """The reason and sentence of the target, after the roll-back; waiting raises it."""
    daemon.target.fail_on("publish")
    with pytest.raises(KtdError, match="rank 1 failed in publish") as failure:
        await client.apply_and_wait(strategy="random")
    assert failure.value.reason == "SWAP_STEP_FAILED"
    (swap,) = await client.swaps()
    assert swap.state == placement_pb2.SWAP_STATE_FAILED
    assert swap.end_time.seconds > 0
    assert (await client.placement()).revision == 1
    conditions = (await client.status()).conditions
    assert [condition.reason for condition in conditions] == ["SWAP_ROLLED_BACK"]


async def test_cancelled_swap_is_rolled_back(daemon, client):
    """Waiting for it raises; cancelling it again is refused."""
    gate = daemon.target.hold("wait_copied")
    swap = await client.apply(strategy="random")
    await daemon.target.reached("wait_copied")
    await client.cancel_swap(swap.name)
    gate.set()
    with pytest.raises(KtdError, match="cancelled") as ended:
        await client.wait_for_swap(swap.name)
    assert ended.value.reason == "SWAP_CANCELLED"
    assert (await client.swap(swap.name)).state == placement_pb2.SWAP_STATE_CANCELLED
    with pytest.raises(SwapNotCancellable):
        await client.cancel_swap(swap.name)


async def test_plan_is_applied_by_its_name(client):
    """It brings its own etag and is used up."""
    plan = await client.plan(strategy="random")
    assert plan.name.startswith("engines/default/plans/")
    assert plan.bytes == 12_288 * len(plan.moves)
    swap = await client.apply_and_wait(plan=plan.name)
    assert list(swap.moves) == list(plan.moves)
    assert _experts(await client.placement()) == _experts(plan)
    with pytest.raises(PlanNotFound):
        await client.apply(plan=plan.name)


async def test_frequency_uses_what_was_counted(daemon, client):
    """The hit rate after is no worse than before, and the realised one follows it."""
    empty = await client.plan(strategy="frequency")
    assert "no activation statistics" in empty.notes[0]
    daemon.traffic.decode(200)
    plan = await client.plan(strategy="frequency")
    assert plan.hit_rate_after > plan.hit_rate_before > 0
    (note,) = plan.notes
    assert note.startswith("Predicted speed rests on defaults")
    assert (await client.stats()).totals.gpu_hit_rate == pytest.approx(plan.hit_rate_before)


async def test_history_names_who_asked(client):
    """The client says which process it is."""
    await client.apply_and_wait(strategy="random")
    newest, oldest = await client.history()
    assert (newest.revision, newest.origin, newest.undoable) == (2, "random", False)
    assert newest.actor == f"uid={os.getuid()} pid={os.getpid()}"
    assert (oldest.origin, oldest.actor, oldest.undoable) == ("start", "daemon", True)


async def test_history_comes_in_pages(client):
    """A token continues where the page ended; the client joins them."""
    for layer in range(4):
        await client.apply_and_wait(layers={layer: [5, 6]}, partial=True)
    request = placement_pb2.ListPlacementsRequest(parent="engines/default", page_size=2)
    page = await client._placement.ListPlacements(request)
    assert [entry.revision for entry in page.entries] == [5, 4]
    request.page_token = page.next_page_token
    page = await client._placement.ListPlacements(request)
    assert [entry.revision for entry in page.entries] == [3, 2]
    assert [entry.revision for entry in await client.history()] == [5, 4, 3, 2, 1]
    assert [entry.revision for entry in await client.history(page_size=1)] == [5]
    for bad in ({"page_token": "x"}, {"page_size": -1}):
        with pytest.raises(InvalidArgument):
            await client._answer(
                client._placement.ListPlacements(placement_pb2.ListPlacementsRequest(**bad))
            )


async def test_undo_goes_back(client):
    """To the placement before the newest change; then there is nothing left."""
    await client.apply_and_wait(strategy="random")
    swap = await client.wait_for_swap((await client.undo()).name)
    assert (swap.origin, swap.revision) == ("undo", 3)
    assert _experts(await client.placement())[0] == [0, 1]
    with pytest.raises(NothingToUndo):
        await client.undo()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.apply(strategy="random", etag='"old"'), PlacementStale),
        (lambda c: c.apply(strategy="random", etag=""), EtagRequired),
        (lambda c: c.undo(etag=""), EtagRequired),
        (lambda c: c.apply(strategy="magic"), StrategyUnknown),
        (lambda c: c.plan(strategy="magic"), StrategyUnknown),
        (lambda c: c.plan(layers={9: [0]}, partial=True), LayerNotFound),
        (lambda c: c.plan(layers={1: [8]}, partial=True), ExpertNotFound),
        (lambda c: c.plan(layers={1: [1, 1]}, partial=True), ExpertNotFound),
        (lambda c: c.plan(layers={1: [1, 2, 3]}, partial=True), PlacementDoesNotFit),
        (lambda c: c.plan(layers={1: [1]}), InvalidArgument),
        (lambda c: c.apply(plan="engines/default/plans/x"), PlanNotFound),
        (lambda c: c.apply(plan="x"), PlanNotFound),
        (lambda c: c.swap("engines/default/swaps/x"), SwapNotFound),
        (lambda c: c.cancel_swap("x"), SwapNotFound),
        (lambda c: anext(c.watch_swap("engines/default/swaps/x")), SwapNotFound),
    ],
)
async def test_refusal_arrives_with_its_class_and_reason(daemon, client, call, error):
    """Unary or streaming; and nothing was changed."""
    with pytest.raises(error) as refusal:
        await call(client)
    assert type(refusal.value) is error
    assert (refusal.value.reason, refusal.value.code) == (error.reason, error.code)
    assert str(refusal.value).endswith(".")
    assert daemon.target.calls == []
    assert (await client.placement()).revision == 1


async def test_stale_refusal_carries_the_current_etag(client):
    """In the ErrorInfo's metadata, for programs."""
    with pytest.raises(PlacementStale) as refusal:
        await client.apply(strategy="random", etag='"old"')
    assert refusal.value.metadata == {"etag": (await client.placement()).etag}


async def test_second_swap_is_refused_while_one_runs(daemon, client):
    """ABORTED like a stale etag, told apart by the reason."""
    gate = daemon.target.hold("wait_copied")
    swap = await client.apply(strategy="random")
    with pytest.raises(SwapInProgress) as refusal:
        await client.apply(strategy="uniform")
    assert (refusal.value.code, refusal.value.reason) == ("ABORTED", "SWAP_IN_PROGRESS")
    gate.set()
    await client.wait_for_swap(swap.name)


async def test_racing_clients_with_one_etag_get_one_swap(daemon):
    """Whoever is second is refused, whatever the order."""
    async with KtdClient(daemon.socket) as client:
        etag = (await client.placement()).etag
        results = await asyncio.gather(
            *(client.apply(layers={1: [n, 7]}, partial=True, etag=etag) for n in range(2, 7)),
            return_exceptions=True,
        )
    refused = [result for result in results if isinstance(result, KtdError)]
    assert len(refused) == 4
    assert all(isinstance(error, PlacementStale | SwapInProgress) for error in refused)


async def test_repeated_request_id_returns_the_same_swap(client):
    """A client may retry after a lost answer."""
    etag = (await client.placement()).etag
    first = await client.apply(strategy="random", etag=etag, request_id="r")
    await client.wait_for_swap(first.name)
    again = await client.apply(strategy="random", etag=etag, request_id="r")
    assert again.name == first.name
    assert again.state == placement_pb2.SWAP_STATE_SUCCEEDED


async def test_validate_only_has_no_name(daemon, client):
    """And starts nothing."""
    swap = await client.apply(strategy="random", validate_only=True)
    assert swap.name == ""
    assert len(swap.moves) == swap.moves_total > 0
    assert await client.swaps() == []
    assert daemon.target.calls == []


async def test_request_without_goal_is_refused(client):
    """Neither a plan nor a target nor a strategy."""
    etag = (await client.placement()).etag
    request = placement_pb2.ApplyPlacementRequest(etag=etag)
    with pytest.raises(InvalidArgument, match="no goal"):
        await client._answer(client._placement.ApplyPlacement(request))


@pytest.mark.parametrize("name", ["engines/other", "engines/default/swaps"])
async def test_unknown_engine_is_not_found(client, name):
    """Names leave room for more engines; today there is one."""
    with pytest.raises(NotFound):
        await client._answer(
            client._placement.GetPlacement(placement_pb2.GetPlacementRequest(name=name))
        )


async def test_placement_is_unknown_before_the_engine_is_ready(tmp_path):
    """UNAVAILABLE with the reason, not an empty placement."""
    async with (
        fake_daemon(tmp_path, ready=False) as daemon,
        KtdClient(daemon.socket) as client,
    ):
        with pytest.raises(EngineNotReady, match="ktd status"):
            await client.placement()


async def test_placement_is_readable_and_fixed_while_the_engine_is_gone(daemon, client):
    """The last committed one; a change says why it is refused."""
    await client.apply_and_wait(strategy="random")
    before = await client.placement()
    daemon.engine_lost("The engine was killed (signal 9).")
    assert await client.placement() == before
    with pytest.raises(EngineNotReady, match="signal 9"):
        await client.apply(strategy="uniform")
