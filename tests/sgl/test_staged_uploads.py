"""Experts that a GPU cannot read by itself reach its slots through pinned buffers, bit by bit."""

import random
import time

import pytest

torch = pytest.importorskip("torch", reason="slots are torch tensors")

from ktd.cuda.pinned_ring import PinnedRing
from ktd.experts import _native
from ktd.experts.scattered import scattered
from ktd.experts.weights import WeightFormat
from ktd.sgl.copier import Copier
from ktd.sgl.copy_lane import HostLane, lane_to
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.slot_source import PlainSource, QuantisedSource
from tests.sgl.test_copier import Outcomes

EXPERTS, HIDDEN, INNER = 6, 192, 96
SHAPES = {"w13": (2 * INNER, HIDDEN), "w2": (HIDDEN, INNER)}
STORES = ("mapped", "int8_weight", "int4")
KINDS = ("cpu", "cuda")


def require(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    return torch.device(device)


def mapped(tensors, path):
    """The tensors in a file that is mapped, gate and up apart as checkpoints have them."""
    found = {}
    for name, tensor in tensors.items():
        file = path / name
        file.write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        size = file.stat().st_size
        of_file = torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8)
        of_file = of_file.view(tensor.dtype).view(tensor.shape)
        parts = 2 if name.startswith("w13") else 1
        pieces = [expert.chunk(parts) for expert in of_file]
        found[name] = scattered(pieces, tuple(tensor.shape))
    return found


def quantised_with(tensors, form):
    """Weights and scales as the loader leaves them, and their values in bf16."""
    found, values = {}, {}
    for name, tensor in tensors.items():
        experts, rows, columns = tensor.shape
        if form is WeightFormat.INT4:
            weights = torch.zeros(experts, rows, columns // 8, dtype=torch.int32)
            scale = torch.zeros(experts, rows, columns // 32, dtype=torch.bfloat16)
        else:
            weights = torch.zeros(experts, rows, columns, dtype=torch.int8)
            scale = torch.zeros(experts, rows)
        values[name] = torch.zeros(experts, rows, columns, dtype=torch.bfloat16)
        whole = experts * rows, columns
        addresses = weights.data_ptr(), scale.data_ptr()
        _native.quantise(tensor.data_ptr(), "bf16", 0, *whole, form.value, *addresses)
        _native.dequantise(*addresses, form.value, *whole, values[name].data_ptr())
        found |= {name: weights, f"{name}_scale": scale}
    return found, values


def source_of(kind, tensors, path):
    """A store of this kind, and what slots must hold."""
    if kind == "mapped":
        return PlainSource(mapped(tensors, path)), tensors
    found, values = quantised_with(tensors, WeightFormat(kind))
    return QuantisedSource(found, WeightFormat(kind)), values


def layer_of(kind, device, path, *, slots, shapes=None):
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(EXPERTS, *shape, generator=generator).bfloat16()
        for name, shape in (shapes or SHAPES).items()
    }
    source, wanted = source_of(kind, tensors, path)
    memory = {
        name: torch.zeros(slots, *tensor.shape[1:], dtype=torch.bfloat16, device=device)
        for name, tensor in tensors.items()
    }
    table = torch.full((EXPERTS,), -1, dtype=torch.int32)
    return ExpertLayer(0, EXPERTS, slots, source, memory, table), wanted


def holds(layer, slot, expert, wanted):
    return all(
        torch.equal(tensor[slot].cpu().view(torch.uint8), wanted[name][expert].view(torch.uint8))
        for name, tensor in layer.slots.items()
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("buffer_bytes", [HIDDEN * 2, 4096, 8 << 20])
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("device", KINDS)
def test_parts_that_pass_through_buffers_fill_a_slot(device, kind, buffer_bytes, threads, tmp_path):
    """Wherever they are cut; nothing of them can be copied as it is."""
    layer, wanted = layer_of(kind, require(device), tmp_path, slots=2)
    ring = PinnedRing(torch.device(device), buffers=2, buffer_bytes=buffer_bytes)
    copy = layer.reserve(4)
    for part in copy.parts:
        assert part.as_is(0, part.units) is None
        for start in range(0, part.units, 50):
            count = min(50, part.units - start)
            ring.upload(
                part.target(start, count),
                lambda at, count, out, part=part, start=start: part.into(start + at, count, out),
                threads=threads,
            )
    assert holds(layer, copy.slot, 4, wanted)
    assert not layer.slots["w2"][1].any()
    assert copy.num_bytes == layer.expert_bytes == 2 * (2 * INNER * HIDDEN + HIDDEN * INNER)


@pytest.mark.parametrize("kind", STORES)
def test_slots_in_host_memory_need_no_buffers(kind, tmp_path):
    """The same parts write where they belong."""
    layer, wanted = layer_of(kind, torch.device("cpu"), tmp_path, slots=2)
    copy = layer.reserve(5)
    copy.run(HostLane())
    assert holds(layer, copy.slot, 5, wanted)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("device", KINDS)
def test_a_limited_copier_fills_slots_again_and_again(device, kind, tmp_path):
    """Every slot is right each time, each byte is counted once, and the limit is kept."""
    require(device)
    shapes = {"w13": (512, 512), "w2": (512, 256)}
    layer, wanted = layer_of(kind, device, tmp_path, slots=3, shapes=shapes)
    outcomes, rate, rounds = Outcomes(), 100e6, 12
    lane = lane_to(device)
    for expert in range(3):  # as the first placement is
        layer.reserve(expert).run(lane)
        layer.publish(expert)
    copier = Copier(
        finished=outcomes.finish, copied=outcomes.count, bytes_per_second=rate, lane=lane
    )
    chance, began = random.Random(7), time.monotonic()
    for batch in range(1, rounds + 1):
        absent = sorted(set(range(EXPERTS)) - set(layer.mapped()))
        slots = [layer.unmap(expert) for expert in chance.sample(layer.mapped(), 2)]
        come = chance.sample(absent, 2)
        copier.submit(batch, [layer.reserve(e, s) for e, s in zip(come, slots, strict=True)])
        outcomes.wait(batch)
        assert outcomes.finished[-1] == (batch, None)
        for expert in come:
            layer.publish(expert)
        for slot, expert in enumerate(layer.mapped()):
            assert holds(layer, slot, expert, wanted)
    elapsed = time.monotonic() - began
    copier.stop()
    assert outcomes.bytes == rounds * 2 * layer.expert_bytes
    assert elapsed > 0.9 * outcomes.bytes / rate
