"""Writes what was recorded, in the files of SGLang's recorder and of KTransformers' mask recorder.

Names, keys, shapes and types follow ``sglang/srt/eplb/expert_distribution.py`` (0.5.17 and 0.5.23)
with one physical expert per logical one; rows are all layers of the model. What differs is said in
docs/statistics.md: one rank writes, ``topk_ids_of_layer`` is as wide as the model needs, and
``stat_approx`` is the always-on counters, with a row for prefill and one for decode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ktd.sgl.recorder import PER_TOKEN, STAT, STAT_APPROX, Limits, Pass, Recorded

# SGLang's recorder has this many columns, whatever the model's top-k.
_LEAST_COLUMNS = 8
# The rank that records.
_RANK = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """The model's shape: all its layers, which of them are in a pass's counts, and its experts."""

    num_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int


def write(folder: Path, recorded: Recorded, mode: str, limits: Limits, layout: Layout) -> list[str]:
    """Writes the files and returns their paths, the mask file last; whole files or none.

    Raises:
        OSError: a file cannot be written.
        RuntimeError: the same, in torch's words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    if mode in (STAT, STAT_APPROX):
        name = f"expert_distribution_recorder_{now}.pt"
        content = _statistics(recorded, mode, limits, layout)
    else:
        name = f"expert_distribution_recorder_{now}_{_RANK}.pt"
        content = _passes(recorded, mode, layout)
    files = [_save(folder / name, content)]
    masks = [one.in_slots for one in recorded.passes if one.in_slots is not None]
    if masks:
        shown = {"gpu_expert_masks": _buffer(masks, limits, layout, torch.bool)}
        try:
            files.append(_save(folder / f"gpu_expert_distribution_{now}.pt", shown))
        except (OSError, RuntimeError):
            Path(files[0]).unlink()
            raise
    return files


def _statistics(recorded: Recorded, mode: str, limits: Limits, layout: Layout) -> dict[str, Any]:
    if mode == STAT_APPROX:
        totals = recorded.totals if recorded.totals is not None else torch.zeros(0)
        count = _all_layers(totals.to(torch.int32), layout)
    else:
        count = _buffer([one.counts for one in recorded.passes], limits, layout, torch.int32)
    return {"rank": _RANK, "logical_count": count, "average_utilization_rate_over_window": None}


def _passes(recorded: Recorded, mode: str, layout: Layout) -> dict[str, Any]:
    records = [_record(one, mode, layout) for one in recorded.passes]
    same = torch.arange(layout.num_experts).repeat(layout.num_layers, 1)
    return {"records": records, "last_physical_to_logical_map": same}


def _record(one: Pass, mode: str, layout: Layout) -> dict[str, Any]:
    record: dict[str, Any] = {
        "forward_pass_id": one.id,
        "rank": _RANK,
        "gatherer_key": "primary",
    }
    if mode == PER_TOKEN and one.tokens is not None:
        ids = one.tokens.ids
        columns = max(_LEAST_COLUMNS, ids.shape[2])
        wide = torch.full((layout.num_layers, ids.shape[1], columns), -1, dtype=torch.int32)
        wide[list(layout.moe_layers), :, : ids.shape[2]] = ids.to(torch.int32)
        record |= {**one.tokens.metadata, "topk_ids_of_layer": wide, "misc_objects": []}
    record["global_physical_count"] = _all_layers(one.counts.unsqueeze(0), layout)[0]
    return record


def _buffer(
    rows: Sequence[torch.Tensor], limits: Limits, layout: Layout, dtype: torch.dtype
) -> torch.Tensor:
    """``[buffer, layers, experts]``: passes, then zeros up to the buffer's size."""
    size = len(rows) if limits.passes < 0 else max(limits.passes, len(rows))
    buffer = torch.zeros((size, layout.num_layers, layout.num_experts), dtype=dtype)
    if rows:
        buffer[: len(rows), list(layout.moe_layers)] = torch.stack(list(rows)).to(dtype)
    return buffer


def _all_layers(counts: torch.Tensor, layout: Layout) -> torch.Tensor:
    """``[n, MoE layers, experts]`` with rows of zeros for the layers without experts."""
    wide = torch.zeros((len(counts), layout.num_layers, layout.num_experts), dtype=counts.dtype)
    if len(counts):
        wide[:, list(layout.moe_layers)] = counts
    return wide


def _save(path: Path, content: dict[str, Any]) -> str:
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        temporary.rename(path)
    except RuntimeError as error:
        # torch's archive fails again while it closes, in words that say nothing.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return str(path)
