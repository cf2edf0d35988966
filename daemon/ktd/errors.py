"""The one tree of errors that reach a user.

Each class carries the gRPC status code name and the UPPER_SNAKE reason under which the API
reports it (AIP-193). The message is one sentence: what is wrong, with the value, and what to do.
"""

from __future__ import annotations


class KtdError(Exception):
    """Base of every error that ktd reports to a user.

    Attributes:
        code: Name of the gRPC status code, for example ``"INVALID_ARGUMENT"``.
        reason: ``google.rpc.ErrorInfo.reason``.
        metadata: ``google.rpc.ErrorInfo.metadata``, for programs.
    """

    code = "INTERNAL"
    reason = "INTERNAL"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class ConfigError(KtdError):
    """A flag, environment variable or line of ktd.toml is wrong."""

    code = "INVALID_ARGUMENT"
    reason = "CONFIG_INVALID"


class InvalidArgument(KtdError):
    """A request is malformed or names a value out of range."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class EtagRequired(InvalidArgument):
    """A change was asked for without the etag it was planned against."""

    reason = "ETAG_REQUIRED"


class StrategyUnknown(InvalidArgument):
    """No placement strategy has that name."""

    reason = "STRATEGY_UNKNOWN"


class StrategyFailed(KtdError):
    """A strategy that another package brings raised, or chose what it may not."""

    code = "FAILED_PRECONDITION"
    reason = "STRATEGY_FAILED"


class LayerNotFound(InvalidArgument):
    """A target names a layer that the model does not have or that has no experts."""

    reason = "LAYER_NOT_FOUND"


class ExpertNotFound(InvalidArgument):
    """A target names an expert that its layer does not have, or names it twice."""

    reason = "EXPERT_NOT_FOUND"


class PlacementStale(KtdError):
    """The placement has changed since the etag was read."""

    code = "ABORTED"
    reason = "PLACEMENT_STALE"


class SwapInProgress(KtdError):
    """Another swap is running."""

    code = "ABORTED"
    reason = "SWAP_IN_PROGRESS"


class PolicyHeld(KtdError):
    """A policy may move nothing now, as an operator plans or has changed the placement."""

    code = "FAILED_PRECONDITION"
    reason = "POLICY_HELD"


class PlacementDoesNotFit(KtdError):
    """A target has more experts in a layer than the layer has slots."""

    code = "FAILED_PRECONDITION"
    reason = "PLACEMENT_DOES_NOT_FIT"


class NothingToUndo(KtdError):
    """The history has no earlier operator change."""

    code = "FAILED_PRECONDITION"
    reason = "NOTHING_TO_UNDO"


class SwapNotCancellable(KtdError):
    """The swap is committing or has ended."""

    code = "FAILED_PRECONDITION"
    reason = "SWAP_NOT_CANCELLABLE"


class NotFound(KtdError):
    """A named resource does not exist."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class PlanNotFound(NotFound):
    """The plan's id is unknown, or it has expired."""

    reason = "PLAN_NOT_FOUND"


class SwapNotFound(NotFound):
    """The swap's id is unknown."""

    reason = "SWAP_NOT_FOUND"


class EngineNotReady(KtdError):
    """The engine is not serving, so its placement cannot be changed."""

    code = "UNAVAILABLE"
    reason = "ENGINE_NOT_READY"


class EngineNotStopped(KtdError):
    """StartEngine was asked of an engine that is running."""

    code = "FAILED_PRECONDITION"
    reason = "ENGINE_NOT_STOPPED"


class EngineFailed(KtdError):
    """The engine could not be started, or ended; the message says why."""

    code = "FAILED_PRECONDITION"
    reason = "ENGINE_FAILED"


class CudaFailed(KtdError):
    """CUDA's compiler or driver refused something; the message has its reason and its log."""

    reason = "CUDA_FAILED"


class SwapTargetFailed(KtdError):
    """A step of a swap failed on a rank; the daemon rolls it back."""

    reason = "SWAP_STEP_FAILED"


class RecordingRuns(KtdError):
    """A recording was to be started while another one runs."""

    code = "FAILED_PRECONDITION"
    reason = "RECORDING"


class NotRecording(KtdError):
    """A recording was to be stopped, and none runs."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_RECORDING"


class NothingRecorded(KtdError):
    """A recording was to be written, and no pass is in it."""

    code = "FAILED_PRECONDITION"
    reason = "NOTHING_RECORDED"


class RecordingFailed(KtdError):
    """The engine could not do it, or a file could not be written; what was recorded is kept."""

    code = "FAILED_PRECONDITION"
    reason = "RECORDING_FAILED"


class ProfileNotFound(NotFound):
    """No profile has that name."""

    reason = "PROFILE_NOT_FOUND"


class ProfileExists(KtdError):
    """A profile of that name is there and may not be replaced."""

    code = "FAILED_PRECONDITION"
    reason = "PROFILE_EXISTS"


class ProfileMismatch(KtdError):
    """A profile belongs to a model of another shape."""

    code = "FAILED_PRECONDITION"
    reason = "PROFILE_MISMATCH"


class ModelUnsupported(KtdError):
    """The model is missing, incomplete, dense, or uses something that ktd does not implement."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_UNSUPPORTED"


class DoesNotFit(KtdError):
    """Memory, disk, a port or a socket is not available; the message has the sum."""

    code = "FAILED_PRECONDITION"
    reason = "RESOURCE_UNAVAILABLE"
