"""What the model should say: Transformers in float32, where the tests' engines compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.device import at_full_precision

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("prose", "code", "docs")
POSITIONS = 256
# Of each text. Few near-ties of the router make most of an error: with a single window unmodified
# SGLang lost 0.0230 on one host without a GPU and 0.0269 on another, ktd with nothing in slots
# 0.0276, and on the next windows 0.0264 to 0.0309 and 0.0264 to 0.0308.
WINDOWS = 5


class Reference:
    """Log-probabilities of a checkpoint, by Transformers in float32 on the device of the tests.

    Args:
        model: Its folder.
        change: Is given Transformers' model before anything is computed.
        dtype: Of all arithmetic: ``"bfloat16"`` says what rounding by itself does to a model.
    """

    def __init__(
        self,
        model: Path,
        change: Callable[[Any], None] | None = None,
        *,
        dtype: str = "float32",
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        # A text is asked for at each placement.
        self._known: dict[tuple[int, ...], list[float]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            # Each expert's own products, and not a kernel that takes them together.
            self._model = AutoModelForCausalLM.from_pretrained(
                model, dtype=dtype, experts_implementation="eager"
            ).eval()
        if change is not None:
            with torch.no_grad():
                change(self._model)
        at_full_precision(self._model)

    def text(self, name: str, window: int = 0) -> list[int]:
        """The first tokens of a held-out text, or of one of its next windows."""
        text = (ROOT / "models" / "text" / f"{name}.txt").read_text()
        ids: list[int] = self.tokenizer(text[:8000])["input_ids"]
        return ids[window * POSITIONS :][:POSITIONS]

    def texts(self) -> list[list[int]]:
        """All windows of all texts."""
        return [self.text(name, window) for name in TEXTS for window in range(WINDOWS)]

    def table(self, ids: list[int]) -> Any:
        """``[tokens, vocabulary]``: log-probabilities of what follows each token."""
        with self._torch.inference_mode():
            logits = self._model(self.given(ids)).logits[0]
            return self._torch.log_softmax(logits.double(), dim=-1).cpu()

    def given(self, ids: list[int]) -> Any:
        """``[1, tokens]``: a prompt where the model is."""
        return self._torch.tensor([ids], device=self._model.device)

    def logprobs(self, ids: list[int]) -> list[float]:
        """Log-probability of each token but the first."""
        if tuple(ids) not in self._known:
            table = self.table(ids)
            self._known[tuple(ids)] = [float(table[i, token]) for i, token in enumerate(ids[1:])]
        return self._known[tuple(ids)]
