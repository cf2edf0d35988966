"""How a checkpoint's experts are quantised, from its configuration, without torch.

Formats have the names of ``ktd.experts.weights.WeightFormat``. What the kernels do not compute is
refused here, before anything is loaded; the engine checks once more what SGLang makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_PROJECTIONS = 3
_BF16_BYTES = 2
_BLOCK = 128
_MX_GROUP = 32
_NIBBLE, _BYTE = 4, 8  # bits
TRITON, AUTO, MARLIN = "triton", "auto", "marlin"
# What SGLang pads MXFP4 experts to there: hidden sizes and widths.
_MARLIN_HIDDEN, _MARLIN_WIDTH = 256, 128
# Of compressed-tensors: what SGLang's Triton runner takes; others are Marlin's.
_TRITON_GROUPS = (32, 128)


_ZEROS_GROUP = 128  # ktd.sgl.cuda_formats, which checks again, says why
_ASYMMETRIC = (
    "GPTQ quantised asymmetrically (sym=false), which SGLang computes on no GPU; use a symmetric "
    "checkpoint"
)
_OTHER_ZEROS = (
    "AWQ quantised in groups of {}, with whose zero points SGLang's Marlin kernel on GPUs does not "
    "compute rightly; use a checkpoint with groups of {}"
)


class QuantisationUnsupported(Exception):  # says what happened
    """The clause says what the experts are and what to use instead."""


@dataclass(frozen=True, slots=True)
class ExpertFormat:
    """A format of experts.

    Attributes:
        name: As users see it.
        dtypes: Types, by their names in safetensors, that the experts' tensors have.
        group: Inputs under one scale, where the format says so.
        runner: SGLang's ``--moe-runner-backend`` on a GPU: its Triton runner, or Marlin, which it
            chooses by itself for some formats, and for some has to be told to.
        not_on_gpus: Why SGLang does not compute them there, and what to use; empty: it does.
    """

    name: str
    dtypes: tuple[str, ...]
    group: int = 0
    runner: str = TRITON
    not_on_gpus: str = ""

    def expert_bytes(self, hidden: int, width: int) -> int:
        """One expert, whole: gate, up and down, with scales, zero points and biases."""
        weights = _PROJECTIONS * hidden * width
        scales = weights // self.group if self.group else 0
        if self.name == "bf16":
            return weights * _BF16_BYTES
        if self.name == "fp8_block":
            h, w = -(-hidden // _BLOCK), -(-width // _BLOCK)
            return weights + 4 * _PROJECTIONS * h * w
        if self.name in ("fp8_channel", "int8"):
            return weights + 4 * (2 * width + hidden)
        if self.name == "mxfp4":
            return weights // 2 + scales + _BF16_BYTES * (2 * width + hidden)
        zeros = scales // 2 if self.name in ("gptq", "awq") else 0
        return weights // 2 + _BF16_BYTES * scales + zeros

    def slot_bytes(self, hidden: int, width: int, ranks: int = 1) -> int:
        """The same in slots on GPUs, over all ranks: where it is padded, each pads its part."""
        if self.runner != MARLIN:
            return self.expert_bytes(hidden, width)
        part = -(-width // ranks)
        return self.expert_bytes(
            -(-hidden // _MARLIN_HIDDEN) * _MARLIN_HIDDEN,
            -(-part // _MARLIN_WIDTH) * _MARLIN_WIDTH * ranks,
        )


def weight_bytes(name: str, hidden: int, width: int) -> int:
    """One expert in the format of this name, without scales, zero points and biases."""
    bits = {"bf16": 16, "fp8_block": 8, "fp8_channel": 8, "int8": 8}.get(name, 4)
    return _PROJECTIONS * hidden * width * bits // 8


# What weights that are not quantised are in, and what buffers beside them are.
DENSE_DTYPES = ("BF16", "F16", "F32", "F64", "I64", "BOOL")
BF16 = ExpertFormat("bf16", ("BF16",))
_FP8_TYPES = ("F8_E4M3", "F32", "BF16")
_PACKED_TYPES = ("I32", "F16", "BF16", "F32")
_INSTEAD = (
    "use a checkpoint in bf16, FP8 (128 x 128 blocks or per channel), INT8 per channel, INT4 "
    "(compressed-tensors, GPTQ, AWQ) or MXFP4"
)


def expert_format(config: Mapping[str, Any] | None) -> ExpertFormat:
    """The format that a ``quantization_config`` describes; bf16 without one.

    Raises:
        QuantisationUnsupported: No kernel computes it.
    """
    if not config:
        return BF16
    method = str(config.get("quant_method") or config.get("format") or "an unnamed method").lower()
    row = _METHODS.get(method)
    if row is None:
        raise QuantisationUnsupported(f"experts quantised by {method}; {_INSTEAD}")
    return row(config)


def _fp8(config: Mapping[str, Any]) -> ExpertFormat:
    block = config.get("weight_block_size")
    if block is None:
        raise QuantisationUnsupported(f"experts in FP8 with one scale a tensor; {_INSTEAD}")
    if block != [_BLOCK, _BLOCK]:
        raise QuantisationUnsupported(f"experts in FP8 with blocks of {block}; {_INSTEAD}")
    return ExpertFormat("fp8_block", _FP8_TYPES)


def _gptq(config: Mapping[str, Any]) -> ExpertFormat:
    layout = str(config.get("checkpoint_format") or config.get("format") or "gptq")
    if layout != "gptq":
        raise QuantisationUnsupported(
            f"experts in the layout {layout}; save the checkpoint in the layout gptq"
        )
    if config.get("desc_act"):
        raise QuantisationUnsupported(
            "experts quantised by GPTQ with act-order; use a checkpoint made with desc_act=false"
        )
    group = _group("GPTQ", config, "bits", "group_size")
    why = "" if config.get("sym") else _ASYMMETRIC
    return ExpertFormat("gptq", _PACKED_TYPES, group, AUTO, why)


def _awq(config: Mapping[str, Any]) -> ExpertFormat:
    if not config.get("zero_point", True):
        raise QuantisationUnsupported(f"experts quantised by AWQ without zero points; {_INSTEAD}")
    bits, group = (
        next((name for name in names if name in config), names[0])
        for names in (("bits", "w_bit"), ("group_size", "q_group_size"))
    )
    size = _group("AWQ", config, bits, group)
    why = "" if size == _ZEROS_GROUP else _OTHER_ZEROS.format(size, _ZEROS_GROUP)
    return ExpertFormat("awq", _PACKED_TYPES, size, AUTO, why)


def _compressed_tensors(config: Mapping[str, Any]) -> ExpertFormat:
    groups = [group for group in (config.get("config_groups") or {}).values() if group]
    kinds = {_of_group(group, str(config.get("format"))) for group in groups}
    if len(kinds) != 1:
        raise QuantisationUnsupported(
            f"experts quantised by compressed-tensors in {len(kinds)} ways; use a checkpoint that "
            "is quantised in one"
        )
    return kinds.pop()


def _of_group(group: Mapping[str, Any], layout: str) -> ExpertFormat:
    weights = group.get("weights") or {}
    kind, bits = weights.get("type"), weights.get("num_bits")
    strategy = weights.get("strategy")
    activations = group.get("input_activations") or {}
    symmetric = weights.get("symmetric", True) and activations.get("symmetric", True)
    per_token = activations.get("dynamic") and activations.get("num_bits") == _BYTE
    if (kind, bits) == ("float", _BYTE) and per_token:
        if strategy == "channel":
            return ExpertFormat("fp8_channel", _FP8_TYPES)
        if strategy == "block" and weights.get("block_structure") == [_BLOCK, _BLOCK]:
            return ExpertFormat("fp8_block", _FP8_TYPES)
    if (kind, bits, strategy) == ("int", _BYTE, "channel") and per_token and symmetric:
        return ExpertFormat("int8", ("I8", "F32", "BF16"))
    in_order = weights.get("actorder") in (None, False, "static", "weight")
    packed = layout == "pack-quantized" and not activations and symmetric and in_order
    if (kind, bits, strategy) == ("int", _NIBBLE, "group") and packed:
        group_size = _group("compressed-tensors", weights, "num_bits", "group_size")
        triton = group_size in _TRITON_GROUPS and weights.get("actorder") in (None, False)
        runner = TRITON if triton else AUTO
        return ExpertFormat("int4", (*_PACKED_TYPES, "I64"), group_size, runner)
    raise QuantisationUnsupported(
        f"experts quantised by compressed-tensors as {kind} of {bits} bits by {strategy} "
        f"({layout}); {_INSTEAD}"
    )


def _group(what: str, config: Mapping[str, Any], bits: str, group: str) -> int:
    if config.get(bits) != _NIBBLE:
        raise QuantisationUnsupported(
            f"experts quantised by {what} with {config.get(bits)} bits; {_INSTEAD}"
        )
    size = config.get(group)
    if not isinstance(size, int) or size <= 0:
        raise QuantisationUnsupported(
            f"experts quantised by {what} without groups of inputs ({group} = {size}); use a "
            "checkpoint with groups of 32, 64 or 128"
        )
    return size


def _mxfp4(_config: Mapping[str, Any]) -> ExpertFormat:
    # By itself SGLang takes a runner whose slots no expert can be copied into.
    return ExpertFormat("mxfp4", ("U8", "BF16"), _MX_GROUP, MARLIN)


_METHODS: dict[str, Callable[[Mapping[str, Any]], ExpertFormat]] = {
    "fp8": _fp8,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
}
