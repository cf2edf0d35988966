"""Some rows of what SGLang's standard dispatcher gives a MoE layer."""

from __future__ import annotations

from typing import Any


def some_rows(dispatch_output: Any, rows: slice) -> Any:
    """The same for some of the rows, as views.

    Args:
        dispatch_output: SGLang's ``StandardDispatchOutput`` of ``[T, H]``.
        rows: Which.
    """
    topk = dispatch_output.topk_output
    logits = topk.router_logits
    cut = dispatch_output._replace(
        hidden_states=dispatch_output.hidden_states[rows],
        topk_output=topk._replace(
            topk_ids=topk.topk_ids[rows],
            topk_weights=topk.topk_weights[rows],
            # The Marlin runner compares its rows with the others' and reads none; from 0.5.23 on
            # some models have none.
            router_logits=None if logits is None else logits[rows],
        ),
    )
    # From 0.5.23 on the activations of all rows may be there quantised as well
    # (SGLANG_OPT_MOE_QUANT_ONCE): a runner without them quantises what it is given.
    if getattr(cut, "hidden_states_pre_quant", None) is not None:
        cut = cut._replace(hidden_states_pre_quant=None)
    return cut
