"""Shards on their way into host memory."""

import threading

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn

from ktd.experts.store import HostStore
from ktd.sgl.expert_loader import ExpertLoader, LayerTemplate

EXPERTS, WIDTH, HIDDEN = 3, 4, 5


def sglangs_loader(parameter, weight, _name, shard, expert):
    """Writes as SGLang does: gate rows, then up rows; down as it is."""
    rows = {"w1": slice(0, WIDTH), "w3": slice(WIDTH, 2 * WIDTH), "w2": slice(None)}[shard]
    parameter.data[expert][rows].copy_(weight)


class Loaded:
    """A loader over two parameters, with slots attached, and the bytes it reported."""

    def __init__(self, load=sglangs_loader):
        with torch.device("meta"):
            template = {
                "w13_weight": nn.Parameter(torch.empty(EXPERTS, 2 * WIDTH, HIDDEN)),
                "w2_weight": nn.Parameter(torch.empty(EXPERTS, HIDDEN, WIDTH)),
            }
        template["w2_weight"].input_dim = 1
        self.bytes = 0
        self.loader = ExpertLoader(template, store=HostStore(), load=load, loaded=self._count)
        self.slots = {
            "w13_weight": nn.Parameter(torch.zeros(1, 2 * WIDTH, HIDDEN)),
            "w2_weight": nn.Parameter(torch.zeros(1, HIDDEN, WIDTH)),
        }
        for name, parameter in self.slots.items():
            self.loader.attach(name, parameter)

    def _count(self, num_bytes):
        self.bytes += num_bytes

    def shard(self, shard, expert, value=1.0):
        name = "w2_weight" if shard == "w2" else "w13_weight"
        shape = (HIDDEN, WIDTH) if shard == "w2" else (WIDTH, HIDDEN)
        self.loader(self.slots[name], torch.full(shape, value), "any.name", shard, expert)


@pytest.fixture
def loaded():
    return Loaded()


def everything():
    return [(shard, expert) for expert in range(EXPERTS) for shard in ("w1", "w2", "w3")]


def test_shards_go_to_the_host_tensor_of_their_expert_and_not_into_slots(loaded):
    """The slots are filled by placement, not by loading."""
    loaded.shard("w3", 2, value=7.0)
    w13 = loaded.loader.tensors["w13_weight"]
    assert w13.shape == (EXPERTS, 2 * WIDTH, HIDDEN)
    assert w13[2, WIDTH:].eq(7.0).all()
    assert w13.sum() == 7.0 * WIDTH * HIDDEN
    assert not any(slots.any() for slots in loaded.slots.values())


def test_bytes_add_up_to_the_whole_once_however_often_a_shard_comes(loaded):
    """Progress never exceeds the total."""
    for shard, expert in everything() * 2:
        loaded.shard(shard, expert)
    assert loaded.bytes == loaded.loader.num_bytes == 4 * EXPERTS * 3 * WIDTH * HIDDEN


@pytest.mark.parametrize("absent", [("w1", 0), ("w3", 1), ("w2", 2)])
def test_a_shard_that_never_came_is_named(loaded, absent):
    """Shard and expert; the caller knows the layer."""
    for shard, expert in everything():
        if (shard, expert) != absent:
            loaded.shard(shard, expert)
    assert loaded.loader.missing() == f"shard {absent[0]} of expert {absent[1]}"
    loaded.shard(*absent)
    assert loaded.loader.missing() is None


def test_a_shard_that_could_not_be_written_has_not_arrived():
    """An error of SGLang's loader is not swallowed."""

    def broken(*_):
        raise ValueError("shapes differ")

    loaded = Loaded(broken)
    with pytest.raises(ValueError, match="shapes differ"):
        loaded.shard("w1", 0)
    assert loaded.loader.missing() == "shard w1 of expert 0"
    assert loaded.bytes == 0


def test_shards_may_come_from_several_threads(loaded):
    """DeepSeek's loader works with a pool."""
    threads = [threading.Thread(target=loaded.shard, args=item) for item in everything()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded.loader.missing() is None
    assert loaded.bytes == loaded.loader.num_bytes


def test_what_sglangs_loader_reads_from_a_parameter_is_on_the_host_parameter():
    """Attributes of the template's parameters are kept."""
    seen = {}

    def look(parameter, *_):
        seen["input_dim"] = parameter.input_dim

    Loaded(look).shard("w2", 0)
    assert seen == {"input_dim": 1}


def test_a_template_answers_as_its_layer_and_keeps_its_own_parameters():
    """SGLang's method reads the layer while it lists its parameters."""
    layer = nn.Linear(2, 2)
    layer.moe_tp_size = 4
    template = LayerTemplate(layer)
    template.register_parameter("w2_weight", nn.Parameter(torch.empty(1, device="meta")))
    assert template.moe_tp_size == 4
    assert [name for name, _ in template.named_parameters()] == ["w2_weight"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = template.nothing
