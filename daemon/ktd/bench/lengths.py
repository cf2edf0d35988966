"""Lengths of requests like those of ShareGPT, without its text.

Log-normal, with the means that the vLLM paper (SOSP 2023, figure 11) gives for ShareGPT: 161 tokens
of input, 338 of output. It gives no spread; 1.3 and 0.9 are ours, so that a tenth of the prompts
are longer than about 370 tokens and a tenth of the outputs than about 710. What falls outside the
limits, which are those of vLLM's and SGLang's benchmarks, is drawn again, as they leave it out.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_MEAN = (161.0, 338.0)
_SPREAD = (1.3, 0.9)
_SHORTEST = 4
_LONGEST_PROMPT = 1024
_LONGEST = 2048


@dataclass(frozen=True, slots=True)
class RequestLength:
    """Tokens of one request."""

    prompt: int
    output: int


def draw_lengths(count: int, seed: int, *, longest: int = _LONGEST) -> list[RequestLength]:
    """As many, always the same for a seed; ``longest`` is for prompt and output together."""
    source = random.Random(seed)  # noqa: S311 - no secret
    prompt_limit = min(_LONGEST_PROMPT, longest - _SHORTEST)
    found: list[RequestLength] = []
    while len(found) < count:
        prompt, output = (
            round(source.lognormvariate(math.log(mean) - spread**2 / 2, spread))
            for mean, spread in zip(_MEAN, _SPREAD, strict=True)
        )
        short = prompt < _SHORTEST or output < _SHORTEST
        if not short and prompt <= prompt_limit and prompt + output <= longest:
            found.append(RequestLength(prompt, output))
    return found
