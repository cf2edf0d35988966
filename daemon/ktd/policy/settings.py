"""The figures of ``adaptive``; docs/results/simulate.md shows that none of them is critical."""

from __future__ import annotations

from dataclasses import dataclass

from ktd.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSettings:
    """Time is counted in tokens, as a policy should do the same at any speed.

    Attributes:
        copy_cost: (token, expert) pairs on the CPU that one copied expert costs. None: what an
            expert of average use gets in ``patience`` tokens. With 0, bytes are free, and
            everything that is here for steadiness is off.
        patience: See ``copy_cost``.
        usual_copy_cost: What ``copy_cost`` is by default, instead of what follows from
            ``patience``: where copies have a link of their own, a pair's worth of memory bandwidth
            is all that one takes from the CPU.
        horizon: For how long an exchange is judged at least, as a multiple of the time in which an
            expert of average use is used ``copy_cost`` times; so the least gain per token that pays
            is the average use divided by this. At most ``longest_horizon``.
        steady_horizon: The same, as a multiple of the half-life of the windows that are believed,
            or of the time that the workload is expected to stay as it is, if that is shorter: where
            nothing changes a cheap copy pays for a small gain, which lasts.
        longest_horizon: Tokens beyond which no forecast is worth anything.
        batch_cost: Tokens whose experts the CPU computes in the time that a batch's calls keep the
            engine waiting; all exchanges of a batch together must bring that beside their copies.
        confidence: Standard errors that a gain must stand out by.
        min_dwell: Tokens that an expert stays where it was just put.
        half_lives: Of the windows that compete for the best forecast of the next tokens.
        fit_half_life: For how long a good forecast counts.
        regime_half_life: Of the memory that is cut where the workload changes.
        past_half_life: Of the memory that no change cuts.
        persistence: For how long the best window's forecast is worth something, in multiples of
            its half-life.
        drift_excess: Nats per pair by which a short window must forecast better than the regime's
            memory to speak for a change of the workload.
        drift_evidence: How much of that, summed over chunks of 64 tokens, is a change.
        prior_dwell: Tokens between two changes that are expected before any was seen.
        remembered_shifts: Times between changes that are averaged at most; as many changes pass,
            on average, before one begins another pace.
    """

    copy_cost: float | None = None
    patience: float = 1024.0
    usual_copy_cost: float | None = None
    horizon: float = 8.0
    steady_horizon: float = 0.5
    longest_horizon: float = 65_536.0
    batch_cost: float = 0.5
    confidence: float = 1.5
    min_dwell: float = 256.0
    # Tokens. The longest keeps chance from reordering experts whose use is the same.
    half_lives: tuple[float, ...] = tuple(64.0 * 2.0**power for power in range(9))
    fit_half_life: float = 512.0
    regime_half_life: float = 2048.0
    past_half_life: float = 8192.0
    persistence: float = 8.0
    drift_excess: float = 0.06
    drift_evidence: float = 0.3
    prior_dwell: float = 2048.0
    remembered_shifts: int = 4

    def __post_init__(self) -> None:
        """Checks what a user can set."""
        if self.copy_cost is not None and not 0 <= self.copy_cost < float("inf"):
            raise InvalidArgument(
                f"The copy cost is {self.copy_cost:g} pairs; it must be 0 or more."
            )
