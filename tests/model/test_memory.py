"""Too little memory is said with the sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.errors import DoesNotFit
from ktd.model.facts import Quantised, read_facts
from ktd.model.memory import (
    GIB,
    STAGING_BYTES,
    HostMemory,
    cache_complaint,
    check_fits,
    fitting_ratio,
    needs_of,
)

FACTS = replace(
    read_facts(Path(__file__).parents[2] / "models/ktd-tiny", device="cpu"),
    expert_bytes=GIB // 8,
    other_bytes=2 * GIB,
)


def test_the_sum_is_in_the_sentence():
    """24 GiB of experts, 6 of slots, 2 of others, and the engine."""
    needs = needs_of(FACTS, slots=48, ranks=1, device="cpu")
    with pytest.raises(
        DoesNotFit,
        match=r"24\.0 GiB experts \+ 6\.0 GiB expert slots \+ 2\.0 GiB other weights \+ 2\.2 GiB "
        r"the engine itself = 34\.2 GiB of host memory, and 30\.0 GiB are available; "
        r"with fewer experts in slots it takes 28\.2 GiB\.",
    ):
        check_fits(needs, HostMemory(30 * GIB))
    check_fits(needs, HostMemory(35 * GIB))


def test_mapped_experts_are_no_need_but_want_room_in_the_page_cache():
    """They take memory as long as nobody else wants it; too little of it makes steps slow."""
    facts = replace(FACTS, mapped=True, expert_bytes=3 * 256 * 64 * 2)
    needs = needs_of(facts, slots=0, ranks=1, device="cpu")
    assert (needs.experts, needs.cached) == (0, facts.host_store_bytes)
    assert needs.sum_text().startswith("2.0 GiB other weights + ")
    check_fits(needs, HostMemory(needs.total))
    assert cache_complaint(needs, HostMemory(needs.total + needs.cached)) is None
    assert cache_complaint(needs, HostMemory(needs.total + needs.cached - 1)) == (
        "The page cache can have 18.0 MiB beside the engine, and the experts that are used from it "
        "are 18.0 MiB: steps will wait for the disk; free memory, or serve a smaller model."
    )
    unmapped = needs_of(FACTS, slots=0, ranks=1, device="cpu")
    assert cache_complaint(unmapped, HostMemory(0)) is None


def test_what_a_gpu_cannot_read_passes_through_buffers_of_each_rank():
    """Mapped and quantised experts alike; without slots, or without a GPU, nothing does."""
    quantised = replace(FACTS, quantised=Quantised("int8", GIB // 16))
    for facts in (quantised, replace(FACTS, mapped=True)):
        plain = needs_of(facts, slots=0, ranks=2, device="cuda")
        staged = needs_of(facts, slots=8, ranks=2, device="cuda")
        assert staged.total - plain.total == staged.staging == 2 * STAGING_BYTES
        assert "64.0 MiB that copies to the GPU pass through + " in staged.sum_text()
        assert needs_of(facts, slots=8, ranks=2, device="cpu").staging == 0
    assert needs_of(FACTS, slots=8, ranks=2, device="cuda").staging == 0


def test_buffers_are_as_large_on_the_other_side():
    """Two packages have the figure, as neither may import the other."""
    ring = pytest.importorskip("ktd.cuda.pinned_ring", reason="needs torch")
    assert ring.BUFFERS * ring.BUFFER_BYTES == STAGING_BYTES


@pytest.mark.parametrize(
    ("name", "bits"),
    [("bf16", 16), ("fp8_block", 8), ("fp8_channel", 8), ("int8", 8), ("int4", 4), ("mxfp4", 4)],
)
def test_what_mapped_experts_have_beside_weights_may_be_copied(name, bits):
    """Scales and zero points: SGLang keeps them in another type than most checkpoints."""
    facts = replace(FACTS, mapped=True, expert_format=name, expert_bytes=3 * 256 * 64 * 2 + 9)
    assert facts.own_expert_bytes == 192 * (facts.expert_bytes - 3 * 256 * 64 * bits // 8)
    needs = needs_of(facts, slots=0, ranks=1, device="cpu")
    assert "what the experts have beside weights" in needs.sum_text()
    assert needs.experts + needs.cached == facts.host_store_bytes


def test_on_a_gpu_host_slots_are_elsewhere():
    """Slots and other weights are in device memory."""
    needs = needs_of(FACTS, slots=48, ranks=2, device="cuda")
    assert (needs.slots, needs.others) == (0, 0)


def test_the_largest_ratio_that_fits():
    """In steps of one per cent, from 0 to 1."""
    assert fitting_ratio(FACTS, 6 * GIB) == 0.25
    assert fitting_ratio(FACTS, -GIB) == 0
    assert fitting_ratio(FACTS, 100 * GIB) == 1


def test_a_cgroup_limits_what_is_available(tmp_path):
    """The tightest limit between the process's group and the root counts."""
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   33554432 kB\n")
    (tmp_path / "self/cgroup").write_text("0::/a/b\n")
    group = tmp_path / "fs"
    (group / "a/b").mkdir(parents=True)
    assert HostMemory.read(tmp_path, group).available == 32 * GIB
    (group / "a/memory.max").write_text(f"{8 * GIB}\n")
    (group / "a/memory.current").write_text(f"{GIB}\n")
    (group / "a/b/memory.max").write_text("max\n")
    (group / "a/b/memory.current").write_text("1\n")
    assert HostMemory.read(tmp_path, group).available == 7 * GIB
    # What the kernel gives up when it needs it is free.
    (group / "a/memory.stat").write_text(
        f"anon 5\nactive_file {GIB // 4}\ninactive_file {GIB // 4}\n"
    )
    assert HostMemory.read(tmp_path, group).available == 15 * GIB // 2
