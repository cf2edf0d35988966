"""The client's calls about policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktd.client.calls import NAME, Calls
from ktd.v1 import policy_pb2
from ktd.v1.policy_pb2_grpc import PolicyServiceStub

if TYPE_CHECKING:
    import grpc.aio


class PolicyCalls(Calls):
    """A part of :class:`~ktd.client.client.KtdClient`."""

    _metadata: tuple[tuple[str, str], ...]

    def _connect_policies(self, channel: grpc.aio.Channel) -> None:
        self._policies = PolicyServiceStub(channel)

    async def policy(self) -> policy_pb2.Policy:
        """The policy that runs."""
        request = policy_pb2.GetPolicyRequest(name=NAME)
        return await self._answer(self._policies.GetPolicy(request, timeout=self._timeout))

    async def set_policy(
        self,
        policy: str,
        *,
        copy_cost: float | None = None,
        default_copy_cost: bool = False,
        copy_rate: float | None = None,
        threshold: int | None = None,
    ) -> policy_pb2.Policy:
        """Runs a policy from now on; what is None stays as it is.

        Args:
            policy: ``off``, ``dynamic`` or ``adaptive``.
            copy_cost: Pairs on the CPU that a copied expert costs.
            default_copy_cost: The default instead.
            copy_rate: Bytes per second.
            threshold: Tokens of a prefill that decides, for ``dynamic``.
        """
        request = policy_pb2.SetPolicyRequest(
            name=NAME,
            policy=policy,
            copy_cost=copy_cost,
            default_copy_cost=default_copy_cost,
            copy_rate=copy_rate,
            threshold=threshold,
        )
        call = self._policies.SetPolicy(request, timeout=self._timeout, metadata=self._metadata)
        return await self._answer(call)

    async def explain_policy(
        self, *, moves: int | None = None, candidates: int | None = None
    ) -> policy_pb2.PolicyExplanation:
        """Its last moves, and what speaks against the best candidates."""
        request = policy_pb2.ExplainPolicyRequest(name=NAME, moves=moves, candidates=candidates)
        return await self._answer(self._policies.ExplainPolicy(request, timeout=self._timeout))
