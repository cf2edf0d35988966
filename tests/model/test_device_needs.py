"""What an engine takes of the GPUs' memory, and what a start is refused with."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from ktd.errors import DoesNotFit
from ktd.model.demand import Demand
from ktd.model.device_needs import (
    BYTES_PER_REGISTERED_GIB,
    activation_bytes,
    check_device_fits,
    device_needs,
    piece_experts,
    slots_that_fit,
)
from ktd.model.facts import Quantised, read_facts
from ktd.model.fit import fit_before_start
from ktd.model.kv_cache import KvCache
from ktd.model.memory import GIB

MIB = 1 << 20
# Qwen3-30B-A3B: 48 layers of 128 experts of 9 MiB.
FACTS = replace(
    read_facts(Path(__file__).parents[2] / "models/ktd-tiny", device="cpu"),
    num_layers=48,
    moe_layers=tuple(range(48)),
    num_experts=128,
    experts_per_token=8,
    hidden_size=2048,
    expert_intermediate_size=768,
    expert_bytes=9 * MIB,
    other_bytes=3 * GIB,
    vocab_size=151936,
    kv_cache=KvCache(num_layers=48, kv_heads=4, head_dim=128),
)
H100 = Demand(
    kv_tokens=8192, ranks=1, device="cuda", gpu_bytes=80 * GIB, chunk=8192, buffer_bytes=4 * GIB
)


def test_each_part_of_the_sum():
    """Of Qwen3-30B-A3B on one GPU, by hand."""
    needs = device_needs(FACTS, H100, slots=1000, free=79 * GIB)
    assert needs.others == 3 * GIB
    assert needs.slots == 1000 * 9 * MIB
    assert needs.registered == 54 * 2 * MIB
    # 20 of a layer's experts have slots; the others are less than half of the buffer.
    assert needs.stream == 2 * (128 - 20) * 9 * MIB
    assert needs.kv_cache == 8192 * 2 * 48 * 4 * 128 * 2
    # SGLang: 512 + 1.5 a token + 2 a row of 256 + 1024 / 8 MiB of 80 GiB.
    assert needs.working == int((512 + 12288 + 512 + 128) * MIB / (80 * GIB) * 79 * GIB)
    assert needs.routing == 48 * (8192 + 1024) * 8 * 2
    parts = (needs.others, needs.slots, needs.registered, needs.stream, needs.kv_cache)
    assert needs.total == sum(parts) + needs.routing + needs.working + needs.context


def test_activations_count_where_sglang_would_keep_less_free():
    """A bound that a user sets very high does not make steps smaller."""
    tight = replace(H100, mem_fraction=0.99)
    needs = device_needs(FACTS, tight, slots=0, free=79 * GIB)
    pairs = 8192 * 8
    experts = pairs * (2 * 768 + 768 + 2048) * 2
    assert experts < activation_bytes(FACTS, tight) < 2 * experts
    assert activation_bytes(FACTS, tight) < needs.working < activation_bytes(FACTS, tight) + GIB
    wide = device_needs(FACTS, replace(H100, mem_fraction=0.5), slots=0, free=79 * GIB)
    assert wide.working == 79 * GIB // 2


def test_ranks_share_experts_and_each_has_the_rest():
    """Two GPUs have two buffers of halves of experts, and activations twice, but for the width."""
    two = replace(H100, ranks=2)
    one, both = (device_needs(FACTS, demand, slots=0, free=79 * GIB) for demand in (H100, two))
    assert (both.stream, both.registered, both.others) == (one.stream, one.registered, one.others)
    assert both.context == 2 * one.context
    assert both.routing == 2 * one.routing
    assert activation_bytes(FACTS, H100) < activation_bytes(FACTS, two)
    assert activation_bytes(FACTS, two) < 2 * activation_bytes(FACTS, H100)
    # A large layer comes in pieces: then each rank's buffer is full.
    pieces = replace(two, buffer_bytes=100 * 9 * MIB)
    assert device_needs(FACTS, pieces, slots=0, free=GIB).stream == 2 * 100 * 9 * MIB


def test_no_layer_streams_when_every_expert_has_a_slot():
    """Unless layers keep their CPU path."""
    total = FACTS.total_experts
    assert device_needs(FACTS, H100, slots=total, free=79 * GIB).stream == 0
    kept = replace(H100, every_layer_streams=True)
    assert device_needs(FACTS, kept, slots=total, free=79 * GIB).stream > 0
    unstreamed = replace(H100, buffer_bytes=0)
    assert device_needs(FACTS, unstreamed, slots=0, free=79 * GIB).stream == 0


def test_experts_that_are_repacked_need_room_on_their_way():
    """Beside everything else, once for each rank: together twelve times one whole expert.

    Four are an expert on its way, and eight are 32 bits for each four of it.
    """
    unstreamed = replace(H100, buffer_bytes=0)
    plain = device_needs(FACTS, unstreamed, slots=1000, free=79 * GIB)
    repacks = replace(unstreamed, repacks=True)
    needs = device_needs(FACTS, repacks, slots=1000, free=79 * GIB)
    assert (plain.scratch, needs.scratch) == (0, 12 * 9 * MIB)
    assert needs.total == plain.total + needs.scratch
    assert needs.beside_slots == plain.beside_slots + needs.scratch
    assert "0.1 GiB that experts are repacked in" in needs.sum_text(FACTS, repacks)


def test_refused_with_the_sum_a_ratio_and_what_else_frees_memory():
    """In one sentence; with the ratio, or with what is freed, it fits."""
    free, demand = 40 * GIB, replace(H100, kv_tokens=65536)
    with pytest.raises(DoesNotFit) as refused:
        check_device_fits(FACTS, demand, slots=5000, free=free)
    assert str(refused.value) == (
        "The model needs 3.0 GiB weights that are not experts + 43.9 GiB expert slots + 0.1 GiB "
        "for 54.0 GiB of registered host memory + 0.4 GiB that long prefills stream through + "
        "6.8 MiB for the routing of a step + 6.0 GiB KV cache of 65536 tokens + 6.6 GiB kept free "
        "for steps of 8192 tokens + 1.5 GiB CUDA and SGLang themselves = 61.5 GiB of device "
        "memory, and 40.0 GiB are free: "
        "--kt-gpu-experts-ratio 0.39 fits; --chunked-prefill-size 4096 frees 1.6 GiB; "
        "--max-total-tokens 32768 frees 3.0 GiB."
    )
    check_device_fits(FACTS, demand, slots=int(0.39 * FACTS.total_experts), free=free)
    with pytest.raises(DoesNotFit):
        check_device_fits(FACTS, demand, slots=int(0.40 * FACTS.total_experts), free=free)


def test_refused_where_no_ratio_fits():
    """It says so, and what would free something all the same."""
    with pytest.raises(DoesNotFit, match=r"on 2 GPUs, and 8\.0 GiB are free: no --kt-gpu-experts-"):
        check_device_fits(FACTS, replace(H100, ranks=2), slots=0, free=8 * GIB)
    with pytest.raises(DoesNotFit, match=r"ratio fits, as 0 takes [0-9.]+ GiB; --chunked-"):
        check_device_fits(FACTS, H100, slots=100, free=8 * GIB)


def test_all_experts_in_slots_may_fit_where_fewer_do_not():
    """They need no buffer, which takes two slots more for each that a layer has less."""
    one_layer = replace(FACTS, moe_layers=(0,), num_layers=1)
    free = 20 * GIB
    least = device_needs(one_layer, H100, slots=128, free=free).total
    other = replace(one_layer, other_bytes=one_layer.other_bytes + free - least - GIB // 64)
    with pytest.raises(DoesNotFit, match=r"are free: --kt-gpu-experts-ratio 1 fits; --chunked"):
        check_device_fits(other, H100, slots=64, free=free)
    check_device_fits(other, H100, slots=128, free=free)


@pytest.mark.parametrize(
    ("slots", "experts"),
    [
        (0, 128),
        (48 * 100 + 47, 28),  # one more in 47 of 48 layers
        (48 * 100, 28),
        (48 * 127, 8),  # a sixteenth at least: more are in no slot while some move
    ],
)
def test_the_buffer_holds_what_a_layer_has_in_no_slot(slots, experts):
    """Whole layers where a bench empties slots."""
    assert piece_experts(FACTS, slots, whole=False) == experts
    assert piece_experts(FACTS, slots, whole=True) == 128
    assert device_needs(FACTS, H100, slots=slots, free=79 * GIB).stream == 2 * experts * 9 * MIB
    kept = replace(H100, every_layer_streams=True)
    assert device_needs(FACTS, kept, slots=slots, free=79 * GIB).stream == 2 * 128 * 9 * MIB


def test_what_does_not_help_is_not_named():
    """A bound of the user's own does not move with the chunk; no cache is halved for a megabyte."""
    fixed = replace(H100, mem_fraction=0.5, kv_tokens=0)
    with pytest.raises(DoesNotFit) as refused:
        check_device_fits(FACTS, fixed, slots=6000, free=40 * GIB)
    assert str(refused.value).endswith(" fits.")


def test_nothing_is_refused_when_nobody_knows_what_is_free():
    """nvidia-smi did not say."""
    check_device_fits(FACTS, H100, slots=FACTS.total_experts, free=0)


@pytest.mark.parametrize("seed", range(300))
def test_what_auto_takes_is_never_refused_and_one_more_is(seed):
    """Random shapes, settings and sizes; with less of a KV cache it fits all the more."""
    draw = random.Random(seed)
    ranks = draw.choice((1, 2, 4, 8))
    layers = draw.randint(1, 60)
    facts = replace(
        FACTS,
        num_layers=layers,
        moe_layers=tuple(range(layers)),
        num_experts=draw.choice((8, 32, 128, 512)),
        experts_per_token=draw.randint(1, 8),
        hidden_size=draw.choice((512, 2048, 7168)),
        expert_intermediate_size=draw.choice((256, 768, 2048)),
        expert_bytes=ranks * draw.randint(1, 64 * MIB),
        other_bytes=draw.randint(0, 20 * GIB),
        mapped=draw.random() < 0.2,
    )
    chunk = draw.choice((512, 2048, 8192, 16384))
    demand = Demand(
        kv_tokens=max(chunk, draw.randint(0, 100_000)),
        ranks=ranks,
        device="cuda",
        gpu_bytes=draw.choice((0, draw.randint(1, 200 * GIB))),
        chunk=chunk,
        buffer_bytes=draw.choice((0, 4 * GIB)),
        every_layer_streams=draw.random() < 0.2,
        mem_fraction=draw.choice((None, draw.uniform(0.3, 1))),
        graph_rows=draw.choice((None, 0, 16)),
    )
    free = draw.randint(1, 200 * GIB * ranks)
    fit = fit_before_start(facts, demand, free)
    least = replace(demand, kv_tokens=chunk)
    fits = device_needs(facts, demand, slots=0, free=free).total <= free
    if fits or fit.slots == fit.total_experts:
        for slots in (fit.slots, int(facts.total_experts * fit.ratio)):
            check_device_fits(facts, demand, slots=slots, free=free)
            check_device_fits(facts, least, slots=slots, free=free)
    else:
        assert fit.slots == 0
    if fit.slots < fit.total_experts:
        with pytest.raises(DoesNotFit):
            check_device_fits(facts, demand, slots=fit.slots + fits, free=free)
    assert fit.slots == slots_that_fit(facts, demand, free)[0]


def test_quantised_experts_are_not_registered():
    """No copy engine reads them."""
    facts = replace(FACTS, quantised=Quantised("int4", 3 * MIB))
    assert device_needs(facts, H100, slots=0, free=79 * GIB).registered == 0


def test_registering_costs_what_it_costs_on_the_other_side():
    """Two packages have the figure, as neither may import the other."""
    host_memory = pytest.importorskip("ktd.cuda.host_memory", reason="needs torch")
    assert host_memory.DEVICE_BYTES_PER_GIB == BYTES_PER_REGISTERED_GIB


def test_rows_of_a_step_are_those_that_the_engine_makes_room_for():
    """The sum may not import the engine's side, which needs torch, so the figure stands twice."""
    pytest.importorskip("torch", reason="torch is not installed")
    from ktd.model import device_needs
    from ktd.sgl import cuda_side

    assert device_needs._MIXED_ROWS == cuda_side._MIXED_ROWS
