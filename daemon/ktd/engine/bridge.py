"""The daemon's end of the private control channel; nothing else in it uses ``internal.v1``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
import grpc.aio

from ktd.engine.status import EnginePhase
from ktd.errors import RecordingFailed, SwapTargetFailed
from ktd.internal.v1 import control_pb2 as pb
from ktd.internal.v1.control_pb2_grpc import EngineControlServiceStub

# A call reaches the schedulers between two steps, and a prefill step on the CPU can be long.
_CALL_SECONDS = 120.0
# A batch is tens of milliseconds of copying, or what --swap-rate makes of them.
_COPY_SECONDS = 600.0
_SHUTDOWN_SECONDS = 2.0

_PHASES = {
    pb.HostState.PHASE_IMPORTING: EnginePhase.STARTING,
    pb.HostState.PHASE_LOADING: EnginePhase.LOADING,
    pb.HostState.PHASE_WARMING: EnginePhase.WARMING,
    pb.HostState.PHASE_READY: EnginePhase.READY,
    pb.HostState.PHASE_FAILED: EnginePhase.FAILED,
}


class Move(Protocol):
    """One expert's way into or out of a slot; ``ktd.placement`` has the concrete type."""

    @property
    def layer(self) -> int:
        """Index of the layer in the model."""
        ...

    @property
    def evict(self) -> int | None:
        """Expert that leaves its slot."""
        ...

    @property
    def load(self) -> int | None:
        """Expert that enters."""
        ...


@dataclass(frozen=True, slots=True)
class HostState:
    """What the engine host says about itself; ``phase`` is one of STARTING … READY, or FAILED."""

    phase: EnginePhase
    message: str
    ktd_version: str
    sglang_version: str
    torch_version: str
    num_ranks: int


@dataclass(frozen=True, slots=True)
class HostRecording:
    """What rank 0 has recorded and not written; in the answer to a dump, what was written.

    Attributes:
        mode: Empty: nothing was ever recorded.
        dropped_passes: Those of ``passes`` that made room for others.
        bytes: Memory that holds them.
        files: Paths that a dump wrote.
    """

    recording: bool
    mode: str
    gpu_masks: bool
    passes: int
    dropped_passes: int
    tokens: int
    bytes: int
    files: tuple[str, ...]


class EngineBridge:
    """Client of one engine host's control service; an async context manager.

    It satisfies the ``SwapTarget`` protocol of ``ktd.placement`` and the ``RecordingTarget`` of
    ``ktd.stats``. Every call has a deadline and raises :class:`~ktd.errors.SwapTargetFailed`, or
    :class:`~ktd.errors.RecordingFailed`, with one sentence.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel: grpc.aio.Channel | None = None
        self._calls: Any = None  # the stub, once for all calls: it makes an object of each method

    async def __aenter__(self) -> Self:
        """Makes the channel; it connects when the host listens."""
        self._channel = grpc.aio.insecure_channel(
            f"unix:{self._socket}",
            options=(
                ("grpc.max_receive_message_length", -1),
                # The host may take long to listen, and then it should be seen at once.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ),
        )
        self._calls = EngineControlServiceStub(self._channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the channel; calls in flight fail."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._calls = None

    async def watch_state(self) -> AsyncIterator[HostState]:
        """The host's state at once, then every change; ends when the host stops.

        Raises:
            ConnectionError: the host does not listen, or its end was cut off.
        """
        try:
            async for state in self._stub.WatchState(pb.WatchStateRequest()):
                yield HostState(
                    phase=_PHASES.get(state.phase, EnginePhase.STARTING),
                    message=state.message,
                    ktd_version=state.ktd_version,
                    sglang_version=state.sglang_version,
                    torch_version=state.torch_version,
                    num_ranks=state.num_ranks,
                )
        except grpc.aio.AioRpcError as error:
            raise ConnectionError(error.details() or error.code().name) from error

    async def prepare(
        self, batch_id: int, moves: Sequence[Move], *, publish: int | None = None
    ) -> None:
        """Unmaps the victims and starts the copies, on every rank; ``publish`` a batch before."""
        request = pb.PrepareMovesRequest(
            batch_id=batch_id,
            moves=[
                pb.HostMove(
                    layer=move.layer,
                    evict=-1 if move.evict is None else move.evict,
                    load=-1 if move.load is None else move.load,
                )
                for move in moves
            ],
            publish_batch_id=publish,
        )
        await self._call(self._stub.PrepareMoves, request, _CALL_SECONDS)

    async def wait_copied(self, batch_id: int) -> int:
        """Bytes copied over all ranks, when the copies of the batch have finished."""
        request = pb.WaitCopiedRequest(batch_id=batch_id)
        reply = await self._call(self._stub.WaitCopied, request, _COPY_SECONDS)
        return int(reply.bytes)

    async def publish(self, batch_id: int) -> None:
        """Maps the copied experts, on every rank."""
        request = pb.PublishMovesRequest(batch_id=batch_id)
        await self._call(self._stub.PublishMoves, request, _CALL_SECONDS)

    async def abort(self, batch_id: int) -> None:
        """Forgets a prepared batch; its slots stay empty."""
        request = pb.AbortMovesRequest(batch_id=batch_id)
        await self._call(self._stub.AbortMoves, request, _COPY_SECONDS)

    async def slots(self) -> Mapping[int, tuple[int, ...]]:
        """Layer → expert in each slot, -1 for an empty one, as all ranks hold them now."""
        reply = await self._call(self._stub.GetSlots, pb.GetSlotsRequest(), _CALL_SECONDS)
        return {layer.layer: tuple(layer.experts) for layer in reply.layers}

    async def start_recording(
        self, mode: str, *, buffer_passes: int, max_bytes: int, gpu_masks: bool
    ) -> HostRecording:
        """Begins to record with the next pass."""
        request = pb.StartRecordingRequest(
            mode=mode, buffer_passes=buffer_passes, max_bytes=max_bytes, gpu_masks=gpu_masks
        )
        return await self._record("StartRecording", request)

    async def stop_recording(self) -> HostRecording:
        """Keeps what was recorded until it is written."""
        return await self._record("StopRecording", pb.StopRecordingRequest())

    async def dump_recording(self, folder: str) -> HostRecording:
        """Writes what was recorded; returns when the files are complete."""
        request = pb.DumpRecordingRequest(folder=folder)
        return await self._record("DumpRecording", request, _COPY_SECONDS)

    async def recording(self) -> HostRecording:
        """How much has been recorded."""
        return await self._record("GetRecording", pb.GetRecordingRequest())

    async def _record(
        self, name: str, request: Any, seconds: float = _CALL_SECONDS
    ) -> HostRecording:
        try:
            reply = await self._call(getattr(self._stub, name), request, seconds)
        except SwapTargetFailed as error:
            raise RecordingFailed(f"{str(error)[:1].upper()}{str(error)[1:]}") from error
        return HostRecording(
            recording=reply.recording,
            mode=reply.mode,
            gpu_masks=reply.gpu_masks,
            passes=reply.passes,
            dropped_passes=reply.dropped_passes,
            tokens=reply.tokens,
            bytes=reply.bytes,
            files=tuple(reply.files),
        )

    async def shutdown(self) -> None:
        """Asks the host to end itself and its children; returns before they are gone."""
        await self._call(self._stub.Shutdown, pb.ShutdownRequest(), _SHUTDOWN_SECONDS)

    @property
    def _stub(self) -> Any:
        if self._calls is None:
            raise SwapTargetFailed("The engine has gone, so its slots cannot be changed.")
        return self._calls

    @staticmethod
    async def _call(method: Any, request: Any, seconds: float) -> Any:
        try:
            return await method(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            name = type(request).DESCRIPTOR.name.removesuffix("Request")
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                message = f"The engine did not answer {name} within {seconds:g} s."
            elif error.code() is grpc.StatusCode.INTERNAL:
                message = error.details() or f"{name} failed on a rank."
            else:
                message = f"The engine cannot be reached for {name}: {error.details()}."
            raise SwapTargetFailed(message) from error
