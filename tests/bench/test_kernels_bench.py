"""`ktd bench kernels` on a tiny layer: everything is measured, nothing is asserted of the speed."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET

import psutil
import pytest

pytest.importorskip("torch", reason="ktd bench kernels measures with torch")

from ktd.cli.exit_codes import ExitCode
from ktd.cli.program import run
from ktd.shapes import moe as shapes
from ktd.shapes.moe import MoeShape

TINY = MoeShape("tiny", 16, 256, 128, 2)
CORES = len(os.sched_getaffinity(0))
FEW, MANY = (1, 2) if CORES > 1 else (1, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def measured(files):
    """One run of the command with all its options, and what it printed."""
    patch = pytest.MonkeyPatch()
    patch.setitem(shapes.SHAPES, TINY.name, TINY)
    arguments = ["--shape", "tiny", "--tokens", "1,40", "--seconds", "0.1", "--format", "bf16"]
    arguments += ["--threads", f"{FEW},{MANY}" if MANY > 1 else "1"]
    arguments += ["--plot", str(files / "r.svg"), "--markdown", str(files / "r.md"), "--json"]
    captured = files / "out.json"
    with captured.open("w") as stream:
        patch.setattr(sys, "stdout", stream)
        code = run(["bench", "kernels", *arguments])
    patch.undo()
    assert code == ExitCode.OK
    return json.loads(captured.read_text())


def test_the_json_has_ceilings_and_a_row_for_each_cell(measured):
    """With the keys that programs rely on."""
    assert measured["ceilings"]["dram_read_gbps"] > 0
    by_threads = measured["ceilings"]["dram_read_gbps_by_threads"]
    assert by_threads[str(measured["ceilings"]["dram_read_threads"])] == max(by_threads.values())
    cells = [(row["threads"], row["tokens"]) for row in measured["results"]]
    assert cells == [(n, t) for n in dict.fromkeys((FEW, MANY)) for t in (1, 40)]
    for row in measured["results"]:
        assert (row["shape"], row["format"]) == ("tiny", "bf16")
        assert row["isa"]
        assert 0 < row["floor_fraction_p10"] <= row["floor_fraction"] <= row["floor_fraction_p90"]
        assert 0 < row["median_us"] <= row["p99_us"]
        assert row["torch_bf16_median_us"] > 0


def test_figures_follow_from_bytes_operations_and_time(measured):
    """GB/s and TFLOP/s are of the layer that was computed."""
    one = measured["results"][0]
    expert = 3 * TINY.hidden * TINY.intermediate * 2
    assert one["call_bytes"] == TINY.top_k * expert
    assert one["gbps"] == pytest.approx(one["call_bytes"] / one["median_us"] / 1e3, rel=0.2)
    operations = 2 * 3 * TINY.hidden * TINY.intermediate * TINY.top_k
    assert one["tflops"] == pytest.approx(operations / one["median_us"] / 1e6)
    many = measured["results"][1]
    assert many["call_bytes"] > TINY.top_k * expert
    assert many["calls"] >= many["windows"] >= 1


def test_every_unit_of_this_cpu_has_a_peak(measured):
    """Each of those that the extension lists as supported, on one thread and on all."""
    from ktd.experts import _native

    peaks = measured["ceilings"]["peaks"]
    assert set(peaks) == {row["name"] for row in _native.peaks() if row["supported"]}
    assert all(peak["one_tflops"] > 0 and peak["all_tflops"] > 0 for peak in peaks.values())


@pytest.mark.skipif(CORES < 2, reason="one core has no curve")
def test_scaling_is_named_for_more_threads_than_the_fewest(measured):
    """One row for each token count."""
    rows = [(row["from_threads"], row["threads"], row["tokens"]) for row in measured["scaling"]]
    assert sorted(rows) == [(1, 2, 1), (1, 2, 40)]


def test_an_empty_call_is_measured(measured):
    """By address and through Python."""
    (cost,) = measured["overhead"].values()
    assert 0 < cost["native_us"] <= cost["native_p99_us"]
    assert 0 < cost["python_us"] <= cost["python_p99_us"]


def test_the_plot_has_a_point_for_each_cell_and_the_page_a_row(measured, files):
    """SVG that parses, Markdown with both tables."""
    root = ET.fromstring((files / "r.svg").read_text())  # noqa: S314 - our own file
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(measured["results"])
    page = (files / "r.md").read_text()
    assert page.count("| tiny | bf16 |") == len(measured["results"])
    assert "| DRAM read" in page


def _children():
    """Processes that this one started, zombies too; other tests' fixtures may have some."""
    return set(psutil.Process().children())


@pytest.mark.skipif(CORES < 2, reason="one core cannot be taken and computed on")
def test_a_busy_core_is_measured_and_its_process_ends(monkeypatch, capsys):
    """What is left is a share of the speed; the table and the remarks are printed."""
    monkeypatch.setitem(shapes.SHAPES, TINY.name, TINY)
    arguments = ["--shape", "tiny", "--tokens", "1", "--seconds", "0.1", "--no-torch"]
    arguments += ["--format", "bf16"]
    before = _children()
    assert run(["bench", "kernels", *arguments, "--busy-core", "--threads", "2"]) == ExitCode.OK
    printed = capsys.readouterr()
    assert "of floor" in printed.out
    assert "with one of 2 cores taken" in printed.out
    assert "reading memory with 1 to" in printed.err
    assert _children() <= before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shape", "gpt-9"], "there is no shape 'gpt-9': use one of qwen3-30b-a3b"),
        (["--format", "int3"], "there is no format 'int3': use one of bf16"),
        (["--isa", "neon"], "there are no 'neon' kernels"),
        (["--tokens", "1,0"], "argument --tokens: 0 is not at least 1"),
        (["--tokens", "x"], "argument --tokens: invalid list of numbers value: 'x'"),
        (["--seconds", "0"], "argument --seconds: 0 is not above 0"),
        (["--threads", "4096"], "--threads 4096 is more than the"),
        (["--busy-core", "--threads", "1"], "--busy-core takes one core of several"),
        (["--plot", "roof.gif"], "--plot roof.gif is neither .svg nor .png"),
        (["--plot", "/no/such/folder/r.svg"], "there is no folder /no/such/folder"),
        (["--markdown", "."], "--markdown . cannot be written"),
        (["--tp", "2"], "unrecognized arguments: --tp 2"),
    ],
)
def test_bad_arguments_are_one_sentence_before_anything_is_measured(arguments, sentence, capsys):
    """And the code for a wrong value."""
    assert run(["bench", "kernels", *arguments]) == ExitCode.USAGE
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


def without(*modules):
    """Runs ``bench kernels --list`` in a process in which some modules cannot be imported."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({modules!r}))\n"
        "from ktd.cli.program import run\n"
        "sys.exit(run(['bench', 'kernels', '--list']))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_daemons_libraries_are_not_needed():
    """A host that only measures has torch and numpy."""
    done = without("grpc", "structlog", "textual", "aiohttp", "prometheus_client", "sglang")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "scalar: bf16" in done.stdout


def test_a_host_without_torch_is_told_so_in_one_sentence():
    """No traceback."""
    done = without("torch")
    assert done.returncode == ExitCode.USAGE
    assert "needs torch, which is not installed" in done.stderr
    assert done.stderr.count("\n") == 1
