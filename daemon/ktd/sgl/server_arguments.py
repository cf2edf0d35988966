"""SGLang's command line: parsed by its own parser, completed, and checked against what ktd runs."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from ktd.enginespec import EngineSpec

# KV cache on a host without a GPU, where SGLang would otherwise take most of the memory.
_CPU_KV_TOKENS = 65_536


class ArgumentsRefused(Exception):  # says what happened
    """SGLang or ktd does not accept the arguments; ``kind`` is the failure's kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def command_line(spec: EngineSpec) -> list[str]:
    """The complete argument list for SGLang's parser."""
    arguments = ["--model-path", spec.model_path, *spec.sglang_args]
    given = {argument.split("=", 1)[0] for argument in arguments}

    def default(flag: str, *value: str) -> None:
        if flag not in given:
            arguments.extend((flag, *value))

    default("--sleep-on-idle")
    default("--disable-shared-experts-fusion")
    # The app is served on a Unix socket, where SGLang's own warm-up cannot reach it.
    default("--skip-server-warmup")
    if spec.device == "cpu":
        default("--device", "cpu")
        default("--attention-backend", "torch_native")
        default("--disable-cuda-graph")
        default("--max-total-tokens", str(_CPU_KV_TOKENS))
        default("--dtype", "bfloat16")
    return arguments


def parse(spec: EngineSpec) -> Any:
    """Returns SGLang's ``ServerArgs``.

    Raises:
        ArgumentsRefused: with SGLang's own words, or with the options that do not go with ktd.
    """
    from sglang.srt.server_args import prepare_server_args

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            server_args = prepare_server_args(command_line(spec))
    except SystemExit as stop:
        lines = [line for line in errors.getvalue().splitlines() if ": error: " in line]
        words = lines[-1].split(": error: ", 1)[1] if lines else f"exit code {stop.code}"
        raise ArgumentsRefused("usage", f"SGLang does not accept the arguments: {words}") from stop
    except (ValueError, AssertionError, NotImplementedError, KeyError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ArgumentsRefused("usage", f"SGLang does not accept the arguments: {words}") from error
    problems = incompatible(server_args)
    if problems:
        raise ArgumentsRefused(
            "incompatible", f"not supported together with ktd: {'; '.join(problems)}; leave it out"
        )
    return server_args


# Option, how it is recognised as switched on, and what it would break (sglang-moe: features).
_REFUSED: tuple[tuple[str, str, Any, str], ...] = (
    ("--ep-size", "ep_size", lambda v: v > 1, "expert parallelism"),
    ("--enable-dp-attention", "enable_dp_attention", bool, "data-parallel attention"),
    ("--dp-size", "dp_size", lambda v: v > 1, "data parallelism"),
    ("--pp-size", "pp_size", lambda v: v > 1, "pipeline stages"),
    ("--nnodes", "nnodes", lambda v: v > 1, "several nodes"),
    ("--moe-a2a-backend", "moe_a2a_backend", lambda v: v != "none", "all-to-all"),
    ("--enable-eplb", "enable_eplb", bool, "expert load balancing moves expert parameters"),
    ("--enable-lora", "enable_lora", bool, "LoRA on experts bypasses the hybrid layer"),
    ("--lora-paths", "lora_paths", bool, "LoRA on experts bypasses the hybrid layer"),
    ("--enable-paged-experts", "enable_paged_experts", bool, "SGLang's own expert paging"),
    ("--kt-weight-path", "kt_weight_path", bool, "SGLang's own KTransformers wrapper"),
    ("--enable-memory-saver", "enable_memory_saver", bool, "slots would lose their contents"),
    ("--enable-two-batch-overlap", "enable_two_batch_overlap", bool, "two-batch overlap"),
    ("--enable-single-batch-overlap", "enable_single_batch_overlap", bool, "batch overlap"),
    ("--speculative-algorithm", "speculative_algorithm", bool, "speculation"),
    ("--enable-torch-compile", "enable_torch_compile", bool, "tracing the hybrid layer"),
    ("--cpu-offload-gb", "cpu_offload_gb", bool, "moves the slots' parameters"),
    ("--disaggregation-mode", "disaggregation_mode", lambda v: v != "null", "disaggregation"),
    ("--tokenizer-worker-num", "tokenizer_worker_num", lambda v: v > 1, "several tokenizers"),
    ("--enable-elastic-ep", "elastic_ep_backend", bool, "elastic expert parallelism"),
    (
        "--checkpoint-engine-wait-weights-before-ready",
        "checkpoint_engine_wait_weights_before_ready",
        bool,
        "weight updates",
    ),
)


def incompatible(server_args: Any) -> list[str]:
    """Names every option in force that the hybrid layer has not been shown to work with."""
    problems = []
    for flag, field, is_on, why in _REFUSED:
        value = getattr(server_args, field, None)
        if value is not None and is_on(value):
            problems.append(f"{flag} ({why})")
    return problems
