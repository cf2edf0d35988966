"""The MoE layers of models that people run, as their public configurations give them."""

from __future__ import annotations

from dataclasses import dataclass

from ktd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MoeShape:
    """One layer of experts.

    Attributes:
        name: What ``--shape`` takes.
        experts: Routed experts of a layer.
        hidden: Width of the model.
        intermediate: Width of one expert.
        top_k: Experts of a token.
        clamped: Gate and up are clamped, biased and interleaved, as gpt-oss does.
    """

    name: str
    experts: int
    hidden: int
    intermediate: int
    top_k: int
    clamped: bool = False

    def operations(self, tokens: int) -> int:
        """Of one call: a multiply-add is two, gate, up and down are three products."""
        return 2 * 3 * self.hidden * self.intermediate * self.top_k * tokens


SHAPES = {
    shape.name: shape
    for shape in (
        MoeShape("qwen3-30b-a3b", 128, 2048, 768, 8),
        MoeShape("qwen3-next-80b-a3b", 512, 2048, 512, 10),
        MoeShape("deepseek-v3", 256, 7168, 2048, 8),
        MoeShape("mixtral-8x7b", 8, 4096, 14336, 2),
        MoeShape("gpt-oss-120b", 128, 2880, 2880, 4, clamped=True),
        MoeShape("kimi-k2", 384, 7168, 2048, 8),
    )
}


def shape_called(name: str) -> MoeShape:
    """The shape of that name.

    Raises:
        ConfigError: There is none; the sentence lists them.
    """
    if name not in SHAPES:
        raise ConfigError(f"there is no shape '{name}': use one of {', '.join(SHAPES)}")
    return SHAPES[name]
