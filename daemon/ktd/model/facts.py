"""What ktd must know of a model before it starts an engine, from its folder, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktd.errors import ModelUnsupported
from ktd.model.checkpoint import Checkpoint, read_checkpoint
from ktd.model.kv_cache import KvCache, kv_cache_of
from ktd.model.moe_layers import moe_layers
from ktd.model.quantisation import (
    BF16,
    DENSE_DTYPES,
    TRITON,
    ExpertFormat,
    QuantisationUnsupported,
    expert_format,
    weight_bytes,
)
from ktd.model.supported import ACTIVATIONS, ARCHITECTURES, names

_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_WIDTH = ("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act")
# Names that these models use for something else than a plain SiLU gate.
_CLAMPS = ("swiglu_limit", "gemm1_alpha", "gemm1_clamp_limit")
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")


@dataclass(frozen=True, slots=True)
class Quantised:
    """Experts that ktd quantises while it loads them.

    Attributes:
        format: ``"int8"`` or ``"int4"``.
        expert_bytes: One expert, whole, in host memory.
    """

    format: str
    expert_bytes: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Shape and format.

    Attributes:
        path: Folder of the checkpoint.
        moe_layers: Indices of layers with experts, ascending.
        expert_format: Of the experts in the checkpoint, as ``WeightFormat`` names it: ``"bf16"``.
        expert_bytes: One expert, whole, as a slot holds it: gate, up and down, with scales, zero
            points and biases.
        other_bytes: All weights that are not experts.
        max_context: Longest context in tokens, or 0 if the configuration does not say.
        kv_cache: What a token takes in the KV cache.
        vocab_size: Tokens that the output head tells apart, or 0 if the configuration does not say.
        quantised: How experts lie in host memory if ktd quantises them; None: as in a slot.
        mapped: Experts are used from the checkpoint's files, where the page cache has them.
        moe_runner: SGLang's ``--moe-runner-backend`` for them on a GPU.
        padding_bytes: What of an expert's bytes in a slot pads it, and is in no checkpoint.
    """

    path: Path
    architecture: str
    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    experts_per_token: int
    hidden_size: int
    expert_intermediate_size: int
    activation: str
    expert_format: str
    expert_bytes: int
    other_bytes: int
    max_context: int = 0
    kv_cache: KvCache = field(default_factory=lambda: KvCache(0, 0, 0))
    vocab_size: int = 0
    quantised: Quantised | None = None
    mapped: bool = False
    moe_runner: str = TRITON
    padding_bytes: int = 0

    @property
    def total_experts(self) -> int:
        """Over all layers."""
        return len(self.moe_layers) * self.num_experts

    @property
    def cpu_expert_format(self) -> str:
        """Of the experts in host memory."""
        return self.quantised.format if self.quantised else self.expert_format

    @property
    def cpu_expert_bytes(self) -> int:
        """One expert, whole, in host memory."""
        if self.quantised:
            return self.quantised.expert_bytes
        return self.expert_bytes - self.padding_bytes

    @property
    def host_store_bytes(self) -> int:
        """All experts in host memory."""
        return self.total_experts * self.cpu_expert_bytes

    @property
    def own_expert_bytes(self) -> int:
        """What of them is in memory of the engine's own: mapped, at most what is not weights."""
        if not self.mapped:
            return self.host_store_bytes
        weights = weight_bytes(self.expert_format, self.hidden_size, self.expert_intermediate_size)
        return self.total_experts * max(0, self.cpu_expert_bytes - weights)

    @property
    def gpu_reads_host(self) -> bool:
        """Whether a GPU's copy engines can bring experts into slots as they are in host memory.

        From the page cache they cannot, and what is quantised at load is no slot's bytes: such
        experts are staged by the CPU.
        """
        return not self.mapped and self.quantised is None

    @property
    def registered_bytes(self) -> int:
        """What of host memory is registered with a GPU's driver."""
        return 0 if self.quantised else self.own_expert_bytes


def read_facts(folder: Path, *, device: str, ranks: int = 1) -> ModelFacts:
    """Reads and checks a model folder for serving on ``device``.

    Args:
        folder: The checkpoint.
        device: ``"cpu"`` or ``"cuda"``.
        ranks: Tensor-parallel ranks, which divide every expert.

    Raises:
        ModelUnsupported: it is missing, incomplete, dense, or uses something ktd does not
            implement; the sentence names it.
    """
    whole = _read_config(folder)
    architecture = _architecture(whole, folder)
    config = _language_model(whole)
    num_experts = _first(config, _NUM_EXPERTS) or 0
    num_layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    try:
        layers = moe_layers(config, num_layers) if num_experts > 1 else ()
    except (TypeError, ValueError) as error:
        raise ModelUnsupported(
            f"{folder}/config.json says in an unknown way which layers have experts: {error}."
        ) from error
    if not layers:
        raise ModelUnsupported(
            f"{folder} is a dense model ({architecture} without experts); ktd serves "
            "Mixture-of-Experts models, plain SGLang serves this one."
        )
    _check_architecture(architecture, device)
    _check_dense_layers(architecture, layers, num_layers, folder)
    activation = _check_activation(config, architecture, folder)
    declared = _declared_format(whole, config, folder)
    checkpoint = read_checkpoint(folder)
    experts = _check_dtypes(checkpoint, declared, folder)
    if device != "cpu" and experts.not_on_gpus:
        raise ModelUnsupported(
            f"{folder} has experts that {experts.not_on_gpus}, or serve this one with --device cpu."
        )
    _check_dense_weights(checkpoint, device, folder)
    _check_head(architecture, whole, config, checkpoint, folder)
    hidden, width = int(config.get("hidden_size") or 0), int(_first(config, _WIDTH) or 0)
    top_k = int(_first(config, _TOP_K) or 0)
    if not (hidden and width and 0 < top_k <= num_experts):
        raise ModelUnsupported(
            f"{folder}/config.json does not say how large its experts are (hidden size {hidden}, "
            f"expert width {width}, {top_k} of {num_experts} experts per token)."
        )
    expert_bytes = experts.expert_bytes(hidden, width)
    slot_bytes = expert_bytes if device == "cpu" else experts.slot_bytes(hidden, width, ranks)
    return ModelFacts(
        path=folder,
        architecture=architecture,
        num_layers=num_layers,
        moe_layers=layers,
        num_experts=int(num_experts),
        experts_per_token=top_k,
        hidden_size=hidden,
        expert_intermediate_size=width,
        activation=activation,
        expert_format=experts.name,
        expert_bytes=slot_bytes,
        padding_bytes=slot_bytes - expert_bytes,
        other_bytes=checkpoint.other_bytes,
        max_context=int(config.get("max_position_embeddings") or 0),
        kv_cache=kv_cache_of(config, num_layers),
        vocab_size=int(config.get("vocab_size") or 0),
        moe_runner=experts.runner,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelUnsupported(f"There is no model folder {folder}; check its path.")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelUnsupported(
            f"{folder} has no config.json; it is not a Hugging Face model folder, or "
            "half-downloaded."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelUnsupported(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise ModelUnsupported(f"{path} is not a JSON object.")
    return config


def _language_model(config: dict[str, Any]) -> dict[str, Any]:
    """The part about the language model, however deep models of several kinds of input hide it."""
    inner = next((config[key] for key in _TEXT if isinstance(config.get(key), dict)), None)
    return config if inner is None else _language_model(inner)


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    listed = config.get("architectures")
    if not isinstance(listed, list) or not listed:
        raise ModelUnsupported(f"{folder}/config.json names no architecture.")
    return str(listed[0])


def _check_architecture(architecture: str, device: str) -> None:
    row = ARCHITECTURES.get(architecture)
    if row is None or device not in row.devices:
        where = f" on {device}" if row is not None else ""
        raise ModelUnsupported(
            f"{architecture} is not supported{where}; supported on {device}: {names(device)}."
        )


def _check_dense_layers(
    architecture: str, layers: tuple[int, ...], num_layers: int, folder: Path
) -> None:
    dense = sorted(set(range(num_layers)) - set(layers))
    if dense and not ARCHITECTURES[architecture].dense_layers:
        raise ModelUnsupported(
            f"{folder} has dense layers ({', '.join(map(str, dense))}), and SGLang's "
            f"{architecture} gives every layer experts, which no checkpoint fills; SGLang cannot "
            "serve this model."
        )


def _check_activation(config: Mapping[str, Any], architecture: str, folder: Path) -> str:
    activation = str(_first(config, _ACTIVATION) or "silu").lower()
    if activation not in ACTIVATIONS:
        raise ModelUnsupported(
            f"{folder} uses the activation {activation!r}, and SGLang's {architecture} computes "
            f"{ACTIVATIONS[0]} only."
        )
    computed = ARCHITECTURES[architecture].clamps
    clamp = next((name for name in _CLAMPS if config.get(name) and name not in computed), None)
    if clamp:
        raise ModelUnsupported(
            f"{folder} clamps its activation ({clamp} = {config[clamp]}), which SGLang's "
            f"{architecture} does not compute."
        )
    return activation


def _declared_format(
    whole: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> ExpertFormat:
    """What the configuration says of the experts, which the headers may contradict."""
    quantisation = whole.get("quantization_config") or config.get("quantization_config")
    try:
        return expert_format(quantisation)
    except QuantisationUnsupported as unsupported:
        raise ModelUnsupported(f"{folder} has {unsupported}.") from unsupported
    except (AttributeError, TypeError, KeyError) as error:
        raise ModelUnsupported(
            f"{folder}/config.json says in an unknown way how its experts are quantised: {error}."
        ) from error


def _check_dtypes(checkpoint: Checkpoint, declared: ExpertFormat, folder: Path) -> ExpertFormat:
    """The format that the experts have: a quantised checkpoint may have left them alone."""
    found = checkpoint.expert_dtypes
    if not found:
        raise ModelUnsupported(f"{folder} has no tensors of experts in its weight files.")
    if set(found) <= set(BF16.dtypes):
        return BF16
    other = [dtype for dtype in found if dtype not in declared.dtypes]
    if other:
        raise ModelUnsupported(
            f"{folder} has experts in {', '.join(other)}, and its config.json says {declared.name},"
            f" which is in {', '.join(declared.dtypes)}; use a checkpoint that agrees with itself."
        )
    return declared


def _check_dense_weights(checkpoint: Checkpoint, device: str, folder: Path) -> None:
    quantised = [dtype for dtype in checkpoint.other_dtypes if dtype not in DENSE_DTYPES]
    if quantised and device == "cpu":
        raise ModelUnsupported(
            f"{folder} has quantised weights beside its experts ({', '.join(quantised)}), for "
            "which SGLang has kernels on GPUs only; on a host without one use a checkpoint whose "
            "experts alone are quantised, or the unquantised one."
        )


def _check_head(
    architecture: str,
    whole: Mapping[str, Any],
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    folder: Path,
) -> None:
    tied = config.get("tie_word_embeddings", whole.get("tie_word_embeddings", False))
    if tied and not ARCHITECTURES[architecture].tied_head:
        head = "" if checkpoint.has_head else " and the checkpoint has no lm_head.weight"
        raise ModelUnsupported(
            f"{folder} ties its output head to its embeddings (tie_word_embeddings){head}; SGLang "
            f"leaves the head of a tied {architecture} at zero, so untie it first."
        )


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
