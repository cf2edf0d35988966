"""A layer's call through the GPU's channel is the pool's own answer, and a wait always ends."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time

import pytest

torch = pytest.importorskip("torch", reason="channels are made of torch tensors")

from ktd.errors import CudaFailed  # noqa: E402

# One block; as many as may wait at once; more, which wait and add in two kernels.
ROWS = [1, 2, 31, 256, 257, 500]
IN_SLOTS = 6


@contextlib.contextmanager
def step(channel):
    """A launched step, until the device has finished it."""
    channel.begin_step()
    try:
        yield
        torch.cuda.synchronize()
    finally:
        channel.end_step()


def summed(base, share, cpu_ids, tokens):
    """What collect leaves in the rows of ``base``: bf16 on the CPU."""
    out = base.cpu().clone()
    rows = (cpu_ids >= 0).any(1)
    rows[tokens:] = False
    out[rows] = (out[rows].float() + share[rows]).bfloat16()
    return out


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_the_answer_is_the_pools_own(rig, divide, rows, padded):
    """Bit for bit, added to the slots' output in float32; rows of padding stay."""
    rig = rig()
    layer = rig.layers[0]
    layer.table.copy_(rig.table(IN_SLOTS))
    tokens = rows - rows // 3 if padded else rows
    count = torch.tensor(tokens, dtype=torch.int32, device=rig.gpu) if padded else None
    x, ids, weights, base = rig.hidden(rows), rig.ids(rows), rig.weights(rows), rig.hidden(rows)
    plain = divide(ids, layer.table, tokens)
    out = base.clone()
    began, answered = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with step(rig.channel):
        began.record()
        slots = rig.channel.split(layer, x, ids, weights, count)
        rig.channel.collect(out, count, answered=answered)
    rig.channel.check()
    assert began.elapsed_time(answered) > 0
    assert torch.equal(slots.cpu(), plain.slots)
    assert torch.equal(layer.counters.cpu(), plain.counters)
    share = rig.pools_share(0, x, plain.cpu_ids, weights)
    assert torch.equal(out.cpu(), summed(base, share, plain.cpu_ids, tokens))


@pytest.mark.parametrize("rows", [3, 300])
def test_a_layer_without_slots_writes_its_whole_output(rig, divide, rows):
    """Whatever was in it before; zeros where nobody computes."""
    rig = rig()
    layer = rig.layers[0]
    x, ids, weights = rig.hidden(rows), rig.ids(rows), rig.weights(rows)
    ids[1] = -1
    tokens = rows - 1
    count = torch.tensor(tokens, dtype=torch.int32, device=rig.gpu)
    out = torch.full_like(x, float("nan"))
    with step(rig.channel):
        rig.channel.split(layer, x, ids, weights, count)
        rig.channel.collect(out, count, add=False)
    rig.channel.check()
    plain = divide(ids, layer.table, tokens)
    share = rig.pools_share(0, x, plain.cpu_ids, weights)
    assert torch.equal(out.cpu(), summed(torch.zeros_like(x), share, plain.cpu_ids, tokens))


@pytest.mark.parametrize(("always", "asked"), [(False, 0), (True, 1)], ids=["known", "measured"])
def test_nothing_is_asked_of_the_pool_when_all_experts_are_in_slots(rig, always, asked):
    """The device knows it: no flag, no wait, an output that stays; unless the way is measured."""
    rig = rig(always=always)
    layer = rig.layers[0]
    layer.table.copy_(torch.arange(layer.table.numel()))
    base = rig.hidden(40)
    out = base.clone()
    calls = rig.pool.native.calls
    with step(rig.channel):
        rig.channel.split(layer, rig.hidden(40), rig.ids(40), rig.weights(40))
        rig.channel.collect(out)
    rig.channel.check()
    assert rig.pool.native.calls == calls + asked
    assert torch.equal(out, base)


def test_a_call_that_nobody_announced_is_answered(rig, divide):
    """The pool sleeps, and looks at the flag now and then."""
    rig = rig()
    x, ids, weights = rig.hidden(2), rig.ids(2), rig.weights(2)
    out = torch.zeros_like(x)
    time.sleep(0.3)
    rig.channel.split(rig.layers[0], x, ids, weights)
    rig.channel.collect(out)
    torch.cuda.synchronize()
    rig.channel.check()
    plain = divide(ids, rig.layers[0].table)
    share = rig.pools_share(0, x, plain.cpu_ids, weights)
    assert torch.equal(out.cpu(), summed(torch.zeros_like(x), share, plain.cpu_ids, 2))


@pytest.mark.parametrize("rows", [1, 32, 300])
def test_a_replayed_graph_follows_inputs_tables_and_padding(rig, divide, rows):
    """Three layers in one graph, each fed by the one before; nothing but memory changes."""
    rig = rig(layers=3)
    channel = rig.channel
    x = rig.hidden(rows)
    ids = [rig.ids(rows) for _ in rig.layers]
    weights = [rig.weights(rows) for _ in rig.layers]
    count = torch.tensor(rows, dtype=torch.int32, device=rig.gpu)
    slots, outs = [], []

    def layers():
        slots.clear()
        outs.clear()
        fed = x
        for i, layer in enumerate(rig.layers):
            slots.append(channel.split(layer, fed, ids[i], weights[i], count))
            out = fed * 0.5
            channel.collect(out, count)
            outs.append(out)
            fed = out

    with step(channel):
        layers()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers()
    for layer in rig.layers:
        layer.counters.zero_()
    totals = [torch.zeros_like(layer.counters, device="cpu") for layer in rig.layers]
    for replay in range(12):
        tokens = rows - replay % 3 * (rows // 4)
        count.fill_(tokens)
        x.copy_(rig.hidden(rows))
        for i, layer in enumerate(rig.layers):
            ids[i].copy_(rig.ids(rows))
            weights[i].copy_(rig.weights(rows))
            layer.table.copy_(rig.table((replay * 5 + i) % 17))
        with step(channel):
            graph.replay()
        channel.check()
        fed = x
        for i, layer in enumerate(rig.layers):
            plain = divide(ids[i], layer.table, tokens)
            totals[i] += plain.counters
            assert torch.equal(slots[i].cpu(), plain.slots)
            share = rig.pools_share(i, fed, plain.cpu_ids, weights[i])
            wanted = summed(fed * 0.5, share, plain.cpu_ids, tokens)
            assert torch.equal(outs[i].cpu(), wanted)
            fed = outs[i]
    for layer, total in zip(rig.layers, totals, strict=True):
        assert torch.equal(layer.counters.cpu(), total)


@pytest.mark.parametrize("rows", [2, 32, 300])
def test_a_dead_pool_is_given_up(rig, rows):
    """NaN, the error word, and later layers that do not wait again, in a graph too."""
    from ktd.cuda.layer_channel import ChannelError

    rig = rig(give_up_s=0.3)
    x, ids, weights = rig.hidden(rows), rig.ids(rows), rig.weights(rows)
    ids[:, 0] = 0
    outs = [rig.hidden(rows) for _ in range(8)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for out in outs:
            rig.channel.split(rig.layers[0], x, ids, weights)
            rig.channel.collect(out)
    rig.channel.close()
    graph.replay()
    torch.cuda.synchronize()
    assert rig.channel.error is ChannelError.POOL_SILENT
    assert all(out.isnan().all() for out in outs)
    epochs = rig.channel._state.view(torch.int32)[0]
    assert int(epochs) == 1
    with pytest.raises(CudaFailed, match=r"heart has stood still for 0\.3 s"):
        rig.channel.check()


@pytest.mark.parametrize("rows", [1, 32, 200])
def test_a_living_pool_is_waited_for_up_to_the_limit(rig, rows):
    """A heart that beats is not given up, however long the answer takes."""
    from ktd.cuda.layer_channel import ChannelError

    rig = rig(give_up_s=0.2, limit_s=1.0)
    rig.channel.close()
    beats = ctypes.c_uint64.from_address(rig.channel._box.data_ptr() + 128)
    ended = threading.Event()

    def beat():
        while not ended.wait(0.01):
            beats.value += 1

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        ids = torch.zeros(rows, 4, dtype=torch.int32, device=rig.gpu)
        out = rig.hidden(rows)
        rig.channel.split(rig.layers[0], rig.hidden(rows), ids, rig.weights(rows))
        rig.channel.collect(out)
        torch.cuda.synchronize()
    finally:
        ended.set()
        heart.join()
    assert rig.channel.error is ChannelError.LIMIT
    assert out.isnan().all()


def test_one_block_and_several_take_turns(rig, divide):
    """What a grid was told of one answer is not taken for the next one's."""
    rig = rig()
    for rows in (1, 200, 1, 32, 1, 256, 2):
        x, weights, out = rig.hidden(rows), rig.weights(rows), rig.hidden(rows)
        ids = rig.ids(rows)
        ids[:, 0] = 0
        found = out.clone()
        with step(rig.channel):
            rig.channel.split(rig.layers[0], x, ids, weights)
            rig.channel.collect(found)
        cpu = divide(ids, rig.layers[0].table).cpu_ids
        share = rig.pools_share(0, x, cpu, weights)
        assert torch.equal(found.cpu(), summed(out, share, cpu, rows))
        rig.channel.check()


@pytest.mark.parametrize("rows", [1, 32])
def test_a_call_that_the_pool_refuses_is_an_error_with_its_words(rig, rows):
    """No answer is used that the pool did not compute."""
    from dataclasses import replace

    rig = rig()
    unknown = replace(rig.layers[0], handle=99)
    ids = torch.zeros(rows, 4, dtype=torch.int32, device=rig.gpu)
    out = rig.hidden(rows)
    with step(rig.channel):
        rig.channel.split(unknown, rig.hidden(rows), ids, rig.weights(rows))
        rig.channel.collect(out)
    assert out.isnan().all()
    with pytest.raises(CudaFailed, match="there is no layer with handle 99"):
        rig.channel.check()
