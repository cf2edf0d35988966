"""Experts that are a layer late are in the next layer's sum, and in no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="channels are made of torch tensors")


def late_pairs(weights, deferred):
    """Bool [T, K]: the pairs of the lowest weights of each token; of equal ones the last."""
    ranks = weights.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks >= weights.shape[1] - deferred


@pytest.mark.parametrize("defer", [True, False])
def test_nothing_is_late_in_a_step_that_does_not_defer(rig, divide, defer):
    """As one that reads a prompt."""
    rows, late = 3, 2
    rig = rig(2)
    layer = replace(rig.layers[0], deferred=late)
    layer.table.copy_(rig.table(6))
    x, ids, weights = rig.hidden(rows), rig.ids(rows), rig.weights(rows)
    out = torch.zeros(rows, x.shape[1], dtype=torch.bfloat16, device=rig.gpu)
    rig.channel.begin_step()
    rig.channel.split(layer, x, ids, weights, defer=defer)
    rig.channel.collect(out)
    rig.channel.split(rig.layers[1], x, ids, weights)
    rig.channel.collect(torch.zeros_like(out))
    torch.cuda.synchronize()
    rig.channel.end_step()
    whole = rig.pools_share(0, x, divide(ids, layer.table).cpu_ids, weights)
    there = (out.cpu().float() - whole).abs().max() <= 0.01 * max(1.0, float(whole.abs().max()))
    assert there == (not defer)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("replayed", [False, True], ids=["eager", "graph"])
def test_what_is_late_is_in_the_next_layers_sum(rig, divide, rows, replayed):
    """Over four layers, of which the third has all its experts in slots and none of the pool's.

    Rows have no expert on the CPU in some layers, so that what is late alone makes a row the
    pool's.
    """
    rig = rig(4)
    deferred = (3, 2, 0, 0)
    layers = [
        replace(layer, deferred=late) for layer, late in zip(rig.layers, deferred, strict=True)
    ]
    layers[2] = replace(layers[2], handle=None)
    for layer, in_slots in zip(layers, (6, 10, 16, 12), strict=True):
        layer.table.copy_(rig.table(in_slots))
    x = [rig.hidden(rows) for _ in layers]
    ids = [rig.ids(rows) for _ in layers]
    weights = [rig.weights(rows) for _ in layers]
    outs = [torch.zeros(rows, x[0].shape[1], dtype=torch.bfloat16, device=rig.gpu) for _ in layers]

    def run():
        for layer, hidden, chosen, share, out in zip(layers, x, ids, weights, outs, strict=True):
            rig.channel.split(layer, hidden, chosen, share)
            if layer.handle is not None:
                rig.channel.collect(out.zero_())

    work = run
    rig.channel.begin_step()
    if replayed:
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        work = graph.replay
    for _ in range(3):  # nothing of a step is left for the one behind it
        work()
        torch.cuda.synchronize()
        rig.channel.check()
        late = torch.zeros(rows, x[0].shape[1])
        for position in (0, 1, 3):
            cpu_ids = divide(ids[position], layers[position].table).cpu_ids
            lag = late_pairs(weights[position].cpu(), deferred[position])
            lag &= cpu_ids >= 0

            def share(where, position=position, cpu_ids=cpu_ids):
                chosen = torch.where(where, cpu_ids, -1)
                return rig.pools_share(position, x[position], chosen, weights[position])

            wanted = share(~lag) + late
            assert (outs[position].cpu().float() - wanted).abs().max() <= 0.01 * max(
                1.0, float(wanted.abs().max())
            )
            late = share(lag)
    rig.channel.end_step()
