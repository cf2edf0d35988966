"""The largest budget that fits, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.app.sglang_words import gpus_of
from ktd.model.demand import Demand
from ktd.model.device_memory import device_bytes
from ktd.model.device_needs import device_needs
from ktd.model.facts import read_facts
from ktd.model.fit import fit_before_start, fit_while_running
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
GPUS = Demand(
    kv_tokens=65536, ranks=2, device="cuda", gpu_bytes=48 * GIB, chunk=4096, buffer_bytes=GIB
)


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


QWEN3_NEXT = {
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
}


@pytest.mark.parametrize(
    "config",
    [
        QWEN3_NEXT,
        {**QWEN3_NEXT, "full_attention_interval": None}
        | {"layer_types": [*["linear_attention"] * 3, "full_attention"] * 12},
    ],
)
def test_layers_with_a_state_have_no_kv_cache(config):
    """Qwen3-Next-80B-A3B: 12 layers of 48 have one; a request takes 2.05 MiB in each other."""
    cache = kv_cache_of(config, 48)
    assert cache.num_layers == 12
    assert cache.bytes_per_token(1) == 2 * 12 * 2 * 256 * 2
    assert cache.state_bytes == 36 * (32 * 128 * 128 * 4 + (32 + 2 * 16) * 128 * 3 * 2)
    many = 100_000 * cache.bytes_per_token(1)
    assert cache.bytes_for(100_000, 1) == many + int(0.9 * many)
    assert cache.bytes_for(100_000, 1, value_bytes=1) == many // 2 + int(0.9 * (many // 2))
    # One byte of two is for states, almost: four of them are there.
    assert cache.bytes_for(1, 1) == 4 * cache.state_bytes + int(4 * cache.state_bytes / 0.9)


def test_kv_cache_of_the_tiny_model():
    """6 layers, 2 heads of 64."""
    facts = read_facts(FACTS.path, device="cpu")
    assert facts.kv_cache.bytes_per_token(1) == 2 * 6 * 2 * 64 * 2


def test_device_memory_is_what_is_left_beside_weights_and_kv_cache():
    """Twice 22 GiB, less everything that is no slot; all of it goes to slots."""
    free = 44 * GIB
    fit = fit_before_start(FACTS, GPUS, free)
    assert fit.room_bytes == free - device_needs(FACTS, GPUS, slots=0, free=free).total
    assert fit.slots == fit.largest == fit.room_bytes // FACTS.expert_bytes
    assert 0 < fit.slots < fit.total_experts
    assert fit.slot_bytes <= fit.room_bytes < fit.slot_bytes + FACTS.expert_bytes
    assert "2.0 GiB weights that are not experts + 48.0 MiB for 24.0 GiB of" in fit.assumptions[1]
    assert "16.0 GiB KV cache of 65536 tokens" in fit.assumptions[1]


def test_bigger_kv_cache_leaves_fewer_slots():
    """Each 128 MiB of it cost one."""
    fewer = fit_before_start(FACTS, replace(GPUS, kv_tokens=69632), 44 * GIB)
    many = fit_before_start(FACTS, GPUS, 44 * GIB)
    assert many.slots - fewer.slots == 4096 * PER_TOKEN // FACTS.expert_bytes


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
    running = fit_while_running(mapped, CPU, 8, free)
    cached = mapped.host_store_bytes - mapped.own_expert_bytes
    assert fit_while_running(FACTS, CPU, 8, free).room_bytes - running.room_bytes == cached
    # No GPU reads them by itself.
    on_gpu, copied = (fit_before_start(facts, GPUS, 44 * GIB) for facts in (mapped, FACTS))
    assert on_gpu.room_bytes - copied.room_bytes == cached * (2 << 20) // GIB > 0


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
    """What it holds counts as free for the next one; what steps need stays free."""
    fit = fit_while_running(FACTS, GPUS, 24, 30 * GIB)
    needs = device_needs(FACTS, GPUS, slots=24, free=2 * 48 * GIB)
    assert 0 < 30 * GIB + 3 * GIB - fit.room_bytes < needs.working
    assert fit.slots == fit.room_bytes // FACTS.expert_bytes < fit.total_experts
    full = fit_while_running(FACTS, GPUS, FACTS.total_experts, 30 * GIB)
    assert full.slots == full.total_experts


def test_ratio_gives_at_most_the_slots():
    """Rounded down: the flag never asks for more than fits."""
    for free in range(5, 90, 7):
        fit = fit_before_start(FACTS, GPUS, free * GIB)
        assert int(fit.total_experts * fit.ratio) <= fit.slots


def test_gpu_with_the_least_memory_decides(tmp_path):
    """Ranks share evenly; a missing tool, or too few GPUs, is no memory."""
    tool = tmp_path / "smi"
    tool.write_text("#!/bin/sh\necho 3000\necho 1000\necho 9\n")
    tool.chmod(0o700)
    assert device_bytes(range(2), free=True, command=str(tool)) == 2 * 1000 << 20
    assert device_bytes(range(4), free=True, command=str(tool)) == 0
    assert device_bytes([0], free=False, command=str(tmp_path / "none")) == 0


def test_gpus_are_those_of_the_ranks(tmp_path):
    """Wherever SGLang is told to begin."""
    tool = tmp_path / "smi"
    tool.write_text("#!/bin/sh\nseq 1 6\n")
    tool.chmod(0o700)
    words = ["--base-gpu-id", "1", "--gpu-id-step=2"]
    assert list(gpus_of([], 2)) == [0, 1]
    assert list(gpus_of(words, 3)) == [1, 3, 5]
    assert device_bytes(gpus_of(words, 3), free=True, command=str(tool)) == 3 * 2 << 20
    assert device_bytes(gpus_of(words, 4), free=True, command=str(tool)) == 0


def test_only_gpus_that_the_engine_sees_count(tmp_path, monkeypatch):
    """CUDA_VISIBLE_DEVICES names them; the first of those are the ranks'."""
    tool = tmp_path / "smi"
    tool.write_text('#!/bin/sh\necho "$@" >"$0.said"\necho 1000\n')
    tool.chmod(0o700)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1,0")
    assert device_bytes([1], free=True, command=str(tool)) == 1000 << 20
    assert (tmp_path / "smi.said").read_text().split()[-2:] == ["-i", "1"]
    assert device_bytes(range(2), free=True, command=str(tool)) == 0
    assert (tmp_path / "smi.said").read_text().split()[-2:] == ["-i", "3,1"]
