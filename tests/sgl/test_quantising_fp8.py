"""Experts in FP8 that are quantised while they are loaded: weights wait for their scales."""

import threading

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn

from ktd.experts import _native
from ktd.experts.store import HostStore
from ktd.experts.weights import WeightFormat
from ktd.sgl.expert_format import ExpertFormat
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.quantiser import Quantiser

EXPERTS, WIDTH, HIDDEN = 3, 160, 256
FORMATS = ("fp8_block", "fp8_channel")


def blocks(size):
    return -(-size // 128)


class Checkpoint:
    """Weights and scales of every shard, and what the native function makes of each."""

    def __init__(self, form):
        generator = torch.Generator().manual_seed(5)
        self.form = form
        self.parts = {}
        for expert in range(EXPERTS):
            for shard, rows, columns in (
                ("w1", WIDTH, HIDDEN), ("w2", HIDDEN, WIDTH), ("w3", WIDTH, HIDDEN)
            ):  # fmt: skip
                shape = (blocks(rows), blocks(columns)) if form == "fp8_block" else (rows, 1)
                self.parts[expert, shard] = (
                    torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn),
                    torch.rand(shape, generator=generator) + 0.5,
                )

    def wanted(self, expert, shard):
        weight, scale = self.parts[expert, shard]
        rows, columns = weight.shape
        steps = torch.empty(rows, columns, dtype=torch.int8)
        scales = torch.empty(rows)
        to = steps.data_ptr(), scales.data_ptr()
        source = weight.data_ptr(), self.form, scale.data_ptr()
        _native.quantise(*source, rows, columns, "int8_weight", *to)
        return steps, scales


def sglangs_loader(parameter, weight, _name, shard, expert):
    """Rows of the gate, then those of up; of scales as of weights."""
    data = parameter.data[expert]
    half = data.shape[0] // 2
    rows = {"w1": slice(0, half), "w3": slice(half, None), "w2": slice(None)}[shard]
    data[rows].copy_(weight)


class Loading:
    """A loader with the parameters that the model finds."""

    def __init__(self, form):
        w13_scale, w2_scale = (2 * WIDTH, 1), (HIDDEN, 1)
        if form == "fp8_block":
            w13_scale = (2 * blocks(WIDTH), blocks(HIDDEN))
            w2_scale = (blocks(HIDDEN), blocks(WIDTH))
        fp8 = torch.float8_e4m3fn
        with torch.device("meta"):
            template = {
                "w13_weight": torch.empty(EXPERTS, 2 * WIDTH, HIDDEN, dtype=fp8),
                "w2_weight": torch.empty(EXPERTS, HIDDEN, WIDTH, dtype=fp8),
                "w13_weight_scale": torch.empty(EXPERTS, *w13_scale),
                "w2_weight_scale": torch.empty(EXPERTS, *w2_scale),
            }
        roles = dict(zip(template, ("w13", "w2", "w13_scale", "w2_scale"), strict=True))
        self.bytes = []
        self.loader = ExpertLoader(
            {name: nn.Parameter(t, requires_grad=False) for name, t in template.items()},
            store=HostStore(),
            load=sglangs_loader,
            loaded=self.bytes.append,
            quantiser=Quantiser("int8", HostStore(), lambda _tensor, _parts: None),
            source=ExpertFormat(WeightFormat(form), roles),
        )
        self.found = {name: nn.Parameter(torch.empty(0)) for name in template}
        for name, parameter in self.found.items():
            self.loader.attach(name, parameter)

    def load(self, checkpoint, expert, shard, *, scale):
        name = "w2_weight" if shard == "w2" else "w13_weight"
        suffix = "_scale" if scale else ""
        tensor = checkpoint.parts[expert, shard][scale]
        self.loader(self.found[name + suffix], tensor, f"any.weight{suffix}", shard, expert)

    def expect(self, checkpoint):
        tensors = self.loader.tensors
        for expert, shard in checkpoint.parts:
            steps, scales = checkpoint.wanted(expert, shard)
            name = "w2_weight" if shard == "w2" else "w13_weight"
            rows = slice(WIDTH, None) if shard == "w3" else slice(0, len(steps))
            assert torch.equal(tensors[name][expert][rows], steps), (expert, shard)
            assert torch.equal(tensors[f"{name}_scale"][expert][rows], scales), (expert, shard)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("first", ["weights", "scales", "threads"])
def test_shards_are_quantised_once_weights_and_scales_are_there(form, first):
    """Whichever comes first; neither is held in the meantime by who would bring the other."""
    checkpoint, loading = Checkpoint(form), Loading(form)
    calls = [(*item, scale) for scale in (False, True) for item in checkpoint.parts]
    if first == "scales":
        calls.reverse()

    def load(expert, shard, scale):
        loading.load(checkpoint, expert, shard, scale=scale)

    threads = [threading.Thread(target=load, args=call) for call in calls]
    for thread in threads:
        thread.start()
        if first != "threads":
            thread.join(timeout=30)
    for thread in threads:
        thread.join(timeout=30)
    loading.loader.finish()
    assert loading.loader.missing() is None
    assert sum(loading.bytes) == loading.loader.num_bytes
    loading.expect(checkpoint)


def test_scales_that_never_came_are_named():
    """Not the weights that wait for them."""
    checkpoint, loading = Checkpoint("fp8_block"), Loading("fp8_block")
    for expert, shard in checkpoint.parts:
        loading.load(checkpoint, expert, shard, scale=False)
        if (expert, shard) != (1, "w3"):
            loading.load(checkpoint, expert, shard, scale=True)
    assert loading.loader.missing() == "shard w3 of weight_scale of expert 1"
