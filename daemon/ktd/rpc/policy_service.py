"""``ktd.v1.PolicyService``."""
# ruff: noqa: N802  # method names are the API's

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from ktd.errors import InvalidArgument
from ktd.policy.options import PolicyOptions
from ktd.rpc.actor import actor_of
from ktd.rpc.convert_policy import explanation_message, policy_message
from ktd.rpc.names import check_engine
from ktd.v1 import policy_pb2, policy_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from ktd.placement.manager import PlacementManager
    from ktd.policy.loop import PolicyLoop

    Context = grpc.aio.ServicerContext[Any, Any]

_SHOWN = 20
_MOST_SHOWN = 500
_log = structlog.get_logger(__name__)


class PolicyService(policy_pb2_grpc.PolicyServiceServicer):
    """Reads, sets and explains the policy that runs.

    Args:
        policies: Its owner.
        placement: Whose hold says whether an operator goes first.
    """

    def __init__(self, policies: PolicyLoop, placement: PlacementManager) -> None:
        self._policies = policies
        self._placement = placement

    async def GetPolicy(
        self, request: policy_pb2.GetPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """What runs."""
        del context
        check_engine(request.name)
        return policy_message(self._policies, self._placement.policy_hold)

    async def SetPolicy(
        self, request: policy_pb2.SetPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Runs another one, or the same with other options."""
        check_engine(request.name)
        options = _wanted(self._policies.options, request)
        self._policies.set(options)
        _log.info("policy set by", policy=options.name, actor=actor_of(context))
        return policy_message(self._policies, self._placement.policy_hold)

    async def ExplainPolicy(
        self, request: policy_pb2.ExplainPolicyRequest, context: Context
    ) -> policy_pb2.PolicyExplanation:
        """Its moves and candidates."""
        del context
        check_engine(request.name)
        moves = request.moves if request.HasField("moves") else _SHOWN
        candidates = request.candidates if request.HasField("candidates") else _SHOWN
        for name, value in (("moves", moves), ("candidates", candidates)):
            if not 0 <= value <= _MOST_SHOWN:
                raise InvalidArgument(f"{name} is {value}; it must be from 0 to {_MOST_SHOWN}.")
        found = await self._policies.explain(moves, candidates)
        return explanation_message(
            found, policy_message(self._policies, self._placement.policy_hold)
        )


def _wanted(now: PolicyOptions, request: policy_pb2.SetPolicyRequest) -> PolicyOptions:
    """The options as they are, with what the request sets.

    Raises:
        InvalidArgument: a value is out of range, or no policy is named.
    """
    if not request.policy:
        raise InvalidArgument("The request names no policy: give off, dynamic or adaptive.")
    options = replace(now, name=request.policy)
    if request.default_copy_cost:
        if request.HasField("copy_cost"):
            raise InvalidArgument("The request sets copy_cost and asks for its default; give one.")
        options = replace(options, copy_cost=None)
    if request.HasField("copy_cost"):
        options = replace(options, copy_cost=request.copy_cost)
    if request.HasField("copy_rate"):
        options = replace(options, copy_rate=request.copy_rate)
    if request.HasField("threshold"):
        options = replace(options, threshold=request.threshold)
    return options
