"""What an engine is asked for, as far as it decides how much memory it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """Beside the model; what follows ``device`` matters on GPUs alone.

    Attributes:
        kv_tokens: The size of the KV cache.
        ranks: Tensor-parallel ranks; each has a GPU of its own.
        device: ``"cpu"`` or ``"cuda"``.
        gpu_bytes: The whole memory of one GPU, or 0 if nobody knows.
        chunk: Tokens of the largest prefill step.
        buffer_bytes: What long prefills stream through on each rank, at most; 0: they do not.
        every_layer_streams: Also layers whose every expert has a slot, and any part of them.
        mem_fraction: SGLang's ``--mem-fraction-static``; None: SGLang chooses.
        graph_rows: Of the largest decode graph; None: SGLang chooses; 0: there are no graphs.
        kv_value_bytes: Of a number in the KV cache.
        repacks: Experts are repacked on their way into slots.
    """

    kv_tokens: int
    ranks: int
    device: str
    gpu_bytes: int = 0
    chunk: int = 0
    buffer_bytes: int = 0
    every_layer_streams: bool = False
    mem_fraction: float | None = None
    graph_rows: int | None = None
    kv_value_bytes: int = 2
    repacks: bool = False
