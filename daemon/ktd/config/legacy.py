"""Flags of KTransformers that ktd accepts and does not need, and what replaces each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LegacyFlag:
    """One such flag.

    Attributes:
        values: Values that follow it: 0, 1, or -1 for as many as there are.
        notice: What ktd does instead; follows ``"--flag is not needed: "``.
    """

    values: int
    notice: str


LEGACY_FLAGS = {
    "--kt-weight-path": LegacyFlag(
        1, "CPU experts are computed from the checkpoint's own files, named by MODEL."
    ),
    "--kt-method": LegacyFlag(
        1,
        "the CPU kernel follows from the experts' format, which --cpu-expert-format may change, "
        "and the CPU; --isa forces one.",
    ),
    "--kt-cpuinfer": LegacyFlag(
        1,
        "the expert pool uses every core, beside GPUs seven eighths; --cpu-threads sets it.",
    ),
    "--kt-threadpool-count": LegacyFlag(
        1, "ktd places threads and weights by the host's NUMA nodes itself."
    ),
    "--kt-numa-nodes": LegacyFlag(
        -1, "ktd places threads and weights by the host's NUMA nodes itself."
    ),
}

# Their effect on the answer cannot be had another way, so they are refused and not ignored.
REFUSED_FLAGS = {
    "--kt-lora-path": "ktd does not apply LoRA to CPU experts",
    "--kt-expert-lora-path": "ktd does not apply LoRA to CPU experts",
}
