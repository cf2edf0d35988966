"""Types of the native extension (csrc/bindings.cpp).

Every address is an int that points at memory of the caller, which stays valid until the call (or,
after ``submit``, the ``wait``) has returned; the weights given to ``add_layer`` stay valid for as
long as the pool. Addresses must be aligned to their element's size, nothing more. The GIL is
released while anything is computed. A wrong argument raises ValueError with one sentence, and
nothing has been written then.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

class IsaInfo(TypedDict):
    """One row of the kernel table, best first."""

    name: str
    required: list[str]
    missing: list[str]
    supported: bool

def isas() -> list[IsaInfo]: ...

MAILBOX_BYTES: int
LONG_CALL: int

def watch_mapping(address: int, size: int, report: str, text: str) -> None:
    """Watches a mapped file for the life of the process.

    Whoever reads a page there that the file has lost ends the process by SIGBUS, as ever; ``text``
    is written into the file ``report`` first, unless that exists.
    """

def cpu_quota() -> float:
    """CPUs' worth of time that the process's cgroups give it; infinite without a limit."""

class SlotCopies:
    """Copies of a batch of experts into slots (csrc/slot_copies.h); of one thread at a time.

    Args:
        copies: int64 ``[N, 3]``: addresses of destination and source, and bytes, of memory that
            outlives this object.
        piece: Bytes of one copy at most.
        streams: Where CUDA's driver enqueues them from registered memory: on the first, or in turn
            where the driver takes one copy at a time. All begin behind what the first has now,
            which goes on when all are done. None: copied at once.
        most_ahead: Bytes that are in flight there before the thread waits.
        together: Copies that the driver is given in one call, if it takes several; with a rate,
            each comes when it is due.

    Raises:
        RuntimeError: There is no driver.
    """

    def __init__(
        self,
        copies: NDArray[np.int64],
        piece: int,
        *,
        streams: Sequence[int] = (),
        most_ahead: int = 67108864,
        together: int = 64,
    ) -> None: ...
    def run(self, seconds: float, rate: float = 0.0) -> int:
        """Goes on for about so long, and returns the bytes of that.

        Args:
            seconds: Of one turn.
            rate: Bytes a second; 0: no limit.

        Raises:
            RuntimeError: The driver refuses a copy, or reports what failed earlier.
        """

    def finish(self) -> None:
        """No more turns follow: the first stream waits for what the others have."""

    @property
    def done(self) -> bool:
        """Everything is copied, or enqueued, and has taken its time."""

class Mailbox:
    """Answers one layer's call at a time through memory that a device writes (csrc/mailbox.h).

    Args:
        pool: Computes the calls; kept alive.
        address: ``MAILBOX_BYTES`` zeroed bytes at a multiple of 64, which outlive this object.
    """

    def __init__(self, pool: Pool, address: int) -> None: ...
    def begin_step(self) -> None:
        """A step that may use the mailbox is about to be launched."""

    def end_step(self) -> None:
        """One that was launched has finished."""

    @property
    def last_failure(self) -> str:
        """What the last call that failed said, or ""."""

    @property
    def long_seconds(self) -> float:
        """What calls of at least 256 tokens have taken so far."""

    @property
    def long_bytes(self) -> int:
        """Bytes of weights that these have read, each expert once a call."""

class Pool:
    """A persistent thread pool that computes Mixture-of-Experts layers from host memory.

    One call at a time computes; a second caller waits. A pool is of no use in a forked child and
    says so there.

    Args:
        threads: Threads that compute, the caller of ``forward`` included. 0: one for each physical
            core that this process may use, or, with ``cpus``, one for each of these.
        isa: Name of a row of ``isas()``; "" takes KTD_ISA from the environment, else the best.
        cpus: CPUs to pin to; worker ``i`` runs on ``cpus[i % len(cpus)]``. The first is the
            caller's and is not imposed on it. Empty: the cores of ``threads=0``, in order.
        spin_us: How long a worker without work spins before it sleeps; None: about as long as
            waking it takes.

    Raises:
        ValueError: An unknown ISA, one that this CPU lacks (named, with what is missing), a CPU
            that this process may not use, a negative count.
    """

    def __init__(
        self,
        threads: int = 0,
        isa: str = "",
        cpus: Sequence[int] = ...,
        spin_us: int | None = None,
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def cpus(self) -> list[int]: ...
    @property
    def nodes(self) -> list[int]:
        """NUMA nodes whose memory the workers read; ``[-1]`` where the kernel tells of none."""

    @property
    def note(self) -> str:
        """What an operator should know about the number of threads, or ""."""

    def place(self, address: int, experts: int, parts: int, rows: int, row_bytes: int) -> None:
        """Makes the pages of a layer's fresh tensor appear where its rows will be computed.

        ``experts`` times ``parts`` matrices of ``rows`` rows lie at ``address``, one after the
        other. What is in them stays.
        """
    def add_layer(
        self,
        num_experts: int,
        hidden: int,
        intermediate: int,
        w13: int,
        w2: int,
        *,
        format: str = "bf16",  # noqa: A002 - as the extension calls it
        group: int = 0,
        scale_type: str = "",
        w13_scale: int = 0,
        w2_scale: int = 0,
        w13_zeros: int = 0,
        w2_zeros: int = 0,
        w13_bias: int = 0,
        w2_bias: int = 0,
        interleaved: bool = False,
        activation: str = "swish",
        alpha: float = 1.0,
        limit: float = ...,
        beta: float = 0.0,
        routed_scale: float = 1.0,
        weights_before_input: bool = False,
        scattered: Mapping[str, Sequence[tuple[int, int]]] = ...,
    ) -> int:
        """Borrow one layer's weights and return its handle (0, 1, ...).

        Args:
            num_experts: E.
            hidden: H.
            intermediate: I (this rank's shard).
            w13: ``[E, 2 * I, H]`` in the format's layout: I gate rows, then I up rows.
            w2: ``[E, H, I]`` in the format's layout.
            format: A name of ``ktd.experts.weights.WeightFormat``, which gives the layouts.
            group: Inputs under one scale, where the format leaves it open.
            scale_type: ``"float32"``, ``"bf16"``, ``"float16"``, ``"e8m0"``; ``""``: no scales.
            w13_scale: 0, or as the format wants it.
            w2_scale: The same.
            w13_zeros: The same.
            w2_zeros: The same.
            w13_bias: bf16 ``[E, 2 * I]``, or 0.
            w2_bias: bf16 ``[E, H]``, or 0.
            interleaved: Gate and up rows alternate.
            activation: A name of ``ktd.experts.weights.ActivationKind``.
            alpha: See ``ktd.experts.weights.Activation``.
            limit: The same.
            beta: The same.
            routed_scale: Multiplies every router weight.
            weights_before_input: The router weight multiplies gate and up, not the output.
            scattered: By the name of a tensor above that is given as 0: address and pitch of the
                lines of each projection, gate and up of every expert in turn, or down.

        Raises:
            ValueError: Sizes or tensors that the format cannot have, or a format that the kernels
                in use do not compute.
        """

    def forward(
        self, layer: int, x: int, ids: int, weights: int, out: int, tokens: int, top_k: int
    ) -> int:
        """Compute this side's share of one MoE layer into ``out``.

        ``out[t] = sum_k weights[t, k] * w2[ids[t, k]] @ bf16(silu(gate) * up)`` in float32, with
        ``gate, up = w13[ids[t, k]] @ x[t]`` in float32. A token's result does not depend on the
        number of threads, nor on the other tokens, except with AMX, where experts with many tokens
        are computed by tiles (``many_from``), whose sums are added in another order. NaN
        propagates.

        Args:
            layer: A handle of ``add_layer``.
            x: bf16 ``[T, H]``.
            ids: int32 ``[T, K]``; -1 is not this side's. Others outside ``[0, E)`` are refused.
            weights: float32 ``[T, K]``.
            out: float32 ``[T, H]``, completely written: zeros where nothing is this side's. May
                not overlap an input.
            tokens: T, from 0.
            top_k: K, from 1.

        Returns:
            Bytes of the distinct experts' weights that were read.

        Raises:
            RuntimeError: A task failed; the message names layer and expert. ``out`` is undefined,
                the pool goes on working.
        """

    def submit(
        self, layer: int, x: int, ids: int, weights: int, out: int, tokens: int, top_k: int
    ) -> int:
        """Start ``forward`` on a thread of the pool; returns the ticket for ``wait``."""

    def wait(self, ticket: int) -> int:
        """Wait for a submitted forward; returns or raises what ``forward`` would. Once a ticket."""

    def heartbeat_address(self) -> int:
        """Address of a uint64 that grows while a call makes progress; lives with the pool."""

    def many_from(self, format: str) -> int:  # noqa: A002 - as the extension calls it
        """From how many tokens of an expert on its many-token kernel is used, as measured here.

        Args:
            format: A name of ``ktd.experts.weights.WeightFormat``.

        Returns:
            0 before the first layer of the format.
        """

    def log_calls(self, address: int, records: int) -> None:
        """Adds every call that reads weights to a ring, from now on (csrc/call_log.h).

        Args:
            address: Of one uint64 that counts them, and behind it so many records of four each:
                begin and end in nanoseconds of CLOCK_MONOTONIC, bytes of weights, tokens. Outlives
                the pool.
            records: At least one.
        """

    @property
    def calls(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...

def split(
    ids: int,
    ids_are_int64: bool,
    table: int,
    slots_out: int,
    cpu_ids_out: int,
    counters: int,
    tokens: int,
    top_k: int,
    num_experts: int,
) -> tuple[int, int]:
    """Split one step's routing between slots and CPU: the CPU twin of the CUDA split kernel.

    Args:
        ids: int32 or int64 ``[T, K]``; -1 is padding: -1 in both outputs, not counted.
        ids_are_int64: Which of the two.
        table: int32 ``[E]``: the slot that holds an expert, or -1.
        slots_out: int32 ``[T, K]``: ``table[id]``, -1 where the CPU computes.
        cpu_ids_out: int32 ``[T, K]``: ``id`` where the CPU computes, else -1.
        counters: uint64 ``[E, 2]`` (slot, CPU), grown by one per pair; 0: nothing is counted.
        tokens: T.
        top_k: K.
        num_experts: E.

    Returns:
        Pairs in slots, pairs for the CPU.

    Raises:
        ValueError: An id outside ``[-1, E)``; nothing was written or counted.
    """

class PeakInfo(TypedDict):
    """One arithmetic unit whose peak can be measured, the slowest instruction set first."""

    name: str
    required: list[str]
    missing: list[str]
    supported: bool

def peaks() -> list[PeakInfo]: ...

class Ceilings:
    """Samples of what this host can do at best, on threads of their own (csrc/ceilings).

    Args:
        bytes: Memory to map and read; several times the last-level cache.
        cpus: CPUs to pin to, one thread each. Empty: one of each physical core that this thread may
            use, as a pool takes them.

    Raises:
        ValueError: Too few bytes.
        RuntimeError: A CPU that this process may not use.
        MemoryError: The bytes cannot be mapped.
    """

    def __init__(self, bytes: int, cpus: Sequence[int] = ...) -> None: ...  # noqa: A002
    @property
    def threads(self) -> int: ...
    def read_rate(
        self,
        threads: int,
        seconds: float,
        ahead: int,
        slice: float,  # noqa: A002
    ) -> tuple[float, float, float]:
        """Bytes a second of ``threads`` that read for ``seconds`` and do not wait for each other.

        Args:
            threads: From 1 to ``self.threads``.
            seconds: At most 2.
            ahead: Bytes between a load and its prefetch.
            slice: Seconds of a slice of time.

        Returns:
            The median over slices, which what other work takes away now and then does not lower;
            the mean over the whole time; the share of that time in which the threads had a core.
        """

    def read_passes(self, threads: int, bytes: int, seconds: float, ahead: int) -> list[float]:  # noqa: A002
        """Seconds of each pass over ``bytes``, shared evenly, the last thread ending the pass."""

    def peak_rate(
        self,
        name: str,
        threads: int,
        seconds: float,
        slice: float,  # noqa: A002
    ) -> tuple[float, float, float]:
        """Operations a second (a multiply-add is two) of one row of ``peaks()``.

        Returns:
            As of ``read_rate``.

        Raises:
            ValueError: An unknown name, or one that this CPU lacks the instructions for.
        """

    def core_hz(self, seconds: float) -> float:
        """Cycles a second of one core while it computes."""

def quantise(
    source: int,
    source_format: str,
    source_scale: int,
    rows: int,
    columns: int,
    format: str,  # noqa: A002 - as the extension calls it
    weights: int,
    scale: int,
    threads: int = 1,
) -> None:
    """Quantise one matrix of a checkpoint, row by row; ``csrc/quantise/quantise.h`` has the error.

    Args:
        source: ``[rows, columns]``.
        source_format: bf16, fp8_block or fp8_channel.
        source_scale: Of FP8, as these formats have it; else 0.
        rows: Outputs.
        columns: Inputs.
        format: int8_weight, or int4 in groups of 32.
        weights: Where int8 ``[rows, columns]`` or int32 ``[rows, columns / 8]`` goes.
        scale: Where float32 ``[rows]`` or bf16 ``[rows, columns / 32]`` goes; NaN where a weight
            under it is not finite.
        threads: That quantise, the calling one included.
    """

def dequantise(
    weights: int,
    scale: int,
    format: str,  # noqa: A002
    rows: int,
    columns: int,
    out: int,
    threads: int = 1,
) -> None:
    """Write the weights that the kernels compute with, rounded once to bf16 ``[rows, columns]``.

    Takes what ``quantise`` made.
    """
