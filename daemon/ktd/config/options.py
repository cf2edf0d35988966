"""Every option of ``ktd serve``, as data; flags, variables, ktd.toml and ``--help`` follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ktd.config import strategies, values

LIVE_SLOTS = ("placed", "even")
POLICIES = ("off", "dynamic", "adaptive")
LOG_FORMATS = ("json", "console")
LOG_LEVELS = ("debug", "info", "warning", "error")
CPU_EXPERT_FORMATS = ("auto", "checkpoint", "int8", "int4")
HOST_MEMORY = ("copy", "mmap")
ISAS = ("scalar", "avx2", "avx2_vnni", "avx512", "avx512_bf16", "amx")
DEVICES = ("auto", "cpu", "cuda")
RECORDER_MODES = ("stat", "stat_approx", "per_pass", "per_token")

MODEL = "Model"
FRONT = "OpenAI front"
PLACEMENT = "Expert placement"
STATISTICS = "Statistics"
CPU = "CPU experts"
DAEMON = "Daemon"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: Field of :class:`ktd.config.settings.Settings`.
        flags: Flags that set it, the first one is shown.
        parse: From text or a TOML value; see :mod:`ktd.config.values`.
        group: Heading in ``--help``.
        help: One line.
        default: Value when nothing sets it; None also where it depends on the user or the host.
        shown_default: Text for the default in ``--help``, where ``default`` does not say it.
        metavar: Placeholder for the value.
        choices: The only values allowed.
        secret: Never printed.
        switch: The flag stands alone and means yes; ``--flag=no`` is possible.
        other_variable: Variable of another project that sets it, after its own.
    """

    name: str
    flags: tuple[str, ...]
    parse: Callable[[object], object]
    group: str
    help: str
    default: object = None
    shown_default: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    secret: bool = False
    switch: bool = False
    other_variable: str = ""

    @property
    def variable(self) -> str:
        """Environment variable that sets it."""
        return f"KTD_{self.name.upper()}"

    @property
    def key(self) -> str:
        """Key in ktd.toml."""
        return self.name.replace("_", "-")


OPTIONS: tuple[Option, ...] = (
    Option(
        "model", ("--model", "--model-path"), values.text, MODEL,
        "Folder with a checkpoint, or a Hugging Face id; may stand first without a flag.",
        metavar="MODEL",
    ),
    Option(
        "served_model_name", ("--served-model-name",), values.text, MODEL,
        "Name under which the OpenAI API offers the model.",
        shown_default="MODEL as given", metavar="NAME",
    ),
    Option(
        "revision", ("--revision",), values.text, MODEL,
        "Branch, tag or commit to download from Hugging Face.", metavar="REV",
    ),
    Option(
        "download_dir", ("--download-dir",), values.path, MODEL,
        "Hugging Face cache to download into.", shown_default="HF_HUB_CACHE", metavar="DIR",
    ),
    Option(
        "device", ("--device",), values.text, MODEL,
        "Where slots live and the model runs: auto takes a GPU (cuda) if there is one.",
        default="auto", choices=DEVICES,
    ),
    Option(
        "tp", ("--tp", "--tp-size", "--tensor-parallel-size"), values.integer, MODEL,
        "Tensor-parallel ranks.", default=1, metavar="N",
    ),
    Option(
        "host", ("--host",), values.text, FRONT,
        "Address to serve HTTP on.", default="127.0.0.1", metavar="ADDR",
    ),
    Option(
        "port", ("--port", "--http-port"), values.integer, FRONT,
        "Port to serve HTTP on; 0 takes a free one.", default=30000, metavar="PORT",
    ),
    Option(
        "api_key", ("--api-key",), values.text, FRONT,
        "Key that /v1 requests must carry as a bearer token.", metavar="KEY", secret=True,
    ),
    Option(
        "gpu_experts_ratio", ("--kt-gpu-experts-ratio", "--gpu-experts-ratio"),
        values.ratio, PLACEMENT,
        "Share of all experts in GPU slots, 0 to 1, or auto: what `ktd placement fit` finds, "
        "without a GPU a quarter at most; wins over --kt-num-gpu-experts.",
        shown_default="auto, unless --kt-num-gpu-experts is given", metavar="RATIO",
    ),
    Option(
        "num_gpu_experts", ("--kt-num-gpu-experts", "--num-gpu-experts"),
        values.integer, PLACEMENT, "Experts per MoE layer in GPU slots.", metavar="N",
    ),
    Option(
        "expert_placement_strategy",
        ("--kt-expert-placement-strategy", "--expert-placement-strategy"), values.text, PLACEMENT,
        f"How the first placement is chosen: {', '.join(strategies.OWN)}, or one that another "
        "package brings.",
        default="uniform", metavar="NAME",
    ),
    Option(
        "live_slots", ("--live-slots",), values.text, PLACEMENT,
        "Slots per layer: as many as the first placement has there, or even: the same for all.",
        default="placed", choices=LIVE_SLOTS,
    ),
    Option(
        "init_expert_location", ("--init-expert-location",), values.path, PLACEMENT,
        "Activation statistics for strategies that look at them; for coactivation a recording of "
        "single tokens.", metavar="FILE",
    ),
    Option(
        "swap_rate", ("--swap-rate",), values.size, PLACEMENT,
        "Limit of copying into slots per rank, bytes per second (500M, 2G).",
        shown_default="none", metavar="BYTES",
    ),
    Option(
        "placement_policy", ("--placement-policy",), values.text, PLACEMENT,
        "What moves experts while serving: off, dynamic (KTransformers' rule) or adaptive.",
        choices=POLICIES, shown_default="off, or dynamic with --kt-enable-dynamic-expert-update",
    ),
    Option(
        "enable_dynamic_expert_update",
        ("--kt-enable-dynamic-expert-update", "--enable-dynamic-expert-update"),
        values.switch, PLACEMENT, "The same as --placement-policy dynamic.",
        default=False, shown_default="no", switch=True,
    ),
    Option(
        "gpu_prefill_token_threshold",
        ("--kt-gpu-prefill-token-threshold", "--gpu-prefill-token-threshold"),
        values.integer, PLACEMENT,
        "Tokens of a prefill from which experts without a slot stream to a GPU, unless they are "
        "MXFP4, quantised at load or in the page cache; and from which dynamic places experts.",
        shown_default="1024 on a GPU; dynamic never fires", metavar="TOKENS",
    ),
    Option(
        "gpu_prefill_cpu_share", ("--gpu-prefill-cpu-share",), values.switch, PLACEMENT,
        "Of the experts that would stream, the CPU takes as many as make a prefill shorter, by "
        "what earlier prefills took. =no: none, so that a prompt is rounded in one way each time; "
        "SGLang's --enable-deterministic-inference means no.",
        default=True, shown_default="yes", switch=True,
    ),
    Option(
        "max_deferred_experts_per_token",
        ("--max-deferred-experts-per-token", "--kt-max-deferred-experts-per-token"),
        values.integer, PLACEMENT,
        "CHANGES OUTPUTS. So many experts of a decoded token, those of the lowest weights, are "
        "added a layer late if the CPU computes them, so that a GPU does not wait for them.",
        default=0, shown_default="0, no expert is", metavar="N",
    ),
    Option(
        "policy_copy_cost", ("--policy-copy-cost",), values.number, PLACEMENT,
        "(token, expert) pairs on the CPU that a copied expert costs adaptive; 0: copies are free.",
        shown_default="with a GPU 4, else what an expert of average use gets in 1,024 tokens",
        metavar="PAIRS",
    ),
    Option(
        "policy_copy_rate", ("--policy-copy-rate",), values.size, PLACEMENT,
        "Bytes per second that a policy's copies may take, over all ranks.",
        shown_default="1G, with a GPU 4G", metavar="BYTES",
    ),
    Option(
        "expert_distribution_recorder_mode", ("--expert-distribution-recorder-mode",),
        values.text, STATISTICS,
        "What `ktd record start` records unless it is told otherwise.",
        default="stat", choices=RECORDER_MODES,
    ),
    Option(
        "expert_distribution_recorder_buffer_size",
        ("--expert-distribution-recorder-buffer-size",), values.integer, STATISTICS,
        "Passes that mode stat holds, the latest ones; -1: all.", default=1000, metavar="N",
    ),
    Option(
        "expert_distribution_recorder_dir", ("--expert-distribution-recorder-dir",),
        values.path, STATISTICS,
        "Where `ktd record dump` writes; SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR sets it too.",
        shown_default="recordings in the state folder", metavar="DIR",
        other_variable="SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR",
    ),
    Option(
        "record_gpu_expert_distribution",
        ("--record-kt-gpu-expert-distribution", "--record-gpu-expert-distribution"),
        values.switch, STATISTICS,
        "Recordings also say which experts were in GPU slots during each pass.",
        default=False, shown_default="no", switch=True,
    ),
    Option(
        "cpu_threads", ("--cpu-threads",), values.integer, CPU,
        "Threads of the expert pool over all ranks.",
        shown_default="every core allowed; beside GPUs seven eighths", metavar="N",
    ),
    Option(
        "isa", ("--isa",), values.text, CPU,
        "CPU kernels to use instead of the best that the CPU has.", choices=ISAS,
    ),
    Option(
        "cpu_expert_format", ("--cpu-expert-format",), values.text, CPU,
        "How experts lie in host memory: as in the checkpoint, or quantised while they are loaded, "
        "which is lossy against it, slots included: int8 (a scale per row), int4 (per 32 inputs).",
        default="auto", shown_default="auto, which is checkpoint", choices=CPU_EXPERT_FORMATS,
    ),
    Option(
        "host_memory", ("--host-memory",), values.text, CPU,
        "Where experts are in host memory: copy reads them into huge pages of the engine's own; "
        "mmap uses them where the page cache has the checkpoint's files, which needs no memory of "
        "its own, starts sooner, is shared by daemons, and reads a little slower.",
        default="copy", choices=HOST_MEMORY,
    ),
    Option(
        "config", ("--config",), values.path, DAEMON,
        "Configuration file.",
        shown_default="/etc/ktd/ktd.toml or $XDG_CONFIG_HOME/ktd/ktd.toml", metavar="FILE",
    ),
    Option(
        "state_dir", ("--state-dir",), values.path, DAEMON,
        "Where the placement and its history are kept; one daemon each.",
        shown_default="/var/lib/ktd or $XDG_STATE_HOME/ktd", metavar="DIR",
    ),
    Option(
        "runtime_dir", ("--runtime-dir",), values.path, DAEMON,
        "Where sockets and the engine's files are made.",
        shown_default="/run/ktd or $XDG_RUNTIME_DIR/ktd", metavar="DIR",
    ),
    Option(
        "socket", ("--socket",), values.path, DAEMON,
        "Unix socket of the gRPC API.", shown_default="ktd.sock in the runtime folder",
        metavar="PATH",
    ),
    Option(
        "start_timeout", ("--start-timeout",), values.seconds, DAEMON,
        "Seconds that the engine may take without any progress before its start counts as failed.",
        default=600.0, metavar="SECONDS",
    ),
    Option(
        "shutdown_timeout", ("--shutdown-timeout",), values.seconds, DAEMON,
        "Seconds that requests in flight may take when the daemon stops, at most 20.",
        default=20.0, metavar="SECONDS",
    ),
    Option(
        "log_format", ("--log-format",), values.text, DAEMON,
        "Log lines as JSON or for people.",
        shown_default="console on a terminal, json elsewhere", choices=LOG_FORMATS,
    ),
    Option(
        "log_level", ("--log-level",), values.text, DAEMON,
        "Least level that is logged, by the engine too.", default="info", choices=LOG_LEVELS,
    ),
)  # fmt: skip

BY_NAME = {option.name: option for option in OPTIONS}
BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}
