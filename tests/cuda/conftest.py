"""A GPU, what a split must be in plain torch, and layers on the device with their pool."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

HIDDEN = 256
INNER = 128
EXPERTS = 16
TOP_K = 4


@pytest.fixture(name="gpu")
def gpu_fixture():
    """The device; skips where there is none."""
    torch = pytest.importorskip("torch", reason="channels are made of torch tensors")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True)
class Divided:
    """int32 slots and cpu_ids [T, K]; int64 counters [E, 2]."""

    slots: object
    cpu_ids: object
    counters: object


@pytest.fixture(name="divide")
def divide_fixture():
    """divide(ids, table, tokens): the split in plain torch, on the CPU."""
    torch = pytest.importorskip("torch", reason="routing comes as torch tensors")

    def divide(ids, table, tokens=None):
        real = ids.long().cpu().clone()
        table = table.cpu()
        if tokens is not None:
            real[tokens:] = -1
        chosen = real >= 0
        slots = torch.where(chosen, table[real.clamp(min=0)].long(), -1)
        on_cpu = chosen & (slots < 0)
        counters = torch.zeros(table.shape[0], 2, dtype=torch.int64)
        for tier, where in enumerate((chosen & (slots >= 0), on_cpu)):
            counters[:, tier] = torch.bincount(real[where], minlength=table.shape[0])
        return Divided(slots.int(), torch.where(on_cpu, real, -1).int(), counters)

    return divide


class Rig:
    """A pool, some layers of it with a device table each, and one channel."""

    def __init__(self, gpu, layers, **channel):
        import torch

        from ktd.cuda.layer_channel import DeviceLayer, LayerChannel
        from ktd.experts.pool import ExpertPool
        from ktd.experts.weights import ExpertWeights, WeightFormat

        self.random = torch.Generator().manual_seed(layers)
        self.gpu = gpu
        self.pool = ExpertPool(threads=2)
        self.layers = []
        for _ in range(layers):
            w13 = self.normal(EXPERTS, 2 * INNER, HIDDEN) / HIDDEN**0.5
            w2 = self.normal(EXPERTS, HIDDEN, INNER) * 0.1
            handle = self.pool.add_layer(
                ExpertWeights(WeightFormat.BF16, w13.bfloat16(), w2.bfloat16())
            )
            table = torch.full((EXPERTS,), -1, dtype=torch.int32, device=gpu)
            counters = torch.zeros(EXPERTS, 2, dtype=torch.int64, device=gpu)
            self.layers.append(DeviceLayer(handle, table, counters))
        options = {"max_tokens": 512, "top_k": 10, "limit_s": 10.0} | channel
        self.channel = LayerChannel(self.pool, hidden=HIDDEN, **options)

    def normal(self, *shape):
        """Float32 on the CPU."""
        import torch

        return torch.randn(*shape, generator=self.random)

    def hidden(self, tokens):
        """bf16 [tokens, HIDDEN] on the device."""
        return self.normal(tokens, HIDDEN).bfloat16().to(self.gpu)

    def ids(self, tokens, top_k=TOP_K, experts=EXPERTS):
        """int32 [tokens, top_k] on the device; about one in eight is -1."""
        import torch

        scores = torch.rand(tokens, max(experts, top_k), generator=self.random)
        ids = scores.topk(top_k).indices.int()
        ids[ids >= experts] = -1
        ids[torch.rand(tokens, top_k, generator=self.random) < 0.125] = -1
        return ids.to(self.gpu)

    def weights(self, tokens, top_k=TOP_K):
        """float32 [tokens, top_k] on the device."""
        import torch

        return torch.rand(tokens, top_k, generator=self.random).to(self.gpu)

    def table(self, in_slots, experts=EXPERTS):
        """int32 [experts] on the device: so many random experts in slots."""
        import torch

        table = torch.full((experts,), -1, dtype=torch.int32)
        chosen = torch.randperm(experts, generator=self.random)[:in_slots]
        table[chosen] = torch.randperm(in_slots, generator=self.random).int()
        return table.to(self.gpu)

    def pools_share(self, layer, x, cpu_ids, weights):
        """What the pool makes of a call without the channel: float32 on the CPU."""
        return self.pool.forward(
            self.layers[layer].handle, x.cpu(), cpu_ids.contiguous(), weights.cpu()
        )


@pytest.fixture(name="rig")
def rig_fixture(gpu):
    """rig(layers, **channel) makes a Rig and closes its channel at the end."""
    made = []

    def make(layers=1, **channel):
        made.append(Rig(gpu, layers, **channel))
        return made[-1]

    yield make
    for rig in made:
        rig.channel.close()
