"""Which experts the CPU gets, in what the device and the copies are told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="tables are torch tensors")

from ktd.sgl.prefill_division import PrefillDivision

EXPERTS = 6


@pytest.fixture(name="device", params=["cpu", "cuda"])
def device_fixture(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    return torch.device(request.param)


def layer(*in_slots):
    table = torch.full((EXPERTS,), -1, dtype=torch.int32)
    for slot, expert in enumerate(in_slots):
        table[expert] = slot
    return SimpleNamespace(table=table)


def counters(counts):
    """As a rank's: chosen so often in prefills, by the CPU, and once more in each other way."""
    found = torch.ones(2, *torch.tensor(counts).shape, 2, dtype=torch.int64)
    found[1, ..., 1] = torch.tensor(counts)
    return found


def told(division, position):
    """The table on the device and the experts that are not copied, which have to agree."""
    table = division.table(position).tolist()
    assert [e < 0 for e in table] == division.on_cpu(position).tolist()
    assert all(entry in (-1, expert) for expert, entry in enumerate(table))
    return [expert for expert, entry in enumerate(table) if entry < 0]


def test_at_first_the_cpu_has_nothing(device):
    division = PrefillDivision(device, 2, EXPERTS)
    assert told(division, 0) == told(division, 1) == []


def test_the_experts_chosen_least_are_the_cpus(device):
    """Of those without a slot, in each layer by its own counts; layers left out keep nothing."""
    division = PrefillDivision(device, 3, EXPERTS)
    counts = counters([[0, 9, 1, 0, 8, 7], [1, 1, 1, 1, 1, 1], [5, 4, 3, 2, 1, 0]])
    layers = [layer(0, 3), layer(5)]
    shared = division.divide([0, 2], layers, counts, lambda absent: absent // 2)
    assert shared == 4
    assert told(division, 0) == [2, 5]
    assert told(division, 1) == []
    assert told(division, 2) == [3, 4]


def test_a_table_stays_where_it_is_and_follows_every_pass(device):
    """The kernels of a pass were given its address."""
    division = PrefillDivision(device, 1, EXPERTS)
    address = division.table(0).data_ptr()
    for coldest in (4, 1, 0, 1, 1, 5):
        counts = [7] * EXPERTS
        counts[coldest] = 3
        division.divide([0], [layer()], counters([counts]), lambda _: 1)
        assert told(division, 0) == [coldest]
    assert division.table(0).data_ptr() == address


@pytest.mark.parametrize("share", [0, EXPERTS])
def test_nothing_or_everything_may_be_the_cpus(device, share):
    division = PrefillDivision(device, 1, EXPERTS)
    shared = division.divide([0], [layer()], counters([[0] * EXPERTS]), lambda _: share)
    assert shared == len(told(division, 0)) == share


def test_a_layer_with_every_expert_in_slots_gives_nothing_away(device):
    division = PrefillDivision(device, 1, EXPERTS)
    full = layer(*range(EXPERTS))
    assert division.divide([0], [full], counters([[0] * EXPERTS]), lambda n: n) == 0
    assert told(division, 0) == []
