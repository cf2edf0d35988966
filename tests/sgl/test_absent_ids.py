"""A layer is refused when a runner computes something for pairs whose expert has no slot."""

from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="rows are torch tensors")

from ktd.sgl import absent_ids
from ktd.version import TRIED_ON_GPUS

HIDDEN, TOP_K, SLOTS = 32, 4, 3


class TopK(NamedTuple):
    topk_ids: torch.Tensor


class Dispatch(NamedTuple):
    hidden_states: torch.Tensor
    topk_output: TopK


def dispatch(rows=absent_ids.ROWS):
    """Of padding: what is in it says nothing."""
    ids = torch.zeros(rows, TOP_K, dtype=torch.int64)
    return Dispatch(torch.zeros(rows, HIDDEN, dtype=torch.bfloat16), TopK(ids))


class Runner:
    """Experts that are matrices.

    Args:
        absent: What a pair with the id -1 gives, of its row ``[H]``.
        order: Added to each sum in turn, as of additions in another order.
    """

    def __init__(self, absent=None, order=0.0):
        self.experts = torch.randn(
            SLOTS, HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1)
        )
        self.absent = absent
        self.order = order

    def __call__(self, rows, ids, weights):
        assert rows.hidden_states.dtype is torch.bfloat16
        assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
        assert ids.shape == weights.shape == (len(rows.hidden_states), TOP_K)
        self.order = -self.order
        out = torch.zeros(rows.hidden_states.shape)
        for row, hidden in enumerate(rows.hidden_states.float()):
            for expert, weight in zip(ids[row].tolist(), weights[row], strict=True):
                if expert >= 0:
                    out[row] += weight * (self.experts[expert] @ hidden) * (1 + self.order)
                elif self.absent is not None:
                    out[row] += weight * self.absent(self, hidden)
        return out.bfloat16()


def last(runner, hidden):
    """As an index of Python's would."""
    return runner.experts[-1] @ hidden


def garbage(_, hidden):
    """Memory that nobody wrote."""
    return torch.full_like(hidden, float("nan"))


def a_little(_, hidden):
    """Of what an expert gives."""
    return torch.full_like(hidden, 3.0)


@pytest.mark.parametrize("slot", [0, SLOTS - 1, None])
@pytest.mark.parametrize("order", [0.0, 2**-9], ids=["one-order", "any-order"])
def test_a_runner_that_leaves_them_out_is_admitted(slot, order):
    """Also if it adds in another order each time."""
    assert absent_ids.refusal("0.9.9", Runner(order=order), dispatch(), slot) == ""


@pytest.mark.parametrize("slot", [0, None])
@pytest.mark.parametrize("absent", [last, garbage, a_little])
def test_one_that_does_not_is_refused_with_what_to_use_instead(absent, slot):
    found = absent_ids.refusal("0.9.9", Runner(absent), dispatch(), slot)
    assert found.startswith("SGLang 0.9.9 gives up to ")
    assert ("where an expert gives " in found) == (slot is not None)
    assert found.endswith(f"install sglang=={TRIED_ON_GPUS[-1]}, or start with --device cpu")


def test_one_that_does_so_beside_an_expert_alone_is_refused():
    """Rows without any expert may be skipped as a whole."""

    class Skipping(Runner):
        def __call__(self, rows, ids, weights):
            out = super().__call__(rows, ids, weights)
            return torch.where((ids >= 0).any(1, keepdim=True), out, torch.zeros_like(out))

    runner = Skipping(last)
    assert absent_ids.trial(runner, dispatch(), None) == (0.0, 0.0)
    assert absent_ids.refusal("0.9.9", runner, dispatch(), 1)


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_are_enough(rows):
    """A decode step of one stream has one."""
    assert not absent_ids.refusal("0.9.9", Runner(), dispatch(rows), 0)
    assert absent_ids.refusal("0.9.9", Runner(last), dispatch(rows), 0)


def test_the_samplers_random_numbers_stay_as_they_are():
    """What is sampled must not depend on whether a layer was tried."""
    torch.manual_seed(5)
    wanted = torch.rand(4)
    torch.manual_seed(5)
    absent_ids.trial(Runner(), dispatch(), 0)
    assert torch.equal(torch.rand(4), wanted)


def test_releases_that_ktd_has_run_on_gpus_with_are_not_tried(monkeypatch):
    """Tests have, with these."""
    for release, tried in ((TRIED_ON_GPUS[-1], ""), ("0.9.9", "0.9.9")):
        monkeypatch.setattr(absent_ids, "distribution_version", lambda _, found=release: found)
        assert absent_ids.release_to_try() == tried
