"""The split on the device is the split that the pool's own code and plain torch make."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch", reason="routing comes as torch tensors")

from ktd.errors import CudaFailed  # noqa: E402
from ktd.experts import pool as expert_pool  # noqa: E402

EXPERTS = 24
# Rows of one block, of many, of more than a grid has blocks.
ROWS = [1, 2, 33, 900]


@pytest.mark.parametrize("in_slots", [0, 7, EXPERTS])
def test_plain_torch_splits_as_the_native_pool_does(divide, in_slots):
    """What the device is compared with agrees with what runs without one."""
    random = torch.Generator().manual_seed(in_slots)
    table = torch.full((EXPERTS,), -1, dtype=torch.int32)
    table[torch.randperm(EXPERTS, generator=random)[:in_slots]] = torch.arange(in_slots).int()
    ids = torch.randint(-1, EXPERTS, (40, 6), generator=random)
    counters = torch.zeros(EXPERTS, 2, dtype=torch.int64)
    native = expert_pool.split(ids, table, counters)
    plain = divide(ids, table)
    assert torch.equal(plain.slots, native.slots)
    assert torch.equal(plain.cpu_ids, native.cpu_ids)
    assert torch.equal(plain.counters, counters)


@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("in_slots", [0, 9, EXPERTS])
def test_each_pair_goes_to_one_side_and_is_counted_once(rig, divide, in_slots, wide):
    """Over top-k, rows, padding, missing ids, and tables that hold all, some or none."""
    from ktd.cuda.layer_channel import ChannelError, DeviceLayer

    rig = rig(max_tokens=max(ROWS))
    table = rig.table(in_slots, EXPERTS)
    counters = torch.zeros(EXPERTS, 2, dtype=torch.int64, device=rig.gpu)
    layer = DeviceLayer(None, table, counters)
    for top_k, rows in itertools.product(range(1, 11), ROWS):
        for tokens in {None, 0, rows // 2, rows, rows + 5}:
            ids = rig.ids(rows, top_k, EXPERTS)
            count = None
            if tokens is not None:
                count = torch.tensor([tokens], dtype=torch.int32, device=rig.gpu)
            counters.zero_()
            given = ids.long() if wide else ids
            x, weights = rig.hidden(rows), rig.weights(rows, top_k)
            slots = rig.channel.split(layer, x, given, weights, count)
            plain = divide(ids, table, tokens)
            assert torch.equal(slots.cpu(), plain.slots)
            assert torch.equal(counters.cpu(), plain.counters)
    assert rig.channel.error is ChannelError.NONE


@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
def test_ids_are_left_where_a_recording_finds_them(rig, wide):
    """Those of rows that are there, in a layer with a CPU path and in one without."""
    from ktd.cuda.layer_channel import DeviceLayer

    rig = rig(max_tokens=40)
    width = 6
    for handle, rows, top_k in itertools.product((rig.layers[0].handle, None), (1, 3, 40), (2, 6)):
        seen = torch.full((40, width), -7, dtype=torch.int16, device=rig.gpu)
        counters = torch.zeros(EXPERTS, 2, dtype=torch.int64, device=rig.gpu)
        layer = DeviceLayer(handle, rig.table(EXPERTS, EXPERTS), counters, seen=seen)
        ids = rig.ids(rows, top_k, EXPERTS)
        tokens = torch.tensor([rows - 1], dtype=torch.int32, device=rig.gpu)
        given = ids.long() if wide else ids
        rig.channel.split(layer, rig.hidden(rows), given, rig.weights(rows, top_k), tokens)
        expected = torch.full((40, width), -7, dtype=torch.int16)
        expected[: rows - 1, :top_k] = ids.cpu().short()[: rows - 1]
        assert torch.equal(seen.cpu(), expected)


@pytest.mark.parametrize("bad", [EXPERTS, -2, 2**40])
def test_an_expert_that_does_not_exist_sets_the_error_word(rig, bad):
    """It goes nowhere, is not counted, and later answers are not to be trusted."""
    from ktd.cuda.layer_channel import ChannelError, DeviceLayer

    rig = rig()
    counters = torch.zeros(EXPERTS, 2, dtype=torch.int64, device=rig.gpu)
    layer = DeviceLayer(rig.layers[0].handle, rig.table(5, EXPERTS), counters)
    ids = torch.full((3, 2), -1, dtype=torch.int64, device=rig.gpu)
    ids[1, 1] = bad
    out = rig.hidden(3)
    slots = rig.channel.split(layer, rig.hidden(3), ids, rig.weights(3, 2))
    rig.channel.collect(out)
    torch.cuda.synchronize()
    assert (slots == -1).all()
    assert not counters.any()
    assert out.isnan().all()
    assert rig.channel.error is ChannelError.BAD_EXPERT
    with pytest.raises(CudaFailed, match="expert that the layer does not have"):
        rig.channel.check()


def test_what_does_not_fit_the_channel_is_refused(rig):
    """Batches and tensors are checked before anything is enqueued."""
    rig = rig(max_tokens=4, top_k=2)
    layer = rig.layers[0]

    def split(rows, top_k=2, **other):
        arguments = {"ids": rig.ids(rows, top_k), "weights": rig.weights(rows, top_k)} | other
        return rig.channel.split(layer, rig.hidden(rows), **arguments)

    with pytest.raises(ValueError, match="a batch of 5 rows"):
        split(5)
    with pytest.raises(ValueError, match="has 3 experts"):
        split(2, 3)
    with pytest.raises(ValueError, match="weights must be a contiguous"):
        split(2, weights=rig.weights(2).bfloat16())
    with pytest.raises(ValueError, match="num_tokens must be one int32"):
        split(2, num_tokens=torch.tensor(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="out must be a contiguous"):
        rig.channel.collect(rig.hidden(2).float())
    assert split(0).shape == (0, 2)
