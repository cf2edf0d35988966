"""Slots that the native pool computes."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn

from ktd.experts.pool import ExpertPool
from ktd.experts.store import HostStore
from ktd.experts.weights import Activation
from ktd.sgl.expert_format import ExpertFormat, WeightFormat
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.limits import ExpertMath
from ktd.sgl.pool_slots import PoolSlots

EXPERTS, SLOTS, HIDDEN, WIDTH, TOKENS = 6, 3, 64, 32, 5
# gpt-oss: biases, interleaved rows, clamped SwiGLU.
MATH = ExpertMath(Activation(alpha=1.702, limit=7.0, beta=1.0), interleaved=True, biases=True)
FORMAT = ExpertFormat(
    WeightFormat.MXFP4,
    {
        "w13_weight": "w13",
        "w2_weight": "w2",
        "w13_weight_scale": "w13_scale",
        "w2_weight_scale": "w2_scale",
        "w13_weight_bias": "w13_bias",
        "w2_weight_bias": "w2_bias",
    },
)
SHAPES = {
    "w13_weight": (2 * WIDTH, HIDDEN // 2),
    "w2_weight": (HIDDEN, WIDTH // 2),
    "w13_weight_scale": (2 * WIDTH, HIDDEN // 32),
    "w2_weight_scale": (HIDDEN, WIDTH // 32),
    "w13_weight_bias": (2 * WIDTH,),
    "w2_weight_bias": (HIDDEN,),
}


class Made:
    """A layer of MXFP4 experts, loaded in whole tensors as gpt-oss has them, and its slots."""

    def __init__(self, num_slots=SLOTS):
        generator = torch.Generator().manual_seed(5)
        self.checkpoint = {}
        for name, shape in SHAPES.items():
            size = (EXPERTS, *shape)
            if name.endswith("bias"):
                value = torch.randn(size, generator=generator).bfloat16()
            else:
                low, high = (118, 124) if name.endswith("scale") else (0, 256)
                value = torch.randint(low, high, size, dtype=torch.uint8, generator=generator)
            self.checkpoint[name] = value
        template = {
            name: nn.Parameter(torch.empty_like(value, device="meta"), requires_grad=False)
            for name, value in self.checkpoint.items()
        }
        self.loaded, self.read, self.ignored = 0, 0, []
        store = HostStore()
        self.loader = ExpertLoader(template, store=store, load=self._load, loaded=self._count)
        self.layer, self.pool = nn.Module(), ExpertPool(threads=1)
        self.slots = PoolSlots(
            self.layer,
            self.loader,
            num_slots,
            template=template,
            store=store,
            pool=self.pool,
            experts=lambda tensors: FORMAT.experts(tensors, MATH),
            read=self._count_read,
            unstored={"w13_weight_shape": lambda *args: self.ignored.append(args)},
        )

    @staticmethod
    def _load(parameter, weight, _name, _shard, _expert):
        parameter.data.copy_(weight)

    def _count(self, num_bytes):
        self.loaded += num_bytes

    def _count_read(self, num_bytes):
        self.read += num_bytes

    def load(self, *names):
        """As the model does: by the parameters that the layer has."""
        for name in names or SHAPES:
            parameter = getattr(self.layer, name)
            parameter.weight_loader(parameter, self.checkpoint[name], name, None, None)


def step(ids):
    generator = torch.Generator().manual_seed(9)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
    weights = torch.rand(TOKENS, 2, generator=generator)
    return hidden, torch.tensor(ids, dtype=torch.int32), weights


def test_whole_layers_arrive_in_the_store_and_are_counted_once():
    """gpt-oss sends no expert and no shard."""
    made = Made()
    made.load("w13_weight")
    assert made.loader.missing() == "shard w2 of expert 0"
    made.load("w2_weight", "w13_weight_scale", "w2_weight_scale", "w13_weight_bias")
    assert made.loader.missing() == "shard w2 of weight_bias of expert 0"
    made.load()
    assert made.loader.missing() is None
    assert made.loaded == made.loader.num_bytes
    for name, tensor in made.loader.tensors.items():
        assert torch.equal(tensor, made.checkpoint[name])


def test_an_expert_answers_with_the_same_bits_in_a_slot_and_in_the_store():
    """Slot 0 holds expert 4, slot 2 expert 1; the other pairs go elsewhere."""
    made = Made()
    made.load()
    for slot, expert in ((0, 4), (2, 1)):
        for name, tensor in made.slots.tensors(made.layer).items():
            tensor[slot].copy_(made.loader.tensors[name][expert])
    made.slots.filled(made.layer)
    hidden, in_slots, weights = step([[0, -1], [2, -1], [-1, -1], [0, -1], [-1, 2]])
    experts = torch.tensor([4, -1, 1, -1], dtype=torch.int32)[in_slots]
    store = made.pool.add_layer(FORMAT.experts(made.loader.tensors, MATH))
    expected = made.pool.forward(store, hidden, experts, weights)
    assert expected[0].abs().max() > 0

    out = torch.zeros(TOKENS, HIDDEN)
    made.slots.add(made.layer, SimpleNamespace(hidden_states=hidden), in_slots, weights, out)
    assert torch.equal(out, expected)
    assert made.read > 0


def test_a_layer_may_have_no_slots():
    """Its parameters still carry the loader, or the model would not find the experts."""
    made = Made(num_slots=0)
    made.load()
    made.slots.filled(made.layer)
    assert made.loader.missing() is None


def test_what_has_no_memory_still_has_a_loader():
    """A checkpoint's weight_shape, for example."""
    made = Made()
    parameter = made.layer.w13_weight_shape
    parameter.weight_loader(parameter, torch.tensor([1, 2]), "w13_weight_shape", "w1", 0)
    assert len(made.ignored) == 1
    assert parameter.numel() == 0
