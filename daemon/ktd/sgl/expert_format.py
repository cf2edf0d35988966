"""What SGLang's quantisation methods call the tensors of a format, one row for each method.

A row is chosen before anything is allocated, so a format that the pool does not compute is refused
before a weight is read. The rows were read from SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ktd.experts.scattered import ExpertTensor
from ktd.experts.weights import FP8_BLOCK, ExpertWeights, WeightFormat, refuse_act_order
from ktd.sgl.limits import ExpertMath
from ktd.sgl.padding import Padding

_BITS = 4
_IN_INT32 = 8  # inputs of these bits


class FormatRefused(Exception):  # says what happened
    """The pool does not compute these experts; the sentence names what and what to use instead."""


@dataclass(frozen=True, slots=True)
class ExpertFormat:
    """One row.

    Attributes:
        weights: Layout of the host tensors.
        fields: Fields of ExpertWeights by the name of SGLang's parameter. SGLang's other parameters
            hold nothing that the pool needs, and what the checkpoint has for them is not kept.
        transposed: SGLang's parameters are the checkpoint's tensors turned round; the pool reads
            them as the checkpoint has them.
        dtypes: Types of parameters that SGLang declares otherwise than checkpoints have them.
        order: Parameters that say in which order GPTQ took the inputs.
        group: Inputs under one scale, of 4-bit integers.
        repacked: On a GPU SGLang's method rearranges each expert after loading.
        unread: Parameters that SGLang's runner on a GPU does without.
        padding: SGLang declares experts for its runner on a GPU larger than they are; None: as
            large.
    """

    weights: WeightFormat
    fields: Mapping[str, str]
    transposed: bool = False
    dtypes: Mapping[str, torch.dtype] = field(default_factory=lambda: MappingProxyType({}))
    order: tuple[str, ...] = ()
    group: int = 0
    repacked: bool = False
    unread: tuple[str, ...] = ()
    padding: Padding | None = None

    def host_parameters(self, declared: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """SGLang's parameters (of the meta device) as the pool wants them; attributes are kept.

        Raises:
            FormatRefused: SGLang's method declares other parameters than this row says.
        """
        absent = sorted(set(self.fields) - set(declared))
        if absent:
            raise FormatRefused(
                f"SGLang declares no parameter {absent[0]} for {self.weights} experts; this release"
                " of SGLang is not supported for this format"
            )
        found = {}
        for name in self.fields:
            meta = declared[name]
            shape, attributes = list(meta.shape), dict(vars(meta))
            if self.transposed:
                shape[1], shape[2] = shape[2], shape[1]
                attributes.pop("is_transposed", None)
            if self.weights is WeightFormat.GPTQ and self.fields[name] in ("w2_scale", "w2_zeros"):
                # SGLang declares the groups of all ranks of a tensor-parallel group.
                shape[1] = declared["w2_qweight"].shape[1] * _IN_INT32 // self.group
            if self.padding is not None:
                shape[1:] = self.padding.shape(self.fields[name])
            dtype = self.dtypes.get(name, meta.dtype)
            parameter = nn.Parameter(
                torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False
            )
            for attribute, value in attributes.items():
                setattr(parameter, attribute, value)
            found[name] = parameter
        return found

    @property
    def scale_of(self) -> dict[str, str]:
        """The parameter with the scales, by that with the weights."""
        names = {role: name for name, role in self.fields.items()}
        scales = {name: names.get(f"{role}_scale") for name, role in self.fields.items()}
        return {name: scale for name, scale in scales.items() if scale is not None}

    def slot_parameters(
        self, declared: Mapping[str, nn.Parameter], slots: ExpertFormat
    ) -> dict[str, nn.Parameter]:
        """Parameters (of the meta device) of slots in bf16 where this row's weights are bytes."""
        if slots is self or slots.fields == self.fields:
            return self.host_parameters(declared)
        return {
            name: nn.Parameter(
                torch.empty(declared[name].shape, dtype=torch.bfloat16, device="meta"),
                requires_grad=False,
            )
            for name in slots.fields
        }

    def unstored(self, declared: Iterable[str]) -> dict[str, Callable[..., None]]:
        """Loaders for SGLang's parameters that the pool does without.

        Those in ``order`` raise FormatRefused for a checkpoint that needs them.
        """
        return {
            name: self._check_order if name in self.order else _ignore
            for name in declared
            if name not in self.fields
        }

    def _check_order(self, _param: nn.Parameter, g_idx: torch.Tensor, *_: Any, **__: Any) -> None:
        try:
            refuse_act_order(g_idx, self.group)
        except ValueError as error:
            raise FormatRefused(str(error)) from error

    def experts(self, tensors: Mapping[str, ExpertTensor], math: ExpertMath) -> ExpertWeights:
        """``tensors``, by SGLang's names, as the pool takes them."""
        named: dict[str, Any] = {self.fields[name]: tensor for name, tensor in tensors.items()}
        return ExpertWeights(
            self.weights,
            **named,
            interleaved=math.interleaved,
            activation=math.activation,
            weights_before_input=math.weights_before_input,
        )


def _ignore(*_: Any, **__: Any) -> None:
    """Takes what a checkpoint has beside the weights (their shapes, for example)."""


def expert_format(method: Any, layer: Any, math: ExpertMath) -> ExpertFormat:
    """The row for SGLang's quantisation method of a layer.

    Raises:
        FormatRefused: There is none.
    """
    scheme = getattr(layer, "scheme", None)
    chosen = method if scheme is None else scheme
    kind = type(chosen).__name__
    row = _ROWS.get(kind)
    if row is None:
        raise FormatRefused(f"expert weights of {kind} are not implemented; {_INSTEAD}")
    found = row(chosen, math)
    if math.biases and not any(role.endswith("_bias") for role in found.fields.values()):
        raise FormatRefused(
            f"{found.weights} experts with biases are not implemented; use the MXFP4 checkpoint"
        )
    return found


def quantised(source: ExpertFormat, wanted: WeightFormat) -> tuple[ExpertFormat, ExpertFormat]:
    """The rows for what :mod:`ktd.sgl.quantiser` makes of experts, and for slots with its values.

    Raises:
        FormatRefused: It makes nothing of these.
    """
    if source.weights not in _QUANTISED_AT_LOAD:
        raise FormatRefused(
            f"{source.weights} experts are not quantised to {wanted} at load; leave out "
            "--cpu-expert-format"
        )
    return ExpertFormat(wanted, _fields(scale="weight_scale")), _unquantised(None, ExpertMath())


_QUANTISED_AT_LOAD = (WeightFormat.BF16, WeightFormat.FP8_BLOCK, WeightFormat.FP8_CHANNEL)


_INSTEAD = (
    "use a checkpoint in bf16, FP8 (128 x 128 blocks or per channel), INT8 per channel, INT4"
    " (compressed-tensors, GPTQ, AWQ) or MXFP4"
)


def _fields(
    weight: str = "weight", scale: str = "", zeros: str = "", *, bias: str = ""
) -> dict[str, str]:
    """Fields by parameter for both products, whose names differ in their beginning only."""
    found = {}
    for suffix, role in ((weight, ""), (scale, "_scale"), (zeros, "_zeros"), (bias, "_bias")):
        for product in ("w13", "w2") if suffix else ():
            found[f"{product}_{suffix}"] = f"{product}{role}"
    return found


def _unquantised(_method: Any, _math: ExpertMath) -> ExpertFormat:
    return ExpertFormat(WeightFormat.BF16, _fields())


def _fp8(method: Any, _math: ExpertMath) -> ExpertFormat:
    if method.is_fp4_expert:
        raise FormatRefused(f"DeepSeek's FP4 experts are not implemented; {_INSTEAD}")
    if not method.quant_config.is_checkpoint_fp8_serialized:
        raise FormatRefused(
            "--quantization fp8 quantises an unquantised checkpoint, which is not implemented; "
            "leave it out, or use an FP8 checkpoint"
        )
    if method.use_mxfp8:
        raise FormatRefused(f"MXFP8 experts are not implemented; {_INSTEAD}")
    _check_block(method.weight_block_size)
    return ExpertFormat(WeightFormat.FP8_BLOCK, _fields(scale="weight_scale_inv"))


def _fp8_of_compressed_tensors(scheme: Any, _math: ExpertMath) -> ExpertFormat:
    if scheme.static_input_scales:
        raise FormatRefused(
            f"FP8 experts with static scales of activations are not implemented; {_INSTEAD}"
        )
    if scheme.weight_quant.strategy == "channel":
        return ExpertFormat(WeightFormat.FP8_CHANNEL, _fields(scale="weight_scale"))
    _check_block(scheme.weight_block_size)
    return ExpertFormat(WeightFormat.FP8_BLOCK, _fields(scale="weight_scale"))


def _fp8_of_w8a8(method: Any, _math: ExpertMath) -> ExpertFormat:
    if not method.quant_config.is_checkpoint_fp8_serialized:
        raise FormatRefused(
            "--quantization w8a8_fp8 quantises an unquantised checkpoint, which is not implemented;"
            " leave it out, or use an FP8 checkpoint"
        )
    return ExpertFormat(WeightFormat.FP8_CHANNEL, _fields(scale="weight_scale"))


def _check_block(block: Any) -> None:
    if block is None:
        raise FormatRefused(f"FP8 experts with one scale a tensor are not implemented; {_INSTEAD}")
    if list(block) != [FP8_BLOCK, FP8_BLOCK]:
        size = " x ".join(map(str, block))
        raise FormatRefused(f"FP8 experts in blocks of {size} are not implemented; {_INSTEAD}")


def _int8(_method: Any, _math: ExpertMath) -> ExpertFormat:
    return ExpertFormat(WeightFormat.INT8, _fields(scale="weight_scale"))


def _int4_on_marlin(scheme: Any, math: ExpertMath) -> ExpertFormat:
    return replace(_int4_of_compressed_tensors(scheme, math), repacked=True)


def _int4_of_compressed_tensors(scheme: Any, _math: ExpertMath) -> ExpertFormat:
    _check_nibbles("compressed-tensors", scheme.num_bits, scheme.group_size)
    if not scheme.sym:
        raise FormatRefused(f"asymmetric INT4 of compressed-tensors is not implemented; {_INSTEAD}")
    if scheme.actorder not in (None, "static", "weight"):
        raise FormatRefused(
            f"INT4 experts with actorder {scheme.actorder!s} are not implemented; use a checkpoint"
            " made without it"
        )
    return ExpertFormat(
        WeightFormat.INT4,
        _fields("weight_packed", "weight_scale"),
        transposed=True,
        order=("w13_weight_g_idx", "w2_weight_g_idx"),
        group=scheme.group_size,
    )


def _gptq(scheme: Any, _math: ExpertMath) -> ExpertFormat:
    config = scheme.quant_config
    _check_nibbles("GPTQ", config.weight_bits, config.group_size)
    layout = getattr(config, "checkpoint_format", "")
    if layout not in ("", "gptq"):
        raise FormatRefused(
            f"experts in the layout {layout!r} are not implemented; save the checkpoint in the"
            " layout 'gptq'"
        )
    if config.desc_act:
        raise FormatRefused(
            "GPTQ with act-order (desc_act) is not implemented; use a checkpoint made with"
            " desc_act=false"
        )
    return ExpertFormat(
        WeightFormat.GPTQ,
        _fields("qweight", "scales", "qzeros"),
        # SGLang's Marlin kernels do without the zero points of symmetric checkpoints.
        dtypes={"w13_qzeros": torch.int32, "w2_qzeros": torch.int32},
        order=("w13_g_idx", "w2_g_idx"),
        group=config.group_size,
        repacked=True,
        unread=("w13_qzeros", "w2_qzeros"),
    )


def _awq(scheme: Any, _math: ExpertMath) -> ExpertFormat:
    config = scheme.quant_config
    _check_nibbles("AWQ", config.weight_bits, config.group_size)
    if not config.zero_point:
        raise FormatRefused(f"AWQ without zero points is not implemented; {_INSTEAD}")
    return ExpertFormat(
        WeightFormat.AWQ,
        _fields("qweight", "scales", "qzeros"),
        group=config.group_size,
        repacked=True,
    )


def _check_nibbles(what: str, bits: int, group: int) -> None:
    if bits != _BITS:
        raise FormatRefused(f"{what} experts of {bits} bits are not implemented; {_INSTEAD}")
    if group <= 0:
        raise FormatRefused(
            f"{what} experts without groups of inputs are not implemented; use a checkpoint with"
            " groups of 32, 64 or 128"
        )


def _mxfp4(method: Any, math: ExpertMath) -> ExpertFormat:
    bias = "weight_bias" if math.biases else ""
    return ExpertFormat(
        WeightFormat.MXFP4,
        _fields(scale="weight_scale", bias=bias),
        repacked=method.use_marlin,
    )


# By SGLang's method, or by the scheme that its method leaves the work to.
_ROWS: dict[str, Callable[[Any, ExpertMath], ExpertFormat]] = {
    "UnquantizedFusedMoEMethod": _unquantised,
    "Fp8MoEMethod": _fp8,
    "W8A8FP8MoEMethod": _fp8_of_w8a8,
    "CompressedTensorsW8A8Fp8MoE": _fp8_of_compressed_tensors,
    "W8A8Int8MoEMethod": _int8,
    "CompressedTensorsWNA16MoE": _int4_on_marlin,
    "CompressedTensorsWNA16TritonMoE": _int4_of_compressed_tensors,
    "GPTQMarlinMoEScheme": _gptq,
    "AWQMoEScheme": _awq,
    "Mxfp4MoEMethod": _mxfp4,
}
