"""Slots, table and store of one layer."""

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from ktd.sgl.copy_lane import HostLane
from ktd.sgl.expert_layer import ExpertLayer, MoveRefused, plain_copies
from ktd.sgl.slot_source import PlainSource


@pytest.fixture
def layer():
    store = PlainSource({"w": torch.arange(8 * 3, dtype=torch.float32).reshape(8, 3)})
    slots = {"w": torch.full((2, 3), float("nan"))}
    table = torch.full((8,), -1, dtype=torch.int32)
    return ExpertLayer(layer=5, num_experts=8, num_slots=2, store=store, slots=slots, table=table)


def place(layer, expert, slot=None):
    copy = layer.reserve(expert, slot)
    copy.run(HostLane())
    layer.publish(expert)


def test_an_expert_is_mapped_only_after_publish(layer):
    """While its slot is being written the CPU computes it."""
    layer.reserve(3)
    assert layer.table.tolist() == [-1] * 8
    layer.publish(3)
    assert layer.table[3] == 0
    assert layer.mapped() == [3, -1]


def test_a_loaded_expert_takes_the_slot_of_the_one_it_evicts(layer):
    """Slots are stable: nothing else moves."""
    place(layer, 1)
    place(layer, 2)
    slot = layer.unmap(1)
    place(layer, 7, slot)
    assert layer.mapped() == [7, 2]
    assert layer.table.tolist() == [-1, -1, 1, -1, -1, -1, -1, 0]
    assert torch.equal(layer.slots["w"][0], layer.store.tensors["w"][7])


def test_a_pure_load_takes_the_lowest_free_slot_that_nobody_is_writing(layer):
    """Two loads of one batch never share a slot."""
    assert layer.reserve(4).slot == 0
    assert layer.reserve(5).slot == 1
    with pytest.raises(MoveRefused, match="layer 5 has no free slot for expert 6"):
        layer.reserve(6)


@pytest.mark.parametrize(
    ("evict", "load", "sentence"),
    [
        (0, -1, "expert 0 of layer 5 is not in a slot"),
        (-1, 1, "expert 1 of layer 5 is in a slot already"),
        (-1, 8, r"layer 5 has experts 0\.\.7, not 8"),
        (-2, 3, r"layer 5 has experts 0\.\.7, not -2"),
    ],
)
def test_a_move_that_contradicts_the_mapping_is_refused_by_name(layer, evict, load, sentence):
    """The rank does not trust what it is sent."""
    place(layer, 1)
    with pytest.raises(MoveRefused, match=sentence):
        layer.check(evict, load)


def test_release_leaves_the_slot_empty_and_the_expert_on_the_cpu(layer):
    """An aborted copy frees its slot."""
    layer.reserve(4)
    layer.release(4)
    assert layer.mapped() == [-1, -1]
    assert layer.reserve(5).slot == 0


def test_restore_takes_back_an_unmap(layer):
    """A refused batch leaves no trace."""
    place(layer, 1)
    slot = layer.unmap(1)
    layer.restore(1, slot)
    assert layer.mapped() == [1, -1]
    assert layer.table[1] == 0


def test_an_experts_tensors_are_copied_one_after_the_other():
    """Small ones beside large ones, of several layers; and what is no plain copy is left over."""
    copies, wanted = [], []
    for number in range(2):
        stored = {"w": torch.randn(4, 6), "scale": torch.randn(4, 1)}
        slots = {"w": torch.zeros(2, 6), "scale": torch.zeros(2, 1)}
        layer = ExpertLayer(number, 4, 2, PlainSource(stored), slots, torch.full((4,), -1).int())
        for slot, expert in enumerate((3, 1)):
            copies.append(layer.reserve(expert, slot))
            wanted += [
                [slots[name][slot].data_ptr(), stored[name][expert].data_ptr(), size]
                for name, size in (("w", 24), ("scale", 4))
            ]
    other = dataclasses.replace(copies[0], places=None)
    plain, others = plain_copies([*copies, other])
    assert plain.tolist() == wanted
    assert others == [other]


def test_expert_bytes_are_those_of_every_tensor(layer):
    """Three float32."""
    assert layer.expert_bytes == layer.host_expert_bytes == 12
    assert layer.reserve(0).num_bytes == 12
