"""The platform class that :mod:`ktd.sgl.platform` names; imported by SGLang only when selected."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class _InTreePools:
    """SGLang 0.5.17 asks its platform for classes where 0.5.23 takes its own unless told.

    0.5.23 warns when it meets one of these names, so they exist only beside a base class that has
    no ``get_kv_pool_cls``. Imports wait for the call: a platform is made before pools exist.
    """

    def get_mha_kv_pool_cls(self) -> Any:
        """Keys and values of attention, in SGLang's own pool."""
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_mla_kv_pool_cls(self) -> Any:
        """Latents of multi-head latent attention, in SGLang's own pool."""
        from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

        return MLATokenToKVPool

    def get_paged_allocator_cls(self) -> Any:
        """Pages of those pools, from SGLang's own allocator."""
        from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator

        return PagedTokenToKVPoolAllocator


_BASES: tuple[type, ...] = (
    (SRTPlatform,) if hasattr(SRTPlatform, "get_kv_pool_cls") else (_InTreePools, SRTPlatform)
)
_Base: Any = type("_Base", _BASES, {})


class CpuPlatform(_Base):
    """A plain x86 host: everything SGLang would do on a device happens in host memory.

    ``get_device`` returns a string because SGLang 0.5.17 compares it with one. Methods that only
    0.5.17 or only 0.5.23 calls are marked; the contract tests fail by name when one disappears.
    """

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"

    # --- identity and memory -------------------------------------------------------------

    def get_device(self, device_id: int = 0) -> str:
        """``"cpu"``, whatever the index."""
        return "cpu"

    def set_device(self, device: Any) -> None:
        """There is only one device."""

    def get_device_name(self, device_id: int = 0) -> str:
        """``"cpu"``."""
        return "cpu"

    def get_device_uuid(self, device_id: int = 0) -> str:
        """``"cpu"``; there is only one."""
        return "cpu"

    def get_device_capability(self, device_id: int = 0) -> None:
        """CPUs have no compute capability."""

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Physical memory in bytes."""
        return int(psutil.virtual_memory().total)

    def get_current_memory_usage(self, device: torch.device | None = None) -> float:
        """Bytes of memory that are not available to a new process."""
        memory = psutil.virtual_memory()
        return float(memory.total - memory.available)

    def get_available_memory(self, device_id: int = 0) -> tuple[int, int]:
        """``(available, total)`` in bytes."""
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    def is_pin_memory_available(self, device: Any = None) -> bool:
        """Nothing here reads memory by DMA."""
        return False

    def empty_cache(self) -> None:
        """The host allocator keeps no cache of its own."""

    def synchronize(self) -> None:
        """Host work is done when its call returns."""

    # --- choices -------------------------------------------------------------------------

    def get_torch_distributed_backend_str(self) -> str:
        """Ranks on one host talk over gloo."""
        return "gloo"

    def get_communicator_class(self) -> None:
        """The process group's own collectives."""

    def get_default_attention_backend(self) -> str:
        """Attention from torch's scaled dot product."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Fused operators use their torch-native form."""
        return "native"

    def get_graph_runner_cls(self) -> None:
        """No graphs."""

    # --- SGLang 0.5.17 only --------------------------------------------------------------

    def support_cuda_graph(self) -> bool:
        """No graphs."""
        return False

    def support_piecewise_cuda_graph(self) -> bool:
        """No graphs."""
        return False
