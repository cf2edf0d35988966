"""Routing that is drawn from Zipf's law, with changes at known times: the truth is known here."""

from __future__ import annotations

import numpy as np

from ktd.simulate.workload import Phase, Workload

LAYERS, EXPERTS, TOP_K = 6, 64, 6


def zipf(
    rng: np.random.Generator,
    exponent: float = 1.0,
    experts: int = EXPERTS,
    layers: int = LAYERS,
) -> np.ndarray:
    """Log-weights ``[layers, experts]``, each layer with its own order."""
    ranks = -exponent * np.log(np.arange(1, experts + 1))
    return np.stack([ranks[rng.permutation(experts)] for _ in range(layers)])


def drawn(rng: np.random.Generator, weights: np.ndarray, tokens: int, top_k: int = TOP_K):
    """``[tokens, layers, top_k]`` different experts for each token (Gumbel's trick)."""
    noise = rng.gumbel(size=(tokens, *weights.shape)) + weights
    return np.argpartition(-noise, top_k, axis=2)[:, :, :top_k].astype(np.int16)


def workload(*phases: np.ndarray, experts: int = EXPERTS) -> Workload:
    return Workload(
        tuple(Phase(str(number), ids) for number, ids in enumerate(phases)), num_experts=experts
    )


def stationary(seed: int = 0, tokens: int = 20_000) -> Workload:
    """One state for ever."""
    rng = np.random.default_rng(seed)
    return workload(drawn(rng, zipf(rng), tokens))


def deep(seed: int = 0, tokens: int = 6000) -> Workload:
    """The same for 24 layers of 128 experts, of which many are used nearly as often as others."""
    rng = np.random.default_rng(seed)
    return workload(drawn(rng, zipf(rng, 0.8, 128, 24), tokens), experts=128)


def shifting(seed: int = 0, dwell: int = 5000, states: int = 6) -> Workload:
    """A new state every ``dwell`` tokens, which has nothing to do with the ones before."""
    rng = np.random.default_rng(seed)
    return workload(*(drawn(rng, zipf(rng), dwell) for _ in range(states)))


def turning(seed: int = 0, turn: int = 500, turns: int = 36) -> Workload:
    """A long stretch of one state, then three others that take turns."""
    rng = np.random.default_rng(seed)
    states = [zipf(rng) for _ in range(4)]
    turned = [drawn(rng, states[number % 3], turn) for number in range(turns)]
    return workload(drawn(rng, states[3], 8000), np.concatenate(turned))


def settling(seed: int = 0, turn: int = 500, turns: int = 36, tokens: int = 8000) -> Workload:
    """Three states that take turns, then another one that stays: two phases of ``tokens``."""
    rng = np.random.default_rng(seed)
    states = [zipf(rng) for _ in range(4)]
    turned = [drawn(rng, states[number % 3], turn) for number in range(turns)]
    steady = [drawn(rng, states[3], tokens) for _ in range(2)]
    return workload(np.concatenate(turned), *steady)


def creeping(seed: int = 0, step: int = 250, share: float = 0.03) -> Workload:
    """A few experts change places every ``step`` tokens."""
    rng = np.random.default_rng(seed)
    weights = zipf(rng)
    phases = []
    for _ in range(8):
        pieces = []
        for _ in range(8):
            pieces.append(drawn(rng, weights, step))
            for row in weights:
                chosen = rng.choice(EXPERTS, max(2, int(share * EXPERTS)), replace=False)
                row[chosen] = row[np.roll(chosen, 1)]
        phases.append(np.concatenate(pieces))
    return workload(*phases)


def partly(seed: int = 0, dwell: int = 5000, share: float = 0.3) -> Workload:
    """Every ``dwell`` tokens a part of the experts change places."""
    rng = np.random.default_rng(seed)
    weights = zipf(rng)
    phases = []
    for _ in range(6):
        phases.append(drawn(rng, weights, dwell))
        for row in weights:
            chosen = rng.choice(EXPERTS, int(share * EXPERTS), replace=False)
            row[chosen] = row[rng.permutation(chosen)]
    return workload(*phases)


def wide(seed: int = 0) -> Workload:
    """Two states of a model with 256 experts, of which each token takes 8."""
    rng = np.random.default_rng(seed)
    states = (zipf(rng, 0.7, 256) for _ in range(2))
    return workload(*(drawn(rng, state, 8000, 8) for state in states), experts=256)
