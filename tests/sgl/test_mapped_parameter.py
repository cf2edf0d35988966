"""Experts that stay in the checkpoint's files (``--host-memory mmap``)."""

import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from torch import nn

from ktd.experts.scattered import ScatteredTensor
from ktd.experts.store import HostStore
from ktd.experts.weights import WeightFormat
from ktd.sgl import weight_file
from ktd.sgl.copy_lane import HostLane
from ktd.sgl.expert_format import ExpertFormat, FormatRefused
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.mapped_parameter import Mapper
from ktd.sgl.slot_source import PlainSource
from ktd.sgl.weight_file import WeightsUnreadable
from ktd.sgl.weight_reader import WeightReader

EXPERTS, WIDTH, HIDDEN = 4, 64, 128  # 16 KiB a matrix: some pages
FIELDS = {
    "w13_weight": "w13",
    "w2_weight": "w2",
    "w13_weight_scale": "w13_scale",
    "w2_weight_scale": "w2_scale",
}
NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@pytest.fixture
def reader():
    reader = WeightReader(threads=3, mapped=True)
    yield reader
    reader.close()


def weight(*shape, seed=5):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random).bfloat16()


def name_of(expert, shard):
    return f"model.layers.0.mlp.experts.{expert}.{NAMES[shard]}"


def experts(make=weight):
    shapes = {"w1": (WIDTH, HIDDEN), "w3": (WIDTH, HIDDEN), "w2": (HIDDEN, WIDTH)}
    return {
        f"{name_of(expert, shard)}.weight": make(*shape, seed=3 * expert + i)
        for expert in range(EXPERTS)
        for i, (shard, shape) in enumerate(shapes.items())
    }


def half_of(tensor, rank, dim, ranks=2):
    size = tensor.shape[dim] // ranks
    return tensor.narrow(dim, rank * size, size)


class Layer:
    """One layer's loader over files that the tensors are written to."""

    def __init__(self, reader, load, *, shapes=None, interleaved=False, weights=WeightFormat.BF16):
        self.reader = reader
        self.store = HostStore(mapped=True)
        self.counted = []
        shapes = shapes or {
            "w13_weight": (EXPERTS, WIDTH, HIDDEN),
            "w2_weight": (EXPERTS, HIDDEN, WIDTH // 2),
        }
        dtypes = {"w13_weight_scale": torch.float32, "w2_weight_scale": torch.float32}
        template = {
            name: nn.Parameter(
                torch.empty(shape, dtype=dtypes.get(name, torch.bfloat16), device="meta"),
                requires_grad=False,
            )
            for name, shape in shapes.items()
        }
        self.loader = ExpertLoader(
            template,
            store=self.store,
            load=load,
            loaded=self.counted.append,
            reader=reader,
            mapper=Mapper(self.store, ExpertFormat(weights, FIELDS), interleaved),
        )
        self.slots = {name: nn.Parameter(torch.empty(1)) for name in template}
        for name, slot in self.slots.items():
            self.loader.attach(name, slot)

    def load(self, files):
        for name, tensor in self.reader.tensors(files):
            self.take(name, tensor)
        self.loader.finish()
        return self.loader.tensors

    def take(self, name, tensor):
        found = re.search(r"experts\.(\d+)\.(\w+)_proj\.(\w+)$", name)
        if found is None:
            self.loader(self.slots[name.rpartition(".")[2]], tensor, name, None, None)
            return
        shard = {value: key for key, value in NAMES.items()}[f"{found[2]}_proj"]
        slot = self.slots[f"{'w2' if shard == 'w2' else 'w13'}_{found[3]}"]
        self.loader(slot, tensor, name, shard, int(found[1]))


def of_rank(rank):
    """As SGLang's loader: half of the rows of gate and up, of the columns of down."""

    def load(parameter, tensor, _name, shard, expert):
        data = parameter.data[expert]
        if shard == "w2":
            data.copy_(half_of(tensor, rank, 1))
        else:
            data.narrow(0, 0 if shard == "w1" else WIDTH // 2, WIDTH // 2).copy_(
                half_of(tensor, rank, 0)
            )

    return load


def rearranged(parameter, tensor, name, shard, expert):
    of_rank(0)(parameter, tensor.flip(0), name, shard, expert)


def save(tensors, folder, *, shift=0):
    """Writes a safetensors file whose data begin ``shift`` bytes later than they should."""
    path = folder / "model.safetensors"
    if not shift:
        safetensors.save_file(tensors, path)
        return [str(path)]
    kinds = {torch.bfloat16: "BF16"}
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + shift)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return [str(path)]


def whole(tensors, name, expert):
    """One expert, put together."""
    tensor = tensors[name]
    if not isinstance(tensor, ScatteredTensor):
        return tensor[expert]
    made = torch.empty(tensor.shape[1:], dtype=tensor.dtype)
    for place, piece in tensor.parts(expert, made):
        place.copy_(piece)
    return made


def expect_rank(tensors, truth, rank):
    for expert in range(EXPERTS):
        gate, up, down = (truth[f"{name_of(expert, s)}.weight"] for s in ("w1", "w3", "w2"))
        both = torch.cat([half_of(gate, rank, 0), half_of(up, rank, 0)])
        assert torch.equal(whole(tensors, "w13_weight", expert), both)
        assert torch.equal(whole(tensors, "w2_weight", expert), half_of(down, rank, 1))


def mappings_of(path):
    """Of each mapping of a file: resident bytes."""
    found, inside = [], False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found.append(int(line.split()[1]) << 10)
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_ranks_part_stays_in_the_file(reader, tmp_path, rank):
    """Rows and columns alike; nothing is copied, and all pages are there."""
    truth = experts()
    files = save(truth, tmp_path)
    layer = Layer(reader, of_rank(rank))
    tensors = layer.load(files)
    expect_rank(tensors, truth, rank)
    assert layer.loader.missing() is None
    assert sum(layer.counted) == layer.loader.num_bytes == EXPERTS * 3 * WIDTH * HIDDEN
    assert layer.loader.copied_bytes == 0
    # every page holds rows of some shard of this rank
    assert sum(mappings_of(files[0])) >= 2 * layer.loader.num_bytes * 3 // 4
    reader.close()  # waits for the threads, which may still look at what they were given
    assert layer.store.allocated_bytes == 0
    expect_rank(tensors, truth, rank)


def test_a_slot_is_filled_from_the_file(reader, tmp_path):
    """In pieces that the copier may cut anywhere."""
    truth = experts()
    source = PlainSource(Layer(reader, of_rank(1)).load(save(truth, tmp_path)))
    assert source.expert_bytes == 3 * WIDTH * HIDDEN
    slot = {
        "w13_weight": torch.zeros(WIDTH, HIDDEN).bfloat16(),
        "w2_weight": torch.zeros(HIDDEN, WIDTH // 2).bfloat16(),
    }
    parts = source.parts(2, slot)
    assert sum(part.units * part.unit_bytes for part in parts) == source.expert_bytes
    lane = HostLane()
    for part in parts:
        lane.put(part, 0, 5)
        lane.put(part, 5, part.units - 5)
    gate, up, down = (truth[f"{name_of(2, s)}.weight"] for s in ("w1", "w3", "w2"))
    assert torch.equal(slot["w13_weight"], torch.cat([half_of(t, 1, 0) for t in (gate, up)]))
    assert torch.equal(slot["w2_weight"], half_of(down, 1, 1))


def test_weights_that_sglang_rearranges_are_refused_by_name(reader, tmp_path):
    """They would have to be copied, which is what the user did not want."""
    layer = Layer(reader, rearranged)
    with pytest.raises(
        FormatRefused,
        match=r"--host-memory mmap needs .* SGLang rearranges or pads model\.layers\.0\.mlp\."
        r"experts\.\d\.\w+\.weight \(bf16\) .*; leave --host-memory out",
    ):
        layer.load(save(experts(), tmp_path))


def test_a_transposed_view_is_no_row(reader, tmp_path):
    """Stacked checkpoints that have their experts turned round are refused too."""

    def load(parameter, tensor, _name, shard, expert):
        columns = tensor.as_strided(tensor.shape, (1, tensor.shape[0]))
        of_rank(0)(parameter, columns, _name, shard, expert)

    with pytest.raises(FormatRefused, match="rearranges or pads"):
        Layer(reader, load).load(save(experts(), tmp_path))


def test_scales_of_another_type_are_copied(reader, tmp_path):
    """SGLang keeps float32 where a checkpoint has bf16; the weights stay in the file."""
    rows = 4096  # one scale each: more than a page, so that they are no exception by size
    shapes = {
        "w13_weight": (EXPERTS, WIDTH, HIDDEN),
        "w2_weight": (EXPERTS, HIDDEN, WIDTH // 2),
        "w2_weight_scale": (EXPERTS, rows, 1),
    }
    truth = experts()
    scales = {
        f"{name_of(e, 'w2')}.weight_scale": weight(rows, 1, seed=90 + e) for e in range(EXPERTS)
    }

    def load(parameter, tensor, name, shard, expert):
        if name.endswith("_scale"):
            parameter.data[expert].copy_(tensor)
        else:
            of_rank(0)(parameter, tensor, name, shard, expert)

    layer = Layer(reader, load, shapes=shapes)
    tensors = layer.load(save(truth | scales, tmp_path))
    expect_rank(tensors, truth, 0)
    reader.close()
    assert layer.loader.copied_bytes == layer.store.allocated_bytes == EXPERTS * rows * 4
    for expert in range(EXPERTS):
        wanted = scales[f"{name_of(expert, 'w2')}.weight_scale"].float()
        assert torch.equal(tensors["w2_weight_scale"][expert], wanted)


def test_tensors_that_are_not_aligned_are_copied_and_named_once(reader, tmp_path, caplog):
    """Their elements cannot be read where they lie; the answer is the same."""
    truth = experts()
    files = save(truth, tmp_path, shift=1)
    layer = Layer(reader, of_rank(0))
    with caplog.at_level(logging.WARNING, logger="ktd.sgl.weight_reader"):
        tensors = layer.load(files)
    expect_rank(tensors, truth, 0)
    assert layer.loader.copied_bytes == layer.loader.num_bytes
    assert len(caplog.messages) == 1
    assert re.search(r"experts\.0\.gate_proj\.weight begins at byte \d+ of", caplog.messages[0])


def test_one_that_is_not_in_the_file_lies_beside_those_that_are(reader, tmp_path):
    """Piece by piece: a single expert's up rows were copied, as from a tensor made by hand."""
    truth = experts()
    layer = Layer(reader, of_rank(0))
    other = weight(WIDTH, HIDDEN, seed=77)
    for name, tensor in reader.tensors(save(truth, tmp_path)):
        layer.take(name, other if name == f"{name_of(1, 'w3')}.weight" else tensor)
    layer.loader.finish()
    expect_rank(layer.loader.tensors, truth | {f"{name_of(1, 'w3')}.weight": other}, 0)
    assert layer.loader.copied_bytes == WIDTH // 2 * HIDDEN * 2


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_layers_experts_in_one_tensor_are_pieces_too(reader, tmp_path, interleaved):
    """As gpt-oss keeps them; interleaved rows stay together."""
    shapes = {"w13_weight": (EXPERTS, 2 * WIDTH, HIDDEN), "w2_weight": (EXPERTS, HIDDEN, WIDTH)}
    truth = {
        f"model.layers.0.mlp.experts.{name}": weight(*shape, seed=i)
        for i, (name, shape) in enumerate(shapes.items())
    }

    def load(parameter, tensor, *_):
        parameter.data.copy_(tensor)

    layer = Layer(reader, load, shapes=shapes, interleaved=interleaved)
    tensors = layer.load(save(truth, tmp_path))
    assert layer.loader.missing() is None
    assert layer.loader.copied_bytes == 0
    for name in shapes:
        for expert in range(EXPERTS):
            wanted = truth[f"model.layers.0.mlp.experts.{name}"][expert]
            assert torch.equal(whole(tensors, name, expert), wanted)
    assert len(tensors["w13_weight"].pieces[0]) == (1 if interleaved else 2)


def test_experts_that_sglang_takes_out_of_one_tensor_are_pieces_of_it(reader, tmp_path):
    """As Granite keeps them."""
    stacked = weight(EXPERTS, 2 * WIDTH, HIDDEN)
    name = "model.layers.0.block_sparse_moe.input_linear.weight"
    files = save({name: stacked}, tmp_path)

    def load(parameter, tensor, _name, shard, expert):
        parameter.data[expert].narrow(0, 0 if shard == "w1" else WIDTH, WIDTH).copy_(tensor)

    layer = Layer(reader, load, shapes={"w13_weight": (EXPERTS, 2 * WIDTH, HIDDEN)})
    ((_, tensor),) = reader.tensors(files)
    for expert in range(EXPERTS):
        for shard, half in zip(("w1", "w3"), tensor[expert].chunk(2), strict=True):
            layer.loader(layer.slots["w13_weight"], half, name, shard, expert)
    layer.loader.finish()
    assert layer.loader.copied_bytes == 0
    for expert in range(EXPERTS):
        assert torch.equal(whole(layer.loader.tensors, "w13_weight", expert), stacked[expert])


def test_weights_that_sglang_pads_are_refused(reader, tmp_path):
    """On a CPU it does so for sizes that are no multiples of 32: no file has the rows of zeros."""
    shapes = {"w13_weight": (EXPERTS, 2 * WIDTH + 32, HIDDEN)}
    with pytest.raises(FormatRefused, match="rearranges or pads"):
        Layer(reader, of_rank(0), shapes=shapes).load(
            save({k: v for k, v in experts().items() if "down" not in k}, tmp_path)
        )


def test_column_major_formats_have_their_pieces_side_by_side(reader, tmp_path):
    """Gate and up of GPTQ and AWQ share their lines."""
    shapes = {"w13_weight": (EXPERTS, HIDDEN, 2 * WIDTH), "w2_weight": (EXPERTS, WIDTH, HIDDEN)}

    def load(parameter, tensor, _name, shard, expert):
        data = parameter.data[expert]
        if shard != "w2":
            data = data.narrow(1, 0 if shard == "w1" else WIDTH, WIDTH)
        data.copy_(tensor)

    truth = {name: tensor.t().contiguous() for name, tensor in experts().items()}
    layer = Layer(reader, load, shapes=shapes, weights=WeightFormat.GPTQ)
    tensors = layer.load(save(truth, tmp_path))
    assert layer.loader.copied_bytes == 0
    for expert in range(EXPERTS):
        gate, up, down = (truth[f"{name_of(expert, s)}.weight"] for s in ("w1", "w3", "w2"))
        assert torch.equal(whole(tensors, "w13_weight", expert), torch.cat([gate, up], dim=1))
        assert torch.equal(whole(tensors, "w2_weight", expert), down)


def test_a_file_that_shrinks_before_its_pages_are_there_is_named(reader, tmp_path):
    """The kernel is asked for them, so it is an error and no signal."""
    files = save(experts(), tmp_path)
    layer = Layer(reader, of_rank(0))
    tensors = list(reader.tensors(files))
    os.truncate(files[0], 40_000)
    for name, tensor in tensors:
        layer.take(name, tensor)
    with pytest.raises(WeightsUnreadable, match=r"model\.safetensors is truncated: it has 40,000"):
        layer.loader.finish()


def test_a_kernel_that_cannot_populate_reads_instead(reader, tmp_path, monkeypatch):
    """Linux before 5.14: the page cache is filled all the same."""
    read = []
    original = weight_file.WeightFile.read_into

    def read_into(file, start, size, address, what):
        if what == "a tensor of an expert":
            read.append(size)
        original(file, start, size, address, what)

    monkeypatch.setattr(weight_file, "_madvise", lambda *_: errno.EINVAL)
    monkeypatch.setattr(weight_file.WeightFile, "read_into", read_into)
    truth = experts()
    tensors = Layer(reader, of_rank(0)).load(save(truth, tmp_path))
    expect_rank(tensors, truth, 0)
    assert sum(read) >= EXPERTS * 3 * WIDTH * HIDDEN
