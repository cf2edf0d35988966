"""Which experts SGLang's runners on a GPU compute out of slots; others are refused by name.

A format is here when a slot takes an expert's host rows as they are and the runner skips the id -1;
tests/sgl/test_gpu_layer.py shows both for each.
"""

from __future__ import annotations

from ktd.experts.weights import WeightFormat
from ktd.sgl.expert_format import ExpertFormat, FormatRefused
from ktd.sgl.limits import ExpertMath
from ktd.sgl.quantiser import Quantiser

# On SGLang's Triton runner.
ADMITTED = (
    WeightFormat.BF16,
    WeightFormat.FP8_BLOCK,
    WeightFormat.FP8_CHANNEL,
    WeightFormat.INT8,
)


def check(experts: ExpertFormat, math: ExpertMath, quantiser: Quantiser | None) -> None:
    """Refuses experts that slots on a GPU cannot hold or compute.

    Raises:
        FormatRefused: With what to use instead.
    """
    if quantiser is not None:
        raise FormatRefused(
            f"--cpu-expert-format {quantiser.format} does not go with slots on a GPU yet; leave it "
            "out, or start with --device cpu"
        )
    if experts.weights not in ADMITTED:
        names = ", ".join(str(name) for name in ADMITTED)
        raise FormatRefused(
            f"{experts.weights} experts are not served with slots on a GPU yet, only {names}; use "
            "such a checkpoint, or start with --device cpu"
        )
    if not math.plain:
        raise FormatRefused(
            f"experts that compute {math} are not served with slots on a GPU yet; start with "
            "--device cpu"
        )
