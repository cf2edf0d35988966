"""`ktd status`, `ktd version`, `ktd stats`, `ktd watch` and `ktd top --once`: what they print."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from ktd.engine.status import EnginePhase, LoadProgress
from ktd.rankfile import Word
from tests.cli.running import environment, ktd
from tests.rpc.fake_daemon import fake_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rpc.fake_daemon import FakeDaemon


async def test_status_says_what_the_engine_does(daemon: FakeDaemon) -> None:
    """Phase, model, slots and the address to use."""
    result = await ktd("status", socket=daemon.socket)
    assert result.code == 0
    assert "READY" in result.out
    assert "ktd-tiny (Qwen3MoeForCausalLM)" in result.out
    assert "8 of 32 have GPU slots" in result.out
    assert "http://127.0.0.1:30000/v1" in result.out
    assert "\x1b" not in result.out


async def test_status_says_that_experts_were_quantised_and_that_it_loses(
    daemon: FakeDaemon,
) -> None:
    """Nothing is silent: the checkpoint's format, the one in host memory, and what it means."""
    assert "2 per token, bf16; " in (await ktd("status", socket=daemon.socket)).out
    model = daemon.engine.status().model
    assert model is not None
    daemon.engine.set(model=replace(model, cpu_expert_format="int4"))
    result = await ktd("status", socket=daemon.socket)
    assert "bf16 quantised to int4 at load (lossy against the checkpoint); " in result.out


async def test_status_says_where_experts_are(daemon: FakeDaemon) -> None:
    """In memory of the engine's own, or in the checkpoint's files, with what was copied of them."""
    memory = daemon.engine.status().memory
    assert memory is not None
    size = replace(memory, host_store_bytes=3 << 30)
    for kind, copied, told in (
        ("copy", 3 << 30, "3.0 GiB of experts on the host, "),
        ("mmap", 0, "3.0 GiB of experts mapped from the checkpoint's files (mmap), "),
        ("mmap", 1 << 28, "files (mmap), 256.0 MiB of them copied, "),
    ):
        daemon.engine.set(memory=replace(size, host_memory=kind, host_copied_bytes=copied))
        assert told in (await ktd("status", socket=daemon.socket)).out


async def test_status_says_how_prefills_run_on_a_gpu(daemon: FakeDaemon) -> None:
    """Without graphs; from some number of tokens on through a buffer; on a CPU there is neither."""
    assert "prefill" not in (await ktd("status", socket=daemon.socket)).out
    (rank,) = daemon.engine.status().ranks
    plain = replace(rank, device="cuda:0")
    streams = replace(plain, prefill_threshold=1024, prefill_buffer_bytes=9 << 28)
    for one, told in (
        (plain, "off: a step is launched layer by layer; no experts stream to the GPU\n"),
        (streams, "off: a step is launched layer by layer; from 1,024 tokens on experts stream"),
        (streams, "stream through 2.2 GiB on each GPU\n"),
        (replace(plain, prefill_graphs=True), "on; no experts stream to the GPU\n"),
    ):
        daemon.engine.set(ranks=(one,))
        shown = (await ktd("status", socket=daemon.socket)).out
        assert "prefill graphs " in shown
        assert told in shown


async def test_status_shows_conditions(daemon: FakeDaemon) -> None:
    """What an operator should know stands in the status."""
    daemon.engine.set_condition("BUDGET_CLAMPED", "The budget was clamped to 8 slots.")
    result = await ktd("status", socket=daemon.socket)
    assert "! The budget was clamped to 8 slots. (BUDGET_CLAMPED)" in result.out


async def test_status_json_is_the_api_message_with_plain_integers(daemon: FakeDaemon) -> None:
    """No 64-bit integers as strings; enums without their prefix; unset messages are null."""
    value = (await ktd("status", "--json", socket=daemon.socket)).json
    assert value["phase"] == "READY"
    assert value["memory"]["total_experts"] == 32
    assert value["next_start_time"] is None
    assert value["ranks"][0]["isa"] == "avx512_bf16"
    assert value["phase_time"].endswith("Z")


async def test_status_of_a_loading_engine_shows_progress(tmp_path: Path) -> None:
    """A person sees how far it is; the exit code is still 0."""
    async with fake_daemon(tmp_path, ready=False) as daemon:
        daemon.engine.set(
            phase=EnginePhase.LOADING,
            progress=LoadProgress(bytes_done=1 << 30, bytes_total=4 << 30),
        )
        result = await ktd("status", socket=daemon.socket)
    assert result.code == 0
    assert "25 % of 4.0 GiB" in result.out


async def test_wait_returns_when_requests_are_served(tmp_path: Path) -> None:
    """`ktd status --wait` is for scripts that start a daemon."""
    async with fake_daemon(tmp_path, ready=False) as daemon:
        daemon.engine.set(phase=EnginePhase.LOADING)
        waiting = asyncio.create_task(ktd("status", "--wait", "--json", socket=daemon.socket))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        daemon.engine.set(phase=EnginePhase.READY)
        result = await waiting
    assert result.code == 0
    assert result.json["phase"] == "READY"


async def test_wait_ends_with_the_reason_of_a_failed_start(tmp_path: Path) -> None:
    """Waiting for what cannot come would be a hang."""
    async with fake_daemon(tmp_path, ready=False) as daemon:
        daemon.engine.set(phase=EnginePhase.FAILED, message="Too little memory: 8 GiB needed.")
        result = await ktd("status", "--wait", socket=daemon.socket)
    assert result.code == 3
    assert result.err == "ktd: Too little memory: 8 GiB needed.\n"


async def test_wait_has_a_limit(tmp_path: Path) -> None:
    """Exit code 6: try again."""
    async with fake_daemon(tmp_path, ready=False) as daemon:
        daemon.engine.set(phase=EnginePhase.LOADING)
        result = await ktd("status", "--wait", "0.2", socket=daemon.socket)
    assert result.code == 6
    assert "0.2 s" in result.err


async def test_version_names_both_sides(daemon: FakeDaemon, tmp_path: Path) -> None:
    """Without a daemon it still answers."""
    value = (await ktd("version", "--json", socket=daemon.socket)).json
    assert value["daemon"]["api_versions"] == ["ktd.v1"]
    alone = await ktd("version", "--json", socket=tmp_path / "none.sock")
    assert alone.code == 0
    assert alone.json["daemon"] is None


async def test_stats_json_adds_counts_and_hit_rate_to_the_placement(daemon: FakeDaemon) -> None:
    """Counts are per expert, both sides summed, since the engine's start."""
    daemon.traffic.prefill(30)
    daemon.traffic.decode(20)
    value = (await ktd("stats", "--json", socket=daemon.socket)).json
    layer = value["layers"][0]
    assert layer["gpu_experts"] == [0, 1]
    assert len(layer["counts"]) == layer["num_experts"] == 8
    assert sum(layer["counts"]) == (30 + 20) * 2
    pairs = sum(sum(layer["counts"]) for layer in value["layers"])
    on_gpu = sum(sum(layer["counts"][:2]) for layer in value["layers"])
    assert value["gpu_hit_rate"] == on_gpu / pairs
    assert (value["prefill_tokens"], value["decode_tokens"]) == (30, 20)
    assert sum(layer["prefill_counts"]) == 30 * 2
    assert sum(layer["decode_counts"]) == 20 * 2
    assert value["window"]["prefill_steps"] == 1
    assert value["rates"] is None


async def test_stats_show_one_kind_of_work_a_window_or_rates(daemon: FakeDaemon) -> None:
    """Each as a table and as JSON."""
    daemon.traffic.prefill(30)
    daemon.traffic.decode(20)
    shown = (await ktd("stats", "--kind", "decode", socket=daemon.socket)).out
    assert "in prefill" in shown
    assert [line.split()[2] for line in shown.splitlines() if " 2/2 " in line] == ["40"] * 4
    rates = (await ktd("stats", "--rates", "--json", socket=daemon.socket)).json["rates"]
    assert len(rates["layers"]) == 4
    assert "pairs/s" in (await ktd("stats", "--rates", socket=daemon.socket)).out
    windowed = await ktd("stats", "--window", "30", socket=daemon.socket)
    assert "last" in windowed.out
    refused = await ktd("stats", "--window", "301", socket=daemon.socket)
    assert (refused.code, "at most 300 s" in refused.err) == (2, True)


async def test_stats_of_an_idle_engine_are_zero(daemon: FakeDaemon) -> None:
    """The hit rate of nothing is 0.0, in JSON and for people."""
    value = (await ktd("stats", "--json", socket=daemon.socket)).json
    assert value["gpu_hit_rate"] == 0.0
    assert value["layers"][0]["counts"] == [0] * 8
    assert (await ktd("stats", socket=daemon.socket)).code == 0


async def test_stats_say_what_moving_took_of_the_scheduler(daemon: FakeDaemon) -> None:
    """Where something was moved, in both forms."""
    assert "moving" not in (await ktd("stats", socket=daemon.socket)).out
    daemon.traffic.writer.words[Word.MOVE_CALLS] = 4
    daemon.traffic.writer.words[Word.MOVE_CALL_NS] = 3_000_000
    lines = (await ktd("stats", socket=daemon.socket)).out.splitlines()
    told = next(line for line in lines if line.startswith("moving"))
    assert (
        told.split(maxsplit=1)[1]
        == "4 control calls since the start, 0.75 ms of the scheduler each"
    )
    value = (await ktd("stats", "--json", socket=daemon.socket)).json
    assert (value["move_calls"], value["move_call_seconds"]) == (4, 0.003)


async def test_stats_show_a_map(daemon: FakeDaemon) -> None:
    """A line per layer: rate and a strip in which slots are marked."""
    daemon.traffic.decode(100)
    lines = (await ktd("stats", socket=daemon.socket)).out.splitlines()
    row = next(line for line in lines if line.split()[:2] == ["0", "2/2"])
    assert row.count("•") == 2
    assert "%" in row


async def test_stats_survive_a_plain_ascii_terminal(daemon: FakeDaemon) -> None:
    """No character that the encoding lacks is written."""
    daemon.traffic.decode(100)
    result = await ktd("stats", socket=daemon.socket, PYTHONIOENCODING="ascii")
    assert result.code == 0
    assert result.out.isascii()
    assert "in a GPU slot" in result.out


async def test_watch_prints_one_line_per_sample(daemon: FakeDaemon) -> None:
    """A header once, then aligned lines."""
    result = await ktd("watch", "-n", "3", "--interval", "0.1", socket=daemon.socket)
    lines = result.out.splitlines()
    assert result.code == 0
    assert lines[0].split()[:2] == ["time", "tokens/s"]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1


async def test_watch_json_is_one_object_per_line(daemon: FakeDaemon) -> None:
    """Full first, then deltas, as the API sends them."""
    result = await ktd("watch", "-n", "2", "--interval", "0.1", "--json", socket=daemon.socket)
    first, second = map(json.loads, result.out.splitlines())
    assert first["full"]
    assert not second["full"]
    assert second["sequence"] == first["sequence"] + 1
    assert isinstance(second["totals"]["gpu_pairs"], int)


async def test_top_once_prints_one_frame(daemon: FakeDaemon) -> None:
    """The monitor's data for programs, through both of its names."""
    daemon.traffic.decode(50)
    value = (await ktd("top", "--once", "--json", socket=daemon.socket)).json
    assert value["phase"] == "READY"
    assert value["layers"][0]["gpu_experts"] == [0, 1]
    assert sum(value["layers"][0]["counts"]) == 100
    assert value["swap"] is None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ktd_tui",
        "--once",
        "--json",
        "--socket",
        str(daemon.socket),
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["layers"] == value["layers"]


async def test_top_once_of_an_engine_that_starts_says_what_is_missing(tmp_path: Path) -> None:
    """A frame without a placement is a frame."""
    async with fake_daemon(tmp_path, ready=False) as daemon:
        result = await ktd("top", "--once", "--json", socket=daemon.socket)
    assert result.code == 0
    assert result.json["phase"] == "STOPPED"
    assert result.json["layers"] == []
    assert result.json["missing"]
