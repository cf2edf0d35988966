"""Experts in another layout, any of whose nibbles may come from anywhere in an expert."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from ktd.cuda.arguments import Moves
from ktd.cuda.driver import Kernel, Module
from ktd.cuda.kernel_set import REARRANGE, cubin_of

NIBBLES = 8  # of a word
FIXED = -1
_THREADS = 256


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """One tensor of an expert in the layout it is to have. A byte's low nibble comes first.

    Attributes:
        places: int32 ``[words, 8]``: the nibble of the expert that becomes this one, or -1.
        fixed: int32 ``[words]``: nibbles that are the same in every expert; others are zero.
    """

    places: torch.Tensor
    fixed: torch.Tensor

    def apply(self, source: torch.Tensor, out: torch.Tensor) -> None:
        """Writes experts; on a GPU it is enqueued on the current stream.

        Args:
            source: ``[C, …]``, as they are; contiguous, on the same device.
            out: ``[C, …]``, of the rearrangement's words each; contiguous.

        Raises:
            ValueError: ``out`` has other sizes, or a tensor is not contiguous.
            CudaFailed: The kernel does not compile, or is not launched.
        """
        rows, words = source.shape[0], self.fixed.shape[0]
        if not (source.is_contiguous() and out.is_contiguous()):
            raise ValueError("experts that are laid out otherwise are contiguous")
        if out.shape[0] != rows or out.numel() * out.element_size() != rows * words * 4:
            raise ValueError(f"{tuple(out.shape)} does not hold {rows} experts of {words} words")
        if source.device.type != "cuda":
            _by_torch(self, source, out)
            return
        moves = Moves(
            source=source.data_ptr(),
            out=out.data_ptr(),
            places=self.places.data_ptr(),
            fixed=self.fixed.data_ptr(),
            source_pitch=source[0].numel() * source.element_size(),
            words=words,
            rows=rows,
        )
        major, minor = torch.cuda.get_device_capability(source.device)
        stream = torch.cuda.current_stream(source.device).cuda_stream
        _kernel(f"sm_{major}{minor}").launch(-(-words // _THREADS), _THREADS, stream, moves)


@cache
def _kernel(arch: str) -> Kernel:
    return Module(cubin_of(REARRANGE, arch)).kernel("ktd_rearrange")


def nibbles_of(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 ``[C, nibbles]`` of a contiguous ``[C, …]``."""
    found = tensor.reshape(tensor.shape[0], -1).view(torch.uint8)
    return torch.stack((found & 15, found >> 4), -1).view(tensor.shape[0], -1)


def bytes_of(nibbles: torch.Tensor) -> torch.Tensor:
    """The reverse: uint8 ``[C, bytes]``."""
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def _by_torch(moves: Rearrangement, source: torch.Tensor, out: torch.Tensor) -> None:
    places = moves.places.view(-1).long()
    found = nibbles_of(source)[:, places.clamp(min=0)]
    found[:, places < 0] = 0
    laid_out = bytes_of(found) | moves.fixed.view(torch.uint8)
    out.view(out.shape[0], -1).view(torch.uint8).copy_(laid_out)
