"""Who computes each expert of a long prefill, in what the device and the copies are told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="tables are torch tensors")

from ktd.sgl.prefill_division import PrefillDivision

EXPERTS, SLOTS = 6, 4


@pytest.fixture(name="device", params=["cpu", "cuda"])
def device_fixture(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    return torch.device(request.param)


def layer(*in_slots, slots=SLOTS):
    table = torch.full((EXPERTS,), -1, dtype=torch.int32)
    for slot, expert in enumerate(in_slots):
        table[expert] = slot
    return SimpleNamespace(table=table, num_slots=max(slots, len(in_slots)))


def counters(counts):
    """As a rank's: chosen so often in prefills, by the CPU, and once more in each other way."""
    found = torch.ones(2, *torch.tensor(counts).shape, 2, dtype=torch.int64)
    found[1, ..., 1] = torch.tensor(counts)
    return found


def told(division, position, of):
    """Experts that the CPU has; the table on the device and what is copied have to agree."""
    table = division.table(position).tolist()
    streamed = [expert for expert, entry in enumerate(table) if entry >= of.num_slots]
    assert division.streamed(position) == streamed
    assert [table[expert] - of.num_slots for expert in streamed] == list(range(len(streamed)))
    in_slots = [entry if 0 <= entry < of.num_slots else -1 for entry in table]
    assert in_slots == of.table.tolist()
    assert division.in_slots(position) == (max(in_slots) >= 0)
    return [expert for expert, entry in enumerate(table) if entry < 0]


def test_a_layer_that_takes_no_part_has_nothing_anywhere(device):
    division = PrefillDivision(device, 2, EXPERTS)
    counts = counters([[0] * EXPERTS] * 2)
    division.divide([1], [layer(3, 2)], counts, None)
    assert told(division, 0, layer()) == list(range(EXPERTS))
    assert told(division, 1, layer(3, 2)) == []


@pytest.mark.parametrize(
    ("in_slots", "table"),
    [
        ((), [4, 5, 6, 7, 8, 9]),
        ((3, 5), [4, 5, 6, 0, 7, 1]),
        ((5, 0, 2, 1), [1, 3, 2, 4, 5, 0]),
    ],
)
def test_what_is_in_no_slot_passes_in_the_order_of_ids(device, in_slots, table):
    """Without a share for the CPU; ids from the number of slots on are rows of what passes."""
    division = PrefillDivision(device, 1, EXPERTS)
    assert division.divide([0], [layer(*in_slots)], counters([[0] * EXPERTS]), None) == 0
    assert division.table(0).tolist() == table
    assert told(division, 0, layer(*in_slots)) == []


def test_a_layer_without_slots_has_rows_from_0_on(device):
    division, without = PrefillDivision(device, 1, EXPERTS), layer(slots=0)
    assert division.divide([0], [without], counters([[5, 1, 5, 5, 5, 5]]), lambda _: 1) == 1
    assert division.table(0).tolist() == [0, -1, 1, 2, 3, 4]
    assert told(division, 0, without) == [1]


def test_the_experts_chosen_least_are_the_cpus(device):
    """Of those without a slot, in each layer by its own counts; a layer left out has nothing."""
    division = PrefillDivision(device, 3, EXPERTS)
    counts = counters([[0, 9, 1, 0, 8, 7], [1, 1, 1, 1, 1, 1], [5, 4, 3, 2, 1, 0]])
    layers = [layer(0, 3), layer(5)]
    shared = division.divide([0, 2], layers, counts, lambda absent: absent // 2)
    assert shared == 4
    assert told(division, 0, layers[0]) == [2, 5]
    assert told(division, 1, layer()) == list(range(EXPERTS))
    assert told(division, 2, layers[1]) == [3, 4]


def test_a_table_stays_where_it_is_and_follows_every_pass(device):
    """The kernels of a pass were given its address; slots may move from one to the next."""
    division = PrefillDivision(device, 1, EXPERTS)
    address = division.table(0).data_ptr()
    for coldest, in_slots in ((4, ()), (1, ()), (0, (2, 1)), (1, (2,)), (1, (3,)), (5, (3,))):
        counts = [7] * EXPERTS
        counts[coldest] = 3
        division.divide([0], [layer(*in_slots)], counters([counts]), lambda _: 1)
        assert told(division, 0, layer(*in_slots)) == [coldest]
    assert division.table(0).data_ptr() == address


@pytest.mark.parametrize("share", [0, EXPERTS])
def test_nothing_or_everything_may_be_the_cpus(device, share):
    division = PrefillDivision(device, 1, EXPERTS)
    shared = division.divide([0], [layer()], counters([[0] * EXPERTS]), lambda _: share)
    assert shared == len(told(division, 0, layer())) == share


def test_a_layer_with_every_expert_in_slots_gives_nothing_away(device):
    division = PrefillDivision(device, 1, EXPERTS)
    full = layer(*range(EXPERTS))
    assert division.divide([0], [full], counters([[0] * EXPERTS]), lambda n: n) == 0
    assert told(division, 0, full) == []
