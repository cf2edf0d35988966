"""What a plan predicts, restarts with other slots, fit, and an operator beside a policy."""

import os

import pytest

from ktd.errors import InvalidArgument, PlacementStale, PlanNotFound, StrategyUnknown


def _experts(message):
    return {layer.layer: list(layer.gpu_experts) for layer in message.layers}


async def test_plan_predicts_and_offers_a_restart(daemon, client):
    """Time of copying, both placements, memory; and what the slots of a restart would give."""
    daemon.traffic.decode(200)
    plan = await client.plan(strategy="frequency")
    assert plan.copy_duration.ToNanoseconds() > 0
    assert (plan.before.hit_rate, plan.after.hit_rate) == (
        plan.hit_rate_before,
        plan.hit_rate_after,
    )
    assert plan.after.tokens_per_second > plan.before.tokens_per_second > 0
    assert plan.before.cpu_bytes_per_step > plan.after.cpu_bytes_per_step > 0
    assert plan.slot_bytes == 8 * daemon.shape.expert_bytes
    loaded = await client.plan(strategy="front-loading")
    assert [layer.slots for layer in loaded.restart.layers] == [8, 0, 0, 0]
    assert 0.2 < loaded.restart.forecast.hit_rate < 0.3
    target = await client.plan(layers={0: [5, 6]}, partial=True)
    assert not target.HasField("restart")


async def test_restart_gives_the_slots_that_were_offered(daemon, client):
    """Drained, started again, in the history by who asked; the old etag is stale."""
    daemon.traffic.decode(200)
    plan = await client.plan(strategy="front-loading")
    answer = await client.restart_with_placement(plan=plan.name, drain=7.0)
    assert _experts(answer) == _experts(plan.restart)
    assert daemon.engine.drains == [7.0]
    placement = await client.placement()
    assert _experts(placement) == _experts(plan.restart)
    assert [layer.slots for layer in placement.layers] == [
        layer.slots for layer in plan.restart.layers
    ]
    newest = (await client.history())[0]
    assert (newest.origin, newest.actor) == (
        "front-loading",
        f"uid={os.getuid()} pid={os.getpid()}",
    )
    with pytest.raises(PlacementStale):
        await client.restart_with_placement(strategy="random", etag=plan.etag)


async def test_restart_that_is_only_checked_restarts_nothing(daemon, client):
    """The answer is the same; the engine was not touched."""
    answer = await client.restart_with_placement(strategy="random", validate_only=True)
    assert sum(layer.slots for layer in answer.layers) == 8
    assert daemon.engine.drains == []
    assert daemon.placement.restarts.take() is None


@pytest.mark.parametrize(
    ("goal", "error"),
    [
        ({}, InvalidArgument),
        ({"strategy": "magic"}, StrategyUnknown),
        ({"plan": "engines/default/plans/nope"}, PlanNotFound),
        ({"strategy": "random", "drain": -1.0}, InvalidArgument),
    ],
)
async def test_restart_is_refused_before_anything_is_drained(daemon, client, goal, error):
    """By what is wrong with the request."""
    with pytest.raises(error):
        await client.restart_with_placement(**goal)
    assert daemon.engine.drains == []


async def test_fit_tells_the_budget_and_its_assumptions(client):
    """As the daemon found it."""
    fit = await client.fit()
    assert (fit.slots, fit.largest_slots, fit.total_experts, fit.ratio) == (16, 32, 32, 0.5)
    assert list(fit.assumptions) == ["1.0 GiB of host memory are free."]


async def test_operator_is_not_overtaken_by_a_policy_twice(daemon, client):
    """A policy moved between reading and asking: the client reads again, and nobody notices."""
    placement = daemon.placement
    asked = client.placement

    placement.policy_hold.set("adaptive")
    moved = [list(range(2, 4))] + [[0, 1]] * 3
    read = type(client)._etag_now

    async def overtaken(self):
        etag = await read(self)
        if not placement.policy_hold.complaint():
            swap = placement.apply_policy("adaptive", tuple(map(tuple, moved)), etag=etag)
            await placement.swaps.settled()
            assert placement.swaps.get(swap.id).revision == 2
        return etag

    client._etag_now = overtaken.__get__(client)
    swap = await client.apply_and_wait(strategy="random")
    assert swap.revision == 3
    assert swap.notes[0].startswith("The policy adaptive is paused")
    assert (await asked()).origin == "random"
