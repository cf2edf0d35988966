"""Which experts SGLang's runners on a GPU compute out of slots; others are refused by name.

A format is here when a slot takes an expert's rows as the checkpoint has them and the runner skips
the id -1; tests/sgl/test_gpu_layer.py shows both for each.
"""

from __future__ import annotations

from ktd.experts.weights import WeightFormat
from ktd.sgl.expert_format import ExpertFormat, FormatRefused
from ktd.sgl.limits import ExpertMath

# On SGLang's Triton runner.
ADMITTED = (
    WeightFormat.BF16,
    WeightFormat.FP8_BLOCK,
    WeightFormat.FP8_CHANNEL,
    WeightFormat.INT8,
)


def check(slots: ExpertFormat, math: ExpertMath) -> None:
    """Refuses experts that slots on a GPU cannot hold or compute.

    Args:
        slots: As they lie in slots: of experts that are quantised at load, their values in bf16.
        math: What is computed.

    Raises:
        FormatRefused: With what to use instead.
    """
    if slots.weights not in ADMITTED:
        names = ", ".join(str(name) for name in ADMITTED)
        raise FormatRefused(
            f"{slots.weights} experts are not served with slots on a GPU yet, only {names}; use "
            "such a checkpoint, or start with --device cpu"
        )
    if not math.plain:
        raise FormatRefused(
            f"experts that compute {math} are not served with slots on a GPU yet; start with "
            "--device cpu"
        )
