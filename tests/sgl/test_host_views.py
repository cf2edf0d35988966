"""gpt-oss's experts pass from their file to host memory, though its class takes them to the GPU."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from torch import nn

from ktd.experts.store import HostStore
from ktd.sgl.expert_loader import ExpertLoader
from ktd.sgl.host_views import StayOnHost
from ktd.sgl.weight_reader import WeightReader

SHAPE = (4, 128, 512)
NAME = "model.layers.0.mlp.experts.gate_up_proj_blocks"
NOWHERE = torch.device("meta")


@pytest.fixture
def reader():
    reader = WeightReader(threads=2)
    yield reader
    reader.close()


@pytest.fixture
def written(tmp_path):
    """A layer's experts in one tensor of a file."""
    random = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, SHAPE, generator=random, dtype=torch.uint8)
    safetensors.save_file({NAME: blocks}, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors"), blocks


def staying(reader):
    return StayOnHost(lambda tensor: reader.file_of(tensor) is not None)


def test_views_of_files_are_moved_nowhere(reader, written):
    """And everything else is; the mode ends where it ends."""
    ((_, view),) = reader.tensors([written[0]])
    other = torch.zeros(3)
    with staying(reader):
        assert view.cuda() is view
        assert view.to(NOWHERE) is view
        assert view[1:3].to(NOWHERE).device.type == "cpu"
        assert view[0, 0].to(torch.float32).dtype is torch.float32
        assert other.to(NOWHERE).is_meta
    assert view.to(NOWHERE).is_meta


def test_a_rank_has_its_part_of_them(reader, written):
    """Cut out of the file as SGLang's class cuts it, read by the reader's threads."""
    path, blocks = written

    def load(parameter, weight, _name, _shard, _expert):
        parameter.data[:, : weight.shape[1], : weight.shape[2]].copy_(weight)

    meta = nn.Parameter(
        torch.empty(4, 64, 512, dtype=torch.uint8, device="meta"), requires_grad=False
    )
    loader = ExpertLoader(
        {"w13_weight": meta},
        store=HostStore(),
        load=load,
        loaded=lambda _: None,
        reader=reader,
    )
    slots = nn.Parameter(torch.empty(0), requires_grad=False)
    loader.attach("w13_weight", slots)
    with staying(reader):
        for _, weight in reader.tensors([path]):
            moved = weight.cuda().view(4, 128, -1).contiguous()
            loader(slots, moved[:, 64:], "w13_weight", shard_id=None, expert_id=None)
    loader.finish()
    assert loader.missing() is None
    assert torch.equal(loader.tensors["w13_weight"], blocks[:, 64:])
