"""Keeps gpt-oss's experts on the host while they are loaded.

SGLang's class takes each tensor, all experts of a layer, to the GPU before it cuts out a rank's
part. Beside a store in host memory they would go there and back, read page by page from a mapping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class StayOnHost(TorchFunctionMode):
    """Tensors of weight files are not moved to a device.

    Args:
        is_view: Whether a tensor is a view of a weight file.
    """

    def __init__(self, is_view: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self._is_view = is_view

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        moves = func is torch.Tensor.cuda or (
            func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.device)
        )
        if moves and self._is_view(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))
