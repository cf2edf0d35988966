"""Values that a user gave SGLang, read off its command line."""

from __future__ import annotations

from collections.abc import Sequence

# What ktd gives SGLang on a host without a GPU; on one with a GPU SGLang takes what is left.
DEFAULT_KV_TOKENS = 65_536
CHUNK_FLAG = "--chunked-prefill-size"
TOKENS_FLAG = "--max-total-tokens"
KV_TYPE_FLAG = "--kv-cache-dtype"
SMALL_KV_TYPES = ("fp8", "fp4")
FRACTION_FLAG = "--mem-fraction-static"
NO_GRAPHS_FLAGS = ("--disable-cuda-graph", "--disable-decode-cuda-graph")
GRAPHS_FLAG = "--cuda-graph-backend-decode"
NO_GRAPHS = "disabled"
GRAPH_ROWS_FLAGS = ("--cuda-graph-max-bs", "--cuda-graph-max-bs-decode")
FIRST_GPU_FLAG = "--base-gpu-id"
GPU_STEP_FLAG = "--gpu-id-step"
# Tokens of a step of prefill where prompts are not cut into chunks.
PREFILL_FLAG = "--max-prefill-tokens"
DEFAULT_PREFILL = 16_384


def text_given(words: Sequence[str], flag: str) -> str | None:
    """The last value of ``flag``; None without one."""
    value = None
    for index, word in enumerate(words):
        name, equals, attached = word.partition("=")
        if name == flag:
            value = attached if equals else words[index + 1] if index + 1 < len(words) else None
    return value


def number_given(words: Sequence[str], flag: str) -> int | None:
    """The same as a whole number, also one below 0; None if it is no such number."""
    text = text_given(words, flag) or ""
    return int(text) if text.removeprefix("-").isdecimal() else None


def fraction_given(words: Sequence[str], flag: str) -> float | None:
    """The same as a number above 0 and up to 1; None if it is no such number."""
    try:
        value = float(text_given(words, flag) or "")
    except ValueError:
        return None
    return value if 0 < value <= 1 else None


def count_given(words: Sequence[str], flag: str, default: int) -> int:
    """The same where only a number above 0 says how many; ``default`` otherwise."""
    value = number_given(words, flag)
    return value if value is not None and value > 0 else default


def gpus_of(words: Sequence[str], ranks: int) -> range:
    """Ordinals of the ranks' GPUs, as SGLang gives them out."""
    first = max(0, number_given(words, FIRST_GPU_FLAG) or 0)
    step = count_given(words, GPU_STEP_FLAG, 1)
    return range(first, first + ranks * step, step)
