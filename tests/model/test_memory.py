"""Too little memory is said with the sum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktd.errors import DoesNotFit
from ktd.model.facts import read_facts
from ktd.model.memory import GIB, HostMemory, check_fits, fitting_ratio, needs_of

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
