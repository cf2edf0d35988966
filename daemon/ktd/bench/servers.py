"""Servers that a benchmark starts for itself, compares and ends again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ktd.bench.timed_stream import TcpEndpoint, UnixEndpoint
from ktd.errors import ConfigError, EngineFailed

_START_SECONDS = 900.0
_STOP_SECONDS = 40.0
# SGLang options of both sides: idle servers must not take the other's cores.
_COMMON = ("--sleep-on-idle",)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers.

    Attributes:
        name: For the report.
        endpoint: Its OpenAI port.
        upstream: SGLang's own application behind ktd's front, if it has one.
        socket: ktd's control socket, if it has one.
    """

    name: str
    endpoint: TcpEndpoint
    upstream: UnixEndpoint | None = None
    socket: Path | None = None


@contextlib.contextmanager
def ktd_server(model: Path, arguments: Sequence[str]) -> Iterator[RunningServer]:
    """``ktd serve`` with folders and a port of its own."""
    with _folder() as base:
        port = _free_port()
        socket_path = base / "run" / "ktd.sock"
        command = [
            *(sys.executable, "-m", "ktd", "serve", str(model), "--port", str(port)),
            *("--runtime-dir", str(base / "run"), "--state-dir", str(base / "state")),
            *("--socket", str(socket_path), "--log-format", "json", *arguments),
        ]
        with _process(command, base / "ktd.log", port, "/health", {}):
            upstream = next((base / "run").rglob("http.sock"))
            yield RunningServer("ktd", TcpEndpoint(port), UnixEndpoint(str(upstream)), socket_path)


@contextlib.contextmanager
def bench_server(
    model: Path, arguments: Sequence[str], *, routing: Path, run_id: str, keep_cpu_path: bool
) -> Iterator[RunningServer]:
    """As :func:`ktd_server`, but what it serves has its routing from a file.

    Args:
        model: Folder.
        arguments: Of ``ktd serve``.
        routing: File with ids, and with the same run id.
        run_id: Of this run alone.
        keep_cpu_path: Layers can give up slots although every expert has one.
    """
    with _folder() as base:
        port = _free_port()
        socket_path = base / "run" / "ktd.sock"
        command = [
            *(sys.executable, "-m", "ktd.app.bench_daemon", str(model), "--port", str(port)),
            *("--runtime-dir", str(base / "run"), "--state-dir", str(base / "state")),
            *("--socket", str(socket_path), "--log-format", "json", *arguments),
        ]
        about = {"routing": str(routing), "run_id": run_id, "keep_cpu_path": keep_cpu_path}
        line = json.dumps(about).encode() + b"\n"
        with _process(command, base / "ktd.log", port, "/health", {}, line=line):
            yield RunningServer("ktd", TcpEndpoint(port), None, socket_path)


@contextlib.contextmanager
def stock_server(model: Path, arguments: Sequence[str], *, gpu: bool) -> Iterator[RunningServer]:
    """SGLang's own server, without ktd's plugin (on a host without a GPU: on ktd's platform)."""
    with _folder() as base:
        port = _free_port()
        environment = {"SGLANG_PLUGINS": "none"}
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), *_COMMON]
        if gpu:
            # As ktd starts it, so that both sides run the same kernels.
            command += ["--dtype", "bfloat16", "--disable-prefill-cuda-graph"]
            command += ["--moe-runner-backend", "triton"]
        if not gpu:
            environment |= {"SGLANG_PLATFORM": "ktd", "SGLANG_PLUGINS": ""}
            command += ["--device", "cpu", "--attention-backend", "torch_native"]
            command += ["--disable-cuda-graph", "--dtype", "bfloat16"]
            if "--max-total-tokens" not in arguments:
                command += ["--max-total-tokens", "65536"]
        command += arguments
        with _process(command, base / "sglang.log", port, "/health_generate", environment):
            yield RunningServer("stock SGLang", TcpEndpoint(port))


@contextlib.contextmanager
def server_at(url: str) -> Iterator[RunningServer]:
    """A server that somebody else has started, of any make that speaks OpenAI's API.

    Raises:
        ConfigError: That is no address, or nothing answers there.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{url} is no address such as http://127.0.0.1:8080")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    listed = f"http://{parts.hostname}:{parts.port or 80}{prefix}/v1/models"
    try:
        with urllib.request.urlopen(listed, timeout=30) as answer:
            models = json.load(answer)["data"]
        model = str(models[0]["id"]) if models else "default"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{listed} does not answer like an OpenAI server: {error}") from error
    endpoint = TcpEndpoint(parts.port or 80, host=parts.hostname, prefix=prefix, model=model)
    yield RunningServer(url, endpoint)


@contextlib.contextmanager
def running_server(socket_path: Path) -> Iterator[RunningServer]:
    """The daemon behind a control socket, which goes on afterwards.

    Raises:
        KtdError: It cannot be reached, or serves nothing.
    """
    # A host that measures kernels alone has no gRPC.
    from ktd.client import KtdClient  # noqa: PLC0415

    async def address() -> str:
        async with KtdClient(socket_path) as client:
            return (await client.status()).http_address

    with server_at(asyncio.run(address())) as server:
        yield replace(server, name="ktd", socket=socket_path)


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """A server that can be started.

    Attributes:
        what: For progress.
        start: Starts it; leaving the context ends it.
    """

    what: str
    start: Callable[[], contextlib.AbstractContextManager[RunningServer]]


def server_plans(
    model: Path,
    arguments: Sequence[str],
    against: str | None,
    stock_arguments: Sequence[str],
    *,
    running: Path | None = None,
) -> list[ServerPlan]:
    """ktd, and what it is compared with: None, ``"stock"`` or an address.

    Args:
        model: Its folder.
        arguments: For ``ktd serve``.
        against: What else.
        stock_arguments: For unmodified SGLang.
        running: Control socket of a daemon that is measured instead of one of its own.
    """
    plans = [ServerPlan("ktd", lambda: ktd_server(model, arguments))]
    if running is not None:
        plans = [ServerPlan(f"the daemon at {running}", lambda: running_server(running))]
    if against == "stock":
        gpu = Path("/dev/nvidia0").exists()
        plans.append(
            ServerPlan("unmodified SGLang", lambda: stock_server(model, stock_arguments, gpu=gpu))
        )
    elif against is not None:
        plans.append(ServerPlan(against, lambda: server_at(against)))
    return plans


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Unix sockets allow 107 bytes of path, so the folder lies close to the root.
    base = Path(tempfile.mkdtemp(prefix="ktd-bench-"))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    log: Path,
    port: int,
    health: str,
    environment: dict[str, str],
    *,
    line: bytes | None = None,
) -> Iterator[None]:
    """Runs it while the context lasts; with a ``line``, its standard input is a pipe with that."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KTD_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=inherited | environment,
            stdin=subprocess.DEVNULL if line is None else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        if process.stdin is not None and line is not None:
            process.stdin.write(line)
            process.stdin.flush()
        _wait_healthy(process, log, f"http://127.0.0.1:{port}{health}")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _wait_healthy(process: subprocess.Popen[bytes], log: Path, url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise EngineFailed(f"{' '.join(process.args[:4])} did not serve:\n{tail}")  # type: ignore[arg-type, index] # a list here
        try:
            # The address is this module's own; errors other than 2xx are raised.
            with urllib.request.urlopen(url, timeout=30):  # noqa: S310
                return
        except OSError:
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
