"""A profile: how often each expert of a model was chosen, with a name, as a JSON file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ktd.errors import InvalidArgument
from ktd.rankfile import KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MARK = "ktd_profile"
AUTO, BEFORE, LIVE = "auto", "auto-before", "live"
_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ProfileShape:
    """Of the model that a profile belongs to; profiles of one shape can be compared.

    Attributes:
        num_layers: All layers of the model.
        moe_layers: Those that have experts, ascending.
        num_experts: Routed experts per MoE layer.
    """

    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int

    def __str__(self) -> str:
        return f"{len(self.moe_layers)} MoE layers of {self.num_experts} experts"


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Counts with a name.

    Attributes:
        save_time: Unix seconds.
        model: As it was named to the daemon.
        counts: int64 ``[kind, MoE layer, expert]``, kinds prefill and decode: pairs.
    """

    name: str
    save_time: float
    model: str
    shape: ProfileShape
    counts: NDArray[np.int64]


def check_name(name: str) -> str:
    """The name, if a profile may have it.

    Raises:
        InvalidArgument: it may not.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} cannot be a profile's name: it must have 1 to 64 letters, digits, '.', '_' "
            "or '-', and begin with a letter or digit."
        )
    return name


def encoded(profile: Profile) -> dict[str, Any]:
    """As JSON."""
    shape = profile.shape
    return {
        MARK: _VERSION,
        "name": profile.name,
        "save_time": profile.save_time,
        "model": profile.model,
        "num_layers": shape.num_layers,
        "moe_layers": list(shape.moe_layers),
        "num_experts": shape.num_experts,
        **{kind: profile.counts[index].tolist() for index, kind in enumerate(KINDS)},
    }


def decoded(raw: Mapping[str, Any]) -> Profile:
    """What :func:`encoded` made.

    Raises:
        ValueError: it is not that; the message is a phrase.
    """
    if raw.get(MARK) != _VERSION:
        raise ValueError(f"version {raw.get(MARK)!r} of the file is not known")
    try:
        shape = ProfileShape(
            int(raw["num_layers"]), tuple(map(int, raw["moe_layers"])), int(raw["num_experts"])
        )
        counts = np.array([raw[kind] for kind in KINDS])
        name, model, save_time = str(raw["name"]), str(raw["model"]), float(raw["save_time"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a field is missing or has no value that it can have: {error}") from None
    wanted = (len(KINDS), len(shape.moe_layers), shape.num_experts)
    if counts.shape != wanted or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"its counts are not whole numbers of shape {list(wanted[1:])}")
    return Profile(name, save_time, model, shape, counts.astype(np.int64))
