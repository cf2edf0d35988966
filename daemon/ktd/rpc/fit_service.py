"""``ktd.v1.FitService``."""
# ruff: noqa: N802  # method names are the API's

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ktd.rpc.names import check_engine
from ktd.v1 import fit_pb2, fit_pb2_grpc

if TYPE_CHECKING:
    import grpc.aio

    from ktd.rpc.ports import FitSource

    Context = grpc.aio.ServicerContext[Any, Any]


class FitService(fit_pb2_grpc.FitServiceServicer):
    """How many experts fit into slots.

    Args:
        source: Knows the model and looks at the memory.
    """

    def __init__(self, source: FitSource) -> None:
        self._source = source

    async def FitPlacement(
        self, request: fit_pb2.FitPlacementRequest, context: Context
    ) -> fit_pb2.FitPlacementResponse:
        """The budget as of now."""
        del context
        check_engine(request.name)
        # On a host with GPUs a process is asked for their memory.
        found = await asyncio.to_thread(self._source.fit)
        return fit_pb2.FitPlacementResponse(
            slots=found.slots,
            ratio=found.ratio,
            largest_slots=found.largest,
            total_experts=found.total_experts,
            num_layers=found.num_layers,
            expert_bytes=found.expert_bytes,
            slot_bytes=found.slot_bytes,
            free_bytes=found.free_bytes,
            room_bytes=found.room_bytes,
            assumptions=found.assumptions,
        )
