"""However SGLang puts tokens together into steps, answers stay what they are, beside swaps too.

Prompts in several chunks, decoding streams in the same step as a chunk, more streams than graphs
were captured for, no graphs, no overlap of a step with what is done about the one before it.
"""

import asyncio
from dataclasses import dataclass

import aiohttp
import pytest

from ktd.client import KtdClient
from tests.acceptance.agreement import (
    DECODE_FACTOR,
    decode_error_of,
    require_close,
    require_greedy,
)
from tests.acceptance.conftest import TOKENS
from tests.acceptance.openai import stream
from tests.acceptance.placements import errors_of_placements
from tests.acceptance.reference import POSITIONS, TEXTS
from tests.acceptance.storm import swapping
from tests.live import LiveDaemon
from tests.skips import needs_gpu

pytestmark = pytest.mark.engine

CHUNK = 64
CHUNKED = ("--chunked-prefill-size", str(CHUNK))
WAYS = (
    # Where log-probabilities are asked for, SGLang mixes nothing: the other test does.
    pytest.param((*CHUNKED, "--enable-mixed-chunk"), id="mixed"),
    pytest.param((*CHUNKED, "--disable-overlap-schedule"), id="chunked-without-overlap"),
    # Streams below are four and six.
    pytest.param(("--cuda-graph-max-bs-decode", "2"), id="beyond-the-graphs", marks=needs_gpu),
    pytest.param(("--disable-cuda-graph",), id="eager", marks=needs_gpu),
)
STREAMS, BEGINNING, LENGTH = 4, 24, 96
FILLERS = 2
# Prompts of each: where they go first, as SGLang has it without mixing, streams wait for them.
MOST = 18
NEAR = 0.05


@dataclass
class Way:
    """A daemon whose SGLang makes steps in one way."""

    arguments: tuple[str, ...]
    daemon: LiveDaemon

    @property
    def chunked(self):
        """Whether a prompt of all positions takes several steps."""
        return "--chunked-prefill-size" in self.arguments

    @property
    def mixed(self):
        """Whether streams decode in the steps of prompts."""
        return "--enable-mixed-chunk" in self.arguments


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    # Each prompt is computed, also one that has been before.
    arguments = ("--gpu-experts-ratio", "0.37", "--disable-radix-cache", *TOKENS, *request.param)
    with LiveDaemon(*arguments) as daemon:
        yield Way(request.param, daemon)


@pytest.fixture(scope="session")
def stock_decode_error(stock_url, reference):
    return decode_error_of(stock_url, reference)


def test_logprobs_agree_with_the_reference(
    way, reference, stock_error, stock_decode_error, record_property
):
    """At six placements, and decoded in six streams while experts move."""
    errors = errors_of_placements(way.daemon, reference)
    require_close(errors.mean, stock_error, record_property, str(errors))

    async def decoded():
        async with swapping(way.daemon.socket) as storm:
            error = await asyncio.to_thread(decode_error_of, way.daemon.http_url, reference)
            return error, storm.committed

    error, swaps = asyncio.run(decoded())
    assert swaps
    require_close(
        error,
        stock_decode_error,
        record_property,
        f"decoded, {swaps} swaps",
        factor=DECODE_FACTOR,
    )


async def totals(client):
    return (await client.stats()).totals


async def streams_between_prompts(daemon, short, long):
    """Greedy streams of ``short`` while ``long`` are asked for one token each, and experts move.

    Returns each prompt with what followed it, of both kinds, and what was counted meanwhile.
    """
    timeout = aiohttp.ClientTimeout(total=600)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        KtdClient(daemon.socket) as client,
        swapping(daemon.socket) as storm,
    ):
        before, over = await totals(client), asyncio.Event()

        async def fill(prompts):
            found = []
            while not over.is_set() and len(found) < MOST:
                for prompt in prompts:
                    answer = await stream(session, daemon.http_url, prompt, 1)
                    found.append((prompt, answer.ids))
            return found

        filling = [asyncio.create_task(fill(long[n::FILLERS])) for n in range(FILLERS)]
        answers = await asyncio.gather(
            *(stream(session, daemon.http_url, prompt, LENGTH) for prompt in short)
        )
        over.set()
        filled = await asyncio.gather(*filling)
        after = await totals(client)
        assert storm.committed
    counted = {
        name: getattr(after, name) - getattr(before, name)
        for name in ("decode_steps", "decode_tokens", "prefill_steps", "prefill_tokens")
    }
    streams = [(prompt, answer.ids) for prompt, answer in zip(short, answers, strict=True)]
    return streams, [one for of_filler in filled for one in of_filler], counted


def test_streams_go_on_between_long_prompts(way, reference, stock_url):
    """Each of their tokens is the likeliest, as far as bfloat16 can tell, and the prompts' too."""
    texts = [reference.text(name, window) for name in TEXTS for window in range(2)]
    short = [texts[number][at : at + BEGINNING] for number, at in ((0, 0), (2, 0), (4, 0), (0, 60))]
    streams, filled, counted = asyncio.run(streams_between_prompts(way.daemon, short, texts))
    assert len(filled) >= len(texts)
    assert all(len(ids) == LENGTH for _, ids in streams)
    assert all(len(prompt) == POSITIONS for prompt, _ in filled)
    once = {(tuple(prompt), tuple(ids)): (prompt, ids) for prompt, ids in [*streams, *filled]}
    near, error = require_greedy(reference, stock_url, list(once.values()))
    print(
        f"{len(streams)} streams and {len(filled)} prompts, {counted}: {near} tokens were not the "
        f"reference's likeliest, each within 2 x {error:.3f} of it"
    )
    # Tokens that are as good are rare; a lost expert makes many of them.
    assert near <= NEAR * sum(len(ids) for _, ids in once.values())
    # A chunk of one token looks like one more stream where streams are in its step.
    unlike = sum(map(len, short)) + len(filled) * POSITIONS - counted["prefill_tokens"]
    assert 0 <= unlike <= (len(filled) if way.mixed else 0)
    # A first token comes of the prompt; behind each answer's last one a step may have begun.
    further = counted["decode_tokens"] - unlike - STREAMS * (LENGTH - 1)
    assert 0 <= further <= STREAMS + len(filled)
    # So many steps at least, if no token comes of a step that also reads a prompt.
    assert (counted["decode_steps"] < LENGTH - 1) is way.mixed
    assert (counted["prefill_steps"] >= len(filled) * POSITIONS / CHUNK) is way.chunked
