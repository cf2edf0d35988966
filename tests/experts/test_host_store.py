"""The memory that experts live in."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the store hands out torch tensors")

from ktd.errors import DoesNotFit  # noqa: E402 - after the skip
from ktd.experts.store import HostStore  # noqa: E402


def resident_bytes() -> int:
    """Memory of this process that is backed by pages."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_an_allocation_is_a_zeroed_tensor_on_a_huge_page():
    """Shape and dtype are as asked, contents zero, and large tensors start at a huge page."""
    tensor = HostStore().allocate((4, 1024, 512), torch.bfloat16)
    assert tensor.shape == (4, 1024, 512)
    assert tensor.dtype == torch.bfloat16
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % (2 << 20) == 0
    assert not tensor.any()
    tensor.fill_(1.5)
    assert (tensor == 1.5).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float32, torch.int64])
def test_small_tensors_of_any_dtype(dtype):
    """A scale of a few bytes is allocated like a weight."""
    tensor = HostStore().allocate((3, 5), dtype)
    assert tensor.shape == (3, 5)
    assert tensor.dtype == dtype


def test_memory_is_touched_when_it_is_written():
    """An allocation costs no pages until then, so that all experts never exist twice."""
    before = resident_bytes()
    tensor = HostStore().allocate((64 << 20,), torch.uint8)
    assert resident_bytes() - before < 8 << 20
    tensor[: 32 << 20] = 1
    assert 30 << 20 < resident_bytes() - before < 40 << 20


def test_the_account_follows_what_is_alive():
    """Bytes are those of live tensors; a view keeps its mapping, the last one gives it back."""
    store = HostStore()
    first = store.allocate((1000,), torch.float32)
    second = store.allocate((3 << 20,), torch.uint8)
    assert store.allocated_bytes == 4000 + (3 << 20)
    view = second[5:10]
    del second
    gc.collect()
    assert store.allocated_bytes == 4000 + (3 << 20)
    view.fill_(7)
    del first, view
    gc.collect()
    assert store.allocated_bytes == 0


@pytest.mark.parametrize("size", [1 << 55, 1 << 62, 1 << 70])
def test_too_much_is_refused_with_the_sum(size):
    """What the host cannot map is refused in one sentence, and the account stays right."""
    store = HostStore()
    kept = store.allocate((1 << 30,), torch.uint8)
    with pytest.raises(DoesNotFit, match=r"beside the 1\.00 GiB held already") as refused:
        store.allocate((size,), torch.uint8)
    assert refused.value.metadata["required_bytes"] == str(size + kept.numel())
    assert store.allocated_bytes == kept.numel()


@pytest.mark.parametrize("shape", [(), (4, 0, 2), (-1,)])
def test_a_shape_of_nothing_is_refused(shape):
    """An empty tensor has no address that a kernel could read."""
    with pytest.raises(ValueError, match="needs sizes of at least 1"):
        HostStore().allocate(shape, torch.uint8)


@pytest.mark.parametrize(
    ("setting", "huge"),
    [("always [madvise] never\n", True), ("always madvise [never]\n", False), (None, True)],
)
def test_a_kernel_without_huge_pages_is_told(tmp_path, caplog, setting, huge):
    """Small pages make kernels slower, so the store says so, once."""
    path = tmp_path / "enabled"
    if setting is not None:
        path.write_text(setting)
    store = HostStore(path)
    store.allocate((4 << 20,), torch.uint8)
    assert store.huge_pages is huge
    warned = [record for record in caplog.records if "small pages" in record.message]
    assert len(warned) == (0 if huge else 1)
