"""Host memory that a GPU's copy engines read directly, registered where it lies."""

from __future__ import annotations

import torch

from ktd.errors import CudaFailed

# Registering costs about so much of a GPU's memory for each GiB (measured; docs/results).
DEVICE_BYTES_PER_GIB = 2 << 20
_FLAGS = 1 | 2  # cudaHostRegisterPortable, cudaHostRegisterMapped
_ALREADY = 712  # cudaErrorHostMemoryAlreadyRegistered


def register(tensor: torch.Tensor) -> None:
    """Registers a contiguous CPU tensor's memory until the process ends.

    Its pages are to be there already: what is missing is made by one thread.

    Raises:
        CudaFailed: The driver refuses.
    """
    size = tensor.numel() * tensor.element_size()
    if size == 0:
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(runtime.cudaHostRegister(tensor.data_ptr(), size, _FLAGS))
    if status not in (0, _ALREADY):
        raise CudaFailed(
            f"{size / (1 << 30):.2f} GiB of host memory cannot be registered for the GPU: "
            f"cudaHostRegister says {status}; raise the limit on locked memory (ulimit -l) or free "
            "memory"
        )
