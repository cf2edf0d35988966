"""The parts of `ktd demo` that need no engine."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from ktd.cli.demonstration.completion import TIE, Completion, Difference, difference
from ktd.cli.demonstration.measurement import Work, settled_stats, work_between
from ktd.cli.demonstration.prompts import model_path, prompts
from ktd.cli.demonstration.stage import Stage
from ktd.cli.terminal import Terminal
from ktd.client import KtdClient, KtdError
from tests.cli.running import ktd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rpc.fake_daemon import FakeDaemon


def completion(*tokens: str, tops: list[dict[str, float]] | None = None) -> Completion:
    return Completion("".join(tokens), list(tokens), tops or [{} for _ in tokens])


def stage(width_for: str = "") -> Stage:
    del width_for
    return Stage(Terminal(io.StringIO(), interactive=False, colour=False, unicode=True))


def test_equal_texts_have_no_difference() -> None:
    """The same tokens are the same text."""
    assert difference(completion("a", "b"), completion("a", "b")) is None


def test_a_difference_names_position_tokens_and_gap() -> None:
    """The gap is what the first run thought of both tokens."""
    before = completion("a", "b", tops=[{"a": 0.0}, {"b": -0.5, "c": -0.6}])
    found = difference(before, completion("a", "c"))
    assert found == Difference(1, "b", "c", pytest.approx(0.1))
    assert found.is_tie


@pytest.mark.parametrize(
    ("tops", "gap"), [([{"a": 0.0, "b": -TIE - 0.01}], TIE + 0.01), ([{"a": 0.0}], None)]
)
def test_a_clear_difference_is_no_tie(tops: list[dict[str, float]], gap: float | None) -> None:
    """Neither a token far behind, nor one that was no candidate at all."""
    found = difference(completion("a", tops=tops), completion("b"))
    assert found is not None
    assert found.gap == (None if gap is None else pytest.approx(gap))
    assert not found.is_tie


def test_a_text_that_ends_early_differs_there() -> None:
    """A missing token is a difference."""
    found = difference(completion("a", "b"), completion("a"))
    assert found == Difference(1, "b", "", None)


def test_texts_without_named_tokens_are_compared_by_characters() -> None:
    """A server that gives no log-probabilities still gets a comparison."""
    found = difference(Completion("abc"), Completion("abd"))
    assert found == Difference(2, "c", "d", None)


def test_comparisons_say_what_was_found() -> None:
    """The same, a tie, and a change each have their own words."""
    for found, words in (
        (None, "✓ prose: the same 8 tokens"),
        (Difference(2, "a", "b", 0.01), "a tie in bf16"),
        (Difference(2, "a", "b", 0.9), "0.900 less likely"),
        (Difference(2, "a", "b", None), "not among"),
    ):
        shown = stage()
        shown.comparison("prose", found, 8)
        assert words in shown.terminal.stream.getvalue()
        assert ("tie" in shown.terminal.stream.getvalue()) is (found is not None and found.is_tie)


async def test_work_is_the_difference_of_two_snapshots(daemon: FakeDaemon) -> None:
    """Counts per expert and side of one stretch, whatever came before."""
    daemon.traffic.decode(50)
    async with KtdClient(daemon.socket) as client:
        before = await settled_stats(client)
        daemon.traffic.decode(20)
        work = work_between(before, await settled_stats(client))
    pairs = 20 * 2 * len(daemon.shape.moe_layers)
    assert work.gpu_pairs + work.cpu_pairs == pairs
    assert sum(map(sum, work.counts.values())) == pairs
    assert 0 < work.hit_rate < 1


def test_work_adds_up() -> None:
    """Domains together; nothing plus something is that."""
    one = Work({0: [1, 2]}, 1, 2)
    assert Work() + one == one
    assert sum([one, one], Work()) == Work({0: [2, 4]}, 2, 4)
    assert Work().hit_rate == 0.0


def test_maps_of_many_layers_are_cut_and_said_to_be() -> None:
    """A model of 48 layers does not fill four screens."""
    shown = stage()
    shown.maps({"prose": Work({layer: [1] * 128 for layer in range(48)})}, {})
    text = shown.terminal.stream.getvalue()
    assert "12 of 48 layers" in text
    assert max(map(len, text.splitlines())) <= 80


def test_prompts_are_whole_lines_of_each_domain(tmp_path: Path) -> None:
    """Cut at line ends, from the middle of the text."""
    for name in ("prose", "code", "docs"):
        (tmp_path / f"{name}.txt").write_text(f"{name} line\n" * 5000)
    found = prompts(tmp_path)
    assert [prompt.domain for prompt in found] == ["prose", "code", "docs"]
    assert all(set(p.text.splitlines()) == {f"{p.domain} line"} for p in found)


def test_missing_model_and_texts_are_named(tmp_path: Path) -> None:
    """One sentence with the path and what to do."""
    with pytest.raises(KtdError, match="--model"):
        model_path(str(tmp_path))
    with pytest.raises(KtdError, match="--texts"):
        prompts(tmp_path)
    (tmp_path / "prose.txt").write_text("short")
    with pytest.raises(KtdError, match="too short"):
        prompts(tmp_path)


async def test_a_wrong_model_folder_ends_the_demo_at_once(tmp_path: Path) -> None:
    """Nothing is started."""
    result = await ktd("demo", "--model", str(tmp_path))
    assert result.code == 2
    assert result.err.count("\n") == 1


async def test_without_sglang_the_demo_says_how_to_get_it(tmp_path: Path) -> None:
    """An import hook stands for a machine without it."""
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'sglang' else found(name, *rest)\n"
    )
    import os

    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    result = await ktd("demo", PYTHONPATH=path)
    assert result.code == 2
    assert "pip install 'ktd[engine]'" in result.err


async def test_a_daemon_that_cannot_start_is_reported_and_gone(tmp_path: Path) -> None:
    """A model that nothing can serve: one sentence at the end, no folder left."""
    (tmp_path / "config.json").write_text("{}")
    result = await ktd("demo", "--model", str(tmp_path), TMPDIR=str(tmp_path))
    assert result.code == 3
    assert result.err.startswith("ktd: ")
    assert list(tmp_path.glob("ktd-demo-*")) == []
