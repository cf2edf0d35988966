"""Typed async client of the ktd daemon, for the CLI, the TUI and tests.

The API's messages are handed on from here, so that programs of a user need nothing else of ktd.
"""

from ktd.client.client import KtdClient
from ktd.client.errors import DaemonUnreachable
from ktd.client.socket import default_socket
from ktd.errors import KtdError
from ktd.v1.engine_pb2 import Condition, EnginePhase, EngineStatus, Version
from ktd.v1.fit_pb2 import FitPlacementResponse
from ktd.v1.placement_pb2 import (
    Forecast,
    HistoryEntry,
    LayerPlacement,
    Move,
    Placement,
    Plan,
    RestartWithPlacementResponse,
    Swap,
    SwapState,
)
from ktd.v1.policy_pb2 import Policy, PolicyCandidate, PolicyExplanation, PolicyMove
from ktd.v1.profile_pb2 import Profile
from ktd.v1.recording_pb2 import DumpRecordingResponse, Recording, RecordingMode
from ktd.v1.stats_pb2 import LayerCounts, StatsSnapshot

__all__ = [
    "Condition",
    "DaemonUnreachable",
    "DumpRecordingResponse",
    "EnginePhase",
    "EngineStatus",
    "FitPlacementResponse",
    "Forecast",
    "HistoryEntry",
    "KtdClient",
    "KtdError",
    "LayerCounts",
    "LayerPlacement",
    "Move",
    "Placement",
    "Plan",
    "Policy",
    "PolicyCandidate",
    "PolicyExplanation",
    "PolicyMove",
    "Profile",
    "Recording",
    "RecordingMode",
    "RestartWithPlacementResponse",
    "StatsSnapshot",
    "Swap",
    "SwapState",
    "Version",
    "default_socket",
]
