"""The models that can be generated, by the name that ``--shape`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ktd.errors import ConfigError
from ktd.shapes.mixtral import mixtral_8x7b
from ktd.shapes.model import ModelShape
from ktd.shapes.moe import SHAPES
from ktd.shapes.qwen3_moe import ktd_tiny, qwen3_30b_a3b
from ktd.shapes.qwen3_next import qwen3_next_80b_a3b
from ktd.shapes.tensors import Form


class _Build(Protocol):
    def __call__(self, name: str, layers: int, num_experts: int, *, form: Form) -> ModelShape: ...


@dataclass(frozen=True, slots=True)
class _Row:
    build: _Build
    layers: int
    num_experts: int
    top_k: int
    form: Form = Form.BF16


def _row(build: _Build, layers: int, layer_shape: str, *, form: Form = Form.BF16) -> _Row:
    shape = SHAPES[layer_shape]
    return _Row(build, layers, shape.experts, shape.top_k, form)


_MODELS = {
    "qwen3-30b-a3b": _row(qwen3_30b_a3b, 48, "qwen3-30b-a3b"),
    "qwen3-30b-a3b-fp8": _row(qwen3_30b_a3b, 48, "qwen3-30b-a3b", form=Form.FP8),
    "qwen3-30b-a3b-int4": _row(qwen3_30b_a3b, 48, "qwen3-30b-a3b", form=Form.INT4),
    "qwen3-next-80b-a3b": _row(qwen3_next_80b_a3b, 48, "qwen3-next-80b-a3b"),
    "qwen3-next-80b-a3b-fp8": _row(qwen3_next_80b_a3b, 48, "qwen3-next-80b-a3b", form=Form.FP8),
    "mixtral-8x7b": _row(mixtral_8x7b, 32, "mixtral-8x7b"),
    "ktd-tiny": _Row(ktd_tiny, 6, 32, 4),
}
MODEL_NAMES = tuple(_MODELS)


def model_shape(
    name: str, *, layers: int | None = None, num_experts: int | None = None
) -> ModelShape:
    """The model of that name, as published or with other numbers of layers or experts.

    Raises:
        ConfigError: There is none, or a number does not go with it.
    """
    row = _MODELS.get(name)
    if row is None:
        raise ConfigError(f"there is no model shape '{name}': use one of {', '.join(_MODELS)}")
    layers = row.layers if layers is None else layers
    num_experts = row.num_experts if num_experts is None else num_experts
    if layers < 1:
        raise ConfigError(f"a model needs at least one layer, not {layers}")
    if num_experts < row.top_k:
        raise ConfigError(
            f"{name} chooses {row.top_k} experts for a token, so a layer needs as many, not "
            f"{num_experts}"
        )
    return row.build(name, layers, num_experts, form=row.form)
