"""The kernels compile without a GPU, and mean the same memory as Python and the pool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ktd.cuda import kernel_set, nvrtc
from ktd.errors import CudaFailed

ROOT = Path(__file__).resolve().parents[2]
FIELDS = [
    *("epoch", "layer", "tokens", "top_k", "x", "ids", "weights", "out", "deferred", "hidden"),
    *("answered", "failed", "heartbeat"),
]


@pytest.fixture(name="compiler", autouse=True)
def compiler_fixture():
    """Skips where no NVRTC is installed: CPU-only wheels of torch bring none."""
    try:
        nvrtc._library()
    except CudaFailed as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("source", kernel_set.SOURCES)
def test_every_kernel_compiles_without_a_warning(source, arch):
    """Ampere, Hopper and Blackwell."""
    cubin, log = kernel_set.compile_source(source, arch)
    assert cubin.startswith(b"\x7fELF")
    assert log == ""


def test_a_wrong_source_is_refused_with_the_compilers_log():
    """The message names the source and holds the line."""
    with pytest.raises(CudaFailed, match=r"(?s)broken\.cu does not compile for sm_90.*nonsense"):
        nvrtc.compile_cubin("nonsense here;", "broken.cu", "sm_90", headers={})


def test_an_unknown_architecture_is_refused_by_name():
    """A GPU that the compiler is too old for."""
    with pytest.raises(CudaFailed, match="sm_1234"):
        kernel_set.compile_source("split.cu", "sm_1234")


@pytest.mark.parametrize("source", kernel_set.SOURCES)
def test_arguments_of_another_size_do_not_compile(source, monkeypatch):
    """A field that is added on one side only."""
    monkeypatch.setattr(
        kernel_set, "sizes", lambda: [f"-DKTD_{n}_BYTES=12" for n in ("CHANNEL", "STATE", "MOVES")]
    )
    with pytest.raises(CudaFailed, match="Python and the kernels differ"):
        kernel_set.compile_source(source, "sm_90")


def test_the_errors_of_the_kernels_are_pythons():
    """Both number them from the first, which is none."""
    pytest.importorskip("torch", reason="channels are made of torch tensors")
    from ktd.cuda.layer_channel import ChannelError

    header = (ROOT / "daemon/ktd/cuda/kernels/channel.h").read_text()
    found = re.search(r"enum Error : unsigned int \{ (.*?) \};", header)
    assert found is not None
    names = [name.lower() for name in found[1].split(", ")]
    assert names == [f"k{error.name.replace('_', '').lower()}" for error in ChannelError]
    assert [error.value for error in ChannelError] == list(range(len(names)))


def test_the_mailbox_of_the_kernels_is_the_pools(tmp_path):
    """Every field of csrc/mailbox.h is where the kernels expect it, and as large."""
    if (cxx := shutil.which("c++")) is None:
        pytest.skip("needs a C++ compiler")
    program = ['#include <cstddef>\n#include "mailbox.h"\n#include "mailbox_box.h"']
    program += ["using Pool = ktd::Mailbox;\nusing Device = ktd_device::MailboxBox;"]
    program += [
        f"static_assert(offsetof(Pool, {field}) == offsetof(Device, {field}) && "
        f'sizeof(Pool::{field}) == sizeof(Device::{field}), "{field}");'
        for field in FIELDS
    ]
    file = tmp_path / "mailboxes.cpp"
    file.write_text("\n".join(program) + "\n")
    folders = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'daemon/ktd/cuda/kernels'}"]
    done = subprocess.run(
        [cxx, "-std=c++20", "-fsyntax-only", *folders, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
