"""SGLang options that do not go with hybrid MoE layers, each with what it would break."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def _more_than_one(value: Any) -> bool:
    return bool(value > 1)


def _above_zero(value: Any) -> bool:
    return bool(value > 0)


def _other_than(*harmless: object) -> Callable[[Any], bool]:
    return lambda value: value not in harmless


def _captures_prefill(config: Any) -> bool:
    """Of SGLang's ``CudaGraphConfig``, or what it is made from."""
    prefill = _item(config, "prefill")
    return _item(prefill, "backend") not in (None, "disabled")


def _item(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


@dataclass(frozen=True, slots=True)
class RefusedOption:
    """One option.

    Attributes:
        flag: As it is written on the command line.
        field: Its name in SGLang's ``ServerArgs``.
        why: What it would do to the hybrid layer, or what it is.
        is_on: Whether a value (never None) switches it on.
    """

    flag: str
    field: str
    why: str
    is_on: Callable[[Any], bool] = bool


REFUSED = (
    RefusedOption("--ep-size", "ep_size", "expert parallelism", _more_than_one),
    RefusedOption("--enable-dp-attention", "enable_dp_attention", "data-parallel attention"),
    RefusedOption("--dp-size", "dp_size", "data parallelism", _more_than_one),
    RefusedOption("--moe-dp-size", "moe_dp_size", "data parallelism of experts", _more_than_one),
    RefusedOption("--attn-cp-size", "attn_cp_size", "context parallelism", _more_than_one),
    RefusedOption("--dcp-size", "dcp_size", "context parallelism", _more_than_one),
    RefusedOption("--pp-size", "pp_size", "pipeline stages", _more_than_one),
    RefusedOption("--nnodes", "nnodes", "several nodes", _more_than_one),
    RefusedOption("--numa-node", "numa_node", "ktd gives each rank its cores"),
    RefusedOption("--use-ray", "use_ray", "processes that ktd cannot watch"),
    RefusedOption("--moe-a2a-backend", "moe_a2a_backend", "all-to-all", _other_than("none")),
    RefusedOption("--enable-eplb", "enable_eplb", "expert load balancing moves experts itself"),
    RefusedOption(
        "--ep-num-redundant-experts", "ep_num_redundant_experts", "copies of experts", _above_zero
    ),
    RefusedOption(
        "--elastic-ep-backend",
        "elastic_ep_backend",
        "elastic expert parallelism",
        _other_than("none"),
    ),
    RefusedOption(
        "--enable-elastic-expert-backup", "enable_elastic_expert_backup", "elastic expert backup"
    ),
    RefusedOption("--enable-lora", "enable_lora", "LoRA on experts bypasses the hybrid layer"),
    RefusedOption("--lora-paths", "lora_paths", "LoRA on experts bypasses the hybrid layer"),
    RefusedOption("--enable-paged-experts", "enable_paged_experts", "SGLang's own expert paging"),
    RefusedOption("--kt-weight-path", "kt_weight_path", "SGLang's own KTransformers wrapper"),
    RefusedOption(
        "--enable-memory-saver", "enable_memory_saver", "slots would lose what they hold"
    ),
    RefusedOption("--enable-two-batch-overlap", "enable_two_batch_overlap", "two-batch overlap"),
    RefusedOption(
        "--enable-single-batch-overlap", "enable_single_batch_overlap", "single-batch overlap"
    ),
    RefusedOption(
        "--cuda-graph-backend-prefill",
        "cuda_graph_backend_prefill",
        "captures prefill, which passes through the CPU between launches",
        _other_than("disabled"),
    ),
    RefusedOption(
        "--cuda-graph-config",
        "cuda_graph_config",
        "captures prefill, which passes through the CPU between launches",
        _captures_prefill,
    ),
    RefusedOption("--enable-pdmux", "enable_pdmux", "prefill and decode on one device at once"),
    RefusedOption("--speculative-algorithm", "speculative_algorithm", "speculation"),
    RefusedOption("--dllm-algorithm", "dllm_algorithm", "diffusion decoding"),
    RefusedOption("--enable-torch-compile", "enable_torch_compile", "tracing the hybrid layer"),
    RefusedOption("--cpu-offload-gb", "cpu_offload_gb", "moves the slots' parameters", _above_zero),
    RefusedOption(
        "--offload-group-size", "offload_group_size", "moves the slots' parameters", _above_zero
    ),
    RefusedOption(
        "--disaggregation-mode", "disaggregation_mode", "disaggregation", _other_than("null")
    ),
    RefusedOption(
        "--tokenizer-worker-num", "tokenizer_worker_num", "several tokenizers", _more_than_one
    ),
    RefusedOption("--grpc-mode", "grpc_mode", "a server other than the OpenAI one"),
    RefusedOption("--smg-grpc-mode", "smg_grpc_mode", "a server other than the OpenAI one"),
    RefusedOption(
        "--quantization",
        "quantization",
        "experts in another format than bf16",
        _other_than("unquant"),
    ),
    RefusedOption("--torchao-config", "torchao_config", "experts in another format than bf16"),
    RefusedOption(
        "--load-format",
        "load_format",
        "experts are read shard by shard from safetensors",
        _other_than("auto", "safetensors"),
    ),
    RefusedOption("--custom-weight-loader", "custom_weight_loader", "a loader of your own"),
    RefusedOption(
        "--weight-cache-mode", "weight_cache_mode", "weights shared with others", _other_than("off")
    ),
    RefusedOption(
        "--checkpoint-engine-wait-weights-before-ready",
        "checkpoint_engine_wait_weights_before_ready",
        "weight updates",
    ),
)


def incompatible(arguments: Any) -> list[str]:
    """Names every refused option that is on in parsed or completed arguments."""
    return [
        f"{option.flag} ({option.why})"
        for option in REFUSED
        if (value := getattr(arguments, option.field, None)) is not None and option.is_on(value)
    ]
