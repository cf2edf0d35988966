"""What a model says whose decoded tokens get some experts a layer late, by Transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tests.acceptance.reference import Reference


class LateReference(Reference):
    """A checkpoint of Qwen3-MoE, decoded token by token with no expert in a slot.

    Args:
        model: Its folder.
        late: Of a decoded token's experts so many, of the lowest weights, are in the sum of the
            next MoE layer; the last layer leaves nothing late, and prompts none.
        dtype: As of the reference without.
    """

    def __init__(self, model: Path, late: int, *, dtype: str = "float32") -> None:
        self._late = late
        self._held: Any = None
        super().__init__(model, self._change, dtype=dtype)

    def _change(self, model: Any) -> None:
        blocks = [layer.mlp for layer in model.model.layers]
        for block in blocks:
            late = 0 if block is blocks[-1] else self._late
            block.forward = partial(self._block, block, late)

    def _block(self, block: Any, late: int, hidden: Any) -> Any:
        rows = hidden.view(-1, hidden.shape[-1])
        _, weights, chosen = block.gate(rows)
        if hidden.shape[1] > 1:
            return block.experts(rows, chosen, weights).view_as(hidden)
        # The router gives them by falling weight.
        at_once, put_off = weights.clone(), weights.clone()
        at_once[:, weights.shape[1] - late :] = 0
        put_off[:, : weights.shape[1] - late] = 0
        out = block.experts(rows, chosen, at_once)
        if self._held is not None:
            out = out + self._held
        self._held = block.experts(rows, chosen, put_off) if late else None
        return out.view_as(hidden)

    def decoded(self, prompt: list[int], ids: list[int]) -> list[float]:
        """Log-probability of each token that was decoded behind a prompt."""
        torch, found, cache = self._torch, [], None
        with torch.inference_mode():
            for number, token in enumerate(ids):
                given = prompt if number == 0 else [ids[number - 1]]
                answer = self._model(self.given(given), past_key_values=cache, use_cache=True)
                cache = answer.past_key_values
                table = torch.log_softmax(answer.logits[0, -1].double(), dim=-1)
                found.append(float(table[token]))
        assert self._held is None
        return found
