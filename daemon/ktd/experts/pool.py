"""The native pool for torch tensors: checks what the extension takes on trust.

The extension borrows memory by address. Here every tensor's device, dtype, shape and contiguity is
checked first, and the weights are kept alive.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ktd.errors import ConfigError
from ktd.experts import _native
from ktd.experts.scattered import ExpertTensor
from ktd.experts.weights import ExpertWeights

_log = logging.getLogger(__name__)

# Dimensions of a tensor of experts' matrices.
_MATRIX = 3


@dataclass(frozen=True, slots=True)
class Split:
    """One step's routing, divided.

    Attributes:
        slots: int32 ``[T, K]``: the slot of each pair, -1 where the CPU computes or nothing is.
        cpu_ids: int32 ``[T, K]``: the expert of each pair that the CPU computes, else -1.
        in_slots: Pairs in slots.
        on_cpu: Pairs for the CPU.
    """

    slots: torch.Tensor
    cpu_ids: torch.Tensor
    in_slots: int
    on_cpu: int


class ExpertPool:
    """Computes this rank's experts on its CPU cores.

    One call at a time computes, a second caller waits. Unusable in a forked child.

    Args:
        threads: Threads that compute, the caller of ``forward`` included; 0: one for each physical
            core that this process may use, or, with ``cpus``, one for each of these.
        isa: Kernel to use; "" takes ``KTD_ISA`` from the environment, else the best.
        cpus: CPUs to pin to; the first is the caller's. Empty: the cores of ``threads=0``.
        spin_us: Microseconds that a thread without work spins before it sleeps; None: about as
            long as waking it takes.

    Raises:
        ConfigError: An unknown ISA, or one that this CPU lacks; a CPU that may not be used.
    """

    def __init__(
        self,
        *,
        threads: int = 0,
        isa: str = "",
        cpus: Sequence[int] = (),
        spin_us: int | None = None,
    ) -> None:
        spin = {} if spin_us is None else {"spin_us": spin_us}
        try:
            self._native = _native.Pool(threads, isa, list(cpus), **spin)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"the CPU expert pool cannot be made: {error}") from error
        self._layers: list[ExpertWeights] = []
        # Whether a caller of forward() waits for its answer.
        self.computing = False
        _log.info("CPU expert pool: %s kernels, %d threads", self.isa, self.threads)
        if self._native.note:
            _log.warning("%s", self._native.note)

    @property
    def isa(self) -> str:
        """Name of the kernels in use."""
        return self._native.isa

    @property
    def threads(self) -> int:
        """Threads that compute, the caller included."""
        return self._native.threads

    def place(self, tensor: torch.Tensor, parts: int = 1) -> None:
        """Make a layer's fresh memory appear, in parallel, on the NUMA nodes that will read it.

        Args:
            tensor: ``[E, parts * rows, ...]``, contiguous; its contents stay as they are.
            parts: Matrices that an expert's rows consist of: 2 for gate rows and then up rows.
        """
        if tensor.dim() < _MATRIX or tensor.numel() == 0:
            return
        experts, rows = tensor.shape[:2]
        if rows % parts:
            parts = 1
        row_bytes = tensor[0, 0].numel() * tensor.element_size()
        self._native.place(tensor.data_ptr(), experts, parts, rows // parts, row_bytes)

    @property
    def bytes_read(self) -> int:
        """Bytes of experts' weights that all calls so far have read, each expert once a call."""
        return self._native.bytes_read

    @property
    def native(self) -> _native.Pool:
        """The extension's pool, for callers that have addresses."""
        return self._native

    def add_layer(self, weights: ExpertWeights) -> int:
        """Register one layer's weights, which must not move or be freed; they are kept alive.

        Returns:
            The layer's handle: 0, 1, ... in the order of the calls.

        Raises:
            ValueError: A tensor is not as the format wants it, or the kernels in use do not compute
                the format.
        """
        weights.check()
        activation = weights.activation
        add_layer = self._native.add_layer
        if scattered := weights.scattered:
            add_layer = partial(add_layer, scattered=scattered)
        layer = add_layer(
            weights.num_experts,
            weights.hidden,
            weights.intermediate,
            _address(weights.w13),
            _address(weights.w2),
            format=weights.format.value,
            group=weights.group,
            scale_type=weights.scale_type,
            w13_scale=_address(weights.w13_scale),
            w2_scale=_address(weights.w2_scale),
            w13_zeros=_address(weights.w13_zeros),
            w2_zeros=_address(weights.w2_zeros),
            w13_bias=_address(weights.w13_bias),
            w2_bias=_address(weights.w2_bias),
            interleaved=weights.interleaved,
            activation=activation.kind.value,
            alpha=activation.alpha,
            limit=activation.limit,
            beta=activation.beta,
            routed_scale=weights.routed_scale,
            weights_before_input=weights.weights_before_input,
        )
        self._layers.append(weights)
        return layer

    def forward(
        self,
        layer: int,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the weighted sum of this side's experts.

        Args:
            layer: A handle of ``add_layer``.
            x: bf16 ``[T, H]``.
            ids: int32 ``[T, K]``; -1: not this side's.
            weights: float32 ``[T, K]``.
            out: float32 ``[T, H]`` to write; made if None.

        Returns:
            ``out``: zeros where no expert of this side was chosen.

        Raises:
            ValueError: An argument is not as described, or names an expert that does not exist.
            RuntimeError: A task failed; the message names layer and expert.
        """
        if not 0 <= layer < len(self._layers):
            raise ValueError(f"there is no layer with handle {layer}: {len(self._layers)} exist")
        hidden = self._layers[layer].hidden
        _check(x, "x", torch.bfloat16, (None, hidden))
        tokens = x.shape[0]
        _check(ids, "ids", torch.int32, (tokens, None))
        top_k = ids.shape[1]
        _check(weights, "weights", torch.float32, (tokens, top_k))
        if out is None:
            out = torch.empty(tokens, hidden, dtype=torch.float32)
        else:
            _check(out, "out", torch.float32, (tokens, hidden))
        self.computing = True
        try:
            self._native.forward(
                layer,
                x.data_ptr(),
                ids.data_ptr(),
                weights.data_ptr(),
                out.data_ptr(),
                tokens,
                top_k,
            )
        finally:
            self.computing = False
        return out


def split(
    ids: torch.Tensor, table: torch.Tensor, counters: torch.Tensor | int | None = None
) -> Split:
    """Divide one step's routing between slots and the CPU; each pair goes to one side.

    Args:
        ids: int32 or int64 ``[T, K]``; -1 is padding, which goes nowhere and is not counted.
        table: int32 ``[E]``: the slot that holds an expert, or -1.
        counters: uint64 or int64 ``[E, 2]`` (slot, CPU), grown by one per pair; None: not counted;
            a number: the address of such memory, for who counts in every step.

    Raises:
        ValueError: An argument is not as described, or an id is outside ``[-1, E)``; nothing is
            counted then.
    """
    _check(table, "table", torch.int32, (None,))
    experts = table.shape[0]
    wide = ids.dtype == torch.int64
    _check(ids, "ids", torch.int64 if wide else torch.int32, (None, None))
    if isinstance(counters, torch.Tensor):
        signed = counters.dtype == torch.int64
        _check(counters, "counters", torch.int64 if signed else torch.uint64, (experts, 2))
        counters = counters.data_ptr()
    tokens, top_k = ids.shape
    slots = torch.empty(tokens, top_k, dtype=torch.int32)
    cpu_ids = torch.empty(tokens, top_k, dtype=torch.int32)
    in_slots, on_cpu = _native.split(
        ids.data_ptr(),
        wide,
        table.data_ptr(),
        slots.data_ptr(),
        cpu_ids.data_ptr(),
        counters or 0,
        tokens,
        top_k,
        experts,
    )
    return Split(slots, cpu_ids, in_slots, on_cpu)


def _address(tensor: ExpertTensor | None) -> int:
    """Where a tensor begins; 0 for one that is not there, or scattered."""
    return tensor.data_ptr() if isinstance(tensor, torch.Tensor) else 0


def _check(
    tensor: torch.Tensor, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]
) -> None:
    """Refuse a tensor that is not a contiguous CPU tensor of this dtype and shape (None: any)."""
    fits = len(shape) == tensor.dim() and all(
        wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not (fits and tensor.dtype == dtype and tensor.is_contiguous() and tensor.is_cpu):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        order = "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise ValueError(
            f"{name} must be a contiguous {dtype} CPU tensor of shape [{sizes}], not {order} "
            f"{tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}"
        )
