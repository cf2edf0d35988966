"""The error words of ranks: one memory, which every rank maps and every GPU may write."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the words are seen through torch tensors")

from ktd.cuda.error_words import ErrorWords, path_of, provide  # noqa: E402
from ktd.cuda.layer_channel import ChannelError  # noqa: E402

WRITE = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    mmap.mmap(file.fileno(), 128)[64] = 7
"""


@pytest.fixture(name="path")
def path_fixture(tmp_path):
    """Words for two ranks."""
    provide(path_of(tmp_path), 2)
    return path_of(tmp_path)


def test_another_process_writes_them_and_no_disk_holds_them(path):
    """Linux does not let a driver keep pages of a disk's file for its device to write."""
    subprocess.run([sys.executable, "-c", WRITE, path], check=True)
    with path.open("rb") as words:
        name = Path(f"/proc/self/fd/{words.fileno()}").readlink().name
        assert name.startswith("memfd:")
        assert words.read() == bytes(64) + b"\x07" + bytes(63)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_an_answer_is_seen_by_all(rig, path, rank):
    """Each maps the words for itself, and its GPU writes its own."""
    mine, others = ErrorWords(path, 2), ErrorWords(path, 2)
    rig = rig(told=mine.address(rank))
    layer = rig.layers[0]
    ids = torch.full((1, 1), layer.table.shape[0], dtype=torch.int32, device=rig.gpu)
    assert others.first() is None
    rig.channel.split(layer, rig.hidden(1), ids, rig.weights(1, 1))
    torch.cuda.synchronize()
    assert rig.channel.error is ChannelError.BAD_EXPERT
    assert others.first() == (rank, ChannelError.BAD_EXPERT)
