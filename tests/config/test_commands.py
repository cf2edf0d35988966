"""`ktd serve --help` and `ktd config show`, as a user meets them."""

from __future__ import annotations

import json

import pytest

from ktd.cli.program import run
from ktd.config.help import serve_help
from ktd.config.options import OPTIONS


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("KTD_CONFIG", "")


def test_help_has_every_flag():
    """Nothing can be set that --help does not show, and no line is too wide."""
    text = serve_help()
    for option in OPTIONS:
        assert all(flag in text for flag in option.flags)
        assert option.help.split()[0] in text
    assert max(map(len, text.splitlines())) <= 104


def test_help_is_printed_and_nothing_started(capsys):
    """Anywhere on the line, but not in SGLang's part."""
    assert run(["serve", "m", "--port", "1", "--help"]) == 0
    assert "usage: ktd serve MODEL" in capsys.readouterr().out


def test_config_show_says_where_values_come_from(capsys, monkeypatch):
    """As a table, the key hidden."""
    monkeypatch.setenv("KTD_HOST", "::1")
    assert run(["config", "show", "m", "--port", "8000", "--api-key", "sesame"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "8000" in lines["port"]
    assert lines["port"].endswith("flag --port")
    assert lines["host"].endswith("environment KTD_HOST")
    assert lines["tp"].endswith("default")
    assert "sesame" not in out


def test_config_show_as_json(capsys):
    """For programs: name, value, source."""
    assert run(["--json", "config", "show", "m", "--max-total-tokens", "9"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["model"] == {"name": "model", "value": "m", "source": "argument MODEL"}
    assert rows["sglang-args"]["value"] == ["--max-total-tokens", "9"]


def test_the_socket_may_stand_before_the_command(capsys):
    """`ktd --socket X config show` is `ktd config show --socket X`."""
    assert run(["--socket", "/s/x.sock", "config", "show", "--json"]) == 0
    rows = {row["name"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert rows["socket"] == "/s/x.sock"


@pytest.mark.parametrize("command", [["serve"], ["config", "show"]])
def test_a_wrong_option_ends_with_2_and_one_line(capsys, command):
    """Usage errors have an exit code of their own."""
    assert run([*command, "m", "--port", "x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_config_without_show_says_what_there_is(capsys):
    """One action."""
    assert run(["config"]) == 2
    assert "show" in capsys.readouterr().err
