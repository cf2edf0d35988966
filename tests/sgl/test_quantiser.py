"""Experts that are quantised while they are loaded, and slots that are filled from them."""

import threading

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch import nn

from ktd.experts import _native
from ktd.experts.store import HostStore
from ktd.sgl.copier import Copier
from ktd.sgl.copy_lane import HostLane
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.quantiser import Quantiser
from ktd.sgl.slot_source import QuantisedSource

EXPERTS, ROWS, COLUMNS = 6, 24, 96
SHARDS = ("w1", "w3")
FORMATS = ("int8", "int4")


class Wanted:
    """What the native functions make of a whole tensor of experts, in one call each."""

    def __init__(self, source, form):
        experts, rows, columns = source.shape
        if form == "int4":
            self.weights = torch.zeros(experts, rows, columns // 8, dtype=torch.int32)
            self.scale = torch.zeros(experts, rows, columns // 32, dtype=torch.bfloat16)
        else:
            self.weights = torch.zeros(source.shape, dtype=torch.int8)
            self.scale = torch.zeros(experts, rows)
        self.slots = torch.zeros_like(source)
        name = {"int8": "int8_weight", "int4": "int4"}[form]
        weights, scale = self.weights.data_ptr(), self.scale.data_ptr()
        size = (experts * rows, columns)
        _native.quantise(source.data_ptr(), "bf16", 0, *size, name, weights, scale)
        _native.dequantise(weights, scale, name, *size, self.slots.data_ptr())


@pytest.fixture(params=FORMATS)
def form(request):
    return request.param


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(EXPERTS, ROWS, COLUMNS, generator=generator).bfloat16()


def nowhere(_tensor, _parts):
    """Memory appears where it is first written."""


def place_for(source, form, place=nowhere):
    meta = nn.Parameter(torch.empty(source.shape, dtype=source.dtype, device="meta"))
    meta.input_dim = 2
    quantiser = Quantiser(form, HostStore(), place)
    return quantiser, quantiser.parameter(meta, SHARDS)


def load_shard(parameter, source, expert, shard):
    """As ExpertLoader does it, with a loader that narrows as SGLang's does."""
    scratch = parameter.begin(shard)
    rows = slice(0, ROWS // 2) if shard == "w1" else slice(ROWS // 2, ROWS)
    assert scratch.input_dim == 2
    scratch.data[expert][rows].copy_(source[expert][rows])
    parameter.arrived(scratch, expert, shard)
    parameter.end()


def load_all(parameter, source):
    for expert in range(EXPERTS):
        for shard in SHARDS:
            load_shard(parameter, source, expert, shard)


def test_shards_from_several_threads_become_what_the_whole_would(source, form):
    """In any order, and more of them than there is scratch memory at a time."""
    _, parameter = place_for(source, form)
    work = [(expert, shard) for shard in SHARDS for expert in range(EXPERTS)] * 3
    threads = [
        threading.Thread(target=load_shard, args=(parameter, source, *item)) for item in work
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    wanted = Wanted(source, form)
    assert torch.equal(parameter.weights, wanted.weights)
    assert torch.equal(parameter.scale, wanted.scale)


def test_who_would_hold_too_many_shards_waits(source, form):
    """Until one of them has been quantised."""
    _, parameter = place_for(source, form)
    held = 0
    began = threading.Semaphore(0)

    def begin():
        for _ in range(50):
            parameter.begin("w1")
            began.release()

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    while began.acquire(timeout=0.2):
        held += 1
    assert 1 < held < 50
    parameter.end()
    assert began.acquire(timeout=5)
    assert not began.acquire(timeout=0.2)
    for _ in range(held, 49):
        parameter.end()
        assert began.acquire(timeout=5)
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_rows_that_nothing_was_written_to_are_zero(source, form):
    """A shard that is narrower than its place is padded with zeros, as without quantising."""
    _, parameter = place_for(source, form)
    load_all(parameter, source)
    scratch = parameter.begin("w3")
    scratch.data[2][ROWS // 2].copy_(source[2][0])
    parameter.arrived(scratch, 2, "w3")
    parameter.end()
    padded = source.clone()
    padded[2][ROWS // 2] = source[2][0]
    padded[2][ROWS // 2 + 1 :] = 0
    assert torch.equal(parameter.weights, Wanted(padded, form).weights)


def test_memory_is_placed_as_matrices_of_the_shards(source, form):
    """So that gate rows and up rows of an expert lie where the pool's threads read them."""
    placed = []
    _, parameter = place_for(source, form, lambda *call: placed.append(call))
    (weights, first), (scale, second) = placed
    assert (weights is parameter.weights, scale is parameter.scale) == (True, True)
    assert (first, second) == (2, 2)


class Filled:
    """A layer of quantised experts with two bf16 slots."""

    def __init__(self, source, form):
        quantiser, parameter = place_for(source, form)
        load_all(parameter, source)
        store = QuantisedSource(
            {"w": parameter.weights, "w_scale": parameter.scale}, quantiser.format
        )
        self.layer = ExpertLayer(
            layer=0,
            num_experts=EXPERTS,
            num_slots=2,
            store=store,
            slots={"w": torch.zeros(2, ROWS, COLUMNS, dtype=torch.bfloat16)},
            table=torch.full((EXPERTS,), -1, dtype=torch.int32),
        )


def test_a_slot_holds_the_dequantised_values_of_its_expert(source, form):
    """The bytes reported are those of the slot; the store's are fewer."""
    layer = Filled(source, form).layer
    copy = layer.reserve(4)
    copy.run(HostLane())
    assert torch.equal(layer.slots["w"][0], Wanted(source, form).slots[4])
    assert not layer.slots["w"][1].any()
    assert copy.num_bytes == layer.expert_bytes == ROWS * COLUMNS * 2
    scales = {"int8": ROWS * 4, "int4": ROWS * COLUMNS // 32 * 2}[form]
    weights = {"int8": ROWS * COLUMNS, "int4": ROWS * COLUMNS // 2}[form]
    assert layer.host_expert_bytes == weights + scales


@pytest.mark.parametrize("rate", [None, 40_000.0])
def test_the_copier_fills_it_in_pieces_and_counts_what_it_writes(source, form, rate):
    """A slow limit makes pieces of some rows."""
    layer = Filled(source, form).layer
    pieces, done = [], threading.Event()
    copier = Copier(
        finished=lambda _batch, error: pieces.append(error) or done.set(),
        copied=pieces.append,
        bytes_per_second=rate,
    )
    copier.submit(1, [layer.reserve(1)])
    assert done.wait(timeout=30)
    copier.stop()
    assert pieces.pop() is None
    assert sum(pieces) == ROWS * COLUMNS * 2
    assert (len(pieces) > 1) == (rate is not None)
    assert torch.equal(layer.slots["w"][0], Wanted(source, form).slots[1])
