"""A layer is refused when a runner computes something for pairs whose expert has no slot."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="rows are torch tensors")

from ktd.sgl import absent_ids
from ktd.sgl.absent_ids import ROWS, Sizes, Trials, fill_empty, trial
from ktd.sgl.dispatch_rows import rows_like
from ktd.version import TRIED_ON_GPUS

HIDDEN, TOP_K, SLOTS = 32, 4, 3


class TopK(NamedTuple):
    topk_ids: torch.Tensor
    topk_weights: torch.Tensor
    router_logits: torch.Tensor | None = None


class Dispatch(NamedTuple):
    hidden_states: torch.Tensor
    topk_output: TopK


def dispatch(rows=3):
    """Of padding: what is in it says nothing."""
    topk = TopK(torch.zeros(rows, TOP_K, dtype=torch.int64), torch.zeros(rows, TOP_K))
    return Dispatch(torch.zeros(rows, HIDDEN, dtype=torch.bfloat16), topk)


class Runner:
    """Experts that are matrices, and what a runner may do wrong.

    Args:
        absent: What pairs with the id -1 give, ``[pairs, H]`` of their rows ``[pairs, H]``.
        order: Of a sum, that and its negative in turn: of additions in another order.
        shift: Of ids, where a pair of a row is absent.
        rows: Does what is wrong with so many rows alone; None: with any number.
    """

    def __init__(self, absent=None, *, order=0.0, shift=0, rows=None):
        generator = torch.Generator().manual_seed(1)
        self.experts = torch.randn(SLOTS, HIDDEN, HIDDEN, generator=generator)
        self.absent, self.order, self.shift, self.rows = absent, order, shift, rows
        self.calls = 0

    def __call__(self, rows, ids, weights):
        assert rows.hidden_states.dtype is torch.bfloat16
        assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
        assert ids.shape == weights.shape == (len(rows.hidden_states), TOP_K)
        assert ids.is_contiguous()
        assert weights.is_contiguous()
        self.calls += 1
        self.order = -self.order
        wrong = self.rows in (None, len(ids))
        out = torch.zeros(rows.hidden_states.shape)
        for column in range(TOP_K):
            slots, hidden = ids[:, column], rows.hidden_states.float()
            if wrong and self.shift:
                partly = (ids < 0).any(1) & (slots >= 0)
                slots = torch.where(partly, (slots + self.shift) % SLOTS, slots)
            given = torch.einsum("thk,tk->th", self.experts[slots.clamp(min=0).long()], hidden)
            given = given * (1 + self.order)
            instead = self.absent(self, hidden) if wrong and self.absent else torch.zeros_like(out)
            out += weights[:, column, None] * torch.where(slots[:, None] >= 0, given, instead)
        return out.bfloat16()


def last(runner, hidden):
    """As an index of Python's would."""
    return hidden @ runner.experts[-1].T


def garbage(_, hidden):
    """Memory that nobody wrote."""
    return torch.full_like(hidden, float("nan"))


def a_little(_, hidden):
    """Of what an expert gives."""
    return torch.full_like(hidden, 3.0)


def trials(mapped=(7, 8, 9), **what):
    """Of a layer whose slots hold these experts; what is refused is raised as ValueError."""
    layer = SimpleNamespace(mapped=lambda: list(mapped))
    return Trials("0.9.9", layer, ValueError, **({"slots": True, "pieces": True} | what))


@pytest.mark.parametrize("order", [0.0, 2**-9], ids=["one-order", "any-order"])
def test_a_runner_that_leaves_them_out_is_admitted_once_and_for_all(order):
    """Also if it adds in another order each time; slots, and what streams."""
    tried, runner = trials(), Runner(order=order)
    tried.try_slots(runner, dispatch())
    tried.try_piece(runner, dispatch(), SLOTS)
    assert not tried.slots
    assert not tried.pieces
    assert runner.calls == 2 * 3 * len(ROWS)


@pytest.mark.parametrize("rows", [None, *ROWS])
@pytest.mark.parametrize("absent", [last, garbage, a_little])
def test_one_that_does_not_is_refused_with_what_to_use_instead(absent, rows):
    """Even if that is so for one number of rows alone."""
    tried, runner = trials(), Runner(absent, rows=rows)
    for attempt in (
        lambda: tried.try_slots(runner, dispatch()),
        lambda: tried.try_piece(runner, dispatch(), SLOTS),
    ):
        with pytest.raises(ValueError, match=r"^SGLang 0\.9\.9 gives up to ") as refused:
            attempt()
        said = str(refused.value)
        assert f"with {rows or ROWS[0]} rows, for pairs whose expert has no slot" in said
        assert said.endswith(f"install sglang=={TRIED_ON_GPUS[-1]}, or start with --device cpu")
    assert tried.slots, "a layer that was refused was not tried"
    assert tried.pieces


def test_one_that_takes_another_expert_beside_absent_pairs_is_refused():
    """Rows without any expert may be right all the same."""
    found = trial(Runner(shift=1), rows_like(dispatch(), 8), range(SLOTS))
    assert found.absent == 0
    assert not found.right


def test_one_that_drops_rows_with_an_absent_pair_is_refused():
    class Dropping(Runner):
        def __call__(self, rows, ids, weights):
            out = super().__call__(rows, ids, weights)
            return torch.where((ids < 0).any(1, keepdim=True), torch.zeros_like(out), out)

    found = trial(Dropping(), rows_like(dispatch(), 8), range(SLOTS))
    assert found.absent == 0
    assert not found.right


def test_an_expert_of_zeros_says_nothing_and_the_next_is_asked():
    runner = Runner(shift=1)
    runner.experts[0] = 0
    assert not trial(runner, rows_like(dispatch(), 8), range(SLOTS)).right
    runner.experts[:] = 0
    assert trial(runner, rows_like(dispatch(), 8), range(SLOTS)) == Sizes(0, 0, 0)


def test_a_layer_without_a_filled_slot_is_tried_again():
    """With what can be seen without one, each time."""
    mapped = [-1, -1, -1]
    tried = trials(mapped)
    tried._layer.mapped = lambda: mapped
    tried.try_slots(Runner(), dispatch())
    assert tried.slots
    with pytest.raises(ValueError, match="no slot"):
        tried.try_slots(Runner(last), dispatch())
    mapped[1] = 5
    tried.try_slots(Runner(), dispatch())
    assert not tried.slots


def test_a_step_of_no_rows_is_no_trial():
    tried, runner = trials(), Runner()
    tried.try_slots(runner, dispatch(0))
    assert tried.slots
    assert runner.calls == 0


@pytest.mark.parametrize(
    ("mapped", "wanted"),
    [([4, -1, 6, -1], [0, 0, 2, 0]), ([-1, 5, -1, -1], [1] * 4), ([-1] * 4, [0, 1, 2, 3])],
)
def test_empty_slots_get_what_a_filled_one_has(mapped, wanted):
    """Of every tensor; where none is filled they stay."""
    slots = {name: torch.arange(4.0)[:, None] * torch.ones(2) + at for at, name in enumerate("ab")}
    before = {name: tensor.clone() for name, tensor in slots.items()}
    fill_empty(SimpleNamespace(mapped=lambda: mapped, slots=slots))
    for name, tensor in slots.items():
        assert torch.equal(tensor, before[name][wanted])


def test_the_samplers_random_numbers_stay_as_they_are():
    """What is sampled must not depend on whether a layer was tried."""
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    trial(Runner(), dispatch(), [0])
    assert torch.equal(torch.rand(4), wanted)


def test_releases_that_ktd_has_run_on_gpus_with_are_not_tried(monkeypatch):
    """Tests have, with these."""
    for release, tried in ((TRIED_ON_GPUS[-1], ""), ("0.9.9", "0.9.9")):
        monkeypatch.setattr(absent_ids, "distribution_version", lambda _, found=release: found)
        assert absent_ids.release_to_try() == tried
