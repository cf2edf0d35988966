"""ktd's version, the single source for the wheel, the API and the hello; and SGLang's on GPUs."""

from __future__ import annotations

import re

__version__ = "0.1.0"

# Releases of SGLang that ktd has run on GPUs with: docs/results/gpu-engine.md. What it uses of
# others is compared without one (tests/sgl/test_*contract.py).
TRIED_ON_GPUS = ("0.5.17",)


def release_numbers(text: str) -> tuple[int, ...]:
    """``(0, 5, 23)`` of ``"0.5.23"`` or ``"0.5.23.post1"``."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def untried_on_gpus(sglang: str) -> str:
    """What to say of that release of SGLang beside a GPU; empty if ktd has run with it on one."""
    if release_numbers(sglang) in map(release_numbers, TRIED_ON_GPUS):
        return ""
    return f"{sglang}, with which ktd was run on no GPU yet, but with {', '.join(TRIED_ON_GPUS)}"
