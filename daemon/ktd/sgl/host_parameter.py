"""Host memory that stands in for a parameter of SGLang's, in the same layout."""

from __future__ import annotations

import torch
from torch import nn


class HostParameter:
    """Host memory in the parameter's own layout, which SGLang's loader writes into."""

    def __init__(self, meta: nn.Parameter, tensor: torch.Tensor) -> None:
        self._parameter = like(meta, tensor)

    @property
    def tensor(self) -> torch.Tensor:
        """The memory."""
        return self._parameter.data

    def begin(self, _shard: str | None) -> nn.Parameter:
        """The memory itself."""
        return self._parameter

    def arrived(self, parameter: nn.Parameter, expert: int | None, shard: str | None) -> None:
        """It is where it belongs."""

    def end(self) -> None:
        """Nothing was taken."""

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """One."""
        return {name: self._parameter.data}


def like(meta: nn.Parameter, tensor: torch.Tensor) -> nn.Parameter:
    """``tensor`` as a parameter that has what SGLang keeps as attributes of ``meta``."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    for attribute, value in vars(meta).items():
        setattr(parameter, attribute, value)
    return parameter
