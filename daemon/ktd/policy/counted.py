"""What the engine has counted, as the loop that runs a policy reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ktd.policy.base import Observation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """Sums since the engine's start; pairs are ``[layers, experts]``."""

    engine_id: str
    decode: NDArray[np.int64]
    prefill: NDArray[np.int64]
    decode_tokens: int
    prefill_tokens: int
    decode_steps: int
    prefill_steps: int

    def since(self, earlier: Counted) -> Observation:
        """What was counted after ``earlier``, which is of the same engine."""
        return Observation(
            decode=self.decode - earlier.decode,
            decode_tokens=self.decode_tokens - earlier.decode_tokens,
            prefill=self.prefill - earlier.prefill,
            prefill_tokens=self.prefill_tokens - earlier.prefill_tokens,
            prefill_steps=self.prefill_steps - earlier.prefill_steps,
        )


class Counters(Protocol):
    """Where counts come from."""

    def steps(self) -> int:
        """Forward passes so far; cheap, and while it stands still nothing is counted."""
        ...

    def move_call_seconds(self) -> float:
        """What moving experts has taken of the scheduler so far; cheap."""
        ...

    def read(self) -> Counted | None:
        """Everything; None while no engine runs."""
        ...
