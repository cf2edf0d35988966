"""`ktd doctor`: what it finds on this host and on hosts made of files."""

from __future__ import annotations

import resource
import socket
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

import pytest

from ktd.cli.checks import gpu, memory, software
from ktd.cli.checks.cpu import cpu_findings
from ktd.cli.checks.finding import Level
from ktd.cli.checks.memory import memory_findings
from ktd.cli.checks.service import service_findings
from tests.cli.running import ktd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rpc.fake_daemon import FakeDaemon

AREAS = {"cpu", "memory", "gpu", "software", "service"}


async def test_json_covers_every_area_and_agrees_with_the_exit_code() -> None:
    """Scripts look at either."""
    result = await ktd("doctor", "--json")
    assert {finding["area"] for finding in result.json["findings"]} == AREAS
    assert result.code == (0 if result.json["ok"] else 1)
    assert result.json["ok"] is (result.json["problems"] == [])
    kernels = next(f for f in result.json["findings"] if f["name"] == "kernels")
    assert [row["name"] for row in kernels["data"]["kernels"]][-1] == "scalar"


async def test_text_names_what_people_look_for() -> None:
    """Each area has its heading."""
    result = await ktd("doctor")
    assert set(result.out.split("\n")) >= AREAS
    assert "SGLang" in result.out


async def test_a_running_daemon_is_noticed(daemon: FakeDaemon) -> None:
    """The socket is in use for a good reason."""
    result = await ktd("doctor", "--json", "--socket", str(daemon.socket))
    found = next(f for f in result.json["findings"] if f["name"] == "socket")
    assert found["level"] == "ok"
    assert found["data"]["daemon"] is True


def host(root: Path) -> Path:
    """A host made of files, with two NUMA nodes, little memory and a cgroup limit."""
    files = {
        "proc/cpuinfo": "model name\t: Made Up 9000\nflags\t\t: fpu avx2 fma\n\nmodel name: two\n",
        "proc/meminfo": (
            "MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n"
            "Cached: 524288 kB\nHugePages_Total: 3\n"
        ),
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": "2147483648\n",
        "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/devices/system/node/node0/cpulist": "0-3\n",
        "sys/devices/system/node/node1/cpulist": "4-7\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_of_a_small_host(tmp_path: Path) -> None:
    """Sizes in bytes, the tightest limit, nodes, and advice where something is to be done."""
    found = {finding.name: finding for finding in memory_findings(host(tmp_path))}
    assert found["available"].level is Level.WARNING
    assert found["available"].data == {"total_bytes": 4 << 30, "available_bytes": 1 << 30}
    assert "--host-memory mmap" in found["available"].advice
    assert found["page cache"].data == {"cached_bytes": 1 << 29}
    assert found["page cache"].text.startswith("512.0 MiB of files now; --host-memory mmap uses")
    assert found["cgroup limit"].data == {"limit_bytes": 2 << 30}
    assert found["NUMA"].data == {"nodes": {"node0": "0-3", "node1": "4-7"}}
    assert found["huge pages"].level is Level.WARNING
    assert found["huge pages"].data == {"transparent": "never", "reserved": 3}


def test_a_host_that_tells_nothing_is_no_crash(tmp_path: Path) -> None:
    """Containers hide much of /proc and /sys."""
    levels = {finding.name: finding.level for finding in memory_findings(tmp_path)}
    assert levels["available"] is Level.NOTE
    assert levels["NUMA"] is Level.NOTE
    assert "page cache" not in levels
    assert cpu_findings(tmp_path)[0].name == "processor"


def test_processor_and_features_come_from_cpuinfo(tmp_path: Path) -> None:
    """Only the features that decide between kernels are listed."""
    found = {finding.name: finding for finding in cpu_findings(host(tmp_path))}
    assert found["processor"].data["model"] == "Made Up 9000"
    assert found["features"].data == {"have": ["avx2", "fma"]}


def test_missing_sglang_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without it can be a client only."""
    monkeypatch.setattr(software, "installed", lambda _package: None)
    found = {finding.name: finding for finding in software.software_findings()}
    for name in ("SGLang", "torch"):
        assert found[name].level is Level.PROBLEM
        assert found[name].advice == "pip install 'ktd[engine]'"


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("0.5.16", Level.PROBLEM),
        ("0.5.17", Level.OK),
        ("0.5.23.post1", Level.OK),
        ("1.0", Level.OK),
    ],
)
def test_sglang_must_be_new_enough(
    monkeypatch: pytest.MonkeyPatch, version: str, level: Level
) -> None:
    """0.5.17 is the oldest that is tested."""
    monkeypatch.setattr(software, "installed", lambda _package: version)
    found = {finding.name: finding for finding in software.software_findings()}
    assert found["SGLang"].level is level


@pytest.mark.parametrize(
    ("version", "gpu", "level"),
    [
        ("0.5.17", True, Level.OK),
        ("0.5.23", True, Level.NOTE),
        ("0.5.23", False, Level.OK),
        ("0.5.16", True, Level.PROBLEM),
    ],
)
def test_a_release_that_was_run_on_no_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, version: str, gpu: bool, level: Level
) -> None:
    """It is no problem, and a user should know."""
    monkeypatch.setattr(software, "installed", lambda _package: version)
    found = {finding.name: finding for finding in software.software_findings(gpu=gpu)}
    assert found["SGLang"].level is level
    assert ("but with 0.5.17" in found["SGLang"].text) is (level is Level.NOTE)


def test_a_kernel_extension_that_is_not_built_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An installation without the native part says so instead of failing."""

    class Blocked(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name.startswith("ktd.experts"):
                raise ModuleNotFoundError("No module named 'ktd.experts._native'")

    for name in [name for name in sys.modules if name.startswith("ktd.experts")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocked, *sys.meta_path])
    found = {finding.name: finding for finding in cpu_findings(tmp_path)}
    assert found["kernels"].level is Level.PROBLEM
    assert "_native" in found["kernels"].text


def test_a_long_socket_path_and_a_taken_port(tmp_path: Path) -> None:
    """Both are said before `ktd serve` runs into them."""
    found = {f.name: f for f in service_findings(tmp_path / ("x" * 200), tmp_path / "state")}
    assert found["socket"].level is Level.PROBLEM
    assert found["state"].level is Level.OK
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 30000))
            taken.listen()
        except OSError:
            pass  # Somebody else has it: as good.
        found = {f.name: f for f in service_findings(tmp_path / "s", tmp_path)}
    assert found["HTTP port"].level is Level.WARNING
    assert found["HTTP port"].data["free"] is False


def test_no_driver_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """ktd serves without a GPU."""
    monkeypatch.setattr(gpu, "_LIBRARY", "libnot-there.so.1")
    (finding,) = gpu.gpu_findings()
    assert finding.level is Level.NOTE


class Driver:
    """NVML of a host with GPUs of a capability; the calls that fill structs do."""

    def __init__(self, *capabilities: tuple[int, int]) -> None:
        self.capabilities = capabilities

    def __getattr__(self, name: str) -> object:
        return lambda *_: 0

    def nvmlSystemGetDriverVersion(self, text, _size):  # noqa: N802 - NVML's name
        text.value = b"580.1"
        return 0

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = len(self.capabilities)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetName(self, _handle, name, _size):  # noqa: N802
        name.value = b"Made Up"
        return 0

    def nvmlDeviceGetMemoryInfo(self, _handle, memory):  # noqa: N802
        memory._obj.total, memory._obj.free = 80 << 30, 79 << 30
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):  # noqa: N802
        major._obj.value, minor._obj.value = self.capabilities[handle.value - 1]
        return 0


@pytest.fixture(name="driver")
def driver_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a driver into the place of this host's, with nvidia-smi or without."""

    def put(*capabilities: tuple[int, int], tool: bool = True) -> None:
        monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _name: Driver(*capabilities))
        monkeypatch.setenv("PATH", str(tmp_path))
        if tool:
            (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
            (tmp_path / "nvidia-smi").chmod(0o700)

    return put


def test_gpus_are_where_the_model_runs(driver) -> None:
    """But not on one that is too old for bf16."""
    driver((9, 0), (7, 5))
    found = {finding.name: finding for finding in gpu.gpu_findings()}
    assert list(found) == ["driver", "GPU 0", "GPU 1", "CUDA compiler"]
    assert found["GPU 0"].level is Level.OK
    assert found["GPU 0"].text == (
        "Made Up, 79.0 GiB of 80.0 GiB free, compute capability 9.0: 'ktd serve' runs the model "
        "here, with the slots"
    )
    assert found["GPU 1"].level is Level.WARNING
    assert "--device cpu" in found["GPU 1"].advice


def test_a_gpu_that_ktd_serve_would_not_see_is_a_warning(driver) -> None:
    """It asks nvidia-smi."""
    driver((9, 0), tool=False)
    found = {finding.name: finding for finding in gpu.gpu_findings()}
    assert found["nvidia-smi"].level is Level.WARNING
    assert "runs on the CPU" in found["nvidia-smi"].advice


def test_a_missing_compiler_is_a_warning(
    driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SGLang wants one for 4-bit experts, in the order in which its builds look for it."""
    driver((9, 0))

    def compiler():
        return next(f for f in gpu.gpu_findings() if f.name == "CUDA compiler")

    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(gpu, "_TOOLKIT", tmp_path / "none")
    assert compiler().level is Level.WARNING
    assert "none/bin/nvcc: SGLang compiles some kernels" in compiler().text
    for place in (tmp_path / "none/bin", tmp_path / "path/bin", tmp_path / "home/bin"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "nvcc").touch(0o700)
        if place.parent.name == "path":
            monkeypatch.setenv("PATH", f"{tmp_path}:{place}")
        if place.parent.name == "home":
            monkeypatch.setenv("CUDA_HOME", str(place.parent))
        assert compiler().level is Level.OK
        assert compiler().text == str(place / "nvcc")


def test_a_driver_without_a_gpu_is_a_note(driver) -> None:
    """A cloud machine whose GPU was taken away."""
    driver()
    assert [finding.level for finding in gpu.gpu_findings()] == [Level.OK, Level.NOTE]


@pytest.mark.parametrize(
    ("limit", "where", "level", "told"),
    [
        (resource.RLIM_INFINITY, (True, 1000), Level.OK, "unlimited"),
        (8 << 20, (False, 1000), Level.NOTE, "8.0 MiB (matters only with a GPU)"),
        (8 << 20, (True, 0), Level.OK, "8.0 MiB, which does not bind root"),
        (8 << 20, (True, 1000), Level.NOTE, "8.0 MiB; all experts are registered"),
    ],
)
def test_locked_memory_matters_where_experts_are_registered(
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    where: tuple[bool, int],
    level: Level,
    told: str,
) -> None:
    """Who is not root and has a GPU is told what to do if that is refused."""
    on_gpu, user = where
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _what: (limit, limit))
    monkeypatch.setattr(memory.os, "geteuid", lambda: user)
    found = {finding.name: finding for finding in memory_findings(gpu=on_gpu)}
    locked = found["locked memory"]
    assert locked.level is level
    assert locked.text.startswith(told)
    assert ("ulimit -l unlimited" in locked.advice) is ("registered" in told)
    assert locked.data == {"limit_bytes": None if told == "unlimited" else limit}


def test_a_driver_that_refuses_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library without NVML's functions stands for a driver that is too old."""
    monkeypatch.setattr(gpu, "_LIBRARY", "libc.so.6")
    (finding,) = gpu.gpu_findings()
    assert finding.level is Level.WARNING
    assert "nvmlInit_v2" in finding.text
