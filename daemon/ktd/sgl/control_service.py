"""The engine host's end of the private control channel (``ktd.internal.v1``)."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from ktd.enginespec import EngineSpec
from ktd.internal.v1 import control_pb2 as pb
from ktd.internal.v1 import control_pb2_grpc
from ktd.sgl import recording_report
from ktd.sgl.collective import CallFailed, CollectiveCalls, RanksSilent
from ktd.sgl.host_state import HostStateCell

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")

_REPORT_SECONDS = 0.02
# Two may be open, and one that was published may have to be taken back on a rank.
_BATCHES = 4


@dataclass(frozen=True, slots=True)
class _Batch:
    id: int
    moves: list[list[int]]
    bytes_before: int


class ControlService(control_pb2_grpc.EngineControlServiceServicer):
    """Turns control RPCs into collective calls.

    Args:
        spec: The engine's spec.
        state: What WatchState streams.
        stop: Ends the host; called once the reply to Shutdown is out.
        give_up: Called with a sentence when the schedulers are silent.
    """

    def __init__(
        self,
        spec: EngineSpec,
        state: HostStateCell,
        *,
        stop: Callable[[], None],
        give_up: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._state = state
        self._stop = stop
        self._give_up = give_up
        self.calls: CollectiveCalls | None = None
        self._batches: deque[_Batch] = deque([_Batch(0, [], 0)], maxlen=_BATCHES)

    async def WatchState(  # noqa: N802 # generated name
        self, request: pb.WatchStateRequest, context: Context
    ) -> AsyncIterator[pb.HostState]:
        """The state at once, then every change."""
        async for state in self._state.watch():
            yield state

    async def PrepareMoves(  # noqa: N802
        self, request: pb.PrepareMovesRequest, context: Context
    ) -> pb.PrepareMovesResponse:
        """Unmaps victims and starts copies on every rank."""
        calls = await self._ready(context)
        last = self._batches[-1].id
        if request.batch_id <= last:
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"batch {request.batch_id} comes after batch {last}; ids must grow",
            )
        moves = [[move.layer, move.evict, move.load] for move in request.moves]
        self._batches.append(_Batch(request.batch_id, moves, calls.swap_bytes()))
        also = {}
        if request.HasField("publish_batch_id"):
            also = {"publish": request.publish_batch_id}
        await self._call(context, "prepare", batch=request.batch_id, moves=moves, **also)
        return pb.PrepareMovesResponse()

    async def WaitCopied(  # noqa: N802
        self, request: pb.WaitCopiedRequest, context: Context
    ) -> pb.WaitCopiedResponse:
        """Waits for the batch's copies on every rank: bytes copied since it was prepared."""
        calls = await self._ready(context)
        batch = await self._known(context, request.batch_id)
        await self._guard(context, calls.copied(batch.id))
        return pb.WaitCopiedResponse(bytes=calls.swap_bytes() - batch.bytes_before)

    async def PublishMoves(  # noqa: N802
        self, request: pb.PublishMovesRequest, context: Context
    ) -> pb.PublishMovesResponse:
        """Maps the batch's experts on every rank."""
        await self._call(context, "publish", batch=request.batch_id)
        return pb.PublishMovesResponse()

    async def AbortMoves(  # noqa: N802
        self, request: pb.AbortMovesRequest, context: Context
    ) -> pb.AbortMovesResponse:
        """Waits for the batch's copies, whatever became of them, and empties their slots."""
        calls = await self._ready(context)
        batch = await self._known(context, request.batch_id)
        await self._guard(context, calls.copying_ended(batch.id))
        await self._call(context, "abort", batch=batch.id, moves=batch.moves)
        return pb.AbortMovesResponse()

    async def GetSlots(  # noqa: N802
        self, request: pb.GetSlotsRequest, context: Context
    ) -> pb.GetSlotsResponse:
        """The slot tables; ranks must agree."""
        sequence = await self._call(context, "slots")
        tables = await asyncio.to_thread(self._read_tables)
        if any(table["sequence"] != sequence for table in tables):
            await context.abort(grpc.StatusCode.INTERNAL, "a rank did not report its slots")
        if any(table["slots"] != tables[0]["slots"] for table in tables):
            await context.abort(grpc.StatusCode.INTERNAL, "the ranks' slots differ")
        return pb.GetSlotsResponse(
            layers=[
                pb.LayerSlots(layer=int(layer), experts=experts)
                for layer, experts in sorted(
                    tables[0]["slots"].items(), key=lambda item: int(item[0])
                )
            ]
        )

    async def StartRecording(  # noqa: N802
        self, request: pb.StartRecordingRequest, context: Context
    ) -> pb.HostRecording:
        """Begins with the next pass."""
        return await self._record(
            context,
            "record_start",
            mode=request.mode,
            buffer_passes=request.buffer_passes,
            max_bytes=request.max_bytes,
            gpu_masks=request.gpu_masks,
        )

    async def StopRecording(  # noqa: N802
        self, request: pb.StopRecordingRequest, context: Context
    ) -> pb.HostRecording:
        """Keeps what was recorded."""
        return await self._record(context, "record_stop")

    async def DumpRecording(  # noqa: N802
        self, request: pb.DumpRecordingRequest, context: Context
    ) -> pb.HostRecording:
        """Returns when the files are complete."""
        return await self._record(context, "record_dump", folder=request.folder)

    async def GetRecording(  # noqa: N802
        self, request: pb.GetRecordingRequest, context: Context
    ) -> pb.HostRecording:
        """How much has been recorded."""
        return await self._record(context, "record_report")

    async def Shutdown(  # noqa: N802
        self, request: pb.ShutdownRequest, context: Context
    ) -> pb.ShutdownResponse:
        """Ends the host a moment after this reply."""
        asyncio.get_running_loop().call_later(0.05, self._stop)
        return pb.ShutdownResponse()

    async def _record(self, context: Context, name: str, **fields: object) -> pb.HostRecording:
        sequence = await self._call(context, name, **fields)
        folder = Path(self._spec.runtime_dir)
        # A dump is written beside the scheduler, so its report may come long after the call's end.
        while (report := recording_report.take(folder, sequence)) is None:  # noqa: ASYNC110 # a file of another process
            await asyncio.sleep(_REPORT_SECONDS)
        if "error" in report:
            await context.abort(
                grpc.StatusCode.INTERNAL, f"the recording cannot be written: {report['error']}"
            )
        return pb.HostRecording(**report)

    def _read_tables(self) -> list[dict[str, Any]]:
        paths = sorted(Path(self._spec.runtime_dir).glob("slots-*.json"))
        return [json.loads(path.read_text()) for path in paths]

    async def _ready(self, context: Context) -> CollectiveCalls:
        if self.calls is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine is still loading")
        return self.calls

    async def _known(self, context: Context, batch_id: int) -> _Batch:
        """One of the last batches, which are all that a call can be about."""
        for batch in self._batches:
            if batch.id == batch_id:
                return batch
        await context.abort(grpc.StatusCode.INTERNAL, f"batch {batch_id} was not prepared")
        raise AssertionError("abort does not return")

    async def _call(self, context: Context, name: str, **fields: object) -> int:
        calls = await self._ready(context)
        return await self._guard(context, calls.call(name, **fields))

    async def _guard(self, context: Context, work: Awaitable[_T]) -> _T:
        try:
            return await work
        except RanksSilent as silent:
            self._give_up(str(silent))
            await context.abort(grpc.StatusCode.INTERNAL, str(silent))
        except CallFailed as failed:
            await context.abort(grpc.StatusCode.INTERNAL, str(failed))
        raise AssertionError("abort does not return")
