"""A daemon that runs already is measured as it is."""

from __future__ import annotations

import json

import pytest

from ktd.cli.exit_codes import ExitCode
from ktd.cli.program import run
from tests.live import MODEL


@pytest.mark.engine
def test_a_running_daemon_is_measured_and_goes_on(live_daemon, capsys):
    """No second engine is started."""
    before = live_daemon.processes()
    words = ["bench", "prefill", str(MODEL), "--tokens", "16", "--runs", "1", "--json"]
    assert run([*words, "--running", str(live_daemon.socket)]) == ExitCode.OK
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["prompt_tokens"] == 16
    assert live_daemon.processes() == before
    assert live_daemon.healthy()


def test_options_of_a_start_do_not_go_with_a_running_daemon(capsys, tmp_path):
    words = ["bench", "prefill", str(MODEL), "--running", str(tmp_path / "none")]
    assert run([*words, "--gpu-experts-ratio", "0.5"]) == ExitCode.USAGE
    assert "--gpu-experts-ratio has no effect" in capsys.readouterr().err


def test_no_daemon_there_is_one_sentence(capsys, tmp_path):
    words = ["bench", "prefill", str(MODEL), "--running", str(tmp_path / "none")]
    assert run(words) != ExitCode.OK
    assert str(tmp_path / "none") in capsys.readouterr().err
