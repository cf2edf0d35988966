"""Strategies of other packages, installed for real: their metadata lies in a folder on the path."""

import subprocess
import sys

import pytest

from ktd.errors import StrategyFailed, StrategyUnknown
from ktd.placement.model import ModelShape
from ktd.placement.strategies import plugins
from ktd.placement.strategies.registry import (
    STRATEGIES,
    initial_placement,
    live_placement,
    strategy_names,
)

MODULE = """
from ktd.placement.strategies.base import Choice, prefixes

class Last:
    name = "last"
    def initial(self, num_layers, num_experts, budget, evidence):
        return self.live(num_experts, [budget // num_layers] * num_layers, evidence)
    def live(self, num_experts, slots, evidence):
        return Choice(tuple(tuple(range(num_experts - n, num_experts)) for n in slots))

class Greedy(Last):
    def live(self, num_experts, slots, evidence):
        return Choice(tuple(tuple(range(num_experts)) for _ in slots))

class Angry(Last):
    def live(self, num_experts, slots, evidence):
        raise ZeroDivisionError("by zero")

class Half:
    def initial(self): ...
"""
ENTRIES = """
[ktd.placement_strategies]
last = others_strategies:Last
greedy = others_strategies:Greedy
angry = others_strategies:Angry
half = others_strategies:Half
gone = others_strategies:Gone
missing = no_such_module:Thing
uniform = others_strategies:Last
policy:mine = others_strategies:Last
undo = others_strategies:Last
"""
SHAPE = ModelShape((0, 1), 4, (1, 2), 10)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package as pip leaves it: a module and a dist-info folder."""
    info = tmp_path / "others_strategies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others-strategies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    (tmp_path / "others_strategies.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.installed_plugins.cache_clear()
    yield tmp_path
    plugins.installed_plugins.cache_clear()
    sys.modules.pop("others_strategies", None)


@pytest.mark.usefixtures("installed")
def test_strategy_of_another_package_is_used_like_ktds_own():
    """By the name of its entry point."""
    assert strategy_names() == (*STRATEGIES, "angry", "greedy", "last")
    assert initial_placement("last", 2, 4, 4).experts == ((2, 3), (2, 3))
    assert live_placement("last", SHAPE).experts == ((3,), (2, 3))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("half", "it has no method live"),
        ("gone", "AttributeError: .*Gone"),
        ("missing", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("policy:mine", "its name begins with 'policy:'"),
        ("undo", "its name is taken"),
    ],
)
def test_broken_entry_point_is_named_in_one_sentence(name, why):
    """And keeps nothing else from working."""
    with pytest.raises(StrategyUnknown, match=rf"strategy '{name}' of others-strategies .*{why}"):
        live_placement(name, SHAPE)
    assert live_placement("frequency", SHAPE, [[1, 2, 3, 4]] * 2).experts == ((3,), (2, 3))


@pytest.mark.usefixtures("installed")
def test_ktds_own_strategies_cannot_be_replaced():
    """The name is taken, and the sentence says so."""
    assert live_placement("uniform", SHAPE).experts == ((0,), (0, 1))
    found = plugins.installed_plugins(frozenset(STRATEGIES))
    assert "its name is taken" in found.broken["uniform"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("angry", r"failed \(ZeroDivisionError: by zero\)"),
        ("greedy", "chose 4 experts in MoE layer number 0, which has 1 slots"),
    ],
)
def test_strategy_that_misbehaves_is_refused(name, why):
    """A traceback or a placement that does not fit never reaches the ranks."""
    with pytest.raises(StrategyFailed, match=rf"The strategy '{name}' {why}; nothing was changed"):
        live_placement(name, SHAPE)


@pytest.mark.usefixtures("installed")
def test_budget_is_checked_at_the_start_too():
    """A start with more slots than were allowed could run out of memory."""
    with pytest.raises(StrategyFailed, match="8 experts for a budget of 4"):
        initial_placement("greedy", 2, 4, 4)


def test_entry_points_are_found_by_a_fresh_interpreter(installed):
    """Not only through this process's import path."""
    code = (
        "from ktd.placement.strategies.registry import plugins;"
        "print(*plugins().strategies, *plugins().broken)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "last" in done.stdout.split()
    assert "missing" in done.stdout.split()
