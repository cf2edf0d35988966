"""``ktd.v1.RecordingService``."""
# ruff: noqa: N802  # method names are the API's

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktd.errors import InvalidArgument
from ktd.rpc.convert_stats import mode_name, recording_message
from ktd.rpc.names import check_engine
from ktd.stats.recording import RecordingOptions
from ktd.v1 import recording_pb2, recording_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from ktd.stats.recording import Recordings

    Context = grpc.aio.ServicerContext[Any, Any]


class RecordingService(recording_pb2_grpc.RecordingServiceServicer):
    """Recordings of the engine's passes."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings

    async def GetRecording(
        self, request: recording_pb2.GetRecordingRequest, context: Context
    ) -> recording_pb2.Recording:
        """How much has been recorded."""
        del context
        check_engine(request.name)
        return recording_message(await self._recordings.get())

    async def StartRecording(
        self, request: recording_pb2.StartRecordingRequest, context: Context
    ) -> recording_pb2.Recording:
        """Begins with the next pass."""
        del context
        check_engine(request.name)
        defaults = self._recordings.defaults
        options = RecordingOptions(
            mode=mode_name(request.mode) or defaults.mode,
            folder=_folder(request.directory) or defaults.folder,
            gpu_masks=request.gpu_masks if request.HasField("gpu_masks") else defaults.gpu_masks,
            buffer_passes=(
                request.buffer_passes
                if request.HasField("buffer_passes")
                else defaults.buffer_passes
            ),
        )
        return recording_message(await self._recordings.start(options))

    async def StopRecording(
        self, request: recording_pb2.StopRecordingRequest, context: Context
    ) -> recording_pb2.Recording:
        """Keeps what was recorded."""
        del context
        check_engine(request.name)
        return recording_message(await self._recordings.stop())

    async def DumpRecording(
        self, request: recording_pb2.DumpRecordingRequest, context: Context
    ) -> recording_pb2.DumpRecordingResponse:
        """Writes what was recorded."""
        del context
        check_engine(request.name)
        paths, written = await self._recordings.dump(_folder(request.directory))
        return recording_pb2.DumpRecordingResponse(paths=paths, written=recording_message(written))


def _folder(text: str) -> Path | None:
    """An absolute folder, or None for an empty text.

    Raises:
        InvalidArgument: it is relative; the daemon's own folder means nothing to a client.
    """
    if not text:
        return None
    if "\0" in text or not Path(text).is_absolute():
        raise InvalidArgument(f"The folder {text!r} is not an absolute path.")
    return Path(text)
