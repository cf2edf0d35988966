"""Other rows for what SGLang's standard dispatcher gives a MoE layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def some_rows(dispatch_output: Any, rows: slice) -> Any:
    """The same for some of the rows, as views.

    Args:
        dispatch_output: SGLang's ``StandardDispatchOutput`` of ``[T, H]``.
        rows: Which.
    """
    return _each(dispatch_output, lambda of_all: of_all[rows])


def rows_like(dispatch_output: Any, count: int) -> Any:
    """So many copies of the first row."""
    return _each(dispatch_output, lambda of_all: of_all[:1].repeat(count, 1))


def _each(dispatch_output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    topk = dispatch_output.topk_output
    logits = topk.router_logits
    changed = dispatch_output._replace(
        hidden_states=change(dispatch_output.hidden_states),
        topk_output=topk._replace(
            topk_ids=change(topk.topk_ids),
            topk_weights=change(topk.topk_weights),
            # The Marlin runner compares its rows with the others' and reads none; from 0.5.23 on
            # some models have none.
            router_logits=None if logits is None else change(logits),
        ),
    )
    # The activations of all rows may be there quantised as well
    # (SGLANG_OPT_MOE_QUANT_ONCE): a runner without them quantises what it is given.
    if getattr(changed, "hidden_states_pre_quant", None) is not None:
        changed = changed._replace(hidden_states_pre_quant=None)
    return changed
