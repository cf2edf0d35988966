"""`ktd profile`: names for statistics, and how far two of them differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ktd.cli.profile_diff import differences
from ktd.client import Profile
from ktd.errors import ProfileMismatch
from ktd.v1.profile_pb2 import ProfileLayer
from tests.cli.running import ktd

if TYPE_CHECKING:
    from tests.rpc.fake_daemon import FakeDaemon


def profile(name: str, prefill: list[int], decode: list[int]) -> Profile:
    """Of one layer."""
    return Profile(
        name=name,
        num_moe_layers=1,
        num_experts=len(prefill),
        layers=[ProfileLayer(layer=3, prefill=prefill, decode=decode)],
    )


def test_differences_are_of_shares_and_not_of_amounts() -> None:
    """Twice as much of the same is the same."""
    one = profile("a", [0, 0, 0, 0], [4, 3, 2, 1])
    found = differences(one, profile("b", [0, 0, 0, 0], [8, 6, 4, 2]), experts=2)
    (layer,) = found.layers
    assert (layer.moved, layer.shared) == (0.0, 2)
    assert layer.hit_rate == layer.best_hit_rate == pytest.approx(0.7)


def test_other_experts_are_told_by_what_they_cost() -> None:
    """The first's most used experts compute what they compute of the second's work."""
    one = profile("a", [0, 0, 0, 0], [5, 5, 0, 0])
    other = profile("b", [9, 0, 0, 0], [2, 0, 4, 4])
    (layer,) = differences(one, other, kind="decode", experts=2).layers
    assert layer.moved == pytest.approx(0.8)
    assert layer.shared == 0
    assert layer.hit_rate == pytest.approx(0.2)
    assert layer.best_hit_rate == pytest.approx(0.8)
    (both,) = differences(one, other, experts=1).layers
    assert both.shared == 1


def test_profiles_of_two_models_cannot_be_compared() -> None:
    """Both shapes are named."""
    with pytest.raises(ProfileMismatch, match="a is of a model with 1 MoE layers of 2 experts, b"):
        differences(profile("a", [1, 2], [0, 0]), profile("b", [1, 2, 3], [0, 0, 0]))


def test_a_profile_without_work_of_that_kind_has_no_hits() -> None:
    """And no division by zero."""
    empty = profile("a", [0, 0], [0, 0])
    (layer,) = differences(empty, empty).layers
    assert (layer.moved, layer.hit_rate) == (0.0, 0.0)


async def test_save_list_show_diff_load_and_rm(daemon: FakeDaemon) -> None:
    """The whole life of a profile, for people."""
    daemon.traffic.prefill(30)
    daemon.traffic.decode(20)
    saved = await ktd("profile", "save", "night", socket=daemon.socket)
    assert saved.out == "night is saved: 400 pairs of ktd-tiny\n"
    listed = await ktd("profile", "list", socket=daemon.socket)
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["night"]
    shown = await ktd("profile", "show", "night", "--kind", "decode", socket=daemon.socket)
    assert "240 in prefill, 160 in decode" in shown.out
    assert [line.split()[1] for line in shown.out.splitlines()[6:10]] == ["40"] * 4
    diff = await ktd("profile", "diff", "night", "live", socket=daemon.socket)
    last = diff.out.splitlines()[-1].split()
    assert (last[0], last[3]) == ("all", "2.0/2")
    loaded = await ktd("profile", "load", "night", socket=daemon.socket)
    assert loaded.out.startswith("night is used from now on: 400 pairs")
    assert (await ktd("profile", "rm", "night", socket=daemon.socket)).out == "night is removed\n"
    assert "No profile is kept" in (await ktd("profile", "list", socket=daemon.socket)).out


async def test_json_of_every_action(daemon: FakeDaemon) -> None:
    """For programs."""
    daemon.traffic.decode(20)
    saved = (await ktd("profile", "save", "a", "--json", socket=daemon.socket)).json
    assert saved["decode_pairs"] == 160
    listed = (await ktd("profile", "list", "--json", socket=daemon.socket)).json
    assert [one["name"] for one in listed["profiles"]] == ["a"]
    shown = (await ktd("profile", "show", "a", "--json", socket=daemon.socket)).json
    assert sum(shown["layers"][0]["decode"]) == 40
    diff = (await ktd("profile", "diff", "a", "live", "--json", socket=daemon.socket)).json
    assert diff["mean"]["moved"] == 0.0
    assert (await ktd("profile", "load", "a", "--json", socket=daemon.socket)).json["name"] == "a"
    assert (await ktd("profile", "rm", "a", "--json", socket=daemon.socket)).json == {}


async def test_refusals_are_one_sentence_with_their_exit_code(daemon: FakeDaemon) -> None:
    """Not there: 2; there already: 3; nothing counted: 6."""
    assert (await ktd("profile", "save", "a", socket=daemon.socket)).code == 6
    daemon.traffic.decode(1)
    await ktd("profile", "save", "a", socket=daemon.socket)
    again = await ktd("profile", "save", "a", socket=daemon.socket)
    assert (again.code, again.err.count("\n")) == (3, 1)
    missing = await ktd("profile", "show", "b", socket=daemon.socket)
    assert (missing.code, missing.err.count("\n")) == (2, 1)
