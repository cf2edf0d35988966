"""What the model should say: Transformers in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("prose", "code", "docs")
POSITIONS = 256


class Reference:
    """Log-probabilities of a checkpoint, computed by Transformers in float32.

    Args:
        model: Its folder.
        change: Is given Transformers' model before anything is computed.
        windows: Of each text in :meth:`texts`. Few near-ties make most of an error, so a single
            one of each text tells models apart that are the same within 20 %.
    """

    def __init__(
        self, model: Path, change: Callable[[Any], None] | None = None, *, windows: int = 1
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._windows = windows
        # A text is asked for at each placement.
        self._known: dict[tuple[int, ...], list[float]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        if change is not None:
            with torch.no_grad():
                change(self._model)

    def text(self, name: str, window: int = 0) -> list[int]:
        """The first tokens of a held-out text, or of one of its next windows."""
        text = (ROOT / "models" / "text" / f"{name}.txt").read_text()
        ids: list[int] = self.tokenizer(text[:8000])["input_ids"]
        return ids[window * POSITIONS :][:POSITIONS]

    def texts(self) -> list[list[int]]:
        """All windows of all texts."""
        return [self.text(name, window) for name in TEXTS for window in range(self._windows)]

    def table(self, ids: list[int]) -> Any:
        """``[tokens, vocabulary]``: log-probabilities of what follows each token."""
        with self._torch.inference_mode():
            logits = self._model(self._torch.tensor([ids])).logits[0]
            return self._torch.log_softmax(logits.double(), dim=-1)

    def logprobs(self, ids: list[int]) -> list[float]:
        """Log-probability of each token but the first."""
        if tuple(ids) not in self._known:
            table = self.table(ids)
            self._known[tuple(ids)] = [float(table[i, token]) for i, token in enumerate(ids[1:])]
        return self._known[tuple(ids)]
