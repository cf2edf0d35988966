"""Counting, recording and profiles on a real engine; SGLang's own code and ktd read the files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktd.stats.files import read_counts
from ktd.stats.profile import ProfileShape
from ktd.stats.trace import coactivation, read_trace
from tests.acceptance.conftest import TOKENS
from tests.live import LiveDaemon
from tests.skips import two_ranks

pytestmark = pytest.mark.engine

LAYERS, EXPERTS, TOP_K, SLOTS = 6, 32, 4, 8
SHAPE = ProfileShape(LAYERS, tuple(range(LAYERS)), EXPERTS)
PROMPT, DECODED = 40, 9
COUNTED = ("stat", "stat_approx", "per_pass")
MODES = (*COUNTED, "per_token")
READS = {"counts": ("stat", "stat_approx"), "passes": MODES[2:], "tokens": ("per_token",)}


def prompt(seed: int) -> list[int]:
    """Token ids that no other prompt begins with, so that no cache saves work."""
    return np.random.default_rng(seed).integers(10, 2000, PROMPT).tolist()


def ask(daemon: LiveDaemon, seed: int) -> None:
    """One request: a prefill of 40 tokens, then 9 decode steps; its first token is prefill's."""
    body = {"prompt": prompt(seed), "max_tokens": DECODED + 1, "temperature": 0, "ignore_eos": True}
    daemon.post("/v1/completions", {"model": "default", **body})
    # The scheduler runs one step ahead of what it knows: the last one ends after the answer.
    time.sleep(0.5)


def sums(rows: list[list[float]]) -> list[float]:
    """Pairs per layer."""
    return [sum(row) for row in rows]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the daemon is told to write by SGLang's variable."""
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def daemon(recordings: Path):
    with LiveDaemon(
        *TOKENS,
        *("--kt-num-gpu-experts", str(SLOTS), "--record-kt-gpu-expert-distribution"),
        *("--expert-distribution-recorder-mode", "per_token"),
        env={"SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR": str(recordings)},
    ) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def files(daemon: LiveDaemon, tmp_path_factory: pytest.TempPathFactory):
    """A dump in each mode, of one request each: paths and what the command said."""
    dumps = {}
    for seed, mode in enumerate(MODES, start=1):
        folder = tmp_path_factory.mktemp(mode)
        daemon.ktd_json("record", "start", "--mode", mode, "--dir", str(folder), "--no-gpu-masks")
        ask(daemon, seed)
        dumps[mode] = daemon.ktd_json("record", "dump")
        daemon.ktd_json("record", "stop")
        dumps[mode]["seed"] = seed
    return dumps


def test_prefill_and_decode_are_counted_apart(daemon):
    """Each token of each kind once for each of its experts, in each layer."""
    before = daemon.ktd_json("stats")
    ask(daemon, 100)
    after = daemon.ktd_json("stats")
    tokens = {
        kind: after[f"{kind}_tokens"] - before[f"{kind}_tokens"] for kind in ("prefill", "decode")
    }
    assert tokens["prefill"] == PROMPT
    assert tokens["decode"] in (DECODED, DECODED + 1)
    for old, new in zip(before["layers"], after["layers"], strict=True):
        for kind, count in tokens.items():
            grown = sum(new[f"{kind}_counts"]) - sum(old[f"{kind}_counts"])
            assert grown == count * TOP_K
    window = daemon.ktd_json("stats", "--window", "300", "--rates")
    assert window["window"]["prefill_tokens"] >= PROMPT
    assert sum(window["rates"]["layers"][0]["decode_cpu"]) > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_dump_names_its_file_and_ktd_reads_it(files, mode):
    """Every mode serves --init-expert-location."""
    (path,) = files[mode]["paths"]
    tokens = files[mode]["written"]["tokens"]
    assert tokens in (PROMPT + DECODED, PROMPT + DECODED + 1)
    assert files[mode]["written"]["mode"] == mode
    assert sums(read_counts(Path(path), SHAPE)) == [tokens * TOP_K] * LAYERS


@pytest.fixture(scope="module")
def sglang_reads(files) -> dict[tuple[str, str], Any]:
    """What SGLang's code finds in each file, by kind and mode; one process, as it starts slowly."""
    pytest.importorskip("torch", reason="torch is not installed")
    wanted = [(kind, mode) for kind, modes in READS.items() for mode in modes]
    words = [word for kind, mode in wanted for word in (kind, *files[mode]["paths"])]
    # -P: this folder's openai.py must not stand for the package that SGLang imports.
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("sglang_reads.py")), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()[-len(wanted) :]
    return dict(zip(wanted, map(json.loads, found), strict=True))


@pytest.mark.parametrize("mode", READS["counts"])
def test_sglang_reads_the_counts(files, sglang_reads, mode):
    """And places experts by them."""
    (path,) = files[mode]["paths"]
    found = sglang_reads["counts", mode]
    assert found["keys"] == ["rank", "logical_count", "average_utilization_rate_over_window"]
    assert found["dtype"] == "torch.int32"
    assert found["shape"] == [1000 if mode == "stat" else 2, LAYERS, EXPERTS]
    assert found["per_layer"] == [files[mode]["written"]["tokens"] * TOP_K] * LAYERS
    assert Path(path).name.startswith("expert_distribution_recorder_")
    assert [sorted(layer) for layer in found["places"]] == [list(range(EXPERTS))] * LAYERS


@pytest.mark.parametrize("mode", READS["passes"])
def test_sglang_reads_the_passes(files, sglang_reads, mode):
    """The prefill, then a token a pass."""
    found = sglang_reads["passes", mode]
    count = files[mode]["written"]["passes"]
    assert found["shape"] == [count, LAYERS, EXPERTS]
    decoded = [[TOP_K] * LAYERS] * (count - 1)
    assert found["pairs"] == [[PROMPT * TOP_K] * LAYERS, *decoded]
    assert found["ids"] == list(range(found["ids"][0], found["ids"][0] + count))


def test_the_routing_of_each_token_is_what_sglangs_recorder_would_have_kept(files, sglang_reads):
    """Fields, shapes, types; the experts of the tokens add up to the counts of their pass."""
    found = sglang_reads["tokens", "per_token"]
    assert set(found["agree"]) == {True}
    assert sorted(found["keys"]) == sorted(
        [
            *("forward_pass_id", "rank", "gatherer_key", "input_ids", "positions"),
            *("extend_seq_lens", "forward_mode", "topk_ids_of_layer", "misc_objects"),
            "global_physical_count",
        ]
    )
    assert found["first"]["input_ids"] == prompt(files["per_token"]["seed"])
    assert found["first"]["positions"] == list(range(PROMPT))
    assert found["first"]["extend_seq_lens"] == [PROMPT]
    assert (found["dtype"], found["shape"]) == ("torch.int32", [LAYERS, PROMPT, 8])


def test_a_recorded_trace_can_be_replayed(files):
    """In the order of the tokens, prefill and decode told apart."""
    trace = read_trace(Path(files["per_token"]["paths"][0]))
    (phase,) = trace.phases
    assert phase.ids.shape == (files["per_token"]["written"]["tokens"], LAYERS, TOP_K)
    assert phase.decode is not None
    assert int(phase.decode.sum()) == phase.tokens - PROMPT
    together = coactivation(phase.ids, EXPERTS)
    assert together.sum(axis=(1, 2)).tolist() == [phase.tokens * TOP_K**2] * LAYERS


def test_flags_and_variable_of_the_tutorial_say_what_is_recorded_and_where(daemon, recordings):
    """Mode, masks and folder come from the command line that started the daemon."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    daemon.ktd_json("record", "start")
    ask(daemon, 200)
    dumped = daemon.ktd("record", "dump")
    assert dumped.returncode == 0, dumped.stderr
    tokens, masks = map(Path, dumped.stdout.split())
    assert tokens.parent == masks.parent == recordings
    assert tokens.name.startswith("expert_distribution_recorder_")
    assert tokens.name.endswith("_0.pt")
    assert masks.name.startswith("gpu_expert_distribution_")
    shown = torch.load(masks, weights_only=True)["gpu_expert_masks"]
    assert (shown.dtype, shown.shape) == (torch.bool, (1000, LAYERS, EXPERTS))
    passes = len(torch.load(tokens, weights_only=True)["records"])
    assert shown.sum(dim=2).tolist() == [[SLOTS] * LAYERS] * passes + [[0] * LAYERS] * (
        1000 - passes
    )
    daemon.ktd_json("record", "stop")


def test_a_profile_survives_and_the_next_start_is_warm(daemon):
    """What was counted before the restart is what `frequency` uses after it."""
    saved = daemon.ktd_json("profile", "save", "before")
    assert daemon.stop() == 0
    daemon.start()
    assert daemon.ktd_json("stats")["decode_tokens"] == 0
    names = [profile["name"] for profile in daemon.ktd_json("profile", "list")["profiles"]]
    assert sorted(names) == ["auto", "before"]
    live = daemon.ktd_json("profile", "show", "live")
    assert live["prefill_pairs"] >= saved["prefill_pairs"] > 0
    notes = daemon.ktd_json("placement", "plan", "--strategy", "frequency").get("notes", [])
    assert not any("no activation statistics" in note for note in notes)
    difference = daemon.ktd_json("profile", "diff", "before", "live")
    assert difference["mean"]["moved"] < 0.01
    daemon.ktd_json("profile", "rm", "before")


@two_ranks
def test_counts_do_not_grow_with_tensor_parallelism(tmp_path):
    """Two ranks see the same tokens: each token is counted and recorded once."""
    with LiveDaemon(*TOKENS, "--kt-num-gpu-experts", str(SLOTS), "--tp", "2") as daemon:
        daemon.ktd_json("record", "start", "--mode", "stat", "--dir", str(tmp_path))
        ask(daemon, 1)
        stats = daemon.ktd_json("stats")
        (path,) = daemon.ktd_json("record", "dump")["paths"]
    counted = [sum(layer["counts"]) for layer in stats["layers"]]
    tokens = stats["prefill_tokens"] + stats["decode_tokens"]
    assert tokens in (PROMPT + DECODED, PROMPT + DECODED + 1)
    assert counted == sums(read_counts(Path(path), SHAPE)) == [tokens * TOP_K] * LAYERS
