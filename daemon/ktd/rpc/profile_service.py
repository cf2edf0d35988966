"""``ktd.v1.ProfileService``."""
# ruff: noqa: N802  # method names are the API's

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ktd.rpc.convert_stats import profile_message
from ktd.v1 import profile_pb2, profile_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from ktd.stats.profiles import Profiles

    Context = grpc.aio.ServicerContext[Any, Any]


class ProfileService(profile_pb2_grpc.ProfileServiceServicer):
    """Statistics with a name."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    async def ListProfiles(
        self, request: profile_pb2.ListProfilesRequest, context: Context
    ) -> profile_pb2.ListProfilesResponse:
        """All of them, newest first, without layers."""
        del request, context
        found = (profile_message(profile, layers=False) for profile in self._profiles.all())
        return profile_pb2.ListProfilesResponse(profiles=found)

    async def GetProfile(
        self, request: profile_pb2.GetProfileRequest, context: Context
    ) -> profile_pb2.Profile:
        """One, with layers."""
        del context
        return profile_message(self._profiles.get(request.name))

    async def SaveProfile(
        self, request: profile_pb2.SaveProfileRequest, context: Context
    ) -> profile_pb2.Profile:
        """Stores what strategies use now."""
        del context
        saved = self._profiles.save(request.name, replace=request.replace)
        return profile_message(saved, layers=False)

    async def LoadProfile(
        self, request: profile_pb2.LoadProfileRequest, context: Context
    ) -> profile_pb2.Profile:
        """Makes it what strategies use."""
        del context
        return profile_message(self._profiles.load(request.name), layers=False)

    async def DeleteProfile(
        self, request: profile_pb2.DeleteProfileRequest, context: Context
    ) -> profile_pb2.DeleteProfileResponse:
        """Removes it."""
        del context
        self._profiles.delete(request.name)
        return profile_pb2.DeleteProfileResponse()
