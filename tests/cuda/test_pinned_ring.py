"""Bytes that pass through a ring of buffers: on the CPU here, to a GPU where there is one."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch", reason="rings carry torch tensors")

from ktd.cuda.pinned_ring import (  # noqa: E402 - needs torch
    BUFFER_BYTES,
    BUFFERS,
    PinnedRing,
)

ROWS, COLUMNS = 61, 40


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    return torch.device(request.param)


def random_rows(dtype, rows=ROWS, columns=COLUMNS, seed=1):
    random = torch.Generator().manual_seed(seed)
    size = rows, columns * dtype.itemsize
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=random).view(dtype)


class Reads:
    """Fills from a tensor and remembers who asked for which rows."""

    def __init__(self, source):
        self.source = source
        self.pieces = []

    def __call__(self, start, count, out):
        self.pieces.append((start, count, threading.get_ident()))
        out.view(torch.uint8).copy_(self.source[start : start + count].view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32])
@pytest.mark.parametrize("rows_at_once", [1, 7, ROWS, 10 * ROWS])
def test_every_row_arrives_once_and_nothing_else(device, dtype, rows_at_once):
    """In pieces of whole rows; what lies beside the target stays."""
    source = random_rows(dtype)
    around = random_rows(dtype, rows=ROWS + 4, seed=2).to(device)
    wanted = around.clone()
    wanted[2 : ROWS + 2] = source.to(device)
    ring = PinnedRing(device, buffers=3, buffer_bytes=rows_at_once * COLUMNS * dtype.itemsize + 8)
    reads = Reads(source)
    ring.upload(around[2 : ROWS + 2], reads)
    assert torch.equal(around.view(torch.uint8), wanted.view(torch.uint8))
    assert [start for start, _, _ in reads.pieces] == list(range(0, ROWS, min(rows_at_once, ROWS)))
    assert sum(count for _, count, _ in reads.pieces) == ROWS
    assert {ident for _, _, ident in reads.pieces} == {threading.get_ident()}


def test_columns_of_a_wider_matrix_are_a_target_too(device):
    """Rows then lie apart."""
    source = random_rows(torch.int16)
    wide = torch.zeros(ROWS, 3 * COLUMNS, dtype=torch.int16, device=device)
    PinnedRing(device, buffers=2, buffer_bytes=1000).upload(
        wide[:, COLUMNS : 2 * COLUMNS], Reads(source)
    )
    assert torch.equal(wide[:, COLUMNS : 2 * COLUMNS].cpu(), source)
    assert not wide[:, :COLUMNS].any()
    assert not wide[:, 2 * COLUMNS :].any()


def test_many_uploads_reuse_few_buffers(device):
    """A buffer is written again only when what was in it has arrived."""
    ring = PinnedRing(device, buffers=2, buffer_bytes=1 << 20)
    sources = [random_rows(torch.int32, rows=256, columns=1024, seed=i) for i in range(20)]
    targets = torch.zeros(20, 256, 1024, dtype=torch.int32, device=device)
    for _ in range(5):
        targets.zero_()
        for target, source in zip(targets, sources, strict=True):
            ring.upload(target, Reads(source))
        assert torch.equal(targets.cpu(), torch.stack(sources))


def test_several_threads_fill_parts_of_a_large_buffer(device):
    """Each row by one of them; small pieces are left to the caller."""
    ring = PinnedRing(device)
    source = random_rows(torch.uint8, rows=5000, columns=4096)
    assert source.numel() > 2 * BUFFER_BYTES
    target = torch.zeros(5000, 4096, dtype=torch.uint8, device=device)
    reads = Reads(source)
    ring.upload(target, reads, threads=3)
    assert torch.equal(target.cpu(), source)
    rows = sorted(row for start, count, _ in reads.pieces for row in range(start, start + count))
    assert rows == list(range(5000))
    assert 2 <= len({ident for _, _, ident in reads.pieces}) <= 3
    few = Reads(source)
    ring.upload(target[:100], few, threads=3)
    assert few.pieces == [(0, 100, threading.get_ident())]
    ring.close()
    target.zero_()
    ring.upload(target, Reads(source), threads=3)
    assert torch.equal(target.cpu(), source)
    ring.close()


@pytest.mark.parametrize("threads", [1, 4])
def test_a_failure_to_read_is_the_callers_and_the_ring_goes_on(device, threads):
    """Whoever of the threads met it, and none of them still writes then."""
    ring = PinnedRing(device)
    source = random_rows(torch.uint8, rows=1024, columns=4096)
    target = torch.zeros(1024, 4096, dtype=torch.uint8, device=device)
    reads = Reads(source)

    def failing(start, count, out):
        if start + count == 1024:
            raise OSError("the file became shorter")
        reads(start, count, out)

    for _ in range(2 * BUFFERS):
        with pytest.raises(OSError, match="the file became shorter"):
            ring.upload(target, failing, threads=threads)
    assert len(reads.pieces) == 2 * BUFFERS * (threads - 1)
    ring.upload(target, reads, threads=threads)
    assert torch.equal(target.cpu(), source)
    ring.close()


def test_a_row_that_no_buffer_holds_is_refused(device):
    """With both sizes."""
    ring = PinnedRing(device, buffers=1, buffer_bytes=64)
    with pytest.raises(ValueError, match="a row of 80 bytes does not fit into a buffer of 64"):
        ring.upload(torch.zeros(2, 40, dtype=torch.int16, device=device), Reads(None))
