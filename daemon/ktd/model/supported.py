"""Which architectures ktd serves, on which device, and with what remark.

An architecture is here when a test serves it. SGLang knows many more; one that is not here is
refused by name before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row.

    Attributes:
        devices: Where it is served: ``"cpu"``, ``"cuda"``.
        tied_head: Whether SGLang's class copes with ``tie_word_embeddings``; where it does not, it
            leaves the output head at zero and serves uniform logits without a word.
        dense_layers: Whether SGLang's class leaves layers dense that the configuration says are;
            where it does not, it gives them experts that no checkpoint fills.
        clamps: What SGLang's class takes of the configuration that clamps the experts' activation.
    """

    devices: tuple[str, ...]
    tied_head: bool = True
    dense_layers: bool = True
    clamps: tuple[str, ...] = ()


ARCHITECTURES = {
    "Glm4MoeForCausalLM": Architecture(("cpu", "cuda"), tied_head=False),
    # Its attention has sinks, for which SGLang has kernels on GPUs alone.
    "GptOssForCausalLM": Architecture(("cuda",), tied_head=False, clamps=("swiglu_limit",)),
    "GraniteMoeForCausalLM": Architecture(("cpu", "cuda")),
    "MixtralForCausalLM": Architecture(("cpu", "cuda"), tied_head=False),
    "OlmoeForCausalLM": Architecture(("cpu", "cuda"), tied_head=False),
    "PhiMoEForCausalLM": Architecture(("cpu", "cuda"), tied_head=False),
    "Qwen2MoeForCausalLM": Architecture(("cpu", "cuda"), tied_head=False, dense_layers=False),
    "Qwen3MoeForCausalLM": Architecture(("cpu", "cuda"), tied_head=False, dense_layers=False),
    "Qwen3NextForCausalLM": Architecture(("cuda",), tied_head=False, dense_layers=False),
}

# What SGLang's classes for these compute; the CPU kernels have more (ktd.experts.weights).
ACTIVATIONS = ("silu", "swish")


def names(device: str) -> str:
    """The architectures served on ``device``, for messages."""
    return ", ".join(sorted(name for name, row in ARCHITECTURES.items() if device in row.devices))
