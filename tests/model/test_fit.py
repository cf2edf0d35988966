"""The largest budget that fits, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.model.device_memory import device_bytes
from ktd.model.facts import read_facts
from ktd.model.fit import Demand, fit_before_start, fit_while_running
from ktd.model.kv_cache import KvCache, kv_cache_of
from ktd.model.memory import GIB, needs_of

FACTS = replace(
    read_facts(Path(__file__).parents[2] / "models/ktd-tiny", device="cpu"),
    expert_bytes=GIB // 8,
    other_bytes=2 * GIB,
    kv_cache=KvCache(num_layers=64, kv_heads=8, head_dim=128),
)
PER_TOKEN = 2 * 64 * 8 * 128 * 2
CPU = Demand(kv_tokens=4096, ranks=1, device="cpu")
GPUS = Demand(kv_tokens=65536, ranks=2, device="cuda")


@pytest.mark.parametrize(
    ("config", "ranks", "expected"),
    [
        ({"num_attention_heads": 8, "hidden_size": 512}, 1, 2 * 3 * 8 * 64 * 2),
        ({"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128}, 1, 3072),
        # More ranks than heads: every rank has one.
        ({"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128}, 4, 6144),
        ({"num_attention_heads": 8, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2, 3 * 576 * 4),
        ({}, 1, 0),
    ],
)
def test_kv_cache_of_every_attention(config, ranks, expected):
    """Of three layers: full heads, grouped heads, latents, nothing known."""
    assert kv_cache_of(config, 3).bytes_per_token(ranks) == expected


def test_kv_cache_of_the_tiny_model():
    """6 layers, 2 heads of 64."""
    facts = read_facts(FACTS.path, device="cpu")
    assert facts.kv_cache.bytes_per_token(1) == 2 * 6 * 2 * 64 * 2


def test_device_memory_is_what_is_left_beside_weights_and_kv_cache():
    """Twice 24 GiB: 48 - 15 % - 2 of weights - the cache; all of it goes to slots."""
    free = 48 * GIB
    fit = fit_before_start(FACTS, GPUS, free)
    room = free - int(free * 0.15) - 2 * GIB - 65536 * PER_TOKEN
    assert fit.room_bytes == room
    assert fit.slots == fit.largest == room // FACTS.expert_bytes
    assert 0 < fit.slots < fit.total_experts
    assert fit.slot_bytes <= room < fit.slot_bytes + FACTS.expert_bytes


def test_bigger_kv_cache_leaves_fewer_slots():
    """Each 128 MiB of it cost one."""
    fewer = fit_before_start(FACTS, replace(GPUS, kv_tokens=131072), 48 * GIB)
    many = fit_before_start(FACTS, GPUS, 48 * GIB)
    assert many.slots - fewer.slots == 65536 * PER_TOKEN // FACTS.expert_bytes


def test_host_memory_counts_beside_the_store():
    """Without a GPU the experts themselves, other weights and the engine come first."""
    free = 40 * GIB
    fit = fit_before_start(FACTS, CPU, free)
    taken = needs_of(FACTS, slots=0, ranks=1, device="cpu").total
    assert fit.room_bytes == free - taken - int(free * 0.05) - 4096 * PER_TOKEN
    assert fit.largest == fit.room_bytes // FACTS.expert_bytes
    assert fit.slots == min(fit.largest, 48) == 48
    assert "24.0 GiB experts + 2.0 GiB other weights" in fit.assumptions[1]


def test_mapped_experts_keep_their_room_in_the_page_cache():
    """Slots in host memory do not push them out; on a GPU nothing changes."""
    free = 40 * GIB
    mapped = replace(FACTS, mapped=True)
    fit = fit_before_start(mapped, CPU, free)
    assert fit.room_bytes == fit_before_start(FACTS, CPU, free).room_bytes
    assert "of experts are used from the page cache (--host-memory mmap); slots" in " ".join(
        fit.assumptions
    )
    running = fit_while_running(mapped, 8, "cpu", free)
    cached = mapped.host_store_bytes - mapped.own_expert_bytes
    assert fit_while_running(FACTS, 8, "cpu", free).room_bytes - running.room_bytes == cached
    assert fit_before_start(mapped, GPUS, free).slots == fit_before_start(FACTS, GPUS, free).slots


def test_without_a_gpu_a_quarter_is_enough_and_it_says_why():
    """Slots would take the store's memory a second time for nothing."""
    fit = fit_before_start(FACTS, CPU, 1000 * GIB)
    assert (fit.slots, fit.largest) == (48, 192)
    assert "win no speed" in fit.assumptions[-1]
    assert "up to 192 would fit" in fit.assumptions[-1]


@pytest.mark.parametrize("demand", [CPU, GPUS])
def test_nothing_fits_is_no_slot(demand):
    """Not a negative one."""
    fit = fit_before_start(FACTS, demand, GIB)
    assert (fit.slots, fit.largest, fit.room_bytes, fit.ratio) == (0, 0, 0, 0)


def test_all_that_fit_is_not_more_than_there_are():
    """A GPU that holds the whole model."""
    fit = fit_before_start(FACTS, GPUS, 1000 * GIB)
    assert (fit.slots, fit.ratio) == (192, 1.0)


def test_running_engine_gets_its_own_slots_back():
    """What it holds counts as free for the next one."""
    fit = fit_while_running(FACTS, 24, "cuda", 10 * GIB)
    assert fit.room_bytes == 10 * GIB - int(10 * GIB * 0.15) + 3 * GIB
    assert fit.slots == fit.room_bytes // FACTS.expert_bytes


def test_ratio_gives_at_most_the_slots():
    """Rounded down: the flag never asks for more than fits."""
    for free in range(5, 60, 7):
        fit = fit_before_start(FACTS, GPUS, free * GIB)
        assert int(fit.total_experts * fit.ratio) <= fit.slots


def test_gpu_with_the_least_memory_decides(tmp_path):
    """Ranks share evenly; a missing tool, or too few GPUs, is no memory."""
    tool = tmp_path / "smi"
    tool.write_text("#!/bin/sh\necho 3000\necho 1000\necho 9\n")
    tool.chmod(0o700)
    assert device_bytes(2, free=True, command=str(tool)) == 2 * 1000 << 20
    assert device_bytes(4, free=True, command=str(tool)) == 0
    assert device_bytes(1, free=False, command=str(tmp_path / "none")) == 0
