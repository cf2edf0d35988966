"""4-bit experts in slots on a GPU, by SGLang's own methods: each kind, on the runner it has.

This is what admits a format that SGLang lays out after loading (ktd.sgl.cuda_formats): slots hold
what SGLang makes of all experts, the runner skips pairs that are not here, and experts move in
place while steps run.
"""

from __future__ import annotations

import importlib.util
import queue
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="layers are made of torch tensors")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)
if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed here: pip install 'ktd[engine]'", allow_module_level=True)

from ktd.cuda.streams import new_event, new_stream
from ktd.experts.pool import ExpertPool
from ktd.experts.store import HostStore
from ktd.experts.weights import Activation
from ktd.sgl import absent_ids
from ktd.sgl.copier import Copier
from ktd.sgl.copy_lane import lane_to
from ktd.sgl.cuda_side import CudaSide, Streams
from ktd.sgl.cuda_step import CudaStep, StreamedLayer, WithParameters
from ktd.sgl.dispatch_rows import rows_like
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.gpu_slots import slots_on_gpu
from ktd.sgl.learnt_layout import LearntLayout
from ktd.sgl.limits import ExpertMath
from tests.sgl.four_bits import KINDS, MXFP4, TOP_K, Experts, Sizes, in_pieces, runner_config
from tests.sgl.gpu_sglang import stand_alone

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = Sizes(experts=16, hidden=512, width=256, group=32)
WIDE = Sizes(experts=16, hidden=512, width=512, group=128)
# One group in the second product, whose scales SGLang rearranges in place.
NARROW = Sizes(experts=16, hidden=512, width=128, group=128)
# Of each kind: SGLang reads the zero points of smaller groups than 128 wrongly.
SIZES_OF = {kind: WIDE if kind == "awq" else SIZES for kind in KINDS}
# SGLang pads hidden sizes of MXFP4 to 256 and widths to 128; gpt-oss has 2880 of both.
PADDED = Sizes(experts=16, hidden=576, width=160, group=32)
ROWS = (1, 7, 64, 700, 1500)
# Relative, of a whole batch. Both runners round dequantised weights to bf16, 2^-9 for each product,
# and Marlin may add up parts of a product in bf16; a lost expert would be a quarter of the answer.
# With nothing in slots, where the pool computes all (within 2e-3 of float64), one row of INT4 was
# 0.0101 from Marlin's on an H200.
TOLERANCE = 0.01
TOLERANCES = {"int4-marlin": 0.015}
HALVES = ExpertMath(Activation(limit=7.0))


@pytest.fixture(scope="module", autouse=True)
def sglang_alone():
    stand_alone()


class Hybrid:
    """A layer whose slots hold ``in_slots`` experts, and unmodified SGLang's with all of them."""

    def __init__(self, kind, in_slots, *, sizes=None, stream=None, mapped=False, math=None):
        sizes = sizes or SIZES_OF[kind]
        self.tolerance = TOLERANCES.get(kind, TOLERANCE)
        self.random = torch.Generator().manual_seed(in_slots)
        experts, stock = Experts(kind, sizes, math), Experts(kind, sizes, math)
        self.sizes = sizes
        self.host = experts.host(self.random)
        self.pinned = {name: tensor.pin_memory() for name, tensor in self.host.items()}
        self.pool = ExpertPool(threads=2)
        handle = self.pool.add_layer(experts.format.experts(self.host, experts.math))
        self.counters = torch.zeros(2, 1, sizes.experts, 2, dtype=torch.int64)
        streams = Streams(threshold=1, buffer_bytes=1 << 30, experts=stream)
        self.side = CudaSide(
            self.pool,
            self.counters,
            hidden=sizes.hidden,
            top_k=TOP_K,
            chunk=64,
            streams=streams if stream else None,
        )
        self.side.started()
        self.sglang = experts.layer()
        with torch.device("cuda"):
            self.slots = slots_on_gpu(
                experts.method,
                self.sglang,
                experts.loader(HostStore()),
                in_slots,
                experts.attributes,
                experts=experts.format,
                scratch=self.side.scratch,
                device=self.side.device,
            )
        config = runner_config(sizes, experts.math)
        with experts.chosen_runner():
            self.slots.create_runner(self.sglang, config)
        self.slots.prepare(self.sglang)
        table = torch.full((sizes.experts,), -1, dtype=torch.int32)
        self.layer = ExpertLayer(
            0,
            sizes.experts,
            in_slots,
            self.slots.source(in_pieces(self.host) if mapped else self.pinned),
            self.slots.tensors(self.sglang),
            table,
        )
        self.lane = lane_to("cuda")  # lives as long as copies out of its buffers
        self.order = torch.randperm(sizes.experts, generator=self.random)[:in_slots].tolist()
        for expert in self.order:
            self.layer.reserve(expert).run(self.lane)
            self.layer.publish(expert)
        self.slots.filled(self.sglang)
        self.side.write_tables([(0, self.layer)])
        streamed = None
        if stream:
            place = self.side.stream.add_layer(0, self.layer, self.pinned, self.slots.laid_out)
            streamed = StreamedLayer(
                self.side.stream,
                place,
                in_slots,
                self.side.streamed_layer(0, handle, self.side.stream.table(place)),
            )
        self.step = CudaStep(
            self.side,
            0,
            self.side.layer(0, None if in_slots == sizes.experts else handle),
            self.slots,
            has_slots=in_slots > 0,
            streamed=streamed,
        )
        self.whole = stock.as_sglang_has(self.host, self.side.device)
        self._method = stock.method
        with stock.chosen_runner():
            self._method.create_moe_runner(self.whole, config)

    def batch(self, rows):
        """A dispatch of random tokens."""
        from sglang.srt.layers.moe.token_dispatcher import StandardDispatchOutput
        from sglang.srt.layers.moe.topk import StandardTopKOutput

        logits = torch.randn(rows, self.sizes.experts, generator=self.random).cuda()
        weights, ids = torch.softmax(logits, -1).topk(TOP_K)
        hidden = torch.randn(rows, self.sizes.hidden, generator=self.random).bfloat16().cuda()
        return StandardDispatchOutput(hidden, None, StandardTopKOutput(weights, ids.int(), logits))

    def stock(self, dispatch):
        """Unmodified SGLang."""
        return self._method.apply(self.whole, dispatch).hidden_states[:, : self.sizes.hidden]

    def hybrid(self, dispatch, *, decode=True):
        """One announced step of this layer."""
        self.side.begin_step(len(dispatch.hidden_states), None if decode else 0)
        out = self.step(self.sglang, dispatch)
        self.side.launched()
        self.side.check(None)
        return out

    def check_slots(self):
        """Every mapped slot holds what SGLang made of its expert."""
        torch.cuda.synchronize()
        for slot, expert in enumerate(self.layer.mapped()):
            for name in self.layer.slots:
                found, wanted = getattr(self.sglang, name)[slot], getattr(self.whole, name)[expert]
                # As bytes: torch compares not every type.
                found, wanted = found.view(torch.uint8), wanted.view(torch.uint8)
                assert torch.equal(found, wanted), f"{name} of expert {expert}"


def error(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        *(pytest.param(kind, SIZES, id=f"{kind}-groups-of-32") for kind in KINDS),
        *(pytest.param(kind, WIDE, id=f"{kind}-groups-of-128") for kind in KINDS if kind != MXFP4),
        pytest.param(MXFP4, PADDED, id=f"{MXFP4}-padded"),
        pytest.param("int4-marlin", NARROW, id="int4-marlin-one-group"),
    ],
)
def test_slots_hold_what_sglang_makes_of_all_experts(kind, sizes):
    """To the last byte, whichever expert is in which slot."""
    layer = Hybrid(kind, 6, sizes=sizes)
    assert layer.layer.mapped() == layer.order
    layer.check_slots()


@pytest.mark.parametrize("in_slots", [0, 1, 6, 15, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_split_layer_gives_what_sglang_gives_alone(kind, in_slots):
    """At every share in slots, for one row and many: pairs that are not here are skipped."""
    layer = Hybrid(kind, in_slots)
    pairs = 0
    for rows in ROWS:
        dispatch = layer.batch(rows)
        found, wanted = layer.hybrid(dispatch), layer.stock(dispatch)
        assert error(found, wanted) < layer.tolerance, f"{rows} rows"
        pairs += rows * TOP_K
    layer.side.refresh_counters()
    assert int(layer.counters.sum()) == pairs


@pytest.mark.parametrize("in_slots", [6, 16])
def test_tokens_are_padded_for_the_slots_alone(in_slots):
    """The CPU computes experts as large as their checkpoint has them, and the sum is as wide."""
    layer = Hybrid(MXFP4, in_slots, sizes=PADDED)
    for rows in ROWS:
        dispatch = layer.batch(rows)
        found = layer.hybrid(dispatch)
        assert found.shape == dispatch.hidden_states.shape
        assert found.is_contiguous()
        assert error(found, layer.stock(dispatch)) < layer.tolerance, f"{rows} rows"


@pytest.mark.parametrize("math", [ExpertMath(), HALVES], ids=["silu", "clamped-halves"])
def test_mxfp4_experts_compute_other_products(math):
    """Gate and up in halves, with no biases in the checkpoint: SGLang's are zeros."""
    layer = Hybrid(MXFP4, 6, sizes=PADDED, math=math)
    layer.check_slots()
    dispatch = layer.batch(64)
    assert error(layer.hybrid(dispatch), layer.stock(dispatch)) < layer.tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_an_expert_here_gets_nothing_from_the_runner(kind):
    """Also when no row of a step has one."""
    layer = Hybrid(kind, 6)
    for rows in ROWS:
        dispatch = layer.batch(rows)
        none = torch.full((rows, TOP_K), -1, dtype=torch.int32, device="cuda")
        weights = dispatch.topk_output.topk_weights
        out = layer.slots.compute(layer.sglang, dispatch, none, weights)
        assert not out.any(), f"{rows} rows"
        some = none.clone()
        some[-1, 1] = 2
        out = layer.slots.compute(layer.sglang, dispatch, some, weights)
        assert not out[:-1].any(), f"{rows} rows"
        assert bool(out[-1].any())


@pytest.mark.parametrize("kind", KINDS)
def test_the_trial_of_an_untried_release_admits_the_runner(kind):
    """As `ktd.sgl.hybrid_method` makes it; Marlin may add in another order each time."""
    layer = Hybrid(kind, 6)
    compute = partial(layer.slots.compute, layer.sglang)
    for rows in absent_ids.ROWS:
        found = absent_ids.trial(compute, rows_like(layer.batch(1), rows), range(6))
        assert found.absent == 0 < found.expert
        assert found.right, f"{rows} rows: {found}"


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_move_into_slots_while_steps_run(kind, mapped):
    """In place, behind the steps launched before the unmapping and not behind later ones."""
    layer = Hybrid(kind, 6, mapped=mapped)
    addresses = [tensor.data_ptr() for tensor in layer.layer.slots.values()]
    finished = queue.Queue()
    copier = Copier(
        finished=lambda *outcome: finished.put(outcome),
        copied=lambda _: None,
        bytes_per_second=None,
        lane=layer.lane,
    )
    steps, passed = new_stream(layer.side.device), new_event()
    absent = [e for e in range(layer.sizes.experts) if e not in layer.order]
    for batch, loads in enumerate((absent[:3], absent[3:6])):
        victims = layer.layer.mapped()[:3]
        with torch.cuda.stream(steps):
            for victim in victims:
                layer.layer.unmap(victim)
            layer.side.write_tables([(0, layer.layer)])
            copier.submit(batch, [layer.layer.reserve(expert) for expert in loads])
            torch.cuda._sleep(4_000_000_000)  # cycles: two seconds and more
            passed.record()
        assert finished.get(timeout=60) == (batch, None)
        assert not passed.query(), "the copies waited for a step that was launched after them"
        for expert in loads:
            layer.layer.publish(expert)
        steps.synchronize()
        with torch.cuda.stream(steps):
            layer.side.write_tables([(0, layer.layer)])
        steps.synchronize()
        layer.check_slots()
        dispatch = layer.batch(64)
        assert error(layer.hybrid(dispatch), layer.stock(dispatch)) < layer.tolerance
    copier.stop()
    assert [tensor.data_ptr() for tensor in layer.layer.slots.values()] == addresses


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_layer_sees_experts_move(kind):
    """The graph reads slots where they were when it was captured; one row and several."""
    for rows in (1, 8):
        layer = Hybrid(kind, 6)
        dispatch = layer.batch(rows)
        layer.hybrid(dispatch)  # kernels are compiled
        layer.side.idle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer.step(layer.sglang, dispatch)
        wanted = layer.stock(dispatch)
        for _ in range(4):
            layer.side.begin_step(rows, None)
            graph.replay()
            layer.side.launched()
            layer.side.check(None)
            assert error(out, wanted) < layer.tolerance
            victim = layer.layer.mapped()[2]
            absent = next(e for e in range(layer.sizes.experts) if not layer.layer.is_mapped(e))
            layer.layer.unmap(victim)
            layer.layer.reserve(absent).run(layer.lane)
            layer.layer.publish(absent)
            layer.side.write_tables([(0, layer.layer)])


@pytest.mark.parametrize("most", [16, 4])
@pytest.mark.parametrize("in_slots", [0, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_long_prefills_stream_through_every_runner(kind, in_slots, most):
    """In one piece and in several, laid out on the way where slots are; the pool has nothing."""
    layer = Hybrid(kind, in_slots, stream=most)
    assert layer.slots.streams
    assert (layer.slots.laid_out is None) == (kind == "int4-triton")
    for rows in (7, 700):
        dispatch = layer.batch(rows)
        found = layer.hybrid(dispatch, decode=False)
        assert error(found, layer.stock(dispatch)) < layer.tolerance
    assert layer.side.channel.long_seconds() == 0.0
    assert layer.side.stream.pieces_of(0) == -(-(16 - in_slots) // most)


@pytest.mark.parametrize("math", [None, ExpertMath(), HALVES], ids=["gpt-oss", "silu", "halves"])
@pytest.mark.parametrize("in_slots", [0, 6])
def test_padded_experts_stream(in_slots, math):
    """Host memory has them without what SGLang pads them with, and without biases that are zero."""
    layer = Hybrid(MXFP4, in_slots, sizes=PADDED, stream=4, math=math)
    dispatch = layer.batch(700)
    found = layer.hybrid(dispatch, decode=False)
    assert found.shape == dispatch.hidden_states.shape
    assert error(found, layer.stock(dispatch)) < layer.tolerance


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "int4-triton"])
def test_a_half_is_filled_again_when_it_was_laid_out_and_not_before(kind, monkeypatch):
    """Though that is a long time after the next pieces have come."""

    def late(self, rows, slots):
        torch.cuda._sleep(100_000_000)  # cycles: 50 ms
        lay_out(self, rows, slots)

    lay_out = LearntLayout.lay_out
    layer = Hybrid(kind, 0, stream=3)
    monkeypatch.setattr(LearntLayout, "lay_out", late)
    dispatch = layer.batch(64)
    found = layer.hybrid(dispatch, decode=False)
    assert error(found, layer.stock(dispatch)) < layer.tolerance


@pytest.mark.parametrize("in_slots", [0, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_the_trial_of_an_untried_release_admits_pieces(kind, in_slots):
    """As `ktd.sgl.cuda_step` makes it, with what streams in the place of slots."""
    layer = Hybrid(kind, in_slots, stream=4)
    layer.side.begin_step(64, 0)
    with layer.side.stream.next_piece(0) as piece:
        view = WithParameters(layer.sglang, layer.slots.parameters(piece.tensors))
        compute = partial(layer.slots.compute, view)
        for rows in absent_ids.ROWS:
            found = absent_ids.trial(compute, rows_like(layer.batch(1), rows), range(piece.count))
            assert found.right, f"{rows} rows: {found}"
    layer.side.launched()


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_for_nothing_while_experts_are_laid_out(kind):
    """SGLang's code for its Marlin runner reads on the host; what was learnt from it does not."""
    layer = Hybrid(kind, 6)
    absent = next(e for e in range(16) if not layer.layer.is_mapped(e))
    layer.layer.unmap(layer.order[0])
    stream, passed = new_stream(layer.side.device), new_event()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(2_000_000_000)  # cycles: a second
        layer.layer.reserve(absent).run(layer.lane)
        passed.record()
    assert not passed.query()
    layer.layer.publish(absent)
    layer.check_slots()
