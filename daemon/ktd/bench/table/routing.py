"""Routing for every cell of a table: drawn once, the same for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ktd.errors import ConfigError
from ktd.stats.trace import Trace, read_trace

STATIONARY, SHIFTING = "stationary", "shifting"
KINDS = (STATIONARY, SHIFTING)
STRETCH = 500  # tokens
_STRETCHES = 16
_FEWEST = 3
_EXPONENT = 0.8
# Rows of random numbers at a time.
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """MoE layers, experts of each, and experts of a token."""

    layers: int
    experts: int
    top_k: int


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """The experts of one token after the other.

    Attributes:
        kind: ``"stationary"`` or ``"shifting"``.
        source: Where it comes from, for people.
        ids: int16 ``[tokens, layers, K]``.
        known: int64 ``[layers, experts]``: counts that ``frequency`` is given; of all tokens where
            routing is stationary; where it shifts, of a stretch before all of them. It does not
            come again: when all tokens have passed, the first of them follows. Other tokens of its
            phase do, in a recording.
        ranks: Experts by falling probability, of each layer of each different stretch, that before
            the tokens first: int16 ``[stretches, layers, experts]``; None for a recording.
    """

    kind: str
    source: str
    ids: NDArray[np.int16]
    known: NDArray[np.int64]
    ranks: NDArray[np.int16] | None = None


class RoutingFile:
    """Routings for :mod:`ktd.sgl.bench_routing`, one of which holds at a time.

    Args:
        path: ``.npz``; a file beside it says which.
        run_id: Of this run.
        routings: By kind; the first holds at first.
    """

    def __init__(self, path: Path, run_id: str, routings: Mapping[str, Routing]) -> None:
        ids: dict[str, Any] = {f"ids_{kind}": routing.ids for kind, routing in routings.items()}
        np.savez(path, run_id=run_id, **ids)
        self._kinds = list(routings)
        self._which = np.memmap(path.with_suffix(".which"), np.int64, "w+", shape=(1,))

    def choose(self, kind: str) -> None:
        """From the next step on, tokens have routing of this kind."""
        self._which[0] = self._kinds.index(kind)


def zipf_routing(kind: str, sizes: LayerSizes, seed: int) -> Routing:
    """Each token's experts are drawn without replacement, with weights ``rank ** -0.8``.

    Which expert has which rank is another permutation in each layer; where routing shifts, in each
    stretch of 500 tokens too.
    """
    generator = np.random.default_rng(seed)
    different = 1 + _STRETCHES if kind == SHIFTING else 1
    ranks = np.stack(
        [
            [generator.permutation(sizes.experts) for _ in range(sizes.layers)]
            for _ in range(different)
        ]
    ).astype(np.int16)
    tokens = STRETCH if kind == SHIFTING else _STRETCHES * STRETCH
    known, *later = (_draw(generator, of_stretch, tokens, sizes) for of_stretch in ranks)
    ids = np.concatenate(later) if later else known
    return Routing(kind, f"Zipf {_EXPONENT}, seed {seed}", ids, counts(known, sizes.experts), ranks)


def _draw(
    generator: np.random.Generator, ranks: NDArray[np.int16], tokens: int, sizes: LayerSizes
) -> NDArray[np.int16]:
    """int16 ``[tokens, layers, K]`` for ranks ``[layers, experts]``."""
    logarithms = -_EXPONENT * np.log(np.arange(1, sizes.experts + 1, dtype=np.float32))
    found = np.empty((tokens, sizes.layers, sizes.top_k), np.int16)
    for layer, order in enumerate(ranks):
        for begin in range(0, tokens, _BLOCK):
            end = min(begin + _BLOCK, tokens)
            # The K largest of log weights with Gumbel noise are a draw without replacement.
            noise = generator.gumbel(size=(end - begin, sizes.experts)).astype(np.float32)
            best = np.argpartition(-(logarithms + noise), sizes.top_k - 1, axis=1)
            found[begin:end, layer] = order[best[:, : sizes.top_k]]
    return found


def recorded_routing(kind: str, path: Path, sizes: LayerSizes, seed: int) -> Routing:
    """Of a recording: its tokens shuffled, or 500 tokens of each of its phases in turn.

    Raises:
        ConfigError: It cannot be read, is of another model, or has one phase where two are needed.
    """
    trace = read_trace(path)
    _check(trace, path, sizes)
    if kind == STATIONARY:
        ids = np.concatenate([phase.ids for phase in trace.phases])
        ids = ids[np.random.default_rng(seed).permutation(len(ids))[: _STRETCHES * STRETCH]]
        known = ids
    else:
        known, ids = np.split(_in_turn(trace, path), [STRETCH])
    return Routing(kind, f"recorded: {path.name}", ids, counts(known, sizes.experts))


def _in_turn(trace: Trace, path: Path) -> NDArray[np.int16]:
    rounds = min(phase.tokens for phase in trace.phases) // STRETCH
    # One of them for the counts, and two to shift between.
    if len(trace.phases) < 2 or rounds * len(trace.phases) < _FEWEST:  # noqa: PLR2004
        raise ConfigError(
            f"{path} has {len(trace.phases)} phases, the shortest of "
            f"{min(phase.tokens for phase in trace.phases)} tokens; routing that shifts every "
            f"{STRETCH} tokens needs three phases of that length, or two of twice that"
        )
    pieces = [
        phase.ids[turn * STRETCH : (turn + 1) * STRETCH]
        for turn in range(rounds)
        for phase in trace.phases
    ]
    return np.concatenate(pieces[: 1 + max(_STRETCHES, len(trace.phases))])


def _check(trace: Trace, path: Path, sizes: LayerSizes) -> None:
    shapes = {phase.ids.shape[1:] for phase in trace.phases}
    fits = shapes == {(sizes.layers, sizes.top_k)} and trace.num_experts <= sizes.experts
    if not fits:
        raise ConfigError(
            f"{path} is no recording of this model: it has {len(trace.layers)} layers and "
            f"experts up to {trace.num_experts - 1}, the model {sizes.layers} layers of "
            f"{sizes.experts}, {sizes.top_k} for a token"
        )
    if any(int(phase.ids.min(initial=0)) < 0 for phase in trace.phases):
        raise ConfigError(f"{path} has tokens without an expert; record whole passes")


def counts(ids: NDArray[np.int16], experts: int) -> NDArray[np.int64]:
    """int64 ``[layers, experts]``: how often each was chosen."""
    layers = ids.shape[1]
    flat = ids.astype(np.int64) + experts * np.arange(layers)[None, :, None]
    return np.bincount(flat.ravel(), minlength=layers * experts).reshape(layers, experts)
