"""4-bit experts in SGLang's own classes, with host memory as a store has it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ktd.experts.scattered import ExpertTensor, scattered
from ktd.experts.store import HostStore
from ktd.experts.weights import Activation, WeightFormat
from ktd.sgl import cuda_formats
from ktd.sgl.expert_format import ExpertFormat, expert_format
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.limits import ExpertMath
from tests.sgl.quantised_models import nibbles

MIDDLE = 0x77777777
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
MXFP4 = "mxfp4"
TOP_K = 4
_BIAS_DIM = 2
# gpt-oss: clamped SwiGLU, gate and up rows alternate, both products have biases.
GPT_OSS = ExpertMath(Activation(alpha=1.702, limit=7.0, beta=1.0), interleaved=True, biases=True)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one layer."""

    experts: int
    hidden: int
    width: int
    group: int


class Layer(nn.Module):
    """As much of SGLang's FusedMoE as its methods look at."""

    def __init__(self, sizes: Sizes, scheme: Any, math: ExpertMath) -> None:
        super().__init__()
        self.moe_runner_config = runner_config(sizes, math)
        self.scheme = scheme
        self.moe_tp_size = 1
        self.num_experts = self.num_local_experts = sizes.experts
        self.hidden_size = sizes.hidden
        self.intermediate_size_per_partition = sizes.width
        self.dispatcher = None


def runner_config(sizes: Sizes, math: ExpertMath) -> Any:
    """SGLang's, for experts that compute ``math``."""
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

    activation = math.activation
    limit = None if activation.limit == float("inf") else activation.limit
    with_alpha = activation.beta == 1.0
    return MoeRunnerConfig(
        num_experts=sizes.experts,
        num_local_experts=sizes.experts,
        top_k=TOP_K,
        activation="silu",
        inplace=False,
        gemm1_alpha=activation.alpha if with_alpha else None,
        gemm1_clamp_limit=limit if with_alpha else None,
        swiglu_limit=None if with_alpha else limit,
        gate_up_interleaved=math.interleaved,
    )


def _w4a16(name: str) -> Callable[[Sizes], tuple[Any, Any]]:
    def make(sizes: Sizes) -> tuple[Any, Any]:
        from compressed_tensors.quantization import QuantizationArgs
        from sglang.srt.layers.quantization.compressed_tensors import compressed_tensors as module

        config = module.CompressedTensorsConfig.from_config(
            {"format": "pack-quantized", "config_groups": {}}
        )
        weights = QuantizationArgs.model_validate(
            {
                "num_bits": 4,
                "type": "int",
                "strategy": "group",
                "group_size": sizes.group,
                "symmetric": True,
                "dynamic": False,
            }
        )
        scheme = getattr(module, name)(config, weights)
        return module.CompressedTensorsFusedMoEMethod(config), scheme

    return make


def _gptq(sizes: Sizes) -> tuple[Any, Any]:
    from sglang.srt.layers.quantization.gptq.gptq import GPTQMarlinConfig, GPTQMarlinMoEMethod

    config = GPTQMarlinConfig.from_config(
        {"bits": 4, "group_size": sizes.group, "desc_act": False, "sym": True}
    )
    return GPTQMarlinMoEMethod(config), None  # the scheme comes later


def _awq(sizes: Sizes) -> tuple[Any, Any]:
    from sglang.srt.layers.quantization.awq import awq as module
    from sglang.srt.layers.quantization.awq.schemes import AWQMoEScheme

    # The one that SGLang takes looks for a GPU; its scheme takes either.
    on_gpu = torch.cuda.is_available()
    kind = module.AWQMarlinConfig if on_gpu else module.AWQConfig
    config = kind.from_config(
        {"bits": 4, "group_size": sizes.group, "zero_point": True, "lm_head": False}
    )
    return module.AWQMoEMethod(config), AWQMoEScheme(config)


def _mxfp4(_sizes: Sizes) -> tuple[Any, Any]:
    from sglang.srt.layers.quantization.mxfp4 import Mxfp4MoEMethod

    method = object.__new__(Mxfp4MoEMethod)  # its constructor asks a running server
    method.use_marlin = True
    method.use_triton_kernels = method.use_flashinfer = False
    method.use_deep_gemm = method.use_mega_moe = False
    method._fi_kernel = None
    return method, None


# By runner: SGLang's method and scheme.
KINDS: Mapping[str, Callable[[Sizes], tuple[Any, Any]]] = {
    "int4-triton": _w4a16("CompressedTensorsWNA16TritonMoE"),
    "int4-marlin": _w4a16("CompressedTensorsWNA16MoE"),
    "gptq": _gptq,
    "awq": _awq,
    MXFP4: _mxfp4,
}


class Experts:
    """Experts of one kind: SGLang's method, and what ktd makes of it.

    Attributes:
        method: SGLang's.
        format: In host memory.
        attributes: What SGLang's layer gives to ``create_weights``.
    """

    def __init__(self, kind: str, sizes: Sizes, math: ExpertMath | None = None) -> None:
        self.sizes = sizes
        self._kind = kind
        self.math = math or (GPT_OSS if kind == MXFP4 else ExpertMath())
        with self.chosen_runner():
            self.method, self._scheme = KINDS[kind](sizes)
        self.format: ExpertFormat = self._format()
        self.attributes = {
            "hidden_size": sizes.hidden,
            "intermediate_size_per_partition": sizes.width,
            "params_dtype": torch.bfloat16,
        }

    def _format(self) -> ExpertFormat:
        layer = self.layer()
        cuda_formats.settle(self.method, layer)
        self._scheme = layer.scheme
        return cuda_formats.beside_gpu(
            expert_format(self.method, layer, self.math),
            self.math,
            hidden=self.sizes.hidden,
            width=self.sizes.width,
        )

    @contextlib.contextmanager
    def chosen_runner(self) -> Iterator[None]:
        """SGLang's ``--moe-runner-backend``, as ktd chooses it for the kind."""
        from sglang.srt.layers.moe.utils import MoeRunnerBackend, get_flags

        flags = get_flags().moe
        before = flags.runner_backend
        flags.runner_backend = (
            MoeRunnerBackend.MARLIN if self._kind == MXFP4 else MoeRunnerBackend.AUTO
        )
        try:
            yield
        finally:
            flags.runner_backend = before

    def layer(self) -> Layer:
        """SGLang's layer before it has parameters."""
        return Layer(self.sizes, self._scheme, self.math)

    def declared(self) -> dict[str, nn.Parameter]:
        """SGLang's parameters for all experts, of the meta device."""
        layer = self.layer()
        with torch.device("meta"):
            self.method.create_weights(
                layer=layer, num_experts=self.sizes.experts, **self.attributes
            )
        return dict(layer.named_parameters())

    def loader(self, store: HostStore) -> ExpertLoader:
        """The layer's, which nobody loads through here."""
        return ExpertLoader(
            self.format.host_parameters(self.declared()),
            store=store,
            load=lambda *_: None,
            loaded=lambda _: None,
        )

    def host(self, random: torch.Generator) -> dict[str, torch.Tensor]:
        """Random experts as a store has them, ``[E, …]`` by parameter name."""
        return {
            name: self._random(name, meta, random)
            for name, meta in self.format.host_parameters(self.declared()).items()
        }

    def _random(self, name: str, meta: nn.Parameter, random: torch.Generator) -> torch.Tensor:
        shape = tuple(meta.shape)
        if self._kind == MXFP4:
            return self._random_mxfp4(name, shape, random)
        if name.endswith(("scale", "scales")):
            # About what quantising weights of 1 / sqrt(inputs) gives.
            inputs = self.sizes.hidden if name.startswith("w13") else self.sizes.width
            values = torch.rand(shape, generator=random) * 0.5 + 0.75
            return (values * 0.4 / inputs**0.5).to(meta.dtype)
        if name.endswith("qzeros"):
            if self.format.weights is WeightFormat.GPTQ:
                return torch.full(shape, MIDDLE, dtype=torch.int32)
            return self._packed(shape, 6, 10, AWQ_ORDER, random)
        return self._packed(shape, 0, 16, tuple(range(8)), random)

    @staticmethod
    def _random_mxfp4(name: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
        if name.endswith("bias"):
            return (torch.randn(shape, generator=random) * 0.5).bfloat16()
        # Scales of 2^-6 to 2^-4 for values up to 6.
        low, high = (121, 124) if name.endswith("scale") else (0, 256)
        return torch.randint(low, high, shape, generator=random, dtype=torch.uint8)

    @staticmethod
    def _packed(
        shape: tuple[int, ...],
        low: int,
        high: int,
        order: tuple[int, ...],
        random: torch.Generator,
    ) -> torch.Tensor:
        values = torch.randint(low, high, (*shape[:-1], shape[-1] * 8), generator=random)
        return nibbles(values.flatten(0, -2), order).view(shape)

    def as_sglang_has(self, host: Mapping[str, torch.Tensor], device: torch.device) -> Layer:
        """A layer of all experts that unmodified SGLang has loaded and laid out.

        Scales of GPTQ are bf16, which SGLang's kernel wants beside bf16 hidden states and its
        method does not declare.
        """
        layer = self.layer()
        with torch.device(device):
            self.method.create_weights(
                layer=layer, num_experts=self.sizes.experts, weight_loader=None, **self.attributes
            )
        for name, tensor in host.items():
            if name in self.format.unread:
                continue
            if self._kind == MXFP4:
                self._load_mxfp4(name, getattr(layer, name).data, tensor)
                continue
            turned = tensor.transpose(1, 2) if self.format.transposed else tensor
            loaded = turned.contiguous().to(device, copy=True)
            layer.register_parameter(name, nn.Parameter(loaded, requires_grad=False))
        self.method.process_weights_after_loading(layer)
        return layer

    def _load_mxfp4(self, name: str, parameter: torch.Tensor, tensor: torch.Tensor) -> None:
        """A tensor of all experts where gate and up alternate; else shards, each in its half."""
        parts = 1 if self.math.interleaved or not name.startswith("w13") else 2
        for whole, part in zip(parameter.chunk(parts, 1), tensor.chunk(parts, 1), strict=True):
            whole[tuple(slice(size) for size in part.shape)].copy_(part)


def in_pieces(host: Mapping[str, torch.Tensor]) -> dict[str, ExpertTensor]:
    """As mapped files have matrices, which no copy engine of a GPU reads; biases are in memory."""
    return {
        name: tensor
        if tensor.dim() == _BIAS_DIM
        else scattered([[expert] for expert in tensor], tensor.shape)
        for name, tensor in host.items()
    }
