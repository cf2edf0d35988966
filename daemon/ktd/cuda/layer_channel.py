"""The way between a GPU's steps and the pool: one layer's call at a time, without the host.

A layer enqueues ``split``, its GPU's part, and ``collect``. All three can be captured in a CUDA
graph: what changes from step to step is in device memory.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch

from ktd.cuda.arguments import STATE_BYTES, Channel, Routing, Sum
from ktd.cuda.driver import device_address
from ktd.cuda.kernel_set import KernelSet
from ktd.errors import CudaFailed
from ktd.experts import _native
from ktd.experts.pool import ExpertPool

_LINE = 64
_VECTOR = 8  # bf16 values in 16 bytes
_SPLIT_THREADS = 256
_ADD_THREADS = 512
_WARP = 32
# A larger collecting grid is divided, so that waiting never fills the GPU.
_WAITING_BLOCKS = 16
_BLOCKS_PER_PROCESSOR = 4
_REQUEST_OFFSET = 16  # of x, ids, weights and out in csrc/mailbox.h's Mailbox
_HIDDEN_OFFSET = 52
_NANOSECONDS = 1_000_000_000
# Between two beats of a pool's heart lies a worker's part of one expert, or the wait for others'.
GIVE_UP_S = 2.0


class ChannelError(IntEnum):
    """Why a layer's answer is missing; as ``kernels/channel.h`` numbers it."""

    NONE = 0
    POOL_SILENT = 1
    CALL_FAILED = 2
    BAD_EXPERT = 3
    LIMIT = 4


class Recorded(Protocol):
    """An event."""

    def record(self) -> None:
        """Behind everything that the current stream has."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceLayer:
    """One MoE layer on the device.

    Attributes:
        handle: The pool's; None if every expert is in a slot, then nothing is published and there
            is nothing to collect.
        table: int32 ``[E]``: the slot that holds an expert, or a step's own number for what else
            computes it on the device; -1: the pool does.
        counters: int64 ``[E, 2]`` (slot, CPU), grown by one per pair.
        decode_counters: The same for rows that decode a token; None: these are counted alike.
        map_padding: Rows of padding get slots too, for a runner that does not skip -1.
        resident: The table by which pairs are counted, where ``table`` is a step's own; None: it.
        seen: int16 ``[R, K']``: where the ids of a step's rows are left as they came, for rows that
            are there; rows of padding keep what they had. None: nowhere.
        deferred: So many experts of a token, those of the lowest weights, may be added to the next
            layer's sum instead, if the pool computes them. That changes what a model answers. 0
            where no layer with a handle follows in a step.
    """

    handle: int | None
    table: torch.Tensor
    counters: torch.Tensor
    decode_counters: torch.Tensor | None = None
    map_padding: bool = False
    resident: torch.Tensor | None = None
    seen: torch.Tensor | None = None
    deferred: int = 0


class LayerChannel:
    """One rank's channel, used by all of its layers in turn, from one stream.

    After an error no later call is published, and every later ``collect`` writes NaN at once: the
    engine is to be restarted.

    Args:
        pool: Answers the calls, whose one mailbox this is; its layers are ``hidden`` wide.
        hidden: Width of the hidden states, a multiple of 8.
        max_tokens: Rows of the largest batch.
        top_k: Experts of a token, at most.
        give_up_s: A pool whose heart stands still for so long is given up.
        limit_s: No answer is waited for any longer, however the pool's heart beats; None: it is.
        always: Publish every row and raise the flag though the pool has nothing to compute, and
            read every row of its answer, whatever is in it: to measure the way, not to compute.
        told: Address of a word of registered host memory, 0 at first, for the error; None: one of
            its own.

    Raises:
        CudaFailed: The kernels do not compile, or memory is not mapped.
    """

    def __init__(
        self,
        pool: ExpertPool,
        *,
        hidden: int,
        max_tokens: int,
        top_k: int,
        give_up_s: float = GIVE_UP_S,
        limit_s: float | None = None,
        always: bool = False,
        told: int | None = None,
    ) -> None:
        if hidden % _VECTOR:
            raise ValueError(f"hidden must be a multiple of {_VECTOR}, not {hidden}")
        self._hidden = hidden
        self._max_tokens = max_tokens
        self._top_k = top_k
        device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self._most_blocks = _BLOCKS_PER_PROCESSOR * properties.multi_processor_count
        self._state = torch.zeros(STATE_BYTES, dtype=torch.uint8, device=device)
        self._row_marks = torch.zeros(2, max_tokens, dtype=torch.uint8, device=device)
        self._kernels = KernelSet(f"sm_{properties.major}{properties.minor}")
        self._box = _pinned(_native.MAILBOX_BYTES + _LINE, torch.uint8)
        self._x = _pinned(max_tokens * hidden, torch.bfloat16)
        self._ids = _pinned(max_tokens * top_k, torch.int32)
        self._weights = _pinned(max_tokens * top_k, torch.float32)
        self._answer = _pinned(max_tokens * hidden, torch.float32)
        told = self._box.data_ptr() + _native.MAILBOX_BYTES if told is None else told
        self._told = ctypes.c_uint32.from_address(told)
        request = (ctypes.c_uint64 * 4).from_address(self._box.data_ptr() + _REQUEST_OFFSET)
        request[:] = [t.data_ptr() for t in (self._x, self._ids, self._weights, self._answer)]
        ctypes.c_uint32.from_address(self._box.data_ptr() + _HIDDEN_OFFSET).value = hidden
        box = device_address(self._box.data_ptr())
        self._arguments = Channel(
            state=self._state.data_ptr(),
            row_ours=self._row_marks[0].data_ptr(),
            row_late=self._row_marks[1].data_ptr(),
            box=box,
            told=device_address(told),
            x=device_address(self._x.data_ptr()),
            ids=device_address(self._ids.data_ptr()),
            weights=device_address(self._weights.data_ptr()),
            answer=device_address(self._answer.data_ptr()),
            give_up_ns=int(give_up_s * _NANOSECONDS),
            limit_ns=int((limit_s or 0) * _NANOSECONDS),
            hidden=hidden,
            always=int(always),
        )
        # The state's zeros were written on this stream; the steps may run on another.
        torch.cuda.synchronize(device)
        self._mailbox: _native.Mailbox | None = _native.Mailbox(pool.native, self._box.data_ptr())

    def __del__(self) -> None:
        """The thread that answers ends before its memory does, whatever comes first here."""
        self.__dict__.pop("_mailbox", None)

    def begin_step(self) -> None:
        """Wake the pool: a step is about to be launched, or a graph replayed."""
        self._server().begin_step()

    def end_step(self) -> None:
        """Let the pool sleep, unless other steps run: one that was launched has finished."""
        self._server().end_step()

    def split(
        self,
        layer: DeviceLayer,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        num_tokens: torch.Tensor | None = None,
        *,
        first_decode_row: int = 0,
        defer: bool = True,
    ) -> torch.Tensor:
        """Divide a layer's routing, count it, and publish the pool's share.

        An id outside ``[-1, E)`` is computed nowhere and sets the error word.

        Args:
            layer: The layer.
            x: bf16 ``[T, H]``.
            ids: int32 or int64 ``[T, K]``; -1: nowhere, not counted.
            weights: float32 ``[T, K]``.
            num_tokens: int32, one value on the device: rows from it on are padding, which is
                neither computed nor counted. None: no row is.
            first_decode_row: Rows from it on are counted as decoding; part of a captured graph.
            defer: Whether experts of a layer that defers some may be late; part of a graph too.

        Returns:
            int32 ``[T, K]``: of each pair what the table has, -1 also for what is nowhere.

        Raises:
            ValueError: An argument is not as described, or the batch is too large.
        """
        rows, top_k = ids.shape
        self._check_rows(rows)
        if top_k > self._top_k:
            raise ValueError(f"a token has {top_k} experts, the channel was made for {self._top_k}")
        wide = ids.dtype == torch.int64
        experts = layer.table.shape[0]
        _check(ids, "ids", torch.int64 if wide else torch.int32, (rows, top_k))
        _check(weights, "weights", torch.float32, (rows, top_k))
        _check(x, "x", torch.bfloat16, (rows, self._hidden))
        _check(layer.table, "the table", torch.int32, (experts,))
        _check(layer.counters, "the counters", torch.int64, (experts, 2))
        decode_counters = layer.decode_counters
        if decode_counters is None:
            decode_counters = layer.counters
        else:
            _check(decode_counters, "the decode counters", torch.int64, (experts, 2))
        resident = layer.table if layer.resident is None else layer.resident
        _check(resident, "the table that counts", torch.int32, (experts,))
        seen = None if layer.seen is None else layer.seen[:rows]
        if seen is not None:
            _check(seen, "what was seen", torch.int16, (rows, seen.shape[1]))
            if top_k > seen.shape[1]:
                raise ValueError(f"a token has {top_k} experts, room is for {seen.shape[1]}")
        slots = torch.empty(rows, top_k, dtype=torch.int32, device=self._device)
        if rows == 0:
            return slots
        routing = Routing(
            ids=ids.data_ptr(),
            weights=weights.data_ptr(),
            x=x.data_ptr(),
            table=layer.table.data_ptr(),
            resident=resident.data_ptr(),
            counters=layer.counters.data_ptr(),
            decode_counters=decode_counters.data_ptr(),
            num_tokens=_count_address(num_tokens),
            slots=slots.data_ptr(),
            seen=0 if seen is None else seen.data_ptr(),
            layer=-1 if layer.handle is None else layer.handle,
            rows=rows,
            top_k=top_k,
            num_experts=experts,
            first_decode_row=first_decode_row,
            map_padding=int(layer.map_padding),
            seen_width=0 if seen is None else seen.shape[1],
            deferred=layer.deferred if defer and rows < _native.LONG_CALL else 0,
        )
        kernel = self._kernels.split_int64 if wide else self._kernels.split_int32
        blocks = min(rows, self._most_blocks)
        kernel.launch(blocks, _SPLIT_THREADS, self._stream(), self._arguments, routing)
        return slots

    def collect(
        self,
        out: torch.Tensor,
        num_tokens: torch.Tensor | None = None,
        *,
        add: bool = True,
        answered: Recorded | None = None,
    ) -> None:
        """Wait for the answer to the last ``split`` and add it, in float32, to ``out``.

        Without an answer the rows become NaN and the error word says why. Rows of padding stay as
        they are.

        Args:
            out: bf16 ``[T, H]``, what the slots computed.
            num_tokens: As given to ``split``.
            add: False: the layer has no slots, so ``out`` holds nothing and is written completely,
                with zeros where nobody computes.
            answered: Recorded when the answer is there, before it is added; of a few rows, which
                one kernel waits for and adds, behind that.

        Raises:
            ValueError: An argument is not as described, or the batch is too large.
        """
        rows = out.shape[0]
        self._check_rows(rows)
        _check(out, "out", torch.bfloat16, (rows, self._hidden))
        if rows == 0:
            return
        total = Sum(
            out=out.data_ptr(), num_tokens=_count_address(num_tokens), rows=rows, add=int(add)
        )
        blocks = -(-rows * self._hidden // (_VECTOR * _ADD_THREADS))
        stream = self._stream()
        if blocks <= _WAITING_BLOCKS:
            threads = _ADD_THREADS + _WARP  # the last warp waits
            self._kernels.collect.launch(blocks, threads, stream, self._arguments, total)
            if answered is not None:
                answered.record()
            return
        self._kernels.wait.launch(1, _WARP, stream, self._arguments)
        if answered is not None:
            answered.record()
        blocks = min(blocks, self._most_blocks)
        self._kernels.add.launch(blocks, _ADD_THREADS, stream, self._arguments, total)

    @property
    def error(self) -> ChannelError:
        """The first error of the steps that have finished; it stays."""
        return ChannelError(self._told.value)

    def long_seconds(self) -> float:
        """What calls of 256 tokens and more have taken so far."""
        return self._server().long_seconds

    def check(self) -> None:
        """Look at the error word, once a step, before its results are used.

        Raises:
            CudaFailed: It is set.
        """
        error = self.error
        if error is ChannelError.NONE:
            return
        raise CudaFailed(
            f"a layer has no answer: {self._reason(error)}; the engine must be restarted"
        )

    def close(self) -> None:
        """Wait for what is enqueued and stop answering; layers that come after it find no pool."""
        torch.cuda.synchronize(self._device)
        self._mailbox = None

    def _reason(self, error: ChannelError) -> str:
        match error:
            case ChannelError.POOL_SILENT:
                seconds = self._arguments.give_up_ns / _NANOSECONDS
                return f"the CPU pool's heart has stood still for {seconds:g} s"
            case ChannelError.CALL_FAILED:
                said = self._mailbox.last_failure if self._mailbox else "its channel is closed"
                return f"the CPU pool failed ({said})"
            case ChannelError.BAD_EXPERT:
                return "the router chose an expert that the layer does not have"
            case _:
                return "the CPU pool took longer than the limit"

    def _server(self) -> _native.Mailbox:
        if self._mailbox is None:
            raise ValueError("the channel is closed")
        return self._mailbox

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream

    def _check_rows(self, rows: int) -> None:
        if rows > self._max_tokens:
            raise ValueError(f"a batch of {rows} rows: the channel was made for {self._max_tokens}")


def _pinned(size: int, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.zeros(max(size, 1), dtype=dtype, device="cpu", pin_memory=True)
    if tensor.data_ptr() % _LINE:
        raise CudaFailed(f"pinned memory is at {tensor.data_ptr():#x}, no multiple of {_LINE}")
    return tensor


def _count_address(num_tokens: torch.Tensor | None) -> int:
    if num_tokens is None:
        return 0
    if not (num_tokens.is_cuda and num_tokens.dtype == torch.int32 and num_tokens.numel() == 1):
        raise ValueError(
            f"num_tokens must be one int32 on the device, not {num_tokens.dtype} of shape "
            f"{list(num_tokens.shape)} on {num_tokens.device}"
        )
    return num_tokens.data_ptr()


def _check(tensor: torch.Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what is no contiguous tensor of this dtype and shape on a GPU, at 16 bytes if bf16."""
    aligned = dtype != torch.bfloat16 or tensor.data_ptr() % 16 == 0
    fits = tensor.is_cuda and tensor.is_contiguous() and tuple(tensor.shape) == shape and aligned
    if not (fits and tensor.dtype == dtype):
        order = "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise ValueError(
            f"{name} must be a contiguous {dtype} tensor of shape {list(shape)} on the GPU"
            f"{', at a multiple of 16 bytes' if not aligned else ''}, not {order} {tensor.dtype} "
            f"of shape {list(tensor.shape)} on {tensor.device}"
        )
