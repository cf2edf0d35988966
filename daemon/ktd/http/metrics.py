"""``/metrics``: requests as the front sees them, and experts as the engine's ranks count them.

Names and units follow Prometheus' conventions (base units, ``_total``, no colons). Counts per
expert are not here, because they would be thousands of series: the gRPC API streams them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FIRST_BYTE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class LayerSample:
    """One MoE layer: (token, expert) pairs since the engine's start, and experts in slots."""

    layer: int
    gpu_pairs: int
    cpu_pairs: int
    experts_in_slots: int


@dataclass(frozen=True, slots=True)
class EngineSample:
    """What is exported about the engine; counters are since its last start unless they say else.

    Attributes:
        info: Labels of ``ktd_build_info``.
        serving: Whether requests are served.
        revision: Of the placement.
        restarts: Starts after an unexpected end, since the daemon's start.
        total_experts: Over all MoE layers.
        swaps: Swaps by result since the daemon's start.
        tokens: By phase, ``"prefill"`` and ``"decode"``; ``steps`` likewise.
    """

    info: Mapping[str, str]
    serving: bool = False
    revision: int = 0
    restarts: int = 0
    total_experts: int = 0
    layers: Sequence[LayerSample] = ()
    swaps: Mapping[str, int] | None = None
    swap_bytes: int = 0
    move_calls: int = 0
    move_call_seconds: float = 0.0
    cpu_weight_bytes: int = 0
    tokens: Mapping[str, int] | None = None
    steps: Mapping[str, int] | None = None


class MetricsSource(Protocol):
    """Where the samples come from; must not block."""

    def sample(self) -> EngineSample:
        """The engine now."""
        ...

    def in_flight(self) -> int:
        """Requests inside."""
        ...


class Metrics:
    """One registry per front; also counts the front's own requests."""

    def __init__(self, source: MetricsSource) -> None:
        # Otherwise every histogram comes with a series that nobody asked for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # upstream has no types here
        self._source = source
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ktd_requests", "OpenAI requests by status code.", ("code",), registry=self._registry
        )
        self._seconds = Histogram(
            "ktd_request_duration_seconds",
            "Time of whole OpenAI requests.",
            buckets=_REQUEST_BUCKETS,
            registry=self._registry,
        )
        self._first_byte = Histogram(
            "ktd_request_ttft_seconds",
            "Time to the first byte of an answer's body; of a stream, to its first token.",
            buckets=_FIRST_BYTE_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(self)

    def finished(self, status: int, seconds: float, first_byte: float | None) -> None:
        """One request has ended."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)
        if first_byte is not None:
            self._first_byte.observe(first_byte)

    def text(self) -> bytes:
        """The exposition, in Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: the registry must not sample the engine while it is being built."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The engine's families; called by the registry."""
        sample = self._source.sample()
        yield InfoMetricFamily("ktd_build", "Versions in use.", value=dict(sample.info))
        yield _gauge("ktd_engine_ready", "1 while requests are served.", int(sample.serving))
        yield _gauge("ktd_requests_in_flight", "OpenAI requests inside.", self._source.in_flight())
        yield _gauge("ktd_placement_generation", "Revision of the placement.", sample.revision)
        yield _counter("ktd_engine_restarts", "Starts after an unexpected end.", sample.restarts)
        yield from _experts(sample)
        yield _by_label("ktd_expert_swaps", "Swaps by result.", "result", sample.swaps)
        yield _counter("ktd_expert_swap_bytes", "Bytes copied into slots.", sample.swap_bytes)
        yield _counter(
            "ktd_expert_move_calls",
            "Calls that moved experts, between two steps of rank 0's scheduler.",
            sample.move_calls,
        )
        yield _counter(
            "ktd_expert_move_call_seconds",
            "What those calls took of the scheduler's time, without SGLang's part of them.",
            sample.move_call_seconds,
        )
        yield _counter(
            "ktd_cpu_expert_weight_bytes",
            "Bytes of expert weights that the CPU pool read.",
            sample.cpu_weight_bytes,
        )
        yield _by_label("ktd_tokens", "Tokens computed.", "phase", sample.tokens)
        yield _by_label("ktd_steps", "Steps of the engine.", "phase", sample.steps)


def _experts(sample: EngineSample) -> Iterator[Metric]:
    pairs = CounterMetricFamily(
        "ktd_expert_activations",
        "(token, expert) pairs by where they were computed.",
        labels=("layer", "tier"),
    )
    hits = GaugeMetricFamily(
        "ktd_expert_hit_ratio", "Share of pairs that GPU slots computed.", labels=("layer",)
    )
    for layer in sample.layers:
        pairs.add_metric((str(layer.layer), "gpu"), layer.gpu_pairs)
        pairs.add_metric((str(layer.layer), "cpu"), layer.cpu_pairs)
        total = layer.gpu_pairs + layer.cpu_pairs
        hits.add_metric((str(layer.layer),), layer.gpu_pairs / total if total else 0.0)
    resident = GaugeMetricFamily(
        "ktd_experts_resident",
        "Experts that can be computed there; the host has all of them.",
        labels=("device",),
    )
    in_slots = sum(layer.experts_in_slots for layer in sample.layers)
    resident.add_metric(("gpu",), in_slots)
    resident.add_metric(("cpu",), sample.total_experts)
    yield from (pairs, hits, resident)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _by_label(name: str, text: str, label: str, values: Mapping[str, int] | None) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in (values or {}).items():
        family.add_metric((key,), value)
    return family
