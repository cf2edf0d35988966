"""Weight files on their way to SGLang's loader and into the host store."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from torch import nn

from ktd.experts import _native
from ktd.experts.store import HostStore
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.quantiser import Quantiser
from ktd.sgl.weight_file import WeightFile, WeightsUnreadable
from ktd.sgl.weight_reader import WeightReader

EXPERTS, WIDTH, HIDDEN = 4, 128, 512  # 128 KiB a matrix: large enough for a view


@pytest.fixture
def reader():
    reader = WeightReader(threads=3)
    yield reader
    reader.close()


@pytest.fixture
def checkpoint(tmp_path):
    """Two files: experts, scales and others, of several types and shapes."""
    random = torch.Generator().manual_seed(3)

    def weight(*shape):
        return torch.randn(*shape, generator=random).bfloat16()

    files = []
    for part in range(2):
        tensors = {
            f"model.norm.{part}": weight(7),
            f"model.empty.{part}": torch.empty(0, 3),
            f"model.scalar.{part}": torch.tensor(part + 0.5),
            f"model.layers.{part}.mlp.shared_experts.up_proj.weight": weight(WIDTH, HIDDEN),
        }
        for expert in range(EXPERTS):
            name = f"model.layers.{part}.mlp.experts.{expert}"
            tensors[f"{name}.w1.weight"] = weight(WIDTH, HIDDEN)
            tensors[f"{name}.w2.weight"] = weight(HIDDEN, WIDTH)
            tensors[f"{name}.w3.weight"] = weight(WIDTH, HIDDEN)
            tensors[f"{name}.w1.scale"] = torch.rand(WIDTH, generator=random)
        files.append(tmp_path / f"part-{part}.safetensors")
        safetensors.save_file(tensors, files[-1])
    return [str(file) for file in files]


def everything(files):
    """As safetensors itself reads them."""
    return {name: t for file in files for name, t in safetensors.load_file(file).items()}


def half_of(tensor, rank, dim):
    return tensor.narrow(dim, rank * tensor.shape[dim] // 2, tensor.shape[dim] // 2)


def sharding_loader(rank):
    """Copies one rank's half, as SGLang's loader does: rows of w1 and w3, columns of w2."""

    def load(parameter, weight, _name, shard, expert):
        data = parameter.data[expert]
        if shard == "w2":
            data.copy_(half_of(weight, rank, 1))
        else:
            rows = half_of(weight, rank, 0)
            data.narrow(0, 0 if shard == "w1" else WIDTH // 2, WIDTH // 2).copy_(rows)

    return load


def rearranging_loader(parameter, weight, _name, shard, expert):
    """What SGLang does for packed formats: the bytes that arrive are not the file's order."""
    data = parameter.data[expert]
    turned = weight.t().contiguous().t() + 0
    if shard == "w2":
        data.copy_(half_of(turned, 0, 1))
    else:
        data.narrow(0, 0 if shard == "w1" else WIDTH // 2, WIDTH // 2).copy_(half_of(turned, 0, 0))


def expert_loader(reader, load, counted, quantiser=None):
    with torch.device("meta"):
        template = {
            "w13_weight": nn.Parameter(torch.empty(EXPERTS, WIDTH, HIDDEN, dtype=torch.bfloat16)),
            "w2_weight": nn.Parameter(
                torch.empty(EXPERTS, HIDDEN, WIDTH // 2, dtype=torch.bfloat16)
            ),
        }
    return ExpertLoader(
        template,
        store=HostStore(),
        load=load,
        loaded=counted.append,
        reader=reader,
        quantiser=quantiser,
    )


def load_layer(reader, loader, files, layer=0):
    """What a model's load_weights does for one layer."""
    slots = {name: nn.Parameter(torch.empty(1)) for name in loader.tensors}
    for name, slot in slots.items():
        loader.attach(name, slot)
    for name, tensor in reader.tensors(files):
        if f"layers.{layer}.mlp.experts." not in name or not name.endswith(".weight"):
            continue
        expert, shard = name.split(".")[5:7]
        slot = slots["w2_weight" if shard == "w2" else "w13_weight"]
        loader(slot, tensor, name, shard, int(expert))


def expect_rank(loader, files, rank):
    truth = everything(files)
    for expert in range(EXPERTS):
        name = f"model.layers.0.mlp.experts.{expert}"
        w13 = loader.tensors["w13_weight"][expert]
        assert torch.equal(w13[: WIDTH // 2], half_of(truth[f"{name}.w1.weight"], rank, 0))
        assert torch.equal(w13[WIDTH // 2 :], half_of(truth[f"{name}.w3.weight"], rank, 0))
        w2 = loader.tensors["w2_weight"][expert]
        assert torch.equal(w2, half_of(truth[f"{name}.w2.weight"], rank, 1))


def test_every_tensor_comes_as_it_is_in_the_files(reader, checkpoint):
    """Names, types, shapes and values are those of safetensors' own reader."""
    seen = dict(reader.tensors(checkpoint))
    truth = everything(checkpoint)
    assert seen.keys() == truth.keys()
    for name, tensor in truth.items():
        assert seen[name].dtype == tensor.dtype
        assert torch.equal(seen[name], tensor), name


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_and_columns_of_a_rank_arrive_in_the_store(reader, checkpoint, rank):
    """SGLang's loader says what goes where; the reading threads bring it."""
    counted = []
    loader = expert_loader(reader, sharding_loader(rank), counted)
    load_layer(reader, loader, checkpoint)
    loader.finish()
    assert loader.missing() is None
    assert sum(counted) == loader.num_bytes
    expect_rank(loader, checkpoint, rank)


def test_a_loader_that_rearranges_gets_the_bytes(reader, checkpoint):
    """What is not a plain copy sees the file's contents, and the next tensors are read ahead."""
    counted = []
    loader = expert_loader(reader, rearranging_loader, counted)
    load_layer(reader, loader, checkpoint)
    loader.finish()
    assert loader.missing() is None
    assert sum(counted) == loader.num_bytes
    expect_rank(loader, checkpoint, 0)


def test_a_loader_that_looks_at_what_it_copied_finds_it(reader, checkpoint):
    """A copy that was put off is made up for before its destination is read."""
    sums = []

    def load(parameter, weight, name, shard, expert):
        sharding_loader(0)(parameter, weight, name, shard, expert)
        sums.append(float(parameter.data[expert].float().abs().sum()))

    loader = expert_loader(reader, load, [])
    load_layer(reader, loader, checkpoint)
    loader.finish()
    assert all(sums)
    expect_rank(loader, checkpoint, 0)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("load_of", [sharding_loader, lambda _rank: rearranging_loader])
def test_a_ranks_part_is_quantised_as_it_arrives(reader, checkpoint, rank, load_of):
    """What is read in threads and what is not; both as quantising the loaded experts would."""
    plain = expert_loader(reader, load_of(rank), [])
    load_layer(reader, plain, checkpoint)
    plain.finish()
    counted = []
    quantiser = Quantiser("int4", HostStore(), lambda _tensor, _parts: None)
    loader = expert_loader(reader, load_of(rank), counted, quantiser)
    load_layer(reader, loader, checkpoint)
    loader.finish()
    assert loader.missing() is None
    assert sum(counted) == loader.num_bytes == plain.num_bytes * 9 // 32
    for name, source in plain.tensors.items():
        rows, columns = source.shape[0] * source.shape[1], source.shape[2]
        weights, scale = loader.tensors[name], loader.tensors[f"{name}_scale"]
        wanted = torch.empty_like(weights), torch.empty_like(scale)
        to = [tensor.data_ptr() for tensor in wanted]
        _native.quantise(source.data_ptr(), "bf16", 0, rows, columns, "int4", *to)
        assert torch.equal(weights, wanted[0])
        assert torch.equal(scale.view(torch.int16), wanted[1].view(torch.int16))


def test_shards_of_a_damaged_file_give_their_scratch_memory_back(reader, checkpoint):
    """Or a checkpoint with many of them would be waited for for ever."""
    quantiser = Quantiser("int8", HostStore(), lambda _tensor, _parts: None)
    loader = expert_loader(reader, sharding_loader(0), [], quantiser)
    slots = {"w13_weight": nn.Parameter(torch.empty(1))}
    loader.attach("w13_weight", slots["w13_weight"])
    experts = [t for name, t in reader.tensors(checkpoint) if name.endswith(".w1.weight")]
    for file in checkpoint:
        os.truncate(file, 4096)
    for turn in range(20):
        for expert, tensor in enumerate(experts[:EXPERTS]):
            loader(slots["w13_weight"], tensor, "any.weight", "w1", expert)
        with pytest.raises(WeightsUnreadable, match="truncated"):
            loader.finish()
        assert loader.missing() == "shard w1 of expert 0", turn


def test_a_file_that_shrinks_while_it_is_read_is_named(checkpoint):
    """No signal, no hang: the sentence says where the file ends and what to do.

    In a process of its own, which a read through a mapping would kill.
    """
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import test_weight_reader as here
files = {checkpoint!r}
reader = here.WeightReader(threads=2)
def load(parameter, weight, name, shard, expert):
    here.os.truncate(files[0], 300_000)
    here.sharding_loader(0)(parameter, weight, name, shard, expert)
loader = here.expert_loader(reader, load, [])
try:
    here.load_layer(reader, loader, files)
    loader.finish()
except here.WeightsUnreadable as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, (signal.Signals(-done.returncode), done.stderr[-500:])
    assert done.stdout.startswith(f"{checkpoint[0]} is truncated: it has 300,000 bytes, and")
    assert "download it again" in done.stdout


def test_a_truncated_file_is_named_by_its_tensor(checkpoint):
    """Also for a tensor that no expert has."""
    file = WeightFile(Path(checkpoint[0]))
    entry = file.entries[-1]
    os.truncate(checkpoint[0], entry.start + entry.size - 1)
    with pytest.raises(WeightsUnreadable, match=rf"part-0\.safetensors is truncated.*{entry.name}"):
        file.read(entry)


def test_a_file_that_was_truncated_before_is_named_by_an_experts_tensor(reader, checkpoint):
    """Which is a view of the mapped file, and of no more than that."""
    experts = [e for e in WeightFile(Path(checkpoint[0])).entries if ".experts." in e.name]
    entry = max(experts, key=lambda entry: entry.start)
    os.truncate(checkpoint[0], entry.start + entry.size - 1)
    with pytest.raises(WeightsUnreadable, match=rf"part-0\.safetensors is truncated.*{entry.name}"):
        list(reader.tensors(checkpoint))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_small_tensors_come_in_their_order_with_large_ones_between(reader, tmp_path, count):
    """Small ones are read many at a time, and neither wait for the end nor overtake others."""
    tensors = {
        f"model.{number:04}.scale": torch.full((3,), number + 0.25) for number in range(count)
    }
    tensors["model.0001.table"] = torch.arange(40_000.0)
    tensors["model.0300.table"] = torch.arange(50_000.0)
    safetensors.save_file(tensors, tmp_path / "some.safetensors")
    lies = [entry.name for entry in WeightFile(tmp_path / "some.safetensors").entries]
    came = dict(reader.tensors([str(tmp_path / "some.safetensors")]))
    assert list(came) == lies
    assert all(torch.equal(came[name], tensor) for name, tensor in tensors.items())


def test_the_name_in_hand_is_that_of_the_tensor_that_came_last(reader, checkpoint):
    """Views and what is read ahead alike."""
    for name, _ in reader.tensors(checkpoint):
        assert reader.name == name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated"),
        (b"\xff" * 64, "longer than a header"),
        ((5).to_bytes(8, "little") + b"{nope", "not a safetensors file"),
        (
            b"%s%s" % ((79).to_bytes(8, "little"), json.dumps(
                {"t": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}
            ).ljust(79).encode()),
            "type F7",
        ),
        (
            b"%s%s" % ((79).to_bytes(8, "little"), json.dumps(
                {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}
            ).ljust(79).encode()),
            "contradicts its shape",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_weight_file_is_named(tmp_path, content, says):
    """One sentence with the file, whatever is in it."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsUnreadable, match=says) as refused:
        WeightFile(path)
    assert str(path) in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    """As the system says it."""
    with pytest.raises(WeightsUnreadable, match=r"gone\.safetensors cannot be read: No such file"):
        WeightFile(tmp_path / "gone.safetensors")


def test_files_are_read_from_several_threads_at_once(reader, checkpoint):
    """Experts' copies do not wait for each other."""
    names = set()
    gate = threading.Barrier(3, timeout=30)
    original = WeightFile.read_into

    def read_into(file, start, size, address, what):
        if what == "a tensor of an expert":
            names.add(threading.current_thread().name)
            if len(names) <= 3 and not gate.broken and gate.n_waiting + len(names) <= 5:
                gate.wait()
        original(file, start, size, address, what)

    loader = expert_loader(reader, sharding_loader(0), [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightFile, "read_into", read_into)
        load_layer(reader, loader, checkpoint)
        loader.finish()
    assert len(names) == 3
