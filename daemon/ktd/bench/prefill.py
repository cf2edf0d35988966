"""``ktd bench prefill``: how fast a server reads a long prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ktd.bench.prompts import Prompts
from ktd.bench.servers import RunningServer
from ktd.bench.summary import Summary
from ktd.bench.timed_stream import timed_completion

# Where experts stream to a GPU the CPU's share of them grows from pass to pass; after a dozen it
# has settled (docs/results/prefill-30b-8-lengths.json).
_LEARNING = 16


@dataclass(frozen=True, slots=True)
class PrefillResult:
    """Tokens per second of each server: prompt tokens over the time to the first token."""

    prompt_tokens: int
    tokens_per_second: dict[str, Summary]
    first_token_ms: dict[str, Summary]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def measure_prefill(
    server: RunningServer,
    prompts: Prompts,
    *,
    tokens: int,
    runs: int,
    progress: Callable[[str], None],
) -> PrefillResult:
    """Sends ``runs`` prompts, after those of :func:`warm_ups`; each is another one."""
    progress(f"warming up {server.name}")
    for _ in range(warm_ups(server, tokens)):
        timed_completion(server.endpoint, prompts.tokens(tokens), 1)
    rates, times = [], []
    for run in range(runs):
        first = timed_completion(server.endpoint, prompts.tokens(tokens), 1).first
        rates.append(tokens / first)
        times.append(1e3 * first)
        progress(f"run {run + 1}/{runs}: {server.name} {rates[-1]:.0f} tokens/s")
    return PrefillResult(tokens, {server.name: Summary.of(rates)}, {server.name: Summary.of(times)})


def warm_ups(server: RunningServer, tokens: int) -> int:
    """How many prompts of so many tokens do not count: more than one where ktd learns by them."""
    threshold = 0 if server.socket is None else asyncio.run(_streams_from(server.socket))
    return _LEARNING if 0 < threshold <= tokens else 1


async def _streams_from(socket: Path) -> int:
    """Tokens from which experts stream to a GPU; 0: never."""
    # A host that measures kernels alone has no gRPC.
    from ktd.client import KtdClient  # noqa: PLC0415

    async with KtdClient(socket) as client:
        ranks = (await client.status()).ranks
    return max((rank.prefill_threshold for rank in ranks), default=0)
