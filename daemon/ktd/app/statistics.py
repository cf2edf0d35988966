"""Joins an engine to its statistics, and statistics from before to a first placement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ktd.engine.bridge import EngineBridge
from ktd.enginespec import EngineSpec
from ktd.errors import SwapTargetFailed
from ktd.model.facts import ModelFacts
from ktd.stats.files import read_counts
from ktd.stats.hub import StatsHub
from ktd.stats.profile import AUTO, ProfileShape
from ktd.stats.profile_store import ProfileStore
from ktd.stats.profiles import Profiles
from ktd.stats.recording import Recordings
from ktd.stats.sampler import RankSampler


@dataclass(frozen=True, slots=True)
class Statistics:
    """What counts, records and keeps, attached to one engine after the other."""

    hub: StatsHub
    recordings: Recordings
    profiles: Profiles

    def attach(
        self, bridge: EngineBridge, spec: EngineSpec, shape: ProfileShape, ranks: int
    ) -> None:
        """An engine is about to serve.

        Raises:
            SwapTargetFailed: the counters of a rank cannot be read.
        """
        try:
            sampler = RankSampler(
                engine_id=spec.engine_id,
                runtime_dir=Path(spec.runtime_dir),
                num_ranks=ranks,
                moe_layers=spec.moe_layers,
            )
        except (OSError, ValueError) as error:
            raise SwapTargetFailed(f"A rank's counters cannot be read: {error}.") from error
        self.hub.attach(sampler)
        self.profiles.attach(shape)
        self.recordings.attach(bridge)

    def detach(self) -> None:
        """The engine is gone."""
        self.recordings.detach()
        self.hub.detach()
        self.profiles.detach()


@dataclass(frozen=True, slots=True)
class KnownCounts:
    """Counts per MoE layer and expert from before the engine's start, for its first placement."""

    store: ProfileStore
    profiles: Profiles

    def read(self, path: Path, facts: ModelFacts) -> Sequence[Sequence[float]]:
        """From a statistics file; a bare name that is no file may be a profile's.

        Raises:
            ConfigError: there is no such file, or it is not one for this model.
        """
        if not path.suffix and not path.exists():
            kept = self.store.path(path.name)
            path = kept if kept.exists() else path
        return read_counts(path, profile_shape(facts))

    def kept(self, facts: ModelFacts) -> tuple[Sequence[Sequence[float]], str] | None:
        """Of the profile that was kept automatically, and a note; None if there is none."""
        profile = self.profiles.automatic(profile_shape(facts))
        if profile is None:
            return None
        counts: list[list[float]] = profile.counts.sum(axis=0).tolist()
        return counts, f"the first placement follows the statistics kept as profile {AUTO!r}"


def profile_shape(facts: ModelFacts) -> ProfileShape:
    """The model's shape, as statistics know it."""
    return ProfileShape(facts.num_layers, facts.moe_layers, facts.num_experts)
