"""Whether a checkpoint is quantised, and what a process of SGLang does about it before it looks."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ktd.enginespec import EngineSpec


class ReleaseTooOld(Exception):  # says what happened
    """This SGLang keeps its quantisation elsewhere; the sentence says which one does not."""


def prepare(spec: EngineSpec) -> None:
    """Registers ktd's configurations of quantised checkpoints, if this process will want one.

    Raises:
        ReleaseTooOld: SGLang has not the classes that they are made of.
    """
    model = Path(spec.model_path)
    if spec.device != "cpu":
        if _mentions(model, "compressed-tensors"):
            from ktd.sgl import int8_experts

            int8_experts.register()
        return
    if not _mentions(model, "quantization_config"):
        return
    try:
        # Imports most of SGLang, which an unquantised checkpoint does not need this early.
        from ktd.sgl import cpu_quantisation
    except ImportError as error:
        raise ReleaseTooOld(
            f"quantised experts without a GPU need SGLang 0.5.23, and {version('sglang')} is "
            f"installed ({error})"
        ) from error
    cpu_quantisation.register()


def _mentions(model: Path, word: str) -> bool:
    try:
        return word in (model / "config.json").read_text()
    except OSError:
        return False
