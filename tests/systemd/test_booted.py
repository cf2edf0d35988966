"""The unit under a real systemd with the real engine: start, serve, crash, stop."""

from __future__ import annotations

import json
import time

import pytest

pytestmark = [pytest.mark.systemd, pytest.mark.engine]

URL = "http://127.0.0.1:31000"
PROMPT = json.dumps(
    {"model": "ktd-tiny", "prompt": "And the LORD", "max_tokens": 8, "temperature": 0}
)


def completion(machine) -> str:
    out = machine.run(
        "curl", "-sS", "--fail", f"{URL}/v1/completions", "-H", "Content-Type: application/json",
        "-d", PROMPT,
    )  # fmt: skip
    return json.loads(out)["choices"][0]["text"]


def until(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def placement(machine) -> list:
    out = machine.run(
        "/opt/ktd/bin/python", "-m", "ktd", "--socket", "/run/ktd/ktd.sock",
        "placement", "get", "--json",
    )  # fmt: skip
    return [layer["gpu_experts"] for layer in json.loads(out)["layers"]]


def test_the_unit_serves_survives_a_kill_and_stops(machine):
    """One start of the real engine is used for everything, because it takes long."""
    # `systemctl start` returns when READY=1 was sent.
    machine.run("systemctl", "start", "ktd")
    assert machine.property("ActiveState") == "active"
    assert "READY" in machine.property("StatusText")
    text = completion(machine)
    assert text
    machine.run("curl", "-sS", "--fail", f"{URL}/health")

    main = machine.property("MainPID")
    machine.run(
        "/opt/ktd/bin/python", "-m", "ktd", "--socket", "/run/ktd/ktd.sock",
        "placement", "apply", "--strategy", "frequency", "--yes",
    )  # fmt: skip
    before = placement(machine)
    machine.run("kill", "-9", main)
    until(lambda: machine.property("NRestarts") == "1")
    until(lambda: machine.property("ActiveState") == "active")
    assert machine.property("MainPID") != main
    assert completion(machine) == text
    assert placement(machine) == before

    machine.run("systemctl", "stop", "ktd")
    assert machine.property("ActiveState") == "inactive"
    assert machine.property("Result") == "success"
    assert "ktd.sgl.host" not in machine.run("ps", "-ef")
    assert machine.run("ls", "/run", check=False).split().count("ktd") == 0


def test_a_wrong_configuration_is_not_tried_again(machine):
    """Exit status 2 leaves the unit failed after one start, with the sentence in the journal."""
    machine.run(
        "systemctl", "start", "ktd-wrong", check=False
    )  # the same unit with a flag that does not exist
    assert machine.run("systemctl", "show", "-P", "ExecMainStatus", "ktd-wrong").strip() == "2"
    assert machine.run("systemctl", "show", "-P", "NRestarts", "ktd-wrong").strip() == "0"
    assert "--kt-nonsense" in machine.run("journalctl", "-u", "ktd-wrong", "-o", "cat")
