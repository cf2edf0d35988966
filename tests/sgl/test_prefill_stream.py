"""Which experts of a layer long prefills copy to a GPU, and where a pass finds each of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the stream copies torch tensors")

from ktd.enginespec import EngineSpec
from ktd.model.demand import Demand
from ktd.model.device_needs import device_needs, piece_experts
from ktd.model.facts import read_facts
from ktd.sgl import prefill_stream
from ktd.sgl.copy_lane import lane_to
from ktd.sgl.cuda_side import Streams
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.learnt_layout import LearntLayout
from ktd.sgl.one_expert import Layout
from ktd.sgl.prefill_division import PrefillDivision
from ktd.sgl.prefill_share import PassTimes
from ktd.sgl.prefill_stream import CpuHelp, PrefillStream, runs
from ktd.sgl.slot_source import PlainSource

EXPERTS, SLOTS = 7, 3
MODEL = Path(__file__).parents[2] / "models/ktd-tiny"


@pytest.mark.parametrize(
    ("experts", "expected"),
    [
        ([0, 1, 2], [(0, 3)]),
        ([0, 2, 4], [(0, 1), (2, 1), (4, 1)]),
        ([0, 3, 4, 8], [(0, 1), (3, 2), (8, 1)]),
        ([3], [(3, 1)]),
        ([], []),
    ],
)
def test_experts_that_lie_together_are_one_copy(experts, expected):
    assert list(runs(experts)) == expected


def layer_of(number: int, in_slots: list[int]) -> tuple[ExpertLayer, dict[str, torch.Tensor]]:
    host = {"w": torch.arange(EXPERTS * 2, dtype=torch.float32).view(EXPERTS, 2) + 100 * number}
    host = {name: tensor.pin_memory() for name, tensor in host.items()}
    layer = ExpertLayer(
        layer=number,
        num_experts=EXPERTS,
        num_slots=SLOTS,
        store=PlainSource(host),
        slots={"w": torch.zeros(SLOTS, 2, device="cuda")},
        table=torch.full((EXPERTS,), -1, dtype=torch.int32),
    )
    for expert in in_slots:
        layer.reserve(expert).run(lane_to("cuda"))
        layer.publish(expert)
    return layer, host


def stream_of(
    layers: int,
    budget: int = 1 << 20,
    help_: CpuHelp | None = None,
    *,
    experts: int | None = None,
) -> PrefillStream:
    device = torch.device("cuda")
    division = PrefillDivision(device, layers, EXPERTS)
    return PrefillStream(device, 1, budget, division, help_, experts=experts)


def counters(*counts: list[int]) -> torch.Tensor:
    """As a rank's, with all that was counted in one kind and tier."""
    found = torch.zeros(2, len(counts), EXPERTS, 2, dtype=torch.int64)
    found[1, :, :, 1] = torch.tensor(counts)
    return found


@pytest.mark.parametrize("by", ["bytes", "experts"])
@pytest.mark.parametrize("rows", [EXPERTS, 3, 1])
def test_a_pass_sees_every_expert_of_every_layer(rows, by):
    """In a slot or in a piece of any size, pass after pass, also after one broken off."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    limit = {"budget": 2 * rows * 8} if by == "bytes" else {"experts": rows}
    stream = stream_of(3, **limit)
    layers = [layer_of(number, chosen) for number, chosen in enumerate(([], [6, 1], [0, 1, 2]))]
    places = [stream.add_layer(number, *layer) for number, layer in enumerate(layers)]
    for broken in (False, True, False, False):
        stream.begin(8, counters(*[[0] * EXPERTS] * 3))
        for place, (layer, host) in zip(places, layers, strict=True):
            where = torch.cat([layer.slots["w"].cpu(), torch.zeros(EXPERTS, 2)])
            assert stream.slots_compute(place) == (place > 0)
            assert stream.pieces_of(place) == -(
                -(EXPERTS - len(set(layer.mapped()) - {-1})) // rows
            )
            for _ in range(stream.pieces_of(place)):
                with stream.next_piece(place) as piece:
                    part = piece.tensors["w"][: piece.count].cpu()
                    where[piece.first : piece.first + piece.count] = part
            assert stream.num_bytes == 2 * rows * 8
            table = stream.table(place).cpu()
            assert int(table.min()) >= 0
            assert torch.equal(where[table], host["w"])
            if broken:
                break


def test_the_coldest_experts_without_a_slot_go_to_the_cpu():
    """They are not copied, and the table of the pass says so; the next pass divides anew."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    stream = stream_of(1, help_=CpuHelp(spent=lambda: 0.0, row_bytes=0, top_k=2))
    place = stream.add_layer(0, *layer_of(0, [0, 3]))
    assert stream.clock is not None
    share = stream.clock.share
    share.learn(PassTimes(1000, 1, 1, 3.0, 0.0, copied=1, copy_seconds=1.0))
    assert share.experts(1000, 5) == 1
    counts = [0, 9, 1, 0, 8, 7, 6]
    stream.begin(1000, counters(counts))
    with stream.next_piece(place) as piece:
        assert stream.table(place).tolist() == [0, 3, -1, 1, 4, 5, 6]
        copied = piece.tensors["w"][: piece.count].cpu()
    host = torch.arange(EXPERTS * 2, dtype=torch.float32).view(EXPERTS, 2)
    assert torch.equal(copied, host[[1, 4, 5, 6]])
    stream.begin(1000, counters(counts[::-1]))
    with stream.next_piece(place):
        assert stream.table(place).tolist() == [0, 3, 4, 1, 5, 6, -1]


def test_nothing_streams_where_every_expert_of_every_layer_has_a_slot(monkeypatch):
    """Then no layer was added, and a long prefill is one like others."""
    monkeypatch.setattr(prefill_stream, "new_stream", lambda _: None)
    device = torch.device("cpu")
    stream = PrefillStream(device, 1, 1 << 20, PrefillDivision(device, 2, EXPERTS))
    stream.begin(8, counters(*[[0] * EXPERTS] * 2))
    assert stream.num_bytes == 0


def test_layers_out_of_turn_are_refused():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    stream = stream_of(2)
    for number in range(2):
        stream.add_layer(number, *layer_of(number, []))
    stream.begin(8, counters(*[[0] * EXPERTS] * 2))
    refused = pytest.raises(RuntimeError, match="layer 1 was not expected")
    with refused, stream.next_piece(1):
        pass


@pytest.mark.parametrize("experts_that_fit", [0, 1, 2, 7, 16, 100])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("slots", [0, 3 * 6 + 5, 7 * 6, 8 * 6 - 1])
@pytest.mark.parametrize("repacks", [False, True])
def test_buffer_is_what_a_start_reckons_with(monkeypatch, experts_that_fit, ranks, slots, repacks):
    """Two packages know its size, as neither may import the other."""
    hidden, width, experts = 64, 32, 8
    expert_bytes = 3 * hidden * width * 2
    padding = 3 * 4 * width * 2 if repacks else 0
    facts = replace(
        read_facts(MODEL, device="cpu"),
        num_experts=experts,
        expert_bytes=expert_bytes + padding,
        padding_bytes=padding,
    )
    budget = experts_that_fit * expert_bytes // ranks + 5
    demand = Demand(kv_tokens=0, ranks=ranks, device="cuda", buffer_bytes=budget, repacks=repacks)
    # Made without a GPU: only what it reserves is looked at.
    monkeypatch.setattr(prefill_stream, "_Half", lambda tensors: SimpleNamespace(tensors=tensors))
    stream = object.__new__(PrefillStream)
    stream._halves, stream._budget, stream._device, stream._help = [], budget, "meta", None
    stream._most = piece_experts(facts, slots, whole=False)
    stream._laid_out = {}

    def tensors(hidden: int, *rows: int) -> dict[str, torch.Tensor]:
        part = width // ranks
        w13, w2 = (*rows, 2 * part, hidden), (*rows, hidden, part)
        return {
            name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
            for name, shape in (("w13_weight", w13), ("w2_weight", w2))
        }

    slot = Layout(tensors(hidden + 4), {})
    stream._reserve(tensors(hidden, experts), LearntLayout(slot, {}) if repacks else None)
    needs = device_needs(facts, demand, slots=slots, free=1)
    assert needs.stream == ranks * stream.num_bytes > 0


def test_a_rank_streams_as_its_engine_was_started():
    """Or not at all."""
    started = EngineSpec(
        engine_id="e",
        runtime_dir="r",
        model_path="m",
        sglang_args=(),
        device="cuda",
        moe_layers=(0,),
        num_experts=32,
        experts_per_token=4,
        slots=(8,),
        initial=((0,),),
        prefill_threshold=2048,
        prefill_cpu_share=True,
        prefill_experts=24,
    )
    assert Streams.of(started) == Streams(2048, started.prefill_buffer_bytes, True, 24)
    assert Streams.of(replace(started, prefill_threshold=None)) is None
