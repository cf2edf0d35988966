"""Too little memory of GPUs: refused before the first start, by what nvidia-smi says."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from ktd.app.advice import Present, memory_advice
from ktd.app.fitting import RunningFit, fit_of_model, least_demand, usual_chunk, usual_demand
from ktd.config.settings import Settings
from ktd.enginespec import Bench
from ktd.errors import DoesNotFit
from ktd.model.device_needs import device_needs, graph_bytes
from ktd.model.facts import read_facts
from ktd.placement.manager import PlacementManager
from tests.app.conftest import MODEL
from tests.placement.fake_target import FakeTarget

MIB = 1 << 20
FACTS = read_facts(MODEL, device="cpu")


@pytest.fixture(name="gpus")
def gpus_fixture(tmp_path, monkeypatch):
    """Sets what nvidia-smi says of each of two GPUs, in MiB; None: it fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def say(free, total=16384):
        known = f'case "$*" in *memory.free*) n={free};; *) n={total};; esac\necho $n\necho $n'
        tool.write_text(f"#!/bin/sh\n{'exit 9' if free is None else known}\n")
        tool.chmod(0o700)

    say(None)
    return say


def least(*words, tp=1, facts=FACTS):
    return least_demand(facts, words, device="cuda", ranks=tp)


def enough(gpus, slots, *words, tp=1):
    """The least MiB of each GPU that an engine with so many slots starts with."""
    demand = least(*words, tp=tp)
    for free in range(1, 16384):
        if device_needs(FACTS, demand, slots=slots, free=free * tp * MIB).total <= free * tp * MIB:
            gpus(free)
            return free
    raise AssertionError("more than the GPU has")


async def test_start_that_does_not_fit_is_refused_and_tried_again_when_there_is_more(gpus, made):
    """The sum, what is free, and a ratio that fits, which then starts."""
    gpus(16000)
    chunk = ("--chunked-prefill-size", "4096")
    free = enough(gpus, 100, *chunk)
    starts, _ = made(device="cuda", gpu_experts_ratio=0.9, sglang_args=chunk)
    with pytest.raises(
        DoesNotFit,
        match=r"\+ 16\.1 MiB expert slots \+ .* of registered host memory \+ 0\.8 MiB that long "
        r"prefills stream through \+ .* KV cache of 4096 tokens \+ .* of device memory, and "
        r"[0-9.]+ GiB are free: --kt-gpu-experts-ratio 0\.5[0-9] fits; --chunked-prefill-size 2048 "
        r"frees .*; --max-total-tokens 2048 frees 6\.0 MiB\.$",
    ):
        await starts.next_start()
    assert starts.facts is None
    fits, _ = made(device="cuda", gpu_experts_ratio=0.52, sglang_args=chunk)
    assert (await fits.next_start()).shape.total_slots == 99
    gpus(free + 40)
    assert (await starts.next_start()).shape.total_slots == 172
    # Later an engine's memory may still be coming back.
    gpus(1)
    assert (await starts.next_start()).shape.total_slots == 172


@pytest.mark.parametrize("words", [(), ("--max-total-tokens=1000000",), ("--tp-size", "2")])
async def test_auto_starts_wherever_anything_does(gpus, made, words):
    """What it leaves room for is what a start is judged by."""
    gpus(16000)
    tp = 2 if "--tp-size" in words else 1
    words = () if tp > 1 else words
    none = enough(gpus, 0, *words, tp=tp)
    for free in (none, none + 3, none + 12, none + 230, none + 300):
        gpus(free)
        starts, _ = made(device="cuda", tp=tp, sglang_args=words)
        assert (await starts.next_start()).shape.total_slots >= 0
    assert (await starts.next_start()).shape.total_slots == 192
    gpus(none - 1)
    with pytest.raises(DoesNotFit, match="no --kt-gpu-experts-ratio fits"):
        await made(device="cuda", tp=tp, sglang_args=words)[0].next_start()


async def test_nothing_is_refused_when_nvidia_smi_says_nothing(gpus, made):
    """It may be missing where the engine runs all the same."""
    gpus(None)
    starts, _ = made(device="cuda", gpu_experts_ratio=1.0)
    assert (await starts.next_start()).shape.total_slots == 192


@pytest.mark.parametrize(
    ("given", "experts"),
    [
        ({"gpu_experts_ratio": 0.25}, 24),
        ({"gpu_experts_ratio": 0.99}, 2),
        # Six layers of 32; the first three are full, and each of the others comes in two pieces.
        ({"gpu_experts_ratio": 0.5, "expert_placement_strategy": "front-loading"}, 16),
    ],
)
async def test_an_engine_streams_as_many_experts_at_once_as_have_no_slot(
    gpus, made, given, experts
):
    """The mean of all layers, so that it takes as much memory however they are spread."""
    gpus(16000)
    start = await made(device="cuda", **given)[0].next_start()
    assert start.spec.prefill_experts == experts
    assert (await made(device="cpu", **given)[0].next_start()).spec.prefill_experts is None


async def test_layers_that_keep_their_cpu_path_have_their_buffer(gpus, made):
    """A bench's engine with a slot for every expert."""
    gpus(16000)
    enough(gpus, 192)
    assert await made(device="cuda", gpu_experts_ratio=1.0)[0].next_start()
    starts, _ = made(device="cuda", gpu_experts_ratio=1.0)
    starts._bench = Bench("routing", "run", keep_cpu_path=True)
    with pytest.raises(DoesNotFit, match="that long prefills stream through"):
        await starts.next_start()


def test_demand_is_read_off_sglangs_command_line(gpus):
    """And, where it does not say, off the size of the GPU."""
    gpus(1000, total=81559)
    assert (usual_chunk("cuda", (), 1), usual_chunk("cpu", (), 1)) == (8192, 4096)
    assert (least().chunk, least().kv_tokens, least().gpu_bytes) == (8192, 8192, 81559 * MIB)
    assert usual_demand(FACTS, (), device="cuda", ranks=1).kv_tokens == 65536
    given = least("--chunked-prefill-size", "4096", "--mem-fraction-static=0.9", tp=2)
    assert (given.chunk, given.kv_tokens, given.mem_fraction, given.ranks) == (4096, 4096, 0.9, 2)
    assert least("--max-total-tokens", "99").kv_tokens == 99
    assert least("--chunked-prefill-size", "-1").chunk == 16384
    assert least("--chunked-prefill-size=-1", "--max-prefill-tokens", "500").chunk == 500
    assert least("--disable-cuda-graph").graph_rows == 0
    assert least("--cuda-graph-backend-decode", "disabled").graph_rows == 0
    assert least("--cuda-graph-backend-decode=full").graph_rows is None
    assert least("--cuda-graph-max-bs", "16").graph_rows == 16
    assert least("--kv-cache-dtype", "fp8_e4m3").kv_value_bytes == 1
    assert least("--kv-cache-dtype", "auto").kv_value_bytes == 2
    assert least("--mem-fraction-static", "much").mem_fraction is None
    assert least().buffer_bytes == 4 << 30
    assert least(facts=replace(FACTS, mapped=True)).buffer_bytes == 0
    repacked = least(facts=replace(FACTS, expert_format="awq", moe_runner="auto"))
    assert (repacked.buffer_bytes, repacked.repacks) == (4 << 30, True)
    assert not least().repacks
    long = usual_demand(FACTS, ("--chunked-prefill-size", "99999"), device="cuda", ranks=1)
    assert long.kv_tokens == long.chunk


def test_fit_of_a_folder_counts_the_chunk_and_the_graphics_memory(gpus):
    """`ktd placement fit MODEL` takes both."""
    gpus(8000)
    large, fit = (
        fit_of_model(str(MODEL), device="cuda", tp=1, kv_tokens=9, chunk=chunk)
        for chunk in (8192, None)
    )
    assert fit.free_bytes == 8000 * MIB
    assert "kept free for steps of 2048 tokens" in fit.assumptions[1]
    assert large.room_bytes < fit.room_bytes


async def test_fit_beside_a_running_engine_keeps_room_for_its_steps(gpus, made):
    """By the sum that a start is judged by."""
    gpus(16000)
    manager = PlacementManager()
    starts, _ = made(manager=manager, device="cuda", gpu_experts_ratio=0.25)
    start = await starts.next_start()
    await manager.attach(FakeTarget(start.shape, start.experts), start.shape, start.experts)
    settings: Settings = starts._settings
    running = RunningFit(lambda: starts.facts, manager, settings, "cuda")
    needs = device_needs(FACTS, least(), slots=48, free=16384 * MIB)
    kept = (needs.working - graph_bytes(FACTS, least())) // MIB
    gpus(kept + 2)
    assert 48 < running.fit().slots < 96
    gpus(kept - 6)
    assert running.fit().slots == 0


def test_advice_after_memory_ran_out_goes_by_the_same_sum(gpus):
    """A ratio that would not be refused, and halves of what SGLang was given or took."""
    gpus(100, total=16384)
    present = Present(FACTS, slots=192, ranks=1, device="cuda", sglang_args=())
    assert memory_advice(present) == (
        "Use less memory: --kt-gpu-experts-ratio 0.8 (now 1) for fewer experts in slots, "
        "--chunked-prefill-size 1024 for smaller prefill buffers, or --max-total-tokens 32768 for "
        "a smaller KV cache."
    )
    gpus(100, total=2048)
    assert "--kt-gpu-experts-ratio 0 (now 1)" in memory_advice(present)
