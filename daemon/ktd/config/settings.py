"""The one value that configures a daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ktd.config.options import BY_NAME
from ktd.config.strategies import strategy_names
from ktd.errors import ConfigError

# Everything must be gone 30 s after SIGTERM; ending the engine's processes takes up to ten of them.
MAX_SHUTDOWN_TIMEOUT = 20.0
# struct sockaddr_un has room for 108 bytes with the terminating zero.
MAX_SOCKET_PATH = 107
_PORTS = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What ``ktd serve`` was told; one field per row of :data:`ktd.config.options.OPTIONS`.

    Attributes:
        sglang_args: What was not ktd's, in order, for SGLang's own parser.
        notices: Sentences to log at start: flags that were replaced, or that lost to others.
        provenance: Field name → ``"flag --port"``, ``"environment KTD_PORT"``,
            ``"file /etc/ktd/ktd.toml"`` or ``"default"``.

    Raises:
        ConfigError: a value is out of range, or two do not go together.
    """

    model: str
    state_dir: Path
    runtime_dir: Path
    socket: Path
    served_model_name: str | None = None
    revision: str | None = None
    download_dir: Path | None = None
    device: str = "auto"
    tp: int = 1
    host: str = "127.0.0.1"
    port: int = 30000
    api_key: str | None = field(default=None, repr=False)
    gpu_experts_ratio: float | str | None = None
    num_gpu_experts: int | None = None
    expert_placement_strategy: str = "uniform"
    live_slots: str = "placed"
    init_expert_location: Path | None = None
    swap_rate: float | None = None
    placement_policy: str | None = None
    enable_dynamic_expert_update: bool = False
    gpu_prefill_token_threshold: int | None = None
    gpu_prefill_cpu_share: bool = True
    max_deferred_experts_per_token: int = 0
    policy_copy_cost: float | None = None
    policy_copy_rate: float | None = None
    expert_distribution_recorder_mode: str = "stat"
    expert_distribution_recorder_buffer_size: int = 1000
    expert_distribution_recorder_dir: Path | None = None
    record_gpu_expert_distribution: bool = False
    cpu_threads: int | None = None
    isa: str | None = None
    cpu_expert_format: str = "auto"
    host_memory: str = "copy"
    config: Path | None = None
    start_timeout: float = 600.0
    shutdown_timeout: float = 20.0
    log_format: str = "console"
    log_level: str = "info"
    sglang_args: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Checks what no single parser can."""
        self._check_ranges()
        for name, option in BY_NAME.items():
            self._one_of(name, option.choices)
        self._one_of("expert_placement_strategy", strategy_names())
        if self.host_memory == "mmap" and self.cpu_expert_format not in ("auto", "checkpoint"):
            raise ConfigError(
                f"{self.named('host_memory')} is mmap, which uses experts from the checkpoint's "
                f"files, and {self.named('cpu_expert_format')} {self.cpu_expert_format} wants them "
                "quantised, which no file has: leave one of them out."
            )
        if len(bytes(self.socket)) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"The socket path {self.socket} has {len(bytes(self.socket))} bytes, and Linux "
                f"allows {MAX_SOCKET_PATH}; give a shorter one with --socket or --runtime-dir."
            )

    def _check_ranges(self) -> None:
        self._between("port", self.port, 0, _PORTS - 1)
        self._between("tp", self.tp, 1, 1024)
        self._between(
            "max_deferred_experts_per_token", self.max_deferred_experts_per_token, 0, 1024
        )
        self._between("shutdown_timeout", self.shutdown_timeout, 0, MAX_SHUTDOWN_TIMEOUT)
        if self.cpu_threads is not None:
            self._between("cpu_threads", self.cpu_threads, 1, 4096)
        if self.num_gpu_experts is not None:
            self._between("num_gpu_experts", self.num_gpu_experts, 0, 1 << 20)
        size = self.expert_distribution_recorder_buffer_size
        if size != -1:
            self._between(
                "expert_distribution_recorder_buffer_size", size, 1, 1 << 20, ", or -1 for all"
            )
        if isinstance(self.gpu_experts_ratio, float):
            self._between("gpu_experts_ratio", self.gpu_experts_ratio, 0, 1)
        if self.swap_rate is not None and self.swap_rate <= 0:
            raise ConfigError(f"{self.named('swap_rate')} is {self.swap_rate:g}; it must be > 0.")
        if self.policy_copy_rate is not None and self.policy_copy_rate <= 0:
            raise ConfigError(
                f"{self.named('policy_copy_rate')} is {self.policy_copy_rate:g}; it must be > 0."
            )
        if self.gpu_prefill_token_threshold is not None:
            self._between(
                "gpu_prefill_token_threshold", self.gpu_prefill_token_threshold, 1, 1 << 31
            )
        if self.start_timeout <= 0:
            raise ConfigError(f"{self.named('start_timeout')} is 0; it must be > 0.")

    @property
    def placement_given(self) -> bool:
        """Whether flags on the command line chose the placement; then none is restored."""
        names = (
            "gpu_experts_ratio",
            "num_gpu_experts",
            "expert_placement_strategy",
            "live_slots",
            "init_expert_location",
        )
        return any(self.provenance.get(name, "").startswith("flag") for name in names)

    @property
    def recordings_dir(self) -> Path:
        """Where recordings are written unless they are told otherwise."""
        return self.expert_distribution_recorder_dir or self.state_dir / "recordings"

    def named(self, name: str) -> str:
        """How messages call a setting: its flag, and where the value came from."""
        source = self.provenance.get(name, "")
        flag = BY_NAME[name].flags[0]
        return f"{flag} (from {source})" if source and not source.startswith("flag") else flag

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if choices and value is not None and value not in choices:
            raise ConfigError(
                f"{self.named(name)} is {value!r}; it must be one of {', '.join(choices)}."
            )

    def _between(self, name: str, value: float, low: float, high: float, other: str = "") -> None:
        if not low <= value <= high:
            raise ConfigError(
                f"{self.named(name)} is {_plain(value)}; it must be from {_plain(low)} to "
                f"{_plain(high)}{other}."
            )


def _plain(value: float) -> str:
    """A whole number with all its digits."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"
