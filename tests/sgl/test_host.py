"""The engine host as the daemon starts it: it says hello, serves, swaps and ends."""

import os
import signal
import time

import grpc
import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

import torch

from ktd.rankfile import Word
from tests.acceptance.reference import Reference
from tests.live import MODEL
from tests.sgl.live_host import PROMPT, LiveHost

pytestmark = pytest.mark.engine

EXPERT_BYTES = 98_304  # ktd-tiny: 3 matrices of 64 x 256 bf16
SLOW = 60_000.0  # bytes a second: an expert takes more than a second and a half
# Twice the largest error of unmodified SGLang's log-probabilities of ktd-tiny, 0.149
# (docs/results/gpu-engine.md).
NEAR_TIE = 0.298


@pytest.fixture(scope="module")
def host():
    """Overlap scheduling, as by default, and slow copies."""
    with LiveHost(swap_rate=SLOW) as live:
        yield live.ready()


@pytest.fixture(scope="module")
def serial_host():
    """Without overlap scheduling, and slow copies."""
    with LiveHost("--disable-overlap-schedule", swap_rate=SLOW) as live:
        yield live.ready()


@pytest.fixture(scope="module")
def pair():
    """Two ranks."""
    with LiveHost("--tp-size", "2") as live:
        yield live.ready()


def any_moves(host):
    """One move per layer: the last slot's expert gives way to the lowest that is in no slot."""
    moves = []
    for layer, experts in host.slots().items():
        load = next(e for e in range(host.spec.num_experts) if e not in experts)
        moves.append((layer, experts[-1], load))
    return moves


def after(slots, moves):
    """Slots with every evicted expert replaced."""
    changed = {layer: list(experts) for layer, experts in slots.items()}
    for layer, evict, load in moves:
        changed[layer][changed[layer].index(evict)] = load
    return changed


def steps(host):
    return [rank.word(Word.DECODE_STEPS) for rank in host.ranks()]


def assert_steps_ran_during_a_slow_copy(host, batch):
    before, moves = host.slots(), any_moves(host)[:3]
    idle = steps(host)[0]
    generation = host.generating(400)
    while steps(host)[0] < idle + 2:
        assert generation.is_alive()
        time.sleep(0.01)
    host.prepare(batch, moves)
    unmapped, first = host.slots(), steps(host)
    assert host.wait_copied(batch) >= len(moves) * EXPERT_BYTES
    last = steps(host)
    assert all(later > earlier for earlier, later in zip(first, last, strict=True))
    assert unmapped == after(before, [(layer, evict, -1) for layer, evict, _ in moves])
    assert host.slots() == unmapped
    host.publish(batch)
    assert host.slots() == after(before, moves)
    generation.result()


# --- one rank, overlap scheduling ---------------------------------------------------------


def test_every_rank_says_hello_with_its_versions_and_what_it_hooked(host):
    """Facts that the daemon shows and checks."""
    (rank,) = host.ranks()
    hello = rank.hello()
    from importlib.metadata import version

    from ktd.version import __version__

    assert hello["ktd"] == __version__
    assert hello["sglang"] == version("sglang")
    assert hello["moe_layers_hooked"] == 6
    assert (hello["rank"], hello["world_size"]) == (0, 1)
    assert hello["isa"] in ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
    assert hello["host_store_bytes"] == 6 * 32 * EXPERT_BYTES
    assert hello["slot_bytes"] == 6 * 8 * EXPERT_BYTES
    assert rank.pid == hello["pid"]
    assert rank.word(Word.LOADED_BYTES) == rank.word(Word.TOTAL_BYTES) == 6 * 32 * EXPERT_BYTES


def test_the_state_says_ready_with_versions_at_once(host):
    """A watcher that comes late sees the last state first."""
    state = next(iter(host.states()))
    assert state.num_ranks == 1
    assert state.sglang_version
    assert state.torch_version
    assert state.message == "serving"


def test_statistics_begin_with_the_first_request_served(host):
    """Each token of each step is counted once for each of its experts, in each layer."""
    (rank,) = host.ranks()
    before = list(rank.counters), rank.word(Word.PREFILL_TOKENS), rank.word(Word.DECODE_TOKENS)
    host.generate(8, prompt="And it came to pass")
    tokens = rank.word(Word.PREFILL_TOKENS) + rank.word(Word.DECODE_TOKENS) - sum(before[1:])
    per_layer = 32 * 2
    grown = [now - then for now, then in zip(rank.counters, before[0], strict=True)]
    sums = [sum(grown[i : i + per_layer]) for i in range(0, len(grown), per_layer)]
    prefilled = rank.word(Word.PREFILL_TOKENS) - before[1]
    assert sums == [prefilled * 4] * 6 + [(tokens - prefilled) * 4] * 6


def test_decode_steps_complete_between_the_unmap_and_the_publish_of_a_slow_copy(host):
    """With overlap scheduling; the table maps neither expert meanwhile."""
    assert_steps_ran_during_a_slow_copy(host, batch=100)


def test_a_stream_goes_on_with_the_likeliest_tokens_while_experts_move(host):
    """Nobody waits for a copy, and each token is the reference's but where two are near a tie."""
    quiet = host.generate(64)
    generation = host.generating(64)
    host.swap(200, any_moves(host)[:1])
    moving = generation.result()
    assert len(moving) == 64
    reference = Reference(MODEL)
    begin = reference.tokenizer(PROMPT)["input_ids"]
    for ids in (quiet, moving):
        chances = reference.table(begin + ids)[len(begin) - 1 : -1]
        gaps = chances.max(1).values - chances.gather(1, torch.tensor(ids)[:, None])[:, 0]
        print(f"{int((gaps > 0).sum())} tokens of 64 are near-ties, at most {gaps.max():.3f} apart")
        assert float(gaps.max()) <= NEAR_TIE


@pytest.mark.parametrize(
    ("batch", "move", "sentence"),
    [
        (300, (99, -1, 2), "layer 99 has no experts"),
        (301, (0, -1, 99), "layer 0 has experts 0..31, not 99"),
        (302, (1, 31, 30), "expert 31 of layer 1 is not in a slot"),
    ],
)
def test_a_refused_move_leaves_no_trace(host, batch, move, sentence):
    """Also of the moves of its batch that were fine."""
    before = host.slots()
    first = next(m for m in any_moves(host) if m[0] == 5)
    with pytest.raises(grpc.RpcError) as refused:
        host.prepare(batch, [first, move])
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert refused.value.details() == f"rank 0: {sentence}"
    assert host.slots() == before
    with pytest.raises(grpc.RpcError, match=f"batch {batch} was not prepared"):
        host.publish(batch)


def test_an_aborted_batch_leaves_its_slots_empty_until_they_are_filled_again(host):
    """The CPU computes both experts; the slot can be loaded later."""
    before, moves = host.slots(), any_moves(host)[:1]
    ((layer, evict, load),) = moves
    host.prepare(400, moves)
    host.abort(400)
    assert host.slots() == after(before, [(layer, evict, -1)])
    assert len(host.generate(4)) == 4
    host.swap(401, [(layer, -1, load)])
    assert host.slots() == after(before, moves)


def test_a_failed_wait_for_a_batch_that_never_was_says_so(host):
    """It does not wait for ever."""
    with pytest.raises(grpc.RpcError, match="batch 999 was not prepared"):
        host.wait_copied(999)


def test_shutdown_ends_the_host_and_everything_it_started(host):
    """The reply comes first. Last test of this host."""
    from ktd.internal.v1 import control_pb2 as pb

    host.control.Shutdown(pb.ShutdownRequest(), timeout=30)
    assert host.process.wait(timeout=30) == 0
    assert host.wait_gone() == set()
    assert host.failure() is None


# --- one rank, no overlap scheduling ------------------------------------------------------


def test_decode_steps_complete_during_a_slow_copy_without_overlap_scheduling(serial_host):
    """The same two tables, on the current stream."""
    assert_steps_ran_during_a_slow_copy(serial_host, batch=100)


def test_a_killed_scheduler_ends_the_host_with_a_sentence(serial_host):
    """What the kernel does when memory runs out. Last test of this host."""
    (rank,) = serial_host.ranks()
    os.kill(rank.pid, signal.SIGKILL)
    failure = serial_host.ended()
    assert failure.kind == "internal"
    assert failure.message == "a process of SGLang ended while it served; its log says why"
    assert serial_host.wait_gone() == set()


# --- two ranks ----------------------------------------------------------------------------


def test_each_of_two_ranks_stores_and_computes_its_shard(pair):
    """Half of every expert each, on cores of its own."""
    hellos = [rank.hello() for rank in pair.ranks()]
    assert [hello["rank"] for hello in hellos] == [0, 1]
    assert {hello["host_store_bytes"] for hello in hellos} == {6 * 32 * EXPERT_BYTES // 2}
    before = [rank.word(Word.CPU_WEIGHT_BYTES) for rank in pair.ranks()]
    pair.generate(8)
    read = [
        rank.word(Word.CPU_WEIGHT_BYTES) - b for rank, b in zip(pair.ranks(), before, strict=True)
    ]
    assert read[0] == read[1] > 0


def test_two_ranks_swap_together_while_a_stream_runs(pair):
    """Both acknowledge, both agree, and the stream goes on."""
    before = pair.slots()
    generation = pair.generating(64)
    expected = before
    for batch in range(1, 21):
        moves = any_moves(pair)
        pair.swap(batch, moves)
        expected = after(expected, moves)
    assert pair.slots() == expected
    assert len(generation.result()) == 64
    copied = [rank.word(Word.SWAP_BYTES) for rank in pair.ranks()]
    assert copied == [20 * 6 * EXPERT_BYTES // 2] * 2


def test_a_host_whose_daemon_is_gone_ends_with_all_its_children(pair):
    """The lifeline closes when its holder dies. Last test of this host."""
    os.close(pair.lifeline)
    pair.lifeline = -1
    pair.process.wait(timeout=15)
    assert pair.wait_gone(15) == set()


# --- starts that fail, and starts that are ended ------------------------------------------


def test_an_unknown_flag_ends_the_start_with_sglangs_message():
    """Before any weight is read."""
    with LiveHost("--no-such-flag") as host:
        failure = host.ended()
        assert host.process.returncode == 1
        assert failure.kind == "usage"
        assert "unrecognized arguments: --no-such-flag; ktd's flags are in" in failure.message
        assert host.wait_gone() == set()


def test_an_engine_without_the_plugin_is_not_served():
    """SGLang does not mind that a plugin did not load; ktd does."""
    with LiveHost(environment={"SGLANG_PLUGINS": "another"}) as host:
        failure = host.ended()
        assert failure.kind == "plugin"
        assert failure.message == "ktd's plugin did not load in SGLang's scheduler rank 0"
        assert host.wait_gone() == set()


def test_fewer_hooked_layers_than_the_model_has_end_the_start():
    """A model class that goes past the seam in one layer must not be served half hybrid."""
    with LiveHost(moe_layers=range(7)) as host:
        failure = host.ended()
        assert failure.kind == "plugin"
        assert failure.message.startswith("rank 0 hooked 6 of the model's 7 MoE layers;")


def test_a_host_that_is_terminated_while_it_loads_leaves_nothing():
    """Before SGLang's own handlers exist."""
    with LiveHost() as host:
        for state in host.states():
            if state.message == "loading the model":
                break
        host.process.terminate()
        assert host.process.wait(timeout=20) == 0
        assert host.wait_gone() == set()
