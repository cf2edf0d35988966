"""The parts of `ktd bench kernels` that decide what its figures mean."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="ktd bench kernels measures with torch")

from ktd.bench.kernels.calls import Calls  # noqa: E402 - after the skip
from ktd.bench.kernels.catalogue import choose_formats, formats_of  # noqa: E402
from ktd.bench.kernels.cell import Ceiling  # noqa: E402
from ktd.bench.kernels.formats import FORMATS, ExpertMould  # noqa: E402
from ktd.bench.kernels.host import Host  # noqa: E402
from ktd.bench.kernels.layers import LayerSet, Plan  # noqa: E402
from ktd.bench.kernels.plot import check_plot  # noqa: E402
from ktd.bench.kernels.routing import Routing  # noqa: E402
from ktd.bench.kernels.spread import Spread, quantile  # noqa: E402
from ktd.bench.kernels.torch_experts import TorchExperts, moe_forward  # noqa: E402
from ktd.bench.kernels.units import best_unit  # noqa: E402
from ktd.errors import ConfigError, DoesNotFit  # noqa: E402
from ktd.experts import _native  # noqa: E402
from ktd.experts.isa import isas  # noqa: E402
from ktd.experts.pool import ExpertPool  # noqa: E402
from ktd.experts.weights import WeightFormat  # noqa: E402
from ktd.shapes.moe import SHAPES, MoeShape  # noqa: E402

GIB = 1 << 30
SMALL = MoeShape("small", 12, 256, 128, 3)
CLAMPED = MoeShape("clamped", 12, 256, 128, 3, clamped=True)


def empty(shape, dtype):
    return torch.empty(shape, dtype=dtype)


def layer_set(shape, weight_format=WeightFormat.BF16):
    return LayerSet.make(
        shape, weight_format, cache=100_000, available=GIB, progress=lambda _: None
    )


@pytest.mark.parametrize("name", SHAPES)
def test_operations_are_three_products_of_a_multiplication_and_an_addition(name):
    """For each of a token's experts."""
    shape = SHAPES[name]
    assert shape.operations(5) == 5 * shape.top_k * 6 * shape.hidden * shape.intermediate


@pytest.mark.parametrize("shape", [SMALL, CLAMPED], ids=["plain", "clamped"])
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_random_experts_are_as_the_format_wants_them(shape, weight_format):
    """The pool's own check of every tensor, and as many bytes as the plan counts with."""
    mould = ExpertMould(shape, weight_format)
    layer = mould.layer(3, empty)
    layer.check()
    assert (layer.num_experts, layer.hidden, layer.intermediate) == (3, 256, 128)
    tensors = (getattr(layer, name) for name in ("w13", "w2", "w13_scale", "w2_scale"))
    more = (getattr(layer, name) for name in ("w13_zeros", "w2_zeros", "w13_bias", "w2_bias"))
    present = [tensor for tensor in (*tensors, *more) if tensor is not None]
    assert sum(tensor.nbytes for tensor in present) == 3 * mould.expert_bytes


@pytest.mark.parametrize("isa", [isa.name for isa in isas() if isa.supported])
def test_calls_read_the_bytes_that_are_counted(isa):
    """In every format that the kernels compute: distinct experts times an expert's bytes."""
    for weight_format in formats_of(isa):
        layers = layer_set(SMALL, weight_format)
        calls = Calls(ExpertPool(threads=1, isa=isa), layers, 1, cache=1000)
        for call in calls.window(1e-4):
            assert call.bytes == SMALL.top_k * layers.plan.expert_bytes
            assert call.seconds > 0
        assert np.isfinite(calls._out).all()
        assert np.abs(calls._out).max() > 0


@pytest.mark.parametrize("shape", [SMALL, CLAMPED], ids=["plain", "clamped"])
def test_torch_computes_what_the_kernels_compute(shape):
    """Otherwise comparing their times means nothing."""
    layers = layer_set(shape)
    pool = ExpertPool(threads=1)
    calls = Calls(pool, layers, 7, cache=1000)
    layer, ids = calls.draw()
    weights = torch.full(ids.shape, 1 / shape.top_k)
    out = pool.forward(layer, calls.x, torch.from_numpy(ids), weights)
    expected = moe_forward(layers.layers[layer], calls.x, ids)
    # Torch rounds to bf16 after every product, with 8 bits; the sums are of that size.
    assert torch.allclose(out, expected, rtol=0.05, atol=0.02 * expected.abs().max().item())


def test_torch_takes_bf16_only():
    """Another format would have to be dequantised before."""
    with pytest.raises(ValueError, match="torch computes bf16"):
        TorchExperts(layer_set(SMALL, WeightFormat.INT8))


def test_a_token_draws_distinct_experts_of_the_layers_in_turn():
    """As a router does."""
    routing = Routing(layers=3, experts=10, top_k=4, expert_bytes=1, rest_bytes=0)
    for call in range(9):
        layer, ids = routing.draw(6)
        assert layer == call % 3
        assert ids.dtype == np.int32
        assert ids.flags["C_CONTIGUOUS"]
        assert ids.min() >= 0
        assert ids.max() < 10
        assert all(len(set(row)) == 4 for row in ids.tolist())


def test_an_expert_rests_until_others_have_passed_through_the_cache():
    """Between two reads of it lie at least the bytes that were asked for."""
    routing = Routing(layers=1, experts=100, top_k=5, expert_bytes=10, rest_bytes=300)
    last, read = {}, 0
    for _ in range(200):
        _, ids = routing.draw(1)
        for expert in ids[0].tolist():
            assert read - last.get(expert, -1000) >= 300
        read += 50
        last |= dict.fromkeys(ids[0].tolist(), read)


def test_all_experts_are_drawn_alike():
    """Resting does not leave any out."""
    routing = Routing(layers=2, experts=16, top_k=4, expert_bytes=1, rest_bytes=8)
    counts = np.zeros((2, 16))
    for _ in range(4000):
        layer, ids = routing.draw(1)
        counts[layer, ids[0]] += 1
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()


def test_many_tokens_may_choose_every_expert():
    """A call that reads the whole layer has nothing to leave out."""
    routing = Routing(layers=1, experts=16, top_k=4, expert_bytes=1, rest_bytes=1000)
    assert all(len(np.unique(routing.draw(200)[1])) == 16 for _ in range(5))


def test_the_working_set_is_eight_caches_of_whole_layers():
    """Rounded up."""
    plan = Plan.of(SMALL, "bf16", 1 << 20, cache=3 << 20, available=GIB)
    assert (plan.layers, plan.experts) == (2, 12)
    assert plan.total == 24 << 20


def test_fewer_experts_are_taken_where_one_layer_does_not_fit():
    """As many as do, if they still are larger than the caches."""
    shape = SHAPES["deepseek-v3"]
    plan = Plan.of(shape, "bf16", 88 << 20, cache=32 << 20, available=10 * GIB)
    assert plan.layers == 1
    assert shape.top_k < plan.experts < shape.experts
    assert plan.total <= 10 * GIB


@pytest.mark.parametrize(
    ("cache", "available"), [(32 << 20, GIB // 2), (300 << 20, 2 * GIB), (32 << 30, 64 * GIB)]
)
def test_too_little_memory_is_refused_with_the_sum(cache, available):
    """Too few experts for a token, or not enough to outgrow the cache."""
    with pytest.raises(DoesNotFit, match=r"deepseek-v3 in bf16 needs [\d.]+ GiB"):
        Plan.of(SHAPES["deepseek-v3"], "bf16", 88 << 20, cache=cache, available=available)


def test_the_floor_is_the_higher_of_two():
    """Bytes over bandwidth, operations over peak."""
    ceiling = Ceiling(dram=100.0, peak=10.0)
    assert ceiling.floor(1000, 5) == 10.0
    assert ceiling.floor(1, 500) == 50.0
    assert ceiling.between(Ceiling(200.0, 30.0)) == Ceiling(150.0, 20.0)


def test_integer_units_count_for_integer_activations_only():
    """And only those that the kernel set may use."""
    peaks = {"avx2_f32": 1.0, "avx512_f32": 1.5, "avx512_bf16": 2.0, "avx512_vnni_int8": 4.0}
    assert best_unit("int8", "avx512_bf16", peaks) == "avx512_vnni_int8"
    assert best_unit("int8_weight", "avx512_bf16", peaks) == "avx512_bf16"
    assert best_unit("int8", "avx2", peaks) == "avx2_f32"
    peaks |= {"avx2_int16": 1.2, "avx_vnni_int8": 3.0}
    assert best_unit("int8", "avx2", peaks) == "avx2_int16"
    assert best_unit("int8", "avx2_vnni", peaks) == "avx_vnni_int8"
    assert best_unit("int8_weight", "avx2_vnni", peaks) == "avx2_f32"
    assert best_unit("bf16", "avx512", peaks) == "avx512_f32"


@pytest.mark.parametrize("isa", [row.name for row in isas()])
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_every_kernel_set_has_a_unit_for_every_format(isa, weight_format):
    """Of the peaks that exist; a CPU that runs the kernels has those of its features."""
    features = set(next(row for row in isas() if row.name == isa).required)
    peaks = {row["name"]: 1.0 for row in _native.peaks() if set(row["required"]) <= features}
    assert best_unit(weight_format.value, isa, peaks) in peaks


def test_formats_default_to_what_the_kernels_compute():
    """A name of another is refused with those."""
    computed = formats_of("scalar")
    assert choose_formats((), "scalar") == computed
    for weight_format in set(FORMATS) - set(computed):
        with pytest.raises(ConfigError, match=f"do not compute {weight_format}: they compute"):
            choose_formats((weight_format.value,), "scalar")


def test_quantiles_are_values_that_occurred():
    """The smallest that enough do not exceed."""
    values = [float(value) for value in range(100, 0, -1)]
    assert quantile(values, 0.99) == 99.0
    assert quantile(values, 0.1) == 10.0
    assert quantile([7.0], 0.01) == 7.0
    assert Spread.of(values) == Spread(50.5, 10.0, 90.0)


def test_caches_and_memory_are_read_from_the_kernels_files(tmp_path):
    """Of several last-level caches the sum; a container's limit counts."""
    import os

    for cpu in os.sched_getaffinity(0):
        for index, (level, kind, size, shared) in enumerate(
            [
                ("1", "Data", "32K", cpu),
                ("2", "Unified", "1024K", cpu),
                ("3", "Unified", "16M", "all"),
            ]
        ):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "type").write_text(f"{kind}\n")
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{shared}\n")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A CPU\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    host = Host.read(tmp_path, tmp_path, tmp_path)
    assert host == Host("A CPU", 16 << 20, 2048 << 10)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert Host.read(tmp_path, tmp_path, tmp_path).available == 600_000


def test_a_png_without_matplotlib_is_refused(tmp_path, monkeypatch):
    """Before anything is measured, with the way out."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"needs matplotlib, .* use \.svg"):
        check_plot(tmp_path / "r.png")
