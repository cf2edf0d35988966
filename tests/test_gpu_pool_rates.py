"""`scripts/gpu_host/pool_rates.py`: bandwidth of ranks that compute a layer together."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ktd.rankfile import PoolCall, RankFileWriter, path_of

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts" / "gpu_host"


@pytest.fixture
def pool_rates(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("pool_rates")


def calls(*times, num_bytes=1000, tokens=1):
    return [PoolCall(began, ended, num_bytes, tokens) for began, ended in times]


def test_one_rank_reads_while_it_is_called(pool_rates):
    """What lies between two calls is the GPU's time."""
    rate = pool_rates.PoolRate.of([calls((0, 500), (9_000, 9_500))])
    assert rate.bytes_per_second == pytest.approx(2000 / 1000e-9)
    assert rate.of_ranks == (pytest.approx(2e9),)


def test_a_layer_of_two_ranks_takes_until_both_have_answered(pool_rates):
    """The second begins 100 ns later and ends 200 ns later, then they take turns."""
    rate = pool_rates.PoolRate.of([calls((0, 400), (1000, 1400)), calls((100, 600), (1400, 1900))])
    assert rate.num_bytes == 4000
    assert rate.working == pytest.approx(600e-9 + 900e-9)
    assert rate.longest == pytest.approx(500e-9 + 500e-9)
    assert rate.of_ranks == (pytest.approx(2000 / 800e-9), pytest.approx(2000 / 1000e-9))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [([[]], "no pool was called"), ([calls((0, 1)), calls()], r"called \[1, 0\] times")],
)
def test_calls_that_do_not_belong_together_are_refused(pool_rates, ranks, message):
    with pytest.raises(ValueError, match=message):
        pool_rates.PoolRate.of(ranks)


def test_an_engine_without_all_its_ranks_is_refused(pool_rates, tmp_path):
    RankFileWriter(path_of(tmp_path, 0), rank=0, num_layers=1, num_experts=1)
    with pytest.raises(FileNotFoundError, match="has 1 rank files, not 2"):
        pool_rates.RankCalls(tmp_path, 2)
    with pytest.raises(ValueError, match="no pool was called"):
        pool_rates.RankCalls(tmp_path, 1).rate(1)


def test_layers_are_told_apart_by_their_turn(pool_rates, monkeypatch):
    """From the newest call back; what is no decode does not count."""

    class File:
        num_pool_calls = 6

        def __init__(self, late):
            self.late = late

        def pool_calls(self, since):
            begins = [10_000 * number for number in range(5)]
            decode = calls(
                *((at, at + 500 * (2 - number % 2) + self.late) for number, at in enumerate(begins))
            )
            return [*calls((0, 1), tokens=9), *decode][since:]

    ranks = pool_rates.RankCalls.__new__(pool_rates.RankCalls)
    ranks.files, ranks._read = [File(0), File(100)], [0, 0]
    # The second call is the first layer's of the first whole step.
    assert ranks.layer_rates(1, 2) == [pytest.approx(2000 / 600e-9), pytest.approx(2000 / 1100e-9)]


def test_two_pools_read_what_one_reads(tmp_path):
    """Halves of the same memory: as many bytes, call by call; rates are those of the host."""
    command = [sys.executable, str(SCRIPTS / "two_pools.py"), "--json", str(tmp_path / "rates")]
    command += ["--gib", "0.01", "--tokens", "1,2", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == int("MISSED" in done.stdout), done.stderr
    assert done.stdout.count("of 0.95") == 2
    found = json.loads((tmp_path / "rates").read_text())
    for tokens in ("1", "2"):
        one, two = (found["calls"][tokens][ranks] for ranks in ("1", "2"))
        assert [call["num_bytes"] for call in one] == [call["num_bytes"] for call in two]
        assert all(call["seconds"] > 0 for call in one + two)
