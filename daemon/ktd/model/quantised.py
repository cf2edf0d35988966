"""Experts that are quantised while they are loaded: which a model allows, and how large they are.

The layouts are those of ``ktd.experts.weights``: int8 with a float32 scale for each row, int4 with
a bf16 scale for each 32 inputs.
"""

from __future__ import annotations

from dataclasses import replace

from ktd.errors import ModelUnsupported
from ktd.model.facts import ModelFacts, Quantised

FORMATS = ("int8", "int4")
SOURCES = ("bf16", "fp8_block", "fp8_channel")
_GROUP = 32
_BF16_BYTES = 2
_SCALE_BYTES = {"int8": 4, "int4": 2}


def quantised(facts: ModelFacts, wanted: str, *, ranks: int, named: str) -> ModelFacts:
    """The facts of a model whose experts lie in host memory as ``wanted``.

    Args:
        facts: As the checkpoint has it.
        wanted: One of :data:`FORMATS`.
        ranks: Tensor-parallel ranks; each quantises its own part of an expert.
        named: What the user calls the setting.

    Raises:
        ModelUnsupported: The experts are quantised already, or have sizes that the format cannot
            take.
    """
    if facts.expert_format not in SOURCES:
        raise ModelUnsupported(
            f"{named} is {wanted}, but {facts.path} has experts in {facts.expert_format}, and ktd "
            f"quantises {', '.join(SOURCES)} only: leave it out."
        )
    hidden, width = facts.hidden_size, facts.expert_intermediate_size
    part = width // ranks
    if wanted == "int4" and (hidden % _GROUP or part % _GROUP):
        raise ModelUnsupported(
            f"{named} is {wanted}, which needs a hidden size and an expert width per rank that are "
            f"multiples of {_GROUP}, but {facts.path} has {hidden} and {part}: take int8."
        )
    return replace(
        facts,
        # Slots hold the quantised values in bf16, whatever the checkpoint has.
        expert_bytes=3 * hidden * width * _BF16_BYTES,
        quantised=Quantised(wanted, _expert_bytes(wanted, hidden, width, ranks)),
    )


def _expert_bytes(wanted: str, hidden: int, width: int, ranks: int) -> int:
    """Gate and up have ``width`` rows in all, down has ``hidden`` rows on each rank."""
    values = 3 * hidden * width
    if wanted == "int8":
        scales = 2 * width + ranks * hidden
        return values + scales * _SCALE_BYTES[wanted]
    return values // 2 + values // _GROUP * _SCALE_BYTES[wanted]
