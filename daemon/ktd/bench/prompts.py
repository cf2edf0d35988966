"""Prompts of an exact number of tokens, for a model in a folder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ktd.errors import ConfigError


class Prompts:
    """Random token ids, each prompt another one, so that no server finds it in its cache.

    Args:
        vocabulary: Ids of the model; the lowest eighth and the upper half, where special tokens
            are, are not used.
        seed: Of everything.
    """

    def __init__(self, vocabulary: int, seed: int) -> None:
        self._ids = range(vocabulary // 8, vocabulary // 2)
        self._random = random.Random(seed)  # noqa: S311 - no secret

    @classmethod
    def of_model(cls, folder: Path, seed: int) -> Prompts:
        """For the model in ``folder``.

        Raises:
            ConfigError: Its configuration does not say how many ids there are.
        """
        try:
            config: Any = json.loads((folder / "config.json").read_text())
            inner = config.get("text_config") or config
            return cls(int(inner["vocab_size"]), seed)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{folder}/config.json does not say how many tokens the model knows; name the "
                "folder of a model"
            ) from error

    def tokens(self, count: int) -> list[int]:
        """The next prompt, of ``count`` tokens."""
        return self._random.choices(self._ids, k=count)
