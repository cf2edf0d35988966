"""What survives the daemon."""

import json

import pytest

from ktd.placement.manager import PlacementManager
from ktd.placement.model import ModelShape
from ktd.placement.store import PlacementStore
from tests.placement.conftest import SHAPE, START, bench_of
from tests.placement.fake_target import FakeTarget


@pytest.fixture
def store(tmp_path):
    return PlacementStore(tmp_path / "state")


async def _restart(store, *, model="m", shape=SHAPE, experts=None, origin="start"):
    manager = PlacementManager(store=store, model=model)
    stored = manager.restorable
    experts = experts or (stored.experts if stored else START)
    await manager.attach(FakeTarget(shape, experts), shape, experts, origin)
    return manager


async def test_committed_placement_and_history_survive(store):
    """A new daemon goes on with the revision, the history and the way back, under a new etag."""
    async with bench_of(store=store, model="m") as bench:
        await bench.applied({1: (0, 4)})
        await bench.applied({3: (5,)})
        before = bench.manager.placement()
        history = bench.manager.history
    async with await _restart(store) as manager:
        after = manager.placement()
        assert after.experts == before.experts == ((0, 4), (5,))
        assert (after.revision, after.origin) == (3, "restored")
        assert after.etag != before.etag
        assert after.update_time == before.update_time
        assert manager.history == history
        undo = manager.undo(etag=after.etag)
        assert [change async for change in manager.swaps.watch(undo.id)][-1].revision == 4
        assert manager.placement().experts == ((0, 4), (0, 1))


async def test_slots_are_restored_with_the_placement(store):
    """The next start needs them before the engine exists."""
    async with bench_of(store=store, model="m"):
        pass
    assert PlacementManager(store=store, model="m").restorable.shape == SHAPE


async def test_another_models_placement_is_not_restored(store):
    """But revisions still grow."""
    async with bench_of(store=store, model="m") as bench:
        await bench.applied({1: (0, 4)})
    assert PlacementManager(store=store, model="other").restorable is None
    async with await _restart(store, model="other") as manager:
        placement = manager.placement()
        assert (placement.revision, placement.origin) == (3, "start")
        assert len(manager.history.entries) == 1


async def test_flags_beat_the_stored_placement_and_keep_its_history(store):
    """Another placement of the same model is a new revision."""
    async with bench_of(store=store, model="m") as bench:
        await bench.applied({1: (0, 4)})
    async with await _restart(store, experts=((2, 3), (2, 3)), origin="start") as manager:
        assert manager.revision == 3
        assert [entry.revision for entry in manager.history.entries] == [3, 2, 1]


async def test_other_slots_keep_only_the_ways_back_that_fit(store):
    """Undo never asks for more than there are slots."""
    async with bench_of(store=store, model="m") as bench:
        await bench.applied({3: (0, 1, 2)})
        await bench.applied({3: (0,)})
        await bench.applied({3: (1,)})
    smaller = ModelShape((1, 3), 6, (2, 1), 10)
    async with await _restart(store, shape=smaller, experts=((0, 1), (1,))) as manager:
        assert [point.experts for point in manager.history.undo_points] == [((0, 1), (0,))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 99}',
        '{"version": 1}',
        '{"version": 1, "model": "m", "shape": 3}',
        "\x00\xff",
    ],
)
async def test_corrupt_file_is_set_aside(store, tmp_path, text):
    """With a warning, never a crash; it can be looked at later."""
    path = tmp_path / "state" / "placement.json"
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    async with await _restart(store) as manager:
        assert manager.revision == 1
    (aside,) = path.parent.glob("placement.unreadable-*")
    assert aside.read_bytes() == text.encode("latin-1")
    assert json.loads(path.read_text())["revision"] == 1


async def test_a_file_whose_undo_points_are_whole_is_read(store, tmp_path):
    """As the first version wrote them; what is written now has the layers that differ."""
    async with bench_of(store=store, model="m") as bench:
        await bench.applied({1: (0, 4)}, partial=True)
        await bench.applied({3: (5,)}, partial=True)
        points = bench.manager.history.undo_points
    path = tmp_path / "state" / "placement.json"
    raw = json.loads(path.read_text())
    assert [point["layers"] for point in raw["history"]["undo_points"]] == [
        {"0": [0, 1]},
        {"1": [0, 1]},
    ]
    raw["version"] = 1
    raw["history"]["undo_points"] = [
        {"revision": point.revision, "experts": point.experts} for point in points
    ]
    path.write_text(json.dumps(raw))
    assert store.load().history.undo_points == points


@pytest.mark.parametrize("layers", [{"2": [0]}, {"-1": [0]}, {"x": [0]}, {"0": 1}, [0], None])
async def test_an_undo_point_of_layers_that_there_are_not_is_corrupt(store, tmp_path, layers):
    """It is not taken for a way back to something else."""
    async with bench_of(store=store, model="m") as bench:
        await bench.applied({1: (0, 4)})
    path = tmp_path / "state" / "placement.json"
    raw = json.loads(path.read_text())
    raw["history"]["undo_points"][0]["layers"] = layers
    path.write_text(json.dumps(raw))
    assert store.load() is None
    assert list(path.parent.glob("placement.unreadable-*"))


async def test_stored_placement_that_does_not_fit_its_slots_is_corrupt(store, tmp_path):
    """Valid JSON, impossible content."""
    async with bench_of(store=store, model="m"):
        pass
    path = tmp_path / "state" / "placement.json"
    raw = json.loads(path.read_text())
    raw["experts"] = [[0, 1, 2], []]
    path.write_text(json.dumps(raw))
    assert PlacementStore(tmp_path / "state").load() is None


async def test_failed_write_keeps_the_old_file_and_the_daemon(store, tmp_path):
    """The change is in effect; the operator is told that it would not survive."""
    async with bench_of(store=store, model="m") as bench:
        path = tmp_path / "state" / "placement.json"
        before = path.read_text()
        blocker = path.with_suffix(".tmp")
        blocker.mkdir()
        swap = await bench.applied({1: (0, 4)})
        assert swap.revision == 2
        assert "could not be saved" in bench.conditions["STATE_NOT_SAVED"]
        assert path.read_text() == before
        blocker.rmdir()
        await bench.applied({1: (0, 5)})
        assert "STATE_NOT_SAVED" not in bench.conditions
        assert json.loads(path.read_text())["revision"] == 3


async def test_leftover_of_a_killed_write_is_harmless(store, tmp_path):
    """A half-written temporary file is neither read nor in the way."""
    async with bench_of(store=store, model="m"):
        pass
    (tmp_path / "state" / "placement.tmp").write_text('{"version": 1, "mod')
    async with await _restart(store) as manager:
        assert manager.placement().origin == "restored"


def test_unreadable_folder_is_no_crash(tmp_path):
    """A file where the folder should be."""
    (tmp_path / "state").write_text("")
    assert PlacementStore(tmp_path / "state").load() is None
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
