"""Makes SGLang's Marlin runner skip the id -1.

0.5.23 skips it as it is. 0.5.17 does only if it is given an expert map, of which it asks no more
than whether there is one; otherwise it reads an expert that does not exist.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch


def skips_by_itself() -> bool:
    """Whether the installed release needs no expert map for it."""
    from sglang.kernels.ops.moe.moe_wna16_marlin import moe_wna16_marlin_gemm

    # The release that defines the rows of -1 also counts them before it starts.
    return "has_inactive_prefix_count" in inspect.signature(moe_wna16_marlin_gemm).parameters


@dataclasses.dataclass(frozen=True, slots=True)
class MappedRunner:
    """SGLang's runner, told an expert map.

    Attributes:
        runner: SGLang's ``MoeRunner``.
        expert_map: int32, on the device.
    """

    runner: Any
    expert_map: torch.Tensor

    def run(self, dispatch_output: Any, quant_info: Any, *rest: Any, **named: Any) -> Any:
        """SGLang's ``run``."""
        mapped = dataclasses.replace(quant_info, expert_map=self.expert_map)
        return self.runner.run(dispatch_output, mapped, *rest, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


@dataclasses.dataclass(frozen=True, slots=True)
class MappedDispatcher:
    """SGLang's dispatcher, as the schemes see it that look for an expert map there.

    Attributes:
        dispatcher: SGLang's.
        local_expert_mapping: int32, on the device.
    """

    dispatcher: Any
    local_expert_mapping: torch.Tensor

    @property
    def num_experts(self) -> int:
        """How many the map has, for which MXFP4's method asks with it."""
        return len(self.local_expert_mapping)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dispatcher, name)
