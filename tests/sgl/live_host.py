"""A real engine host in a process of its own, without a daemon."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from ktd.engine.launcher import child_environment, temporary_dir
from ktd.enginespec import EngineSpec, Failure, read_failure
from ktd.internal.v1 import control_pb2 as pb
from ktd.internal.v1 import control_pb2_grpc
from ktd.rankfile import RankFileReader, path_of
from tests.live import MODEL, processes

START_SECONDS = 400
RPC_SECONDS = 60
POLL_SECONDS = 0.05
PROMPT = "In the beginning"


class LiveHost:
    """``python -m ktd.sgl.host`` under a spec of its own; a context manager that leaves nothing.

    Attributes:
        spec: What the host was started with.
        control: Client of its control channel.
        process: The host.
        lifeline: Write end of the pipe whose closing ends the host.
    """

    def __init__(
        self,
        *sglang_args: str,
        model: Path = MODEL,
        moe_layers: Sequence[int] = tuple(range(6)),
        num_experts: int = 32,
        device: str = "cpu",
        slots: int | Sequence[int] = 8,
        in_slots: int | None = None,
        environment: dict[str, str] | None = None,
        **spec_fields: Any,
    ) -> None:
        # Paths of Unix sockets are short: pytest's own temporary folders are too deep for them.
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="ktd-", dir="/tmp"))
        counts = [slots] * len(moe_layers) if isinstance(slots, int) else list(slots)
        self.spec = EngineSpec(
            engine_id=f"test-{secrets.token_hex(6)}",
            runtime_dir=str(self.runtime_dir),
            model_path=str(model),
            sglang_args=("--max-total-tokens", "8192", "--random-seed", "1", *sglang_args),
            device=device,
            moe_layers=tuple(moe_layers),
            num_experts=num_experts,
            experts_per_token=json.loads((model / "config.json").read_text())[
                "num_experts_per_tok"
            ],
            slots=tuple(counts),
            initial=tuple(
                tuple(range(count if in_slots is None else in_slots)) for count in counts
            ),
            **spec_fields,
        )
        self.log = self.runtime_dir / "log"
        self._environment = environment or {}
        self.process: subprocess.Popen[bytes]
        self.lifeline = -1
        self._channel = grpc.insecure_channel(f"unix:{self.spec.control_socket}")
        self.control = control_pb2_grpc.EngineControlServiceStub(self._channel)

    def __enter__(self) -> Self:
        self.spawn()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(self) -> None:
        """Starts the host as the daemon would and returns at once."""
        self.spec.write()
        temporary_dir(self.spec).mkdir(exist_ok=True)
        read_end, self.lifeline = os.pipe()
        environment = child_environment(self.spec, os.environ, read_end)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ktd.sgl.host"],
                env={**environment, "HF_HUB_OFFLINE": "1", **self._environment},
                pass_fds=(read_end,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        os.close(read_end)

    def ready(self) -> Self:
        """Waits until the host serves; fails with its log if it ends instead."""
        for state in self.states():
            if state.phase == pb.HostState.PHASE_READY:
                return self
        self.process.wait(timeout=30)
        raise AssertionError(f"the host ended before it served: {self.failure()}\n{self.tail()}")

    def states(self) -> Iterable[pb.HostState]:
        """What the control channel says, until it ends."""
        deadline = time.monotonic() + START_SECONDS
        while not self.spec.control_socket.exists() and self.process.poll() is None:
            time.sleep(POLL_SECONDS)
        try:
            yield from self.control.WatchState(
                pb.WatchStateRequest(), timeout=deadline - time.monotonic(), wait_for_ready=True
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise AssertionError(f"not ready in {START_SECONDS} s:\n{self.tail()}") from error

    def ended(self) -> Failure | None:
        """Waits for the host to end by itself; returns the failure that was left."""
        self.process.wait(timeout=START_SECONDS)
        return self.failure()

    def failure(self) -> Failure | None:
        """The earliest failure that a process of the engine left."""
        return read_failure(self.runtime_dir)

    def ranks(self) -> list[RankFileReader]:
        """The rank files that exist."""
        count = len(list(self.runtime_dir.glob("rank-*.ktd")))
        return [RankFileReader(path_of(self.runtime_dir, rank)) for rank in range(count)]

    def slots(self) -> dict[int, list[int]]:
        """Expert in each slot, by layer, as all ranks hold them."""
        answer = self.control.GetSlots(pb.GetSlotsRequest(), timeout=RPC_SECONDS)
        return {layer.layer: list(layer.experts) for layer in answer.layers}

    def prepare(self, batch: int, moves: Iterable[tuple[int, int, int]]) -> None:
        """PrepareMoves of (layer, evict, load)."""
        self.control.PrepareMoves(
            pb.PrepareMovesRequest(
                batch_id=batch,
                moves=[pb.HostMove(layer=la, evict=ev, load=lo) for la, ev, lo in moves],
            ),
            timeout=RPC_SECONDS,
        )

    def wait_copied(self, batch: int) -> int:
        """WaitCopied."""
        answer = self.control.WaitCopied(pb.WaitCopiedRequest(batch_id=batch), timeout=RPC_SECONDS)
        return int(answer.bytes)

    def publish(self, batch: int) -> None:
        """PublishMoves."""
        self.control.PublishMoves(pb.PublishMovesRequest(batch_id=batch), timeout=RPC_SECONDS)

    def abort(self, batch: int) -> None:
        """AbortMoves."""
        self.control.AbortMoves(pb.AbortMovesRequest(batch_id=batch), timeout=RPC_SECONDS)

    def swap(self, batch: int, moves: Iterable[tuple[int, int, int]]) -> None:
        """A whole batch."""
        self.prepare(batch, moves)
        self.wait_copied(batch)
        self.publish(batch)

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """Posts JSON to SGLang's app and returns the JSON of its answer."""
        connection = _Connection(self.spec.http_socket)
        try:
            connection.request(
                "POST", route, json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, f"{route}: {answer.status} {text.decode()}"
            return json.loads(text)
        finally:
            connection.close()

    def generate(self, tokens: int, prompt: str = PROMPT) -> list[int]:
        """Greedy continuation, as token ids."""
        answer = self.post(
            "/generate",
            {
                "text": prompt,
                "sampling_params": {
                    "temperature": 0,
                    "max_new_tokens": tokens,
                    "ignore_eos": True,
                },
            },
        )
        return list(answer["output_ids"])

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each token of ``ids`` but the first, given those before it."""
        answer = self.post(
            "/generate",
            {
                "input_ids": list(ids),
                "sampling_params": {"temperature": 0, "max_new_tokens": 1},
                "return_logprob": True,
                "logprob_start_len": 0,
            },
        )
        return [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]

    def decoded(self, ids: Sequence[int], tokens: int) -> tuple[list[int], list[float]]:
        """Greedy continuation: its token ids, and the log-probability of each."""
        answer = self.post(
            "/generate",
            {
                "input_ids": list(ids),
                "sampling_params": {
                    "temperature": 0,
                    "max_new_tokens": tokens,
                    "ignore_eos": True,
                },
                "return_logprob": True,
            },
        )
        entries = answer["meta_info"]["output_token_logprobs"]
        assert len(entries) == tokens
        return [int(entry[1]) for entry in entries], [float(entry[0]) for entry in entries]

    def generating(self, tokens: int) -> Generation:
        """Starts a generation in the background."""
        return Generation(self, tokens)

    def members(self) -> set[int]:
        """Living processes of this host, itself included, whatever they call themselves."""
        return processes("KTD_ENGINE_ID", self.spec.engine_id)

    def wait_gone(self, seconds: float = 20) -> set[int]:
        """Waits until no process of the host lives; returns those that still do."""
        deadline = time.monotonic() + seconds
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return left

    def _left(self) -> set[int]:
        self.process.poll()  # a zombie is gone
        return self.members()

    def tail(self, lines: int = 60) -> str:
        """The last lines of what the host printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(line[:400] for line in text.splitlines()[-lines:])

    def close(self) -> None:
        """Ends what still runs and removes the folder."""
        self._channel.close()
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
        for pid in self.members():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(timeout=30)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)


class Generation(threading.Thread):
    """One greedy generation that runs beside the test; ``result()`` waits for its tokens."""

    def __init__(self, host: LiveHost, tokens: int) -> None:
        super().__init__(daemon=True)
        self._host, self._tokens = host, tokens
        self._ids: list[int] = []
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._ids = self._host.generate(self._tokens)
        except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
            self._error = error

    def result(self) -> list[int]:
        """The tokens."""
        self.join(timeout=300)
        if self._error is not None:
            raise self._error
        assert not self.is_alive(), "the generation did not end"
        return self._ids


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=300)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
