"""The thread of the engine host that serves the control channel while the main thread loads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version as distribution_version

import grpc

from ktd.enginespec import EngineSpec
from ktd.internal.v1 import control_pb2 as pb
from ktd.internal.v1 import control_pb2_grpc
from ktd.rankfile import RankFileReader
from ktd.sgl.collective import CollectiveCalls
from ktd.sgl.control_service import ControlService
from ktd.sgl.host_state import HostStateCell
from ktd.version import __version__

_Phase = pb.HostState


class ControlThread:
    """An event loop of its own with the control service; methods are called by the main thread."""

    def __init__(
        self, spec: EngineSpec, *, stop: Callable[[], None], give_up: Callable[[str], None]
    ) -> None:
        self._spec = spec
        self._loop = asyncio.new_event_loop()
        self._state = HostStateCell(
            self._loop,
            pb.HostState(
                phase=_Phase.PHASE_IMPORTING,
                message="importing SGLang",
                ktd_version=__version__,
                sglang_version=distribution_version("sglang"),
            ),
        )
        self._service = ControlService(spec, self._state, stop=stop, give_up=give_up)
        self._thread = threading.Thread(target=self._run, name="ktd-control", daemon=True)
        self._started = threading.Event()
        self._error: Exception | None = None

    def start(self) -> None:
        """Returns when the socket is served.

        Raises:
            OSError: it cannot be.
        """
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            socket = self._spec.control_socket
            raise OSError(f"{socket} cannot be served: {self._error}") from self._error

    def loading(self, *, torch: str) -> None:
        """Arguments are accepted; processes and weights come next."""
        self._state.set(_Phase.PHASE_LOADING, "loading the model", torch_version=torch)

    def warming(self, broadcast: Callable[[str], None], ranks: Sequence[RankFileReader]) -> None:
        """Every rank has said hello; control calls work from here on."""
        self._service.calls = CollectiveCalls(broadcast, ranks)
        self._state.set(_Phase.PHASE_WARMING, "running the first request", num_ranks=len(ranks))

    def ready(self) -> None:
        """The first request has been answered: statistics start at zero, requests are served."""
        calls = self._service.calls
        if calls is None:
            raise RuntimeError("ready() comes after warming()")
        asyncio.run_coroutine_threadsafe(calls.call("reset_statistics"), self._loop).result()
        self._state.set(_Phase.PHASE_READY, "serving")

    def fail(self, sentence: str) -> None:
        """Tells watchers why the host is about to end."""
        self._state.set(_Phase.PHASE_FAILED, sentence)

    def close(self) -> None:
        """Stops serving; what watchers have not read yet is given a moment."""
        if self._error is None:
            stopped = asyncio.run_coroutine_threadsafe(self._stop_server(), self._loop)
            with contextlib.suppress(TimeoutError):  # the process is about to end anyway
                stopped.result(timeout=2)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except (OSError, RuntimeError) as error:  # RuntimeError: how gRPC says that it cannot bind
            self._error = error
            return
        finally:
            self._started.set()
        self._loop.run_forever()

    async def _serve(self) -> None:
        self._server = grpc.aio.server()
        control_pb2_grpc.add_EngineControlServiceServicer_to_server(self._service, self._server)
        self._server.add_insecure_port(f"unix:{self._spec.control_socket}")
        await self._server.start()
        os.chmod(self._spec.control_socket, 0o600)  # noqa: PTH101 # one call, no path arithmetic

    async def _stop_server(self) -> None:
        await asyncio.sleep(0.1)
        await self._server.stop(grace=0.2)
