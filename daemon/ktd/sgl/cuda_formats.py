"""Which experts SGLang's runners on a GPU compute out of slots; others are refused by name.

A format is here when slots can be filled from host rows, as they are or repacked expert by expert,
and the runner skips the id -1; tests/sgl/test_gpu_layer.py and test_gpu_repacked.py show both for
each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

import torch

from ktd.experts.scattered import ExpertTensor
from ktd.experts.weights import MXFP4_GROUP, ActivationKind, WeightFormat
from ktd.sgl.expert_format import ExpertFormat, FormatRefused
from ktd.sgl.limits import ExpertMath
from ktd.sgl.padding import Padding

# Slots hold host rows as they are, on SGLang's Triton runner.
VERBATIM = (
    WeightFormat.BF16,
    WeightFormat.FP8_BLOCK,
    WeightFormat.FP8_CHANNEL,
    WeightFormat.INT8,
    WeightFormat.INT4,
)
# Slots hold what SGLang makes of host rows for its Marlin runner.
REPACKED = (WeightFormat.INT4, WeightFormat.GPTQ, WeightFormat.AWQ, WeightFormat.MXFP4)
# Eight zero points of GPTQ, which stores them less one, in the middle of 4 bits.
_MIDDLE = 0x77777777
ADMITTED = tuple(dict.fromkeys(VERBATIM + REPACKED))
# Marlin takes up to so many inputs at a time, and reads the zero points of the first group of them
# alone (https://github.com/sgl-project/sglang/pull/37759; SGLang 0.5.17 and 0.5.23). It has no
# kernel for larger groups.
_ZEROS_GROUP = 128
# Of MXFP4 on Marlin: inputs of a tile, and a GPU that SGLang has it for.
_TILE = 64
_HOPPER = (9, 0)


def settle(method: Any, layer: Any) -> None:
    """Gives a layer and its method what SGLang gives them with the parameters, or later.

    GPTQ's method makes its scheme as late as that, and the scheme says what the format is. MXFP4's
    lays experts out by a configuration that it gets with its runner.
    """
    kind = type(method).__name__
    if kind == "GPTQMarlinMoEMethod" and getattr(layer, "scheme", None) is None:
        layer.scheme = method.quant_config.get_moe_scheme(layer)
    elif kind == "Mxfp4MoEMethod":
        method.moe_runner_config = layer.moe_runner_config


def check_runner(slots: ExpertFormat, backend: Any, width: int) -> None:
    """Refuses what SGLang has no runner for.

    Args:
        slots: As experts lie in slots: of those that are quantised at load, their values in bf16.
        backend: SGLang's ``MoeRunnerBackend``, as the engine was started.
        width: Of a rank's part of an expert.

    Raises:
        FormatRefused: SGLang would end with an assertion, or compute something else.
    """
    if slots.weights is WeightFormat.MXFP4:
        _check_mxfp4(slots, backend)
    if slots.weights not in (WeightFormat.GPTQ, WeightFormat.AWQ):
        return
    if not backend.is_auto():
        raise FormatRefused(
            f"SGLang computes {slots.weights} experts on its Marlin runner alone, which it "
            f"chooses by itself; leave out --moe-runner-backend {backend.value}"
        )
    awq = slots.weights is WeightFormat.AWQ
    if awq and slots.group != _ZEROS_GROUP:
        raise FormatRefused(
            "SGLang's Marlin kernel does not compute rightly with the zero points of awq experts "
            f"in groups of {slots.group}; use a checkpoint with groups of {_ZEROS_GROUP}, or "
            "--device cpu"
        )
    if width <= slots.group:
        # It takes the width for the inputs of gate and up when it orders their scales.
        raise FormatRefused(
            f"SGLang orders the scales of {slots.weights} experts wrongly where a rank's part of "
            f"an expert ({width} wide) is no wider than a group ({slots.group}); use fewer ranks "
            f"(--tp), {'' if awq else 'a checkpoint with smaller groups, '}or --device cpu"
        )


def _check_mxfp4(slots: ExpertFormat, backend: Any) -> None:
    if slots.padding is None:
        raise FormatRefused(
            f"SGLang's {backend.value} runner for mxfp4 experts mixes them, or takes no pair that "
            "is not there; leave out --moe-runner-backend, as ktd chooses marlin"
        )
    hidden, width = slots.padding.hidden, slots.padding.width
    if hidden % _TILE or width % MXFP4_GROUP:
        raise FormatRefused(
            f"SGLang's Marlin runner takes mxfp4 experts whose hidden size ({hidden}) is a multiple"
            f" of {_TILE}, and whose width on a rank ({width}) is one of {MXFP4_GROUP}; use fewer "
            "ranks (--tp), or another checkpoint"
        )


def check_gpu(slots: ExpertFormat, capability: tuple[int, int]) -> None:
    """Refuses what SGLang has no kernel for on a GPU of this compute capability.

    Raises:
        FormatRefused: It would end while it lays the experts out.
    """
    if slots.weights is WeightFormat.MXFP4 and capability < _HOPPER:
        found = ".".join(map(str, capability))
        raise FormatRefused(
            f"SGLang computes mxfp4 experts on GPUs from compute capability 9.0 on, and this one "
            f"has {found}; use a checkpoint in another format"
        )


def check(slots: ExpertFormat, math: ExpertMath) -> None:
    """Refuses experts that slots on a GPU cannot hold or compute.

    Args:
        slots: As they lie in slots: of experts that are quantised at load, their values in bf16.
        math: What is computed.

    Raises:
        FormatRefused: With what to use instead.
    """
    if slots.weights not in (REPACKED if slots.repacked else VERBATIM):
        names = ", ".join(str(name) for name in ADMITTED)
        raise FormatRefused(
            f"{slots.weights} experts are not served with slots on a GPU yet, only {names}; use "
            "such a checkpoint, or start with --device cpu"
        )
    if not (math.plain or (slots.weights is WeightFormat.MXFP4 and _on_marlin(math))):
        raise FormatRefused(
            f"experts that compute {math} are not served with slots on a GPU yet; start with "
            "--device cpu"
        )


def _on_marlin(math: ExpertMath) -> bool:
    """Whether SGLang's Marlin runner for MXFP4 computes it."""
    activation = math.activation
    return (
        not math.weights_before_input
        and activation.kind is ActivationKind.SWISH
        # With alpha it wants a limit as well.
        and (activation.beta == 0 or isfinite(activation.limit))
    )


def beside_gpu(experts: ExpertFormat, math: ExpertMath, *, hidden: int, width: int) -> ExpertFormat:
    """The format in which experts of a checkpoint are kept beside slots on a GPU.

    Marlin multiplies bf16 hidden states by bf16 scales alone, and AWQ's come in bf16 anyhow; GPTQ's
    are kept so too, that an expert computes with the same scales on either side. MXFP4 experts are
    kept without what SGLang pads them with for Marlin.

    Args:
        experts: As the checkpoint has them.
        math: What they compute.
        hidden: Hidden size.
        width: Of a rank's part of an expert.
    """
    if experts.weights is WeightFormat.MXFP4 and experts.repacked:
        return replace(experts, padding=Padding(hidden, width, math.interleaved))
    if experts.weights is not WeightFormat.GPTQ:
        return experts
    scales = {name: torch.bfloat16 for name in experts.fields if name.endswith("_scales")}
    return replace(experts, dtypes={**experts.dtypes, **scales})


def check_zeros(experts: ExpertFormat, tensors: Mapping[str, ExpertTensor]) -> None:
    """Refuses zero points that a runner does without and the CPU would not.

    Args:
        experts: In host memory.
        tensors: Theirs, ``[E, …]`` by parameter name.

    Raises:
        FormatRefused: A symmetric GPTQ checkpoint has zero points that are not in the middle.
    """
    for name in experts.unread:
        tensor = tensors[name]
        pieces = (
            [tensor] if isinstance(tensor, torch.Tensor) else [p for e in tensor.pieces for p in e]
        )
        if any(bool((piece != _MIDDLE).any()) for piece in pieces):
            raise FormatRefused(
                f"the checkpoint says that its {experts.weights} experts are symmetric, and their "
                f"{name} are not, which SGLang's Marlin runner does not compute; start with "
                "--device cpu, or save it with sym=false and do that"
            )
