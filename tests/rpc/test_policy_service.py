"""``ktd.v1.PolicyService`` over a real socket."""

from __future__ import annotations

import pytest

from ktd.client import KtdError


async def work(daemon, tokens=100, turns=20):
    for _ in range(turns):
        daemon.traffic.decode(tokens)
        await daemon.policies.turn()
        await daemon.placement.swaps.settled()


async def test_off_is_the_default(client):
    policy = await client.policy()
    assert policy.policy == "off"
    assert "No policy runs" in policy.state
    assert not policy.HasField("copy_cost")
    assert not policy.HasField("threshold")


async def test_it_is_set_and_what_is_not_said_stays(client):
    policy = await client.set_policy("adaptive", copy_cost=3, copy_rate=5e6, threshold=64)
    assert (policy.policy, policy.copy_cost, policy.copy_rate) == ("adaptive", 3, 5e6)
    policy = await client.set_policy("dynamic")
    assert (policy.copy_cost, policy.copy_rate, policy.threshold) == (3, 5e6, 64)
    policy = await client.set_policy("adaptive", default_copy_cost=True)
    assert not policy.HasField("copy_cost")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("best", {}, "no policy 'best'"),
        ("", {}, "names no policy"),
        ("adaptive", {"copy_cost": -1.0}, "copy cost is -1"),
        ("adaptive", {"copy_cost": float("nan")}, "copy cost is nan"),
        ("adaptive", {"copy_rate": 0.0}, "copy rate is 0"),
        ("dynamic", {"threshold": 0}, "threshold is 0"),
        ("adaptive", {"copy_cost": 1.0, "default_copy_cost": True}, "give one"),
    ],
)
async def test_what_is_wrong_changes_nothing(client, name, options, sentence):
    await client.set_policy("adaptive", copy_cost=3)
    with pytest.raises(KtdError, match=sentence) as caught:
        await client.set_policy(name, **options)
    assert caught.value.code == "INVALID_ARGUMENT"
    policy = await client.policy()
    assert (policy.policy, policy.copy_cost) == ("adaptive", 3)


async def test_every_move_is_explained(daemon, client):
    await client.set_policy("adaptive")
    await work(daemon)
    found = await client.explain_policy()
    assert found.policy.moves == len(found.moves) > 0
    for one in found.moves:
        assert one.swap.startswith("engines/default/swaps/")
        assert one.outcome == "SUCCEEDED"
        assert one.move.gain > one.move.cost + one.move.noise
        assert one.move.score_load > one.move.score_evict
    assert found.facts["tokens_seen"] > 0
    assert len((await client.explain_policy(moves=1, candidates=0)).moves) == 1


async def test_an_operators_change_pauses_it_until_it_is_set_again(daemon, client):
    await client.set_policy("adaptive")
    await client.apply_and_wait(layers={layer: [6, 7] for layer in (0, 1, 2, 3)})
    policy = await client.policy()
    assert policy.paused
    await work(daemon)
    placement = await client.placement()
    assert [list(layer.gpu_experts) for layer in placement.layers] == [[6, 7]] * 4
    assert not (await client.set_policy("adaptive")).paused
    await work(daemon)
    assert (await client.placement()).origin == "policy:adaptive"


async def test_a_plan_holds_it(client):
    await client.set_policy("adaptive")
    plan = await client.plan(strategy="uniform")
    policy = await client.policy()
    assert policy.HasField("held_until")
    assert "moves nothing now" in policy.state
    assert any("adaptive moves nothing" in note for note in plan.notes)


@pytest.mark.parametrize("most", [-1, 501])
async def test_more_than_are_kept_are_refused(client, most):
    with pytest.raises(KtdError, match=f"moves is {most}"):
        await client.explain_policy(moves=most)


async def test_another_engine_is_not_found(daemon, client):
    from ktd.v1 import policy_pb2

    with pytest.raises(KtdError, match="no engine"):
        await client._answer(
            client._policies.GetPolicy(policy_pb2.GetPolicyRequest(name="engines/other"))
        )
