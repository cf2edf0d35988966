"""SGLang's own OpenAI application on a Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import uvicorn


def build_server(engine: Any, server_args: Any, path: Path) -> uvicorn.Server:
    """A uvicorn server of SGLang's app over an engine that is running already.

    ``launch_server`` would start the engine itself and listen on TCP; this does what it does after
    the engine is up (``_setup_and_run_http_server``).
    """
    from sglang.srt.entrypoints import http_server

    http_server.set_global_state(
        http_server._GlobalState(
            tokenizer_manager=engine.tokenizer_manager,
            template_manager=engine.template_manager,
            scheduler_info=engine._scheduler_init_result.scheduler_infos[0],
        )
    )
    # 0.5.23 freezes garbage collection through a request over TCP; warm_up() does it here.
    http_server._freeze_gc_after_server_warmup = lambda *_: None
    app = http_server.app
    app.is_single_tokenizer_mode = True
    app.server_args = server_args
    app.warmup_thread_kwargs = {"server_args": server_args}
    return uvicorn.Server(
        uvicorn.Config(
            app,
            uds=str(path),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=3600,
            timeout_graceful_shutdown=1,
            loop="uvloop",
        )
    )


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, for the host's own first request."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def warm_up(path: Path, timeout: float) -> None:
    """Generates two tokens, so that the first user does not pay for first-time work.

    Then freezes the garbage collectors of all processes, as SGLang does after its own warm-up:
    what exists now stays, and collecting it again would only pause steps.

    Raises:
        RuntimeError: the request failed.
        OSError: the socket is not served yet.
    """
    body = {
        "input_ids": [1, 2, 3, 4],
        "sampling_params": {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True},
    }
    _post(path, "/generate", body, timeout)
    _post(path, "/freeze_gc", {}, timeout)


def _post(path: Path, route: str, body: dict[str, Any], timeout: float) -> None:
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        if response.status != 200:  # noqa: PLR2004 # HTTP OK
            raise RuntimeError(f"{route} answered {response.status}: {text}")
    finally:
        connection.close()
