"""What the daemon tells an engine host: one JSON file, read by every SGLang process.

The daemon writes it into the engine's runtime directory and names it in ``KTD_ENGINE_SPEC``;
without that variable ktd's SGLang plugins do nothing. Failures that end a start are reported the
other way through :func:`report_failure`.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SPEC_VARIABLE = "KTD_ENGINE_SPEC"
ID_VARIABLE = "KTD_ENGINE_ID"

# What the host knows when SGLang tells it of an end; whoever else knows more knows it better.
PROCESS_ENDED = "a process of SGLang ended while it served; its log says why"

# Kinds of host memory that experts can be in.
COPY = "copy"
MMAP = "mmap"

# Of the buffer that long prefills stream through, unless a start says otherwise.
PREFILL_BUFFER_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Bench:
    """What only ``ktd bench table`` asks of an engine; no setting of ``ktd serve`` leads here.

    Attributes:
        routing: File with the expert ids that take the place of the router's.
        run_id: The file has to carry the same one; drawn by the bench, for this run alone.
        keep_cpu_path: Layers whose every expert has a slot can give some up nevertheless.
    """

    routing: str
    run_id: str
    keep_cpu_path: bool = False


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything that is fixed when an engine starts.

    Attributes:
        engine_id: Unique per start; also in the environment of every child as ``KTD_ENGINE_ID``.
        runtime_dir: Folder of ``control.sock``, ``http.sock``, rank and failure files.
        model_path: Local folder with the checkpoint.
        sglang_args: Command line for SGLang's own parser, without the model path.
        device: ``"cpu"`` or ``"cuda"``.
        moe_layers: Model layer indices that have experts, ascending.
        num_experts: Routed experts per MoE layer.
        experts_per_token: Of those; not every class of SGLang tells its layers.
        slots: Slots per MoE layer, in the order of ``moe_layers``.
        initial: Experts in slots at the start, per MoE layer, ascending; at most ``slots`` of them.
        cpu_threads: Threads of the native pool over all ranks, or None for every core allowed,
            less an eighth beside GPUs.
        isa: Kernel set to force, or None for the best one.
        swap_rate: Limit of copying into slots per rank, bytes per second, or None.
        prefill_threshold: Tokens of a prefill from which experts without a slot stream to a GPU
            through a buffer; None: never, and so wherever a GPU cannot read experts from host
            memory by itself.
        prefill_cpu_share: Whether the CPU computes a share of those experts instead.
        prefill_buffer_bytes: Of that buffer on each rank, at most.
        prefill_experts: Of a layer, that the buffer holds if they fit; None: all.
        deferred_experts: Of a decoded token, so many that the CPU computes may be added a layer
            late, which changes what the model answers.
        cpu_expert_format: ``"int8"`` or ``"int4"``: experts are quantised while they are loaded;
            None: they lie in host memory as in the checkpoint.
        bench: What a bench asks for; None while anything else is served.
        host_memory: ``"copy"``: experts are read into memory of the engine's own; ``"mmap"``: they
            are used from the checkpoint's files, where the page cache has them.
    """

    engine_id: str
    runtime_dir: str
    model_path: str
    sglang_args: tuple[str, ...]
    device: str
    moe_layers: tuple[int, ...]
    num_experts: int
    experts_per_token: int
    slots: tuple[int, ...]
    initial: tuple[tuple[int, ...], ...]
    cpu_threads: int | None = None
    isa: str | None = None
    swap_rate: float | None = None
    cpu_expert_format: str | None = None
    prefill_threshold: int | None = None
    prefill_cpu_share: bool = True
    prefill_buffer_bytes: int = PREFILL_BUFFER_BYTES
    prefill_experts: int | None = None
    deferred_experts: int = 0
    bench: Bench | None = None
    host_memory: str = COPY

    @property
    def control_socket(self) -> Path:
        """Unix socket of the private control service."""
        return Path(self.runtime_dir) / "control.sock"

    @property
    def http_socket(self) -> Path:
        """Unix socket of SGLang's own OpenAI app."""
        return Path(self.runtime_dir) / "http.sock"

    def has_cpu_path(self, position: int) -> bool:
        """Whether experts of an MoE layer can be on the CPU: not all have slots, or can lose them.

        Args:
            position: Among the MoE layers.
        """
        kept = self.bench is not None and self.bench.keep_cpu_path
        return kept or self.slots[position] < self.num_experts

    def deferred_of(self, position: int) -> int:
        """Experts of a token that an MoE layer may leave to the next one with a CPU path.

        Without one behind it, as behind the last layer, they would be lost: none.
        """
        following = range(position + 1, len(self.slots))
        return self.deferred_experts if any(map(self.has_cpu_path, following)) else 0

    def write(self) -> Path:
        """Writes the spec into its runtime directory and returns the file's path."""
        path = Path(self.runtime_dir) / "spec.json"
        path.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def read(cls, path: Path) -> EngineSpec:
        """Reads what :meth:`write` wrote."""
        raw = json.loads(path.read_text())
        for name in ("sglang_args", "moe_layers", "slots"):
            raw[name] = tuple(raw[name])
        raw["initial"] = tuple(tuple(layer) for layer in raw["initial"])
        raw["bench"] = Bench(**raw["bench"]) if raw.get("bench") else None
        return cls(**raw)

    @classmethod
    def from_environment(cls) -> EngineSpec | None:
        """The spec this process was started under, or None outside a ktd engine."""
        path = os.environ.get(SPEC_VARIABLE)
        return cls.read(Path(path)) if path else None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine could not start or ended.

    ``kind``: ``"usage"`` (SGLang refused its arguments), ``"incompatible"``, ``"model"``,
    ``"plugin"``, ``"memory"`` or ``"internal"``. All but ``"internal"`` will fail again.
    """

    kind: str
    message: str
    time_ns: int


def failure_file(spec: EngineSpec) -> Path:
    """Where this process leaves a failure for the daemon."""
    return Path(spec.runtime_dir) / f"failure-{os.getpid()}.json"


def failure_text(kind: str, message: str) -> str:
    """What stands in that file, of this moment."""
    return json.dumps(asdict(Failure(kind, message, time.time_ns())))


def report_failure(spec: EngineSpec, kind: str, message: str) -> None:
    """Leaves a failure for the daemon; one file per process, the earliest one counts."""
    path = failure_file(spec)
    if not path.exists():
        path.write_text(failure_text(kind, message))


def read_failure(runtime_dir: Path) -> Failure | None:
    """The earliest failure that a process of the engine reported."""
    failures: list[Failure] = []
    for path in runtime_dir.glob("failure-*.json"):
        try:
            failures.append(Failure(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return min(failures, key=lambda failure: failure.time_ns, default=None)
