"""What this build's kernels compute on this CPU: found out by asking them."""

from __future__ import annotations

import torch

from ktd.bench.kernels.formats import FORMATS, ExpertMould
from ktd.errors import ConfigError
from ktd.experts.isa import isas
from ktd.experts.pool import ExpertPool
from ktd.experts.weights import WeightFormat
from ktd.shapes.moe import MoeShape

_SMALL = MoeShape("small", 1, 256, 256, 1)


def formats_of(isa: str) -> tuple[WeightFormat, ...]:
    """The formats that a kernel set computes: those in which it takes a layer."""
    pool = ExpertPool(threads=1, isa=isa)
    found = []
    for weight_format in FORMATS:
        layer = ExpertMould(_SMALL, weight_format).layer(
            1, lambda shape, dtype: torch.empty(shape, dtype=dtype)
        )
        try:
            pool.add_layer(layer)
        except ValueError:
            continue
        found.append(weight_format)
    return tuple(found)


def choose_formats(names: tuple[str, ...], isa: str) -> tuple[WeightFormat, ...]:
    """The formats called so; without names, all that the kernel set computes.

    Raises:
        ConfigError: An unknown name, or one that these kernels do not compute.
    """
    computed = formats_of(isa)
    for name in names:
        if name not in [known.value for known in FORMATS]:
            raise ConfigError(f"there is no format '{name}': use one of {', '.join(FORMATS)}")
        if name not in [known.value for known in computed]:
            raise ConfigError(
                f"the {isa} kernels of this build do not compute {name}: they compute "
                f"{', '.join(computed)}"
            )
    return tuple(WeightFormat(name) for name in names) or computed


def choose_isas(names: tuple[str, ...]) -> tuple[str, ...]:
    """The kernel sets called so; without names, the one that a pool would take.

    Raises:
        ConfigError: An unknown name, or one that this CPU cannot run.
    """
    return tuple(ExpertPool(threads=1, isa=name).isa for name in names or ("",))


def listing() -> str:
    """Lines that say which kernels run here and what they compute."""
    lines = []
    for isa in isas():
        if isa.supported:
            lines.append(f"{isa.name}: {', '.join(formats_of(isa.name))}")
        else:
            lines.append(f"{isa.name}: not here, this CPU lacks {' '.join(isa.missing)}")
    return "\n".join(lines)
