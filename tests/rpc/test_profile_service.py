"""ProfileService over a real socket: statistics that outlive what counted them."""

from __future__ import annotations

import pytest

from ktd.client import KtdClient
from ktd.errors import (
    EngineNotReady,
    InvalidArgument,
    ProfileExists,
    ProfileMismatch,
    ProfileNotFound,
)
from ktd.placement.model import ModelShape
from tests.rpc.fake_daemon import fake_daemon


async def test_a_profile_keeps_prefill_and_decode_apart(daemon, client):
    """It is listed, and shown with every expert."""
    daemon.traffic.prefill(30)
    daemon.traffic.decode(10)
    await client.save_profile("night")
    (listed,) = await client.list_profiles()
    assert (listed.name, listed.model, len(listed.layers)) == ("night", "ktd-tiny", 0)
    assert (listed.prefill_pairs, listed.decode_pairs) == (30 * 2 * 4, 10 * 2 * 4)
    shown = await client.profile("night")
    assert [layer.layer for layer in shown.layers] == [0, 1, 2, 3]
    assert [sum(layer.prefill) for layer in shown.layers] == [60] * 4
    assert [sum(layer.decode) for layer in shown.layers] == [20] * 4


async def test_a_loaded_profile_is_what_strategies_use_with_what_comes_after(daemon, client):
    """What was counted before the call counts no more; the statistics of the engine stand."""
    daemon.traffic.decode(10)
    await client.save_profile("night")
    daemon.traffic.decode(500)
    await client.load_profile("night")
    assert sum(daemon.stats.counts()[0]) == 10 * 2
    daemon.traffic.decode(5)
    assert sum(daemon.stats.counts()[0]) == 15 * 2
    assert (await client.stats()).totals.decode_tokens == 515
    live = await client.profile("live")
    assert live.decode_pairs == 15 * 2 * 4


async def test_a_profile_is_replaced_only_when_asked_for(daemon, client):
    """Nothing is lost by a name that was used before."""
    daemon.traffic.decode(1)
    await client.save_profile("night")
    daemon.traffic.decode(1)
    with pytest.raises(ProfileExists, match="--replace"):
        await client.save_profile("night")
    assert (await client.profile("night")).decode_pairs == 8
    await client.save_profile("night", replace=True)
    assert (await client.profile("night")).decode_pairs == 16


async def test_a_profile_can_be_removed(daemon, client):
    """And is gone."""
    daemon.traffic.decode(1)
    await client.save_profile("night")
    await client.delete_profile("night")
    assert await client.list_profiles() == []
    for call in (client.profile, client.load_profile, client.delete_profile):
        with pytest.raises(ProfileNotFound, match="ktd profile list"):
            await call("night")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b", "auto", "live"])
async def test_names_that_cannot_be_are_refused(daemon, client, name):
    """A name never becomes a path, and two names are the daemon's own."""
    daemon.traffic.decode(1)
    with pytest.raises(InvalidArgument):
        await client.save_profile(name)


async def test_nothing_counted_is_no_profile(client):
    """It says what to do."""
    with pytest.raises(EngineNotReady, match="send requests first"):
        await client.save_profile("night")


async def test_the_next_daemon_begins_with_what_the_last_one_counted(tmp_path):
    """Without being asked for; a long past weighs no more than 200,000 pairs a layer."""
    async with fake_daemon(tmp_path) as daemon:
        daemon.traffic.decode(20)
        counts = daemon.stats.counts()
        daemon.engine_lost()
    async with fake_daemon(tmp_path) as daemon, KtdClient(daemon.socket) as client:
        assert daemon.stats.counts() == counts
        assert (await client.profile("auto")).decode_pairs == 20 * 2 * 4
        assert (await client.stats()).totals.decode_tokens == 0


async def test_a_profile_of_another_model_is_kept_and_not_used(tmp_path):
    """The automatic one is set aside; a named one is refused with both shapes."""
    async with fake_daemon(tmp_path) as daemon, KtdClient(daemon.socket) as client:
        daemon.traffic.decode(20)
        await client.save_profile("small")
        daemon.engine_lost()
    other = ModelShape(moe_layers=(2, 3), num_experts=16, slots=(2, 2), expert_bytes=12_288)
    async with fake_daemon(tmp_path, shape=other) as daemon, KtdClient(daemon.socket) as client:
        assert daemon.stats.counts() == [[0] * 16] * 2
        shapes = r"4 MoE layers of 8 experts \(ktd-tiny\).*2 MoE layers of 16 experts"
        with pytest.raises(ProfileMismatch, match=shapes):
            await client.load_profile("small")
        daemon.traffic.decode(5)
        daemon.engine_lost()
    async with fake_daemon(tmp_path, shape=other) as daemon, KtdClient(daemon.socket) as client:
        names = {profile.name for profile in await client.list_profiles()}
        assert names == {"small", "auto", "auto-before"}


async def test_a_damaged_file_hides_no_other_profile(daemon, client, tmp_path):
    """It is named in the log and left where it is."""
    daemon.traffic.decode(1)
    await client.save_profile("good")
    (tmp_path / "state" / "profiles" / "bad.json").write_text("{")
    assert [profile.name for profile in await client.list_profiles()] == ["good"]
