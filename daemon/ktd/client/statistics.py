"""The client's calls about statistics, recordings and profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import duration_pb2

from ktd.client.calls import NAME, Calls
from ktd.v1 import profile_pb2, recording_pb2, stats_pb2
from ktd.v1.profile_pb2_grpc import ProfileServiceStub
from ktd.v1.recording_pb2_grpc import RecordingServiceStub
from ktd.v1.stats_pb2_grpc import StatsServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import grpc.aio


class StatisticsCalls(Calls):
    """A part of :class:`~ktd.client.client.KtdClient`."""

    def _connect_statistics(self, channel: grpc.aio.Channel) -> None:
        self._stats = StatsServiceStub(channel)
        self._recording = RecordingServiceStub(channel)
        self._profiles = ProfileServiceStub(channel)

    # StatsService

    async def stats(
        self, *, window: float | None = None, with_rates: bool = False
    ) -> stats_pb2.StatsSnapshot:
        """One full snapshot, of the last ``window`` seconds or since the engine started."""
        request = stats_pb2.GetStatsRequest(name=NAME, with_rates=with_rates)
        if window is not None:
            request.window.FromNanoseconds(round(window * 1e9))
        return await self._answer(self._stats.GetStats(request, timeout=self._timeout))

    def watch_stats(
        self, min_interval: float | None = None
    ) -> AsyncGenerator[stats_pb2.StatsSnapshot, None]:
        """A full snapshot, then deltas ``min_interval`` seconds apart (None: 1 s)."""
        request = stats_pb2.WatchStatsRequest(name=NAME)
        if min_interval is not None:
            interval = duration_pb2.Duration()
            interval.FromNanoseconds(round(min_interval * 1e9))
            request.min_interval.CopyFrom(interval)
        return self._stream(self._stats.WatchStats(request))

    # RecordingService

    async def recording(self) -> recording_pb2.Recording:
        """How much has been recorded."""
        request = recording_pb2.GetRecordingRequest(name=NAME)
        return await self._answer(self._recording.GetRecording(request))

    async def start_recording(
        self,
        mode: int = recording_pb2.RECORDING_MODE_UNSPECIFIED,
        *,
        directory: str = "",
        gpu_masks: bool | None = None,
        buffer_passes: int | None = None,
    ) -> recording_pb2.Recording:
        """Begins with the next pass; what is not given is as the daemon was told."""
        request = recording_pb2.StartRecordingRequest(
            name=NAME,
            mode=recording_pb2.RecordingMode.ValueType(mode),
            directory=directory,
            gpu_masks=gpu_masks,
            buffer_passes=buffer_passes,
        )
        return await self._answer(self._recording.StartRecording(request))

    async def stop_recording(self) -> recording_pb2.Recording:
        """Keeps what was recorded until it is dumped."""
        request = recording_pb2.StopRecordingRequest(name=NAME)
        return await self._answer(self._recording.StopRecording(request))

    async def dump_recording(self, directory: str = "") -> recording_pb2.DumpRecordingResponse:
        """Writes what was recorded; returns when the files are complete."""
        request = recording_pb2.DumpRecordingRequest(name=NAME, directory=directory)
        return await self._answer(self._recording.DumpRecording(request))

    # ProfileService

    async def list_profiles(self) -> list[profile_pb2.Profile]:
        """All of them, newest first, without layers."""
        call = self._profiles.ListProfiles(profile_pb2.ListProfilesRequest(), timeout=self._timeout)
        return list((await self._answer(call)).profiles)

    async def profile(self, name: str) -> profile_pb2.Profile:
        """One, with layers; ``live`` is what strategies use now."""
        request = profile_pb2.GetProfileRequest(name=name)
        return await self._answer(self._profiles.GetProfile(request, timeout=self._timeout))

    async def save_profile(self, name: str, *, replace: bool = False) -> profile_pb2.Profile:
        """Stores what strategies use now."""
        request = profile_pb2.SaveProfileRequest(name=name, replace=replace)
        return await self._answer(self._profiles.SaveProfile(request, timeout=self._timeout))

    async def load_profile(self, name: str) -> profile_pb2.Profile:
        """Makes it what strategies use from now on."""
        request = profile_pb2.LoadProfileRequest(name=name)
        return await self._answer(self._profiles.LoadProfile(request, timeout=self._timeout))

    async def delete_profile(self, name: str) -> None:
        """Removes it."""
        request = profile_pb2.DeleteProfileRequest(name=name)
        await self._answer(self._profiles.DeleteProfile(request, timeout=self._timeout))
