"""One hybrid layer on a GPU: every split gives what SGLang's Triton runner gives alone.

This is what admits a format to slots on a GPU (ktd.sgl.cuda_formats): the runner skips pairs that
are not here, and the pool computes them with the same quantised activations.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="layers are made of torch tensors")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU that torch can use", allow_module_level=True)
if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed here: pip install 'ktd[engine]'", allow_module_level=True)

from ktd.experts.pool import ExpertPool
from ktd.experts.store import HostStore
from ktd.experts.weights import ExpertWeights, WeightFormat
from ktd.sgl.copy_lane import lane_to
from ktd.sgl.cuda_formats import VERBATIM
from ktd.sgl.cuda_side import CudaSide, Streams
from ktd.sgl.cuda_step import CudaStep, StreamedLayer
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.prefill_share import PassTimes
from ktd.sgl.slot_source import PlainSource
from tests.sgl.gpu_sglang import stand_alone
from tests.sgl.quantised_models import nibbles

EXPERTS, TOP_K, HIDDEN, INNER, GROUP = 16, 4, 512, 256, 32
ROWS = (1, 7, 64, 700, 1500)
# Relative, of a whole batch. In bf16 both sides round sums. Where activations are quantised, what
# one side rounds otherwise in bf16 (2^-8) is for about one value in 32 another code: of E4M3 an
# eighth away, sqrt(1/32) / 8 = 0.022; of INT8 a 127th of the row's largest. A lost or doubled
# expert would be a quarter of the answer.
TOLERANCES = {
    WeightFormat.BF16: 0.01,
    WeightFormat.FP8_BLOCK: 0.03,
    WeightFormat.FP8_CHANNEL: 0.03,
    WeightFormat.INT8: 0.02,
    # The runner rounds dequantised weights to bf16, which adds 2^-9 for each product.
    WeightFormat.INT4: 0.01,
}


@pytest.fixture(scope="module")
def runner():
    """SGLang's fused experts, without the engine's process groups."""
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

    module = stand_alone()

    def run(tensors, options, dispatch, local):
        config = MoeRunnerConfig(
            num_experts=EXPERTS,
            num_local_experts=local,
            hidden_size=HIDDEN,
            intermediate_size_per_partition=INNER,
            top_k=TOP_K,
            activation="silu",
            inplace=False,
        )
        scales = {
            name: tensors[key]
            for name, key in (("w1_scale", "w13_scale"), ("w2_scale", "w2_scale"))
            if key in tensors
        }
        return module.fused_experts(
            dispatch.hidden_states,
            *(_as_runner_takes(tensors[name]) for name in ("w13", "w2")),
            dispatch.topk_output,
            config,
            **scales,
            **options,
        )

    return run


def _as_runner_takes(weights):
    """SGLang looks at 4-bit weights byte by byte."""
    return weights.view(torch.uint8) if weights.dtype is torch.int32 else weights


OPTIONS = {
    WeightFormat.BF16: {},
    WeightFormat.FP8_BLOCK: {"use_fp8_w8a8": True, "block_shape": [128, 128]},
    WeightFormat.FP8_CHANNEL: {"use_fp8_w8a8": True, "per_channel_quant": True},
    WeightFormat.INT8: {"use_int8_w8a8": True, "per_channel_quant": True},
    WeightFormat.INT4: {"use_int4_w4a16": True, "block_shape": [0, GROUP]},
}


def weights_of(form, random):
    """Tensors ``[E, …]`` in host memory as a store has them."""
    store, found = HostStore(), {}
    for name, rows, columns in (("w13", 2 * INNER, HIDDEN), ("w2", HIDDEN, INNER)):
        values = torch.randn(EXPERTS, rows, columns, generator=random) / columns**0.5
        if form is WeightFormat.BF16:
            parts = {name: values.bfloat16()}
        elif form is WeightFormat.INT8:
            scale = values.abs().amax(-1, keepdim=True) / 127
            parts = {name: (values / scale).round().to(torch.int8), f"{name}_scale": scale}
        elif form is WeightFormat.INT4:
            groups = values.unflatten(2, (-1, GROUP))
            scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16()
            four = ((groups / scale).round().clamp(-8, 7) + 8).flatten(2)
            packed = nibbles(four.flatten(0, 1)).view(EXPERTS, rows, -1)
            parts = {name: packed, f"{name}_scale": scale.squeeze(-1)}
        elif form is WeightFormat.FP8_CHANNEL:
            scale = values.abs().amax(-1, keepdim=True) / 448
            parts = {name: (values / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}
        else:
            blocks = values.view(EXPERTS, rows // 128, 128, columns // 128, 128)
            scale = blocks.abs().amax((2, 4), keepdim=True) / 448
            quantised = (blocks / scale).view(EXPERTS, rows, columns).to(torch.float8_e4m3fn)
            parts = {name: quantised, f"{name}_scale": scale.view(EXPERTS, rows // 128, -1)}
        for key, tensor in parts.items():
            found[key] = store.allocate(tuple(tensor.shape), tensor.dtype)
            found[key].copy_(tensor)
    return found


class Layer:
    """A hybrid layer whose slots hold ``in_slots`` experts, and the runner over all of them."""

    def __init__(self, form, in_slots, runner, *, at_once=None, ordered=False, share=False):
        from sglang.srt.layers.moe.token_dispatcher import StandardDispatchOutput
        from sglang.srt.layers.moe.topk import StandardTopKOutput

        self.random = torch.Generator().manual_seed(in_slots)
        self.host = weights_of(form, self.random)
        experts, source = self.store(form)
        pinned = {name: tensor.pin_memory() for name, tensor in self.host.items()}
        self.all = {name: tensor.cuda() for name, tensor in self.host.items()}
        self._dispatch, self._topk = StandardDispatchOutput, StandardTopKOutput
        self._run, self._options = runner, OPTIONS[form]
        pool = ExpertPool(threads=2)
        handle = pool.add_layer(experts)
        self.counters = torch.zeros(2, 1, EXPERTS, 2, dtype=torch.int64)
        self.side = CudaSide(
            pool,
            self.counters,
            hidden=HIDDEN,
            top_k=TOP_K,
            chunk=64,
            streams=Streams(1, buffer_bytes=1 << 30, cpu_share=share, experts=at_once),
        )
        stream = self.side.stream
        self.side.started()
        slots = {
            name: torch.zeros(in_slots, *tensor.shape[1:], dtype=tensor.dtype, device="cuda")
            for name, tensor in self.host.items()
        }
        table = torch.full((EXPERTS,), -1, dtype=torch.int32)
        self.layer = ExpertLayer(0, EXPERTS, in_slots, source, slots, table)
        whole = in_slots == EXPERTS
        chosen = torch.randperm(EXPERTS, generator=self.random)[:in_slots].tolist()
        self.lane = lane_to("cuda")  # lives as long as copies out of its buffers
        for expert in range(EXPERTS) if ordered else chosen:
            self.layer.reserve(expert).run(self.lane)
            self.layer.publish(expert)
        self.side.write_tables([(0, self.layer)])
        place = stream.add_layer(0, self.layer, pinned)
        table = stream.table(place)
        self.step = CudaStep(
            self.side,
            0,
            self.side.layer(0, None if whole else handle),
            SimpleNamespace(compute=self._compute, parameters=dict),
            has_slots=in_slots > 0,
            whole=ordered,
            streamed=StreamedLayer(
                stream, place, in_slots, self.side.streamed_layer(0, handle, table)
            ),
        )
        self.view = SimpleNamespace(**slots, local=in_slots)

    def store(self, form):
        """What the pool computes, and what slots are filled from."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.host.items()}
        return ExpertWeights(form, **self.host), PlainSource(pinned)

    def _compute(self, layer, dispatch, slots, weights):
        topk = dispatch.topk_output._replace(topk_ids=slots, topk_weights=weights)
        tensors = {name: getattr(layer, name) for name in self.host}
        rows = dispatch._replace(topk_output=topk)
        return self._run(tensors, self._options, rows, layer.local)

    def batch(self, rows):
        """A dispatch of random tokens."""
        logits = torch.randn(rows, EXPERTS, generator=self.random).cuda()
        weights, ids = torch.softmax(logits, -1).topk(TOP_K)
        hidden = torch.randn(rows, HIDDEN, generator=self.random).bfloat16().cuda()
        return self._dispatch(hidden, None, self._topk(weights, ids.int(), logits))

    def stock(self, dispatch):
        """The runner alone, as unmodified SGLang calls it."""
        return self._run(self.all, self._options, dispatch, EXPERTS)

    def hybrid(self, dispatch, *, decode, threshold=1 << 30):
        """One announced step of this layer."""
        rows = len(dispatch.hidden_states)
        self.side.stream.threshold = threshold
        self.side.begin_step(rows, None if decode else 0, wants_ids=True)
        out = self.step(self.view, dispatch)
        self.side.launched()
        self.side.check(None)
        return out

    def says_the_cpu_is_fast(self, rows):
        """So that it gets experts of a layer as small as this one, whose answer is as large."""
        times = PassTimes(
            rows, layers=1, experts=1, cpu_seconds=0, other_seconds=0, copied=1, copy_seconds=1
        )
        for _ in range(40):
            self.side.stream.clock.share.learn(times)

    def on_cpu(self):
        """Experts that the last streamed pass left to the pool."""
        return int((self.side.stream.table(0) < 0).sum())


def error(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("in_slots", [0, 1, 6, 15, 16])
@pytest.mark.parametrize("form", VERBATIM)
def test_a_split_layer_gives_what_the_runner_gives_alone(form, in_slots, runner):
    """At every share in slots, for few and many rows, beyond a chunk, in prefill and decode."""
    layer = Layer(form, in_slots, runner)
    pairs = 0
    for rows in ROWS:
        dispatch = layer.batch(rows)
        found, wanted = layer.hybrid(dispatch, decode=rows < 64), layer.stock(dispatch)
        assert error(found, wanted) < TOLERANCES[form], f"{rows} rows"
        pairs += rows * TOP_K
    layer.side.refresh_counters()
    assert int(layer.counters.sum()) == pairs
    assert int(layer.counters[..., 0].sum()) == (
        pairs if in_slots == 16 else int(layer.counters[:, 0, layer.layer.table >= 0].sum())
    )


@pytest.mark.parametrize("share", [False, True], ids=["gpu-alone", "cpu-share"])
@pytest.mark.parametrize("experts_at_once", [16, 5])
@pytest.mark.parametrize("in_slots", [0, 6, 15, 16])
@pytest.mark.parametrize("form", VERBATIM)
def test_a_streamed_layer_is_the_runner_alone(form, in_slots, experts_at_once, share, runner):
    """Slots, one piece or several, and half of the rest on the CPU: as in a split layer."""
    layer = Layer(form, in_slots, runner, at_once=experts_at_once, share=share)
    stream, absent = layer.side.stream, EXPERTS - in_slots
    if share:
        stream.clock.share.experts = lambda _tokens, absent: absent // 2
    on_cpu = absent // 2 if share else 0
    for rows in (7, 700):
        dispatch = layer.batch(rows)
        found = layer.hybrid(dispatch, decode=False, threshold=1)
        wanted = layer.stock(dispatch)
        assert error(found, wanted) < TOLERANCES[form]
        assert layer.on_cpu() == on_cpu
        assert stream.pieces_of(0) == -(-(absent - on_cpu) // experts_at_once)
        assert stream.slots_compute(0) == (in_slots > 0)


def test_a_share_learns_and_follows_slots_that_move(runner):
    """Beside steps that are not streamed, and with experts that lose and gain slots between two."""
    layer = Layer(WeightFormat.BF16, 6, runner, share=True)
    share = layer.side.stream.clock.share
    for _ in range(6):
        layer.says_the_cpu_is_fast(700)
        believed = share.cost(700)
        for _ in range(2):  # of the last three passes the middle one counts
            dispatch = layer.batch(700)
            found = layer.hybrid(dispatch, decode=False, threshold=1)
            assert error(found, layer.stock(dispatch)) < TOLERANCES[WeightFormat.BF16]
            assert layer.on_cpu() > 0
        assert share.cost(700) > believed  # the pool took longer than the nothing it was told
        learnt = share.cost(700)
        dispatch = layer.batch(1000)
        found = layer.hybrid(dispatch, decode=False)
        assert error(found, layer.stock(dispatch)) < TOLERANCES[WeightFormat.BF16]
        assert share.cost(700) == learnt
        if -1 in layer.layer.mapped():
            expert = next(e for e in range(EXPERTS) if not layer.layer.is_mapped(e))
            layer.layer.reserve(expert).run(layer.lane)
            layer.layer.publish(expert)
        else:
            layer.layer.unmap(max(layer.layer.mapped()))
        layer.side.write_tables([(0, layer.layer)])


def test_bf16_splits_are_as_exact_as_the_runner(runner):
    """Against float64: a split rounds no more than the runner does alone."""
    for in_slots in (0, 6, 16):
        layer = Layer(WeightFormat.BF16, in_slots, runner)
        dispatch = layer.batch(700)
        topk, x = dispatch.topk_output, dispatch.hidden_states.double()
        exact = torch.zeros_like(x)
        for expert in range(EXPERTS):
            share = (topk.topk_weights * (topk.topk_ids == expert)).sum(1, dtype=torch.float64)
            gate, up = (x @ layer.all["w13"][expert].double().T).chunk(2, dim=1)
            inner = torch.nn.functional.silu(gate) * up
            exact += share[:, None] * (inner @ layer.all["w2"][expert].double().T)
        alone = error(layer.stock(dispatch), exact)
        split = error(layer.hybrid(dispatch, decode=False), exact)
        print(f"{in_slots} of {EXPERTS} in slots: {split:.2e}, the runner alone {alone:.2e}")
        assert split <= 1.1 * alone


def test_a_whole_layer_is_the_runner_alone_to_the_last_bit(runner):
    """With slot i for expert i nothing is mapped; pairs are counted beside the runner."""
    layer = Layer(WeightFormat.BF16, EXPERTS, runner, ordered=True)
    for rows in (1, 64):
        dispatch = layer.batch(rows)
        found = layer.hybrid(dispatch, decode=True)
        assert torch.equal(found, layer.stock(dispatch))
    layer.side.refresh_counters()
    assert int(layer.counters[..., 0].sum()) == 65 * TOP_K


@pytest.mark.parametrize("in_slots", [0, 6, EXPERTS])
def test_a_step_leaves_its_routing_for_a_recording(in_slots, runner):
    """In a part of its rows, all of them, beyond a chunk, streamed, and in a replayed graph."""
    layer = Layer(WeightFormat.BF16, in_slots, runner, ordered=in_slots == EXPERTS)

    def routed(dispatch, rows=None):
        torch.cuda.synchronize()
        return layer.side.routed(rows or len(dispatch.hidden_states))[0].tolist()

    for rows in ROWS:
        dispatch = layer.batch(rows)
        for threshold in (1, 1 << 30):
            layer.hybrid(dispatch, decode=False, threshold=threshold)
            assert routed(dispatch) == dispatch.topk_output.topk_ids.tolist(), f"{rows} rows"
    dispatch = layer.batch(8)
    graph = torch.cuda.CUDAGraph()
    layer.hybrid(dispatch, decode=True)
    layer.side.idle()
    with torch.cuda.graph(graph):
        layer.step(layer.view, dispatch)
    dispatch.topk_output.topk_ids.copy_(layer.batch(8).topk_output.topk_ids)
    layer.side.begin_step(5, None)
    graph.replay()
    layer.side.launched()
    layer.side.check(None)
    assert routed(dispatch, 5) == dispatch.topk_output.topk_ids[:5].tolist()


def test_a_captured_layer_follows_its_tables(runner):
    """A graph sees experts move; padding is neither computed by the pool nor counted."""
    layer = Layer(WeightFormat.BF16, 6, runner)
    dispatch = layer.batch(8)
    layer.hybrid(dispatch, decode=True)  # kernels are compiled
    layer.side.idle()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer.step(layer.view, dispatch)
    layer.side.refresh_counters()
    before = int(layer.counters.sum())
    for real in (8, 3):
        layer.side.begin_step(real, None)
        graph.replay()
        layer.side.launched()
        layer.side.check(None)
        found, wanted = out[:real], layer.stock(dispatch)[:real]
        assert error(found, wanted) < TOLERANCES[WeightFormat.BF16]
        expert = max(layer.layer.mapped())
        layer.layer.unmap(expert)
        layer.side.write_tables([(0, layer.layer)])
    layer.side.refresh_counters()
    assert int(layer.counters.sum()) - before == (8 + 3) * TOP_K
