"""How far a server's answers are from a reference, and the bar of the specification."""

from __future__ import annotations

from collections.abc import Callable

from tests.acceptance.openai import mean_error, prompt_logprobs
from tests.acceptance.reference import TEXTS, Reference

# Beyond what unmodified SGLang loses to bfloat16, ten per cent.
FACTOR = 1.1
CEILING = 0.035


def answers_of(url: str, reference: Reference) -> list[float]:
    """Log-probability of each token of all texts, as the server sees it."""
    return [value for name in TEXTS for value in prompt_logprobs(url, reference.text(name))]


def exact_of(reference: Reference) -> list[float]:
    """The same of a reference."""
    return [value for name in TEXTS for value in reference.logprobs(reference.text(name))]


def error_of(url: str, reference: Reference) -> float:
    """Mean absolute difference over all texts."""
    values = answers_of(url, reference)
    assert len(values) >= 3 * 200
    return mean_error(values, exact_of(reference))


def require_close(
    error: float, stock_error: float, record_property: Callable[[str, object], None], what: str
) -> None:
    """Fails for an error beyond the bar, and prints it."""
    record_property("mean_abs_logprob_error", error)
    print(f"{what}: mean |difference| {error:.4f}, unmodified SGLang {stock_error:.4f}")
    assert error <= FACTOR * stock_error
    assert error <= CEILING
