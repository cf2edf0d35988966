"""Counts from before an engine's start: files, profiles by name, and the one kept automatically."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ktd.app.statistics import KnownCounts, profile_shape
from ktd.errors import ConfigError
from ktd.model.facts import read_facts
from ktd.stats.hub import StatsHub
from ktd.stats.profile import Profile, encoded
from ktd.stats.profile_store import ProfileStore
from ktd.stats.profiles import Profiles

MODEL = Path(__file__).parents[2] / "models/ktd-tiny"


@pytest.fixture(scope="module")
def facts():
    return read_facts(MODEL, device="cpu")


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path)


@pytest.fixture
def known(store):
    return KnownCounts(store, Profiles(store, StatsHub(), "some/model"))


def profile(facts, name, model="some/model"):
    counts = np.arange(2 * 6 * 32).reshape(2, 6, 32)
    return Profile(name, 5.0, model, profile_shape(facts), counts)


def test_a_bare_name_is_a_profiles_if_no_file_has_it(known, store, facts, tmp_path):
    """--init-expert-location becomes an absolute path before it is looked at."""
    store.save(profile(facts, "night"), replace=False)
    elsewhere = tmp_path / "somewhere"
    assert known.read(elsewhere / "night", facts)[0][1] == 1 + (6 * 32 + 1)
    with pytest.raises(ConfigError, match=r"somewhere/day is neither"):
        known.read(elsewhere / "day", facts)


def test_a_profile_is_read_as_a_file_too(known, facts, tmp_path):
    """Copied from another host, for example."""
    path = tmp_path / "copied.json"
    path.write_text(json.dumps(encoded(profile(facts, "night"))))
    assert known.read(path, facts)[0][0] == 6 * 32


def test_the_automatic_profile_serves_a_first_placement_of_the_same_model(known, store, facts):
    """And no other."""
    assert known.kept(facts) is None
    store.save(profile(facts, "auto", model="another/model"), replace=True)
    assert known.kept(facts) is None
    store.save(profile(facts, "auto"), replace=True)
    counts, note = known.kept(facts)
    assert np.array(counts).shape == (6, 32)
    assert "'auto'" in note
