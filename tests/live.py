"""A real ``ktd serve`` in a process of its own, for tests that need a whole daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Self

from tests.device import device

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "ktd-tiny"
MARK = "KTD_TEST_DAEMON"
LOGS = "KTD_TEST_LOGS"
READY_SECONDS = 300
STOP_SECONDS = 40
POLL_SECONDS = 0.1


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_arguments() -> list[str]:
    """What this host's SGLang needs to be told, for ktd's engine as for an unmodified one."""
    return os.environ.get("KTD_TEST_SGLANG_ARGS", "").split()


def processes(variable: str, value: str) -> set[int]:
    """Living processes whose environment has ``variable=value``; zombies do not count."""
    wanted = f"{variable}={value}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            continue
    return found


class LiveDaemon:
    """``ktd serve MODEL ARGS…`` on the tests' device, with folders, socket and port of its own.

    Use as a context manager, which starts it, waits until it serves, and leaves no process and no
    folder behind. ``start`` after ``stop`` or ``kill`` is the next start of the same daemon: same
    state folder, same port. Its log is kept in the folder that ``KTD_TEST_LOGS`` names, if it does.

    Attributes:
        http_url: Address of the front, without a slash at its end.
        socket: Unix socket of the gRPC API.
        state_dir: The daemon's state folder.
        log: What all starts wrote to standard output and error.
    """

    def __init__(
        self, *args: str, model: Path | str = MODEL, env: dict[str, str] | None = None
    ) -> None:
        # Paths of Unix sockets are short: pytest's own temporary folders are too deep for them.
        self.base = Path(tempfile.mkdtemp(prefix="ktd-", dir="/tmp"))
        self.port = free_port()
        self.http_url = f"http://127.0.0.1:{self.port}"
        self.runtime_dir = self.base / "run"
        self.state_dir = self.base / "state"
        self.socket = self.runtime_dir / "ktd.sock"
        self.log = self.base / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = uuid.uuid4().hex
        config = self.base / "ktd.toml"
        config.touch()
        self.command = [
            *(sys.executable, "-m", "ktd", "serve", str(model)),
            *("--config", str(config), "--port", str(self.port)),
            *("--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)),
            *("--socket", str(self.socket), "--log-format", "json", "--device", device()),
            *serve_arguments(),
            *args,
        ]
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KTD_")},
            MARK: self._mark,
            "HF_HUB_OFFLINE": "1",
            **(env or {}),
        }

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(self) -> subprocess.Popen[bytes]:
        """Starts the daemon and returns at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.process

    def start(self) -> None:
        """Starts the daemon and waits until it serves; fails with its log if it ends instead."""
        self.spawn()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Waits until ``/health`` answers 200."""
        deadline = time.monotonic() + READY_SECONDS
        while not self.healthy():
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"ktd serve ended before it served:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"ktd serve did not serve in {READY_SECONDS} s:\n{self.tail()}"
                )
            time.sleep(POLL_SECONDS)

    def healthy(self) -> bool:
        """Whether requests are served now."""
        try:
            with urllib.request.urlopen(f"{self.http_url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, reset, timed out, or an answer other than 2xx
            return False

    def post(self, path: str, body: dict[str, Any], timeout: float = 120) -> Any:
        """Posts JSON to the front and returns the JSON of its answer."""
        request = urllib.request.Request(
            f"{self.http_url}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from error

    def ktd(self, *args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs a client command against this daemon."""
        return subprocess.run(
            [sys.executable, "-m", "ktd", *args, "--socket", str(self.socket)],
            env=self.environment | {MARK: ""},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ktd_json(self, *args: str) -> Any:
        """What a client command prints with ``--json``."""
        done = self.ktd(*args, "--json")
        assert done.returncode == 0, f"ktd {' '.join(args)}: {done.stderr}{done.stdout}"
        return json.loads(done.stdout)

    def processes(self) -> set[int]:
        """The daemon and every process that descends from it, whatever it calls itself."""
        return processes(MARK, self._mark)

    def wait_gone(self, seconds: float = STOP_SECONDS) -> set[int]:
        """Waits until no process of the daemon lives; returns those that still do."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return left

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Sends SIGTERM, waits for the daemon, and returns its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)

    def kill(self) -> None:
        """Kills the daemon alone, as the kernel would when memory runs out."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def tail(self, lines: int = 60) -> str:
        """The last lines of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Ends everything that still runs and removes the folders."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._keep_log()
        shutil.rmtree(self.base, ignore_errors=True)

    def _keep_log(self) -> None:
        folder = os.environ.get(LOGS)
        if folder and self.log.exists():
            test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("::")[2].split(" ")[0]
            name = re.sub(r"[^\w.-]+", "-", f"{test}-{self._mark[:6]}.log")
            shutil.copy(self.log, Path(folder) / name)
