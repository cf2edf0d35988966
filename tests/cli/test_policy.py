"""`ktd policy` against a daemon."""

from __future__ import annotations

import pytest

from tests.cli.running import ktd as ktd_process


async def ktd(socket, *words):
    return await ktd_process(*words, socket=socket)


async def work(daemon, turns=20):
    for _ in range(turns):
        daemon.traffic.decode(100)
        await daemon.policies.turn()
        await daemon.placement.swaps.settled()


async def test_get_and_set(daemon):
    done = await ktd(daemon.socket, "policy", "get", "--json")
    assert done.json["policy"] == "off"
    assert done.json["copy_cost"] is None
    done = await ktd(
        daemon.socket, "policy", "set", "adaptive", "--copy-rate", "500M", "--copy-cost", "0"
    )
    assert done.code == 0
    assert "adaptive" in done.out
    assert "0 pairs" in done.out
    done = await ktd(daemon.socket, "policy", "set", "adaptive", "--copy-cost", "default", "--json")
    assert (done.json["copy_rate"], done.json["copy_cost"]) == (5e8, None)
    done = await ktd(daemon.socket, "policy", "set", "dynamic", "--threshold", "64")
    assert "64 tokens" in done.out


async def test_explain_shows_moves_facts_and_reasons(daemon):
    await ktd(daemon.socket, "policy", "set", "adaptive")
    await work(daemon, 4)
    done = await ktd(daemon.socket, "policy", "explain")
    assert "last moves" in done.out
    assert "uses/token" in done.out
    assert "copy cost pairs" in done.out
    found = (await ktd(daemon.socket, "policy", "explain", "--json")).json
    assert set(found) >= {"policy", "state", "facts", "last_moves", "candidates"}
    assert set(found["last_moves"][0]) >= {"layer", "evict", "load", "gain", "cost", "score_load"}
    assert all(set(one) >= {"gain", "noise", "cost", "reason"} for one in found["candidates"])


async def test_a_paused_policy_says_how_to_go_on(daemon):
    await ktd(daemon.socket, "policy", "set", "adaptive")
    await ktd(daemon.socket, "placement", "apply", "--strategy", "random", "--yes")
    done = await ktd(daemon.socket, "policy", "get")
    assert "An operator changed the placement" in done.out
    assert "ktd policy set adaptive" in done.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("set", "best"), "invalid choice: 'best'"),
        (("set", "adaptive", "--copy-cost", "-1"), "copy cost is -1"),
        (("set", "adaptive", "--copy-cost", "much"), "neither a number nor default"),
        (("set", "adaptive", "--copy-rate", "fast"), "a number of bytes"),
        (("set", "dynamic", "--threshold", "0"), "not at least 1"),
        (("set", "adaptive", "--threshold", "64"), "--threshold is read by dynamic only, not by"),
        (("set", "dynamic", "--copy-cost", "1"), "--copy-cost is read by adaptive only, not by"),
        (("set", "off", "--copy-rate", "1G"), "read by dynamic and adaptive only, not by off"),
        (("explain", "--moves", "-1"), "is below 0"),
        ((), "required"),
    ],
)
async def test_what_is_wrong_is_one_sentence(daemon, words, sentence):
    done = await ktd(daemon.socket, "policy", *words)
    assert done.code == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
