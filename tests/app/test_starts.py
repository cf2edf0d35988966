"""What an engine is started with: budgets, slots, evidence, and what an operator has planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from ktd.app.evidence import LiveEvidence, Pairs, StartEvidence
from ktd.app.fitting import fit_of_model
from ktd.app.statistics import KnownCounts
from ktd.config.settings import Settings
from ktd.errors import ConfigError
from ktd.model.facts import read_facts
from ktd.model.memory import HostMemory, needs_of
from ktd.placement.cost import default_costs
from ktd.placement.cost_meter import CostMeter
from ktd.placement.goals import StrategyGoal
from ktd.placement.manager import PlacementManager
from ktd.stats.hub import StatsHub
from ktd.stats.profile_store import ProfileStore
from ktd.stats.profiles import Profiles
from tests.placement.fake_target import FakeTarget

MODEL = Path(__file__).parents[2] / "models/ktd-tiny"
TRACE = MODEL.parent / "routing-trace.npz"


async def slots(made, **changes):
    starts, _ = made(**changes)
    return (await starts.next_start()).shape.slots


async def test_no_budget_is_what_placement_fit_finds(made):
    """The same number, on this host, whether or not auto is spelt out."""
    starts, _ = made()
    start = await starts.next_start()
    fit = fit_of_model(str(MODEL), device="auto", tp=1, kv_tokens=None)
    assert start.shape.total_slots == fit.slots > 0
    assert sum(await slots(made, gpu_experts_ratio="auto")) == fit.slots


async def test_kv_cache_asked_for_counts(made):
    """--max-total-tokens of SGLang; what does not fit any more gets no slot."""
    wide = ("--max-total-tokens", "99999999999")
    assert sum(await slots(made, sglang_args=wide)) == 0
    assert sum(await slots(made, sglang_args=("--max-total-tokens", "4096"))) > 0


async def test_live_slots_even_gives_every_layer_the_same(made):
    """random would otherwise be uneven."""
    uneven = await slots(made, gpu_experts_ratio=0.25, expert_placement_strategy="random")
    assert len(set(uneven)) > 1
    even = await slots(
        made, gpu_experts_ratio=0.26, expert_placement_strategy="random", live_slots="even"
    )
    assert even == (8,) * 6


async def test_recording_of_tokens_serves_coactivation(made):
    """Pairs for this strategy, at the start and, kept, for the live one; no fallback, no note."""
    starts, pairs = made(
        gpu_experts_ratio=0.25, expert_placement_strategy="coactivation", init_expert_location=TRACE
    )
    start = await starts.next_start()
    assert start.shape.slots == (8,) * 6
    assert pairs.counts.shape == (6, 32, 32)
    frequency, _ = made(
        gpu_experts_ratio=0.25, expert_placement_strategy="frequency", init_expert_location=TRACE
    )
    other = await frequency.next_start()
    assert sum(other.shape.slots) == 48
    assert other.experts != start.experts


async def test_file_with_counts_serves_the_strategies_that_rank(made, tmp_path):
    """balanced and latency read what frequency reads."""
    counts = np.ones((6, 32), int)
    counts[:, 7] = 1000
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"logical_count": counts.tolist()}))
    for strategy in ("frequency", "balanced", "latency"):
        starts, _ = made(
            num_gpu_experts=1, expert_placement_strategy=strategy, init_expert_location=path
        )
        assert (await starts.next_start()).experts == ((7,),) * 6


async def test_recording_of_another_model_is_refused_with_both_shapes(made, tmp_path):
    """Before anything is loaded."""
    path = tmp_path / "other.npz"
    np.savez(path, a=np.zeros((5, 4, 2), np.uint8))
    starts, _ = made(expert_placement_strategy="coactivation", init_expert_location=path)
    with pytest.raises(ConfigError, match=r"recorded 4 layers .* this model has 6 with 32"):
        await starts.next_start()


@pytest.mark.parametrize(
    ("wanted", "told"), [("auto", None), ("checkpoint", None), ("int4", "int4")]
)
async def test_engine_is_told_to_quantise_when_that_was_asked_for(made, wanted, told):
    """And people are told that it loses, in the log and in the status."""
    starts, _ = made(cpu_expert_format=wanted)
    with capture_logs() as logs:
        assert (await starts.next_start()).spec.cpu_expert_format == told
    lossy = [line["note"] for line in logs if "lossy against" in line.get("note", "")]
    model, _ = starts.summaries()
    assert len(lossy) == (told is not None)
    assert (model.expert_format, model.cpu_expert_format) == ("bf16", told or "bf16")


async def test_deferred_experts_are_told_to_the_engine_and_to_people(made):
    """They change answers, so nobody gets them unasked."""
    starts, _ = made(device="cuda", gpu_experts_ratio=0.1)
    assert (await starts.next_start()).spec.deferred_experts == 0
    starts, _ = made(device="cuda", gpu_experts_ratio=0.1, max_deferred_experts_per_token=3)
    with capture_logs() as logs:
        assert (await starts.next_start()).spec.deferred_experts == 3
    assert any("which changes answers" in line.get("note", "") for line in logs)


@pytest.mark.parametrize(
    ("device", "deferred", "why"),
    [
        ("cpu", 1, "--max-deferred-experts-per-token is 1, but on a host without a GPU"),
        ("cuda", 4, "--max-deferred-experts-per-token is 4, but a token of this model has 4"),
    ],
)
async def test_what_cannot_be_deferred_is_refused(made, device, deferred, why):
    """In one sentence, before anything starts."""
    starts, _ = made(device=device, gpu_experts_ratio=0.1, max_deferred_experts_per_token=deferred)
    with pytest.raises(ConfigError, match=why):
        await starts.next_start()


@pytest.mark.parametrize("wanted", ["copy", "mmap"])
async def test_engine_is_told_where_experts_are(made, wanted):
    """So is who asks for the status."""
    starts, _ = made(host_memory=wanted)
    assert (await starts.next_start()).spec.host_memory == wanted
    assert starts.facts.mapped is (wanted == "mmap")
    assert starts.summaries()[1].host_memory == wanted


async def test_the_cpu_has_a_share_of_long_prefills_unless_it_must_not(made):
    for words, expected in [({}, True), ({"gpu_prefill_cpu_share": False}, False)]:
        starts, _ = made(device="cuda", gpu_experts_ratio=0.1, **words)
        assert (await starts.next_start()).spec.prefill_cpu_share is expected


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (
            {"host_memory": "mmap"},
            "--host-memory mmap: the GPU cannot read experts from the page cache",
        ),
        (
            {"cpu_expert_format": "int8"},
            "--cpu-expert-format int8: the GPU computes with other bytes than host memory holds",
        ),
    ],
)
async def test_long_prefills_do_not_stream_what_a_gpu_cannot_read(made, setting, reason):
    """Who has one is told, and the sums know of no buffer."""
    copied, _ = made(device="cuda", gpu_experts_ratio=0.1)
    staged, _ = made(device="cuda", gpu_experts_ratio=0.1, **setting)
    assert (await copied.next_start()).spec.prefill_threshold is not None
    with capture_logs() as logs:
        assert (await staged.next_start()).spec.prefill_threshold is None
    notes = [line["note"] for line in logs if "long prefills" in line["event"]]
    assert notes == [f"{reason}, so the CPU computes those of long prefills too."]
    assert (copied.facts.gpu_reads_host, staged.facts.gpu_reads_host) == (True, False)


async def test_people_are_told_when_the_page_cache_cannot_hold_the_experts(made, monkeypatch):
    """The engine starts all the same."""
    starts, _ = made(host_memory="mmap", gpu_experts_ratio=0.0)
    facts = read_facts(MODEL, device="cpu")
    need = needs_of(replace(facts, mapped=True), slots=0, ranks=1, device="cpu")
    monkeypatch.setattr(HostMemory, "read", lambda: HostMemory(need.total + need.cached // 2))
    with capture_logs() as logs:
        await starts.next_start()
    notes = [line["note"] for line in logs if "page cache" in line["event"]]
    assert len(notes) == 1
    assert "steps will wait for the disk" in notes[0]


async def test_forecasts_know_that_quantised_experts_are_smaller(made):
    """The CPU reads 9 bytes where a slot holds 32."""
    starts, _ = made(cpu_expert_format="int4")
    await starts.next_start()
    settings = Settings(
        model="m", state_dir=Path("s"), runtime_dir=Path("r"), socket=Path("k.sock")
    )
    store = ProfileStore(settings.state_dir)
    known = KnownCounts(store, Profiles(store, StatsHub(), "m"))
    evidence = StartEvidence(settings, "cpu", known, Pairs()).of(starts.facts)
    assert evidence.costs.cpu_share == 9 / 32
    live = LiveEvidence(StatsHub(), CostMeter(default_costs("cpu")), Pairs())
    assert live.costs().cpu_share == 1
    live.follow(lambda: starts.facts)
    assert live.costs().cpu_share == 9 / 32


async def test_planned_restart_is_taken_once(made):
    """The next start has its slots and its actor; the one after it what is current then."""
    manager = PlacementManager(
        counts=lambda: [[100 - e if layer == 0 else 1 for e in range(32)] for layer in range(6)]
    )
    starts, _ = made(manager=manager, gpu_experts_ratio=0.25)
    first = await starts.next_start()
    await manager.attach(FakeTarget(first.shape, first.experts), first.shape, first.experts)
    goal, etag = StrategyGoal("frequency"), manager.placement().etag
    manager.restarts.plan(manager.restarts.check(goal, "", etag=etag, actor="uid=7"))
    second = await starts.next_start()
    assert second.shape.slots[0] == 32
    assert (second.origin, second.actor) == ("frequency", "uid=7")
    assert second.spec.slots == second.shape.slots
    # It was never attached, as it failed to start: what runs next is what ran before.
    third = await starts.next_start()
    assert (third.shape, third.experts) == (first.shape, first.experts)


def test_fit_of_a_folder_is_of_the_model_in_it():
    """A larger KV cache leaves less room."""
    small = fit_of_model(str(MODEL), device="cpu", tp=1, kv_tokens=1024)
    large = fit_of_model(str(MODEL), device="cpu", tp=1, kv_tokens=1_000_000)
    per_token = read_facts(MODEL, device="cpu").kv_cache.bytes_per_token(1)
    assert small.total_experts == 192
    assert small.room_bytes - large.room_bytes > 900_000 * per_token
