"""The policy ``adaptive``: an exchange is made when what it is expected to bring pays its copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ktd.policy.base import DECISION_TOKENS, Choice
from ktd.policy.exchanges import FREE, Exchanges, candidates
from ktd.policy.forecast import Forecaster
from ktd.policy.prefill_weight import PrefillWeight
from ktd.policy.settings import AdaptiveSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ktd.policy.base import Mapped, Observation

_FEW = "It pays, but what pays now brings less together than a swap costs; it waits for more."


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """Candidates with their gain and noise ``[layers, n]``, and what a copy costs: all in pairs."""

    exchanges: Exchanges
    gain: NDArray[np.float64]
    noise: NDArray[np.float64]
    cost: float

    def paying(self) -> Mapped:
        """Which of them pay; later ones of a layer rest on the earlier ones having been made."""
        pays = self.exchanges.valid & (self.gain > self.noise + self.cost)
        return np.logical_and.accumulate(pays, axis=1)

    def net(self, wanted: Mapped) -> float:
        """Pairs that those ``wanted`` bring beyond what their copies cost."""
        return float((self.gain - self.cost)[wanted].sum())

    def choices(self, wanted: Mapped, limit: int | None) -> list[Choice]:
        """Those that are ``wanted``, by falling net gain, at most ``limit``."""
        found = self.exchanges
        layers, ranks = np.nonzero(wanted)
        # Ties go to the lower layer, then to the better rank: a row is always led by its best.
        order = np.lexsort((ranks, layers, (self.noise - self.gain)[layers, ranks]))[:limit]
        chosen = []
        for layer, rank in zip(layers[order], ranks[order], strict=True):
            evict = int(found.evict[layer, rank])
            chosen.append(
                Choice(
                    layer=int(layer),
                    evict=None if evict == FREE else evict,
                    load=int(found.load[layer, rank]),
                    score_evict=float(found.score_evict[layer, rank]),
                    score_load=float(found.score_load[layer, rank]),
                    gain=float(self.gain[layer, rank]),
                    noise=float(self.noise[layer, rank]),
                    cost=self.cost,
                )
            )
        return chosen


class Adaptive:
    """Forecasts each expert's use over a horizon and exchanges where the difference pays.

    ``gain > cost + confidence × standard error``, all in (token, expert) pairs over the horizon,
    and of all such exchanges together ``Σ (gain - cost) ≥ batch cost``: a batch's calls hold the
    engine up, whether it brings one expert or two hundred.
    The standard error is that of a difference of two counts with measured overdispersion; so two
    experts of nearly the same use are left alone until it is known which of them is used more.

    Args:
        slots: Slots per layer.
        experts: Experts per layer.
        settings: None: the defaults.
    """

    name = "adaptive"

    def __init__(
        self, slots: Sequence[int], experts: int, settings: AdaptiveSettings | None = None
    ) -> None:
        self.settings = settings or AdaptiveSettings()
        # Pairs that the CPU computes while an expert is copied; the default cost is no less.
        self.measured_copy_cost = 0.0
        self._slots = np.array(slots, np.int64)
        self._forecaster = Forecaster(self.settings, len(slots), experts)
        self._prefill = PrefillWeight()
        # Token at which an expert was last put into a slot or taken out of one.
        self._moved = np.full((len(slots), experts), -np.inf)
        self._undone: NDArray[np.float64] | None = None  # the same before the last decision

    def limit(self, slots: Sequence[int]) -> None:
        """From now on so many slots per layer; what was learned stays."""
        self._slots = np.array(slots, np.int64)

    def observe(self, seen: Observation) -> None:
        """Learns from decode, and from prefill as far as it does not drown decode."""
        weight = self._prefill.update(seen.decode_tokens, seen.prefill_tokens)
        counts = seen.decode.astype(np.float64)
        if seen.prefill is not None and seen.prefill_tokens:
            counts += weight * seen.prefill
        tokens = seen.decode_tokens + weight * seen.prefill_tokens
        if tokens > 0:
            self._forecaster.update(counts, tokens)

    def decide(self, mapped: Mapped, limit: int | None = None) -> Sequence[Choice]:
        """What pays now."""
        self._undone = None
        if not self._forecaster.tokens:
            return ()
        judged = self._judged(mapped, self._young())
        pays = judged.paying()
        # All of them, and not the first ``limit``: a slow rate of copies must not forbid moves.
        if judged.net(pays) < self.batch_cost:
            return []
        chosen = judged.choices(pays, limit)
        self._undone = self._moved.copy()
        for choice in chosen:
            self._moved[choice.layer, choice.load] = self._forecaster.tokens
            if choice.evict is not None:
                self._moved[choice.layer, choice.evict] = self._forecaster.tokens
        return chosen

    def dropped(self) -> None:
        """What was decided last may be decided again at once."""
        if self._undone is not None:
            self._moved, self._undone = self._undone, None

    def considered(self, mapped: Mapped, most: int) -> Sequence[Choice]:
        """The best candidates with what speaks against them."""
        if not self._forecaster.tokens:
            return ()
        judged = self._judged(mapped, None)
        worth = judged.exchanges.valid & (judged.gain > 0)
        young = self._young()
        ready = self._judged(mapped, young)
        few = "" if ready.net(ready.paying()) >= self.batch_cost else _FEW
        return [
            choice._replace(reason=self._reason(choice, young) or few)
            for choice in judged.choices(worth, most)
        ]

    def facts(self) -> Mapping[str, float]:
        """What the decisions rest on."""
        forecaster = self._forecaster
        return {
            "tokens_seen": forecaster.tokens,
            "copy_cost_pairs": self.copy_cost,
            "batch_cost_pairs": self.batch_cost,
            "horizon_tokens": self.horizon,
            "window_half_life_tokens": forecaster.half_life,
            "shifts_seen": float(forecaster.shifts.count),
            "tokens_since_shift": forecaster.shifts.since(forecaster.tokens),
            "expected_dwell_tokens": forecaster.dwell,
            "trust_in_the_past": forecaster.recurrence.trust,
            "dispersion": forecaster.dispersion,
            "prefill_weight": self._prefill.weight,
        }

    @property
    def shifts(self) -> int:
        """Changes of the workload that were seen."""
        return self._forecaster.shifts.count

    @property
    def copy_cost(self) -> float:
        """Pairs that a copy costs."""
        if self.settings.copy_cost is not None:
            return self.settings.copy_cost
        usual = self.settings.usual_copy_cost
        if usual is None:
            usual = self.settings.patience * self._forecaster.use
        return max(usual, self.measured_copy_cost)

    @property
    def batch_cost(self) -> float:
        """Pairs that the calls of a batch cost; nothing where copies are free."""
        forecaster = self._forecaster
        if not self.copy_cost or not forecaster.tokens:
            return 0.0
        return self.settings.batch_cost * forecaster.pairs / forecaster.tokens

    @property
    def horizon(self) -> float:
        """Tokens over which an exchange is judged: never less than until the next decision."""
        use, cost = self._forecaster.use, self.copy_cost
        if not use or not cost:
            return DECISION_TOKENS
        wanted = self.settings.horizon * cost / use
        lasting = min(self._forecaster.half_life, self._forecaster.dwell)
        wanted = max(DECISION_TOKENS, wanted, self.settings.steady_horizon * lasting)
        return min(wanted, self.settings.longest_horizon)

    @property
    def _steadiness(self) -> float:
        """0 where copies are free, up to 1 where exchanges are judged over as long as by default.

        What is to hold for long has to be known well.
        """
        if not self.copy_cost:
            return 0.0
        return min(1.0, self.horizon / (self.settings.horizon * self.settings.patience))

    def _young(self) -> Mapped:
        dwell = self.settings.min_dwell * self._steadiness
        young: Mapped = self._forecaster.tokens - self._moved < dwell
        return young

    def _judged(self, mapped: Mapped, young: Mapped | None) -> _Judged:
        horizon = self.horizon
        forecast = self._forecaster.over(horizon)
        found = candidates(forecast.scores, mapped, self._slots, young)
        load = np.where(found.valid, found.score_load, 0.0)
        gain = (load - found.score_evict) * horizon
        deviation = np.sqrt(forecast.variance * (load + found.score_evict))
        noise = self.settings.confidence * self._steadiness * deviation * horizon
        return _Judged(found, gain, noise, self.copy_cost)

    def _reason(self, choice: Choice, young: Mapped) -> str:
        if young[choice.layer, choice.load] or (
            choice.evict is not None and young[choice.layer, choice.evict]
        ):
            dwell = self.settings.min_dwell * self._steadiness
            return f"One of the two was moved less than {dwell:.0f} tokens ago."
        if choice.gain <= choice.cost:
            return "The gain does not pay for the copy."
        if choice.gain <= choice.cost + choice.noise:
            return "The gain is not sure enough: counts vary by that much."
        return ""
