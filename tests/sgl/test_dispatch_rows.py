"""Rows of a layer's input are cut with everything that belongs to them."""

import pytest

torch = pytest.importorskip("torch", reason="rows are torch tensors")
pytest.importorskip("sglang", reason="they are cut out of SGLang's types")

from ktd.sgl.dispatch_rows import rows_like, some_rows

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, HIDDEN, TOP_K = 6, 16, 2


def whole(*, logits=True):
    """A dispatch whose every number says where it stands."""
    # Imported here: SGLang warns while it is imported.
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    numbers = torch.arange(ROWS * HIDDEN, dtype=torch.float32).view(ROWS, HIDDEN)
    topk = StandardTopKOutput(
        numbers[:, :TOP_K] / 8, numbers[:, :TOP_K].int(), numbers[:, :4] if logits else None
    )
    return StandardDispatchOutput(numbers.bfloat16(), None, topk)


@pytest.mark.parametrize("rows", [slice(0, 2), slice(4, 8)])
def test_everything_of_a_row_goes_with_it(rows):
    found, of = some_rows(whole(), rows), whole()
    assert torch.equal(found.hidden_states, of.hidden_states[rows])
    for name in ("topk_ids", "topk_weights", "router_logits"):
        expected = getattr(of.topk_output, name)[rows]
        assert torch.equal(getattr(found.topk_output, name), expected), name


@pytest.mark.parametrize("count", [1, 9])
def test_a_row_is_repeated_with_everything_that_belongs_to_it(count):
    found, of = rows_like(whole(), count), whole()
    assert torch.equal(found.hidden_states, of.hidden_states[[0] * count])
    for name in ("topk_ids", "topk_weights", "router_logits"):
        expected = getattr(of.topk_output, name)[[0] * count]
        assert torch.equal(getattr(found.topk_output, name), expected), name


def test_a_router_that_keeps_no_logits_is_taken():
    assert some_rows(whole(logits=False), slice(0, 2)).topk_output.router_logits is None


def test_quantised_activations_of_all_rows_do_not_go_with_some():
    """The runner would take them for those of the rows."""
    of = whole()
    if "hidden_states_pre_quant" not in of._fields:
        pytest.skip("this release of SGLang hands none over")
    of = of._replace(hidden_states_pre_quant=(torch.zeros(ROWS, HIDDEN), torch.ones(ROWS, 1)))
    assert some_rows(of, slice(0, 2)).hidden_states_pre_quant is None
