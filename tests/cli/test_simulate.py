"""`ktd simulate` as a user calls it."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from ktd.cli import program

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "hit_rate", "clairvoyant_hit_rate", "moved_bytes", "clairvoyant_moved_bytes", "phases",
}  # fmt: skip


@pytest.fixture(name="trace")
def trace_(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "trace.npz"
    weights = [np.arange(8), np.arange(8)[::-1]]
    np.savez(
        path,
        **{
            name: np.argpartition(-rng.gumbel(size=(900, 2, 8)) - weight, 2, axis=2)[
                :, :, :2
            ].astype(np.uint8)
            for name, weight in zip(("here", "there"), weights, strict=True)
        },
    )
    return path


def run(*words):
    return program.run(["simulate", *map(str, words)])


def test_json_has_the_keys_that_programs_read(trace, capsys):
    assert run("--trace", trace, "--budget", 0.25, "--policy", "adaptive", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= KEYS
    assert [set(phase) for phase in found["phases"]] == [
        {"name", "tokens", "hit_rate", "clairvoyant_hit_rate"}
    ] * 3
    assert [phase["name"] for phase in found["phases"]] == ["here", "there", "mixed"]
    assert 0 < found["hit_rate"] <= 1
    assert set(found["dynamic"]) >= {"hit_rate", "moved_bytes"}


def test_text_has_kts_rule_beside_it(trace, capsys):
    assert run("--trace", trace) == 0
    printed = capsys.readouterr().out
    assert "KT's dynamic" in printed
    assert "clairvoyant" in printed
    assert "tokens/s" in printed


@pytest.mark.parametrize("policy", ["off", "dynamic", "frequency", "coactivation", "latency"])
@pytest.mark.parametrize("budget", ["0", "0.3", "1"])
def test_any_policy_and_strategy_at_any_budget(trace, policy, budget, capsys):
    assert run("--trace", trace, "--policy", policy, "--budget", budget, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hit_rate"] == pytest.approx(float(budget), abs=1e-9) or budget == "0.3"


def test_csv_and_plot(trace, tmp_path, capsys):
    table, plot = tmp_path / "t.csv", tmp_path / "p.svg"
    assert run("--trace", trace, "--csv", table, "--plot", plot, "--budgets", "0.25,0.5") == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["budget"], row["phase"]) for row in rows] == [
        (budget, phase) for budget in ("0.25", "0.5") for phase in ("here", "there", "mixed", "all")
    ]
    assert float(rows[7]["hit_rate"]) > float(rows[3]["hit_rate"])
    tree = ET.parse(plot)  # noqa: S314  # written a moment ago
    lines = tree.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    assert all(len(line.attrib["points"].split()) == 2 for line in lines)


def test_a_per_token_recording_is_one_phase_with_prefill_apart(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(0)
    records = []
    for mode, tokens in ((1, 600), (2, 1), (2, 1)):
        ids = np.argsort(rng.random((2, tokens, 16)), axis=2)[:, :, :8]
        records.append({"forward_mode": mode, "topk_ids_of_layer": torch.tensor(ids)})
    torch.save({"records": records}, tmp_path / "recorded.pt")
    words = ("--trace", tmp_path / "recorded.pt", "--policy", "dynamic", "--json")
    assert run(*words, "--threshold", "600", "--prefill-chunk", "600") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(phase["name"], phase["tokens"]) for phase in found["phases"]] == [("recorded", 602)]
    assert found["moves"] > 0
    assert run(*words, "--threshold", "601", "--prefill-chunk", "700") == 0
    assert json.loads(capsys.readouterr().out)["moves"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--trace", "no.npz"), "no.npz cannot be read"),
        (("--trace", "README.md"), "neither an .npz nor a .pt"),
        (("--trace", "{trace}", "--policy", "best"), "no policy or strategy 'best'"),
        (("--trace", "{trace}", "--budget", "2"), "--budget is 2"),
        (("--trace", "{trace}", "--budgets", "a,b"), "not a list of numbers"),
        (("--trace", "{trace}", "--copy-rate", "fast"), "number of bytes"),
        (("--trace", "{trace}", "--copy-rate", "0"), "above 0"),
        (("--trace", "{trace}", "--expert-bytes", "0"), "no size of an expert"),
        (("--trace", "{trace}", "--copy-cost", "-1"), "copy cost is -1"),
        (("--trace", "{trace}", "--experts", "4"), "has an expert 7"),
        (("--trace", "{trace}", "--plot", "/nowhere/p.svg"), "cannot be written"),
    ],
)
def test_what_is_wrong_is_one_sentence(trace, words, sentence, capsys):
    assert run(*(word.format(trace=trace) for word in words)) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
