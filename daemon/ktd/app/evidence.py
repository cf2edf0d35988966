"""What strategies may know: at the start from files and from before, live from the counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from ktd.app.statistics import KnownCounts
from ktd.config.settings import Settings
from ktd.errors import ConfigError
from ktd.model.facts import ModelFacts
from ktd.placement.cost import CostModel, default_costs
from ktd.placement.cost_meter import CostMeter, StepCounters
from ktd.placement.strategies.base import Counts, Evidence, PairCounts
from ktd.stats.hub import StatsHub
from ktd.stats.trace import coactivation, read_trace

_TICK_SECONDS = 1.0
# They look at no statistics; a file that was given for nothing is said.
_BLIND = ("uniform", "front-loading", "random")
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Pairs:
    """Which experts are chosen together, if the file that was given at the start says so."""

    counts: PairCounts | None = None


class StartEvidence:
    """What the first placement is chosen by.

    Args:
        settings: Name the file.
        device: Decides the cost model's defaults.
        known: Counts from before.
        pairs: Is filled when the file is a recording of single tokens.
    """

    def __init__(self, settings: Settings, device: str, known: KnownCounts, pairs: Pairs) -> None:
        self._settings = settings
        self._costs = default_costs(device)
        self._known = known
        self._pairs = pairs

    def of(self, facts: ModelFacts) -> Evidence:
        """For a model.

        Raises:
            ConfigError: the file is missing, unreadable, or of another model.
        """
        return Evidence(
            counts=self._counts(facts),
            pairs=self._pairs.counts,
            experts_per_token=facts.experts_per_token,
            expert_bytes=facts.expert_bytes,
            costs=replace(self._costs, cpu_share=facts.cpu_expert_bytes / facts.expert_bytes),
        )

    def _counts(self, facts: ModelFacts) -> Counts | None:
        path = self._settings.init_expert_location
        if self._settings.expert_placement_strategy in _BLIND:
            return None
        if path is None:
            kept = self._known.kept(facts)
            if kept is None:
                return None
            counts, note = kept
            _log.info("placement", note=note)
            return counts
        given = self._given(path, facts)
        self._known.profiles.begin_with(given)
        return given

    def _given(self, path: Path, facts: ModelFacts) -> Counts:
        pairs = self._recorded(path, facts)
        if pairs is None:
            return self._known.read(path, facts)
        self._pairs.counts = pairs
        found: Counts = pairs.diagonal(axis1=1, axis2=2)
        return found

    def _recorded(self, path: Path, facts: ModelFacts) -> PairCounts | None:
        """Pairs of experts, or None where the file does not tell tokens apart."""
        if path.suffix not in (".npz", ".pt") or not path.exists():
            return None
        try:
            trace = read_trace(path)
        except ConfigError:
            if path.suffix == ".npz":
                raise
            return None
        if len(trace.layers) != len(facts.moe_layers) or trace.num_experts > facts.num_experts:
            raise ConfigError(
                f"{path} recorded {len(trace.layers)} layers with at least {trace.num_experts} "
                f"experts, but this model has {len(facts.moe_layers)} with {facts.num_experts}; "
                "record this model."
            )
        first, *others = (coactivation(phase.ids, facts.num_experts) for phase in trace.phases)
        for pairs in others:
            first += pairs
        return first


class LiveEvidence:
    """What is known while serving; also measures the cost model's figures.

    Args:
        hub: Counters and rates.
        meter: Is told of every reading, see :meth:`run`.
        pairs: From the start.
    """

    def __init__(self, hub: StatsHub, meter: CostMeter, pairs: Pairs) -> None:
        self._hub = hub
        self._meter = meter
        self._pairs = pairs
        self._facts: Callable[[], ModelFacts | None] = lambda: None

    def follow(self, facts: Callable[[], ModelFacts | None]) -> None:
        """Where the model can be asked for: None while nobody has looked at it."""
        self._facts = facts

    def __call__(self) -> Evidence:
        """As of now."""
        facts = self._facts()
        return Evidence(
            counts=self._hub.counts(),
            recent=self._recent(),
            pairs=self._pairs.counts,
            batch=self._meter.batch or 1.0,
            experts_per_token=facts.experts_per_token if facts is not None else 0,
            costs=self.costs(),
            step_seconds=self._meter.step_seconds,
        )

    def costs(self) -> CostModel:
        """The cost model with what has been measured."""
        facts = self._facts()
        share = facts.cpu_expert_bytes / facts.expert_bytes if facts is not None else 1.0
        return self._meter.costs(share)

    async def run(self) -> None:
        """Reads the counters once a second while they move; ends when it is cancelled."""
        steps = 0
        while True:
            if (now := self._hub.steps()) != steps:
                steps = now
                self._read()
            await asyncio.sleep(_TICK_SECONDS)

    def _read(self) -> None:
        sample = self._hub.sample()
        if sample is not None:
            self._meter.counted(
                StepCounters(
                    time=sample.time,
                    engine_id=sample.engine_id,
                    decode_steps=sample.decode_steps,
                    decode_tokens=sample.decode_tokens,
                    prefill_steps=sample.prefill_steps,
                    cpu_weight_bytes=sample.cpu_weight_bytes,
                )
            )

    def _recent(self) -> Counts | None:
        rates = self._hub.rates()
        if rates is None or not rates.per_second.any():
            return None
        recent: Counts = rates.per_second.sum(axis=(0, -1))
        return recent
