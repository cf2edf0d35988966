"""A tokenizer for generated models: any text goes in, every id comes out as text.

A token of a prompt is one byte of it. The other ids, which only a model writes, read as `` w4711``,
so that a stream shows something for each token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BYTES = 256
_SPACE = "Ġ"  # how byte-level tokenizers write a blank
_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes ``tokenizer.json``, ``tokenizer_config.json`` and ``generation_config.json``."""
    end, beginning = int(config["eos_token_id"]), int(config["bos_token_id"])
    special = {beginning: "<|endoftext|>"}
    special.setdefault(end, "<|im_end|>")
    vocabulary = _vocabulary(int(config["vocab_size"]), special)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, text in sorted(special.items())
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": special[end],
        "pad_token": special[beginning],
        "model_max_length": int(config["max_position_embeddings"]),
        "chat_template": _TEMPLATE,
    }
    ids = {"bos_token_id": beginning, "eos_token_id": end, "pad_token_id": beginning}
    for name, value in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", about),
        ("generation_config.json", ids),
    ):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _vocabulary(size: int, special: Mapping[int, str]) -> dict[str, int]:
    found = {text: number for number, text in special.items()}
    left = iter(_byte_letters())
    for number in range(size):
        if number not in special:
            found[next(left, f"{_SPACE}w{number}")] = number
    return found


def _byte_letters() -> list[str]:
    """The letter that stands for each byte: itself where it is printable, else one from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(_BYTES, 2 * _BYTES))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(_BYTES)]
