"""From the control channel to the ranks: sequences, acknowledgements, silence and batches."""

import asyncio
import dataclasses
import json
import time
from pathlib import Path

import grpc
import pytest

pytest.importorskip("grpc", reason="gRPC is not installed")

from ktd.enginespec import EngineSpec
from ktd.internal.v1 import control_pb2 as pb
from ktd.internal.v1 import control_pb2_grpc
from ktd.rankfile import RankFileReader, RankFileWriter, Word, path_of
from ktd.sgl import collective
from ktd.sgl.collective import CallFailed, CollectiveCalls, RanksSilent
from ktd.sgl.control_service import ControlService
from ktd.sgl.control_thread import ControlThread
from ktd.sgl.host_state import HostStateCell

SPEC = EngineSpec(
    engine_id="t-1",
    runtime_dir="/nowhere",
    model_path="/nowhere",
    sglang_args=(),
    device="cpu",
    moe_layers=(0,),
    num_experts=2,
    experts_per_token=1,
    slots=(1,),
    initial=((),),
)
SECOND = 1_000_000_000


class Ranks:
    """Rank files, and a broadcast that acknowledges in them as ranks would."""

    def __init__(self, folder, count=2):
        self.files = [
            RankFileWriter(path_of(folder, rank), rank=rank, num_layers=1, num_experts=2)
            for rank in range(count)
        ]
        self.readers = [RankFileReader(path_of(folder, rank)) for rank in range(count)]
        self.requests = []
        self.errors = {}  # (rank, call) -> sentence
        self.deaf = set()  # ranks that do not acknowledge
        self.slots = [{"0": [1]} for _ in range(count)]
        self.folder = folder
        for file in self.files:
            file.beat()

    def broadcast(self, request):
        fields = json.loads(request)
        self.requests.append(fields)
        for rank, file in enumerate(self.files):
            if rank in self.deaf:
                continue
            if fields["call"] == "slots":
                report = {"sequence": fields["sequence"], "slots": self.slots[rank]}
                (self.folder / f"slots-{rank}.json").write_text(json.dumps(report))
            error = self.errors.get((rank, fields["call"]))
            file.acknowledge_call(fields["sequence"], error)
            if fields["call"] == "prepare":
                file.words[Word.SWAP_BYTES] += 100
                file.acknowledge_copy(fields["batch"], error or self.errors.get((rank, "copy")))

    def names(self):
        return [request["call"] for request in self.requests]


@pytest.fixture
def ranks(tmp_path):
    return Ranks(tmp_path)


@pytest.fixture
def calls(ranks):
    return CollectiveCalls(ranks.broadcast, ranks.readers)


# --- collective calls ---------------------------------------------------------------------


async def test_calls_are_numbered_and_carry_their_fields(calls, ranks):
    """Each rank acknowledges by that number."""
    assert await calls.call("publish", batch=7) == 1
    assert await calls.call("slots") == 2
    assert ranks.requests[0] == {"sequence": 1, "call": "publish", "batch": 7}


async def test_calls_at_the_same_time_do_not_take_each_others_acknowledgements(calls):
    """A rank keeps the last one only."""
    assert sorted(await asyncio.gather(*(calls.call("slots") for _ in range(50)))) == [
        *range(1, 51)
    ]


async def test_the_failure_of_any_rank_fails_the_call_with_its_sentence(calls, ranks):
    """SGLang's own reply speaks for rank 0 only."""
    ranks.errors[1, "publish"] = "rank 1: no"
    with pytest.raises(CallFailed, match=r"^rank 1: no$"):
        await calls.call("publish", batch=7)


async def test_a_rank_that_did_not_run_the_call_is_named(calls, ranks):
    """Its acknowledgement is that of an older call."""
    await calls.call("slots")
    ranks.deaf.add(1)
    with pytest.raises(CallFailed, match="rank 1 did not acknowledge call 2"):
        await calls.call("slots")


async def test_a_broadcast_that_fails_is_a_failed_call(ranks):
    """SGLang raises when rank 0 answers with an error."""

    def broken(_request):
        raise RuntimeError("zmq is closed")

    calls = CollectiveCalls(broken, ranks.readers)
    with pytest.raises(CallFailed, match="zmq is closed"):
        await calls.call("slots")


async def test_schedulers_that_neither_compute_nor_beat_are_silent(ranks, monkeypatch):
    """A call that never returns ends the engine instead of hanging the swap."""
    monkeypatch.setattr(collective, "_LOOK_SECONDS", 0.01)
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stuck(_request):
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()

    calls = CollectiveCalls(stuck, ranks.readers)
    for file in ranks.files:
        file.words[Word.HEARTBEAT_NS] = max(0, time.monotonic_ns() - 31 * SECOND)
        file.words[Word.IN_STEP] = 1
    call = asyncio.create_task(calls.call("slots"))
    done, _ = await asyncio.wait({call}, timeout=0.1)
    assert not done, "a long step is not silence"
    for file in ranks.files:
        file.words[Word.IN_STEP] = 0
    with pytest.raises(RanksSilent, match="did not answer 'slots'"):
        await call
    released.set()


async def test_a_copy_is_waited_for_on_every_rank(calls, ranks):
    """The slowest rank decides, and its error is the batch's."""
    ranks.files[0].acknowledge_copy(5)
    waiting = asyncio.create_task(calls.copied(5))
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    ranks.files[1].acknowledge_copy(5, "rank 1: copying failed")
    with pytest.raises(CallFailed, match="rank 1: copying failed"):
        await waiting


async def test_a_copy_on_a_silent_rank_is_not_waited_for(calls, ranks):
    """The rank will never acknowledge it."""
    ranks.files[0].acknowledge_copy(5)
    ranks.files[1].words[Word.HEARTBEAT_NS] = 0
    if time.monotonic_ns() < 31 * SECOND:
        pytest.skip("this host has just been booted")
    with pytest.raises(RanksSilent, match="rank 1 has not copied batch 5"):
        await calls.copied(5)


# --- the service --------------------------------------------------------------------------


class Served:
    """The service on a socket, with a client, over fake ranks."""

    def __init__(self, folder, ranks):
        self.ranks = ranks
        self.stopped, self.given_up = asyncio.Event(), []
        spec = dataclasses.replace(SPEC, runtime_dir=str(folder))
        self.state = HostStateCell(asyncio.get_running_loop(), pb.HostState())
        self.service = ControlService(
            spec, self.state, stop=self.stopped.set, give_up=self.given_up.append
        )
        self._socket = Path(folder) / "c.sock"

    async def __aenter__(self):
        self._server = grpc.aio.server()
        control_pb2_grpc.add_EngineControlServiceServicer_to_server(self.service, self._server)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"unix:{self._socket}")
        self.client = control_pb2_grpc.EngineControlServiceStub(self._channel)
        return self

    async def __aexit__(self, *_):
        await self._channel.close()
        await self._server.stop(grace=0)

    def load(self):
        self.service.calls = CollectiveCalls(self.ranks.broadcast, self.ranks.readers)

    async def prepare(self, batch, *moves):
        moves = moves or ((0, -1, 1),)
        await self.client.PrepareMoves(
            pb.PrepareMovesRequest(
                batch_id=batch,
                moves=[pb.HostMove(layer=la, evict=ev, load=lo) for la, ev, lo in moves],
            )
        )


@pytest.fixture
async def served(short_dir):
    async with Served(short_dir, Ranks(short_dir)) as live:
        live.load()
        yield live


async def test_calls_before_the_ranks_are_there_are_unavailable(short_dir):
    """The daemon asks again later."""
    async with Served(short_dir, Ranks(short_dir)) as live:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await live.client.GetSlots(pb.GetSlotsRequest())
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert refused.value.details() == "the engine is still loading"


async def test_a_batch_goes_through_with_the_bytes_of_its_own_copies(served):
    """Not those of batches before it."""
    for batch in (1, 2):
        await served.prepare(batch)
        copied = await served.client.WaitCopied(pb.WaitCopiedRequest(batch_id=batch))
        assert copied.bytes == 200
        await served.client.PublishMoves(pb.PublishMovesRequest(batch_id=batch))
    assert served.ranks.names() == ["prepare", "publish"] * 2


async def test_a_rank_that_refuses_fails_the_call_in_its_own_words(served):
    """INTERNAL with one sentence."""
    served.ranks.errors[1, "prepare"] = "rank 1: expert 0 of layer 0 is not in a slot"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.prepare(1)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert refused.value.details() == "rank 1: expert 0 of layer 0 is not in a slot"


async def test_abort_after_a_failed_prepare_tells_every_rank_the_moves(served):
    """Ranks that never prepared the batch have to empty its slots too."""
    served.ranks.errors[1, "prepare"] = "rank 1: no"
    with pytest.raises(grpc.aio.AioRpcError):
        await served.prepare(1, (0, 0, 1))
    await served.client.AbortMoves(pb.AbortMovesRequest(batch_id=1))
    assert served.ranks.requests[-1] == {
        "sequence": 2,
        "call": "abort",
        "batch": 1,
        "moves": [[0, 0, 1]],
    }


async def test_abort_waits_for_a_failed_copy_and_then_goes_on(served):
    """What failed is what is being aborted."""
    served.ranks.errors[0, "copy"] = "rank 0: copying failed"
    await served.prepare(1)
    with pytest.raises(grpc.aio.AioRpcError, match="copying failed"):
        await served.client.WaitCopied(pb.WaitCopiedRequest(batch_id=1))
    await served.client.AbortMoves(pb.AbortMovesRequest(batch_id=1))
    assert served.ranks.names()[-1] == "abort"


async def test_a_batch_that_never_was_is_named_at_once(served):
    """Waiting for it would never end."""
    for method, request in (
        (served.client.WaitCopied, pb.WaitCopiedRequest(batch_id=3)),
        (served.client.AbortMoves, pb.AbortMovesRequest(batch_id=3)),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="batch 3 was not prepared"):
            await method(request)


async def test_batch_ids_only_grow(served):
    """An acknowledgement of an old batch would pass for one of a new batch with its id."""
    await served.prepare(5)
    with pytest.raises(grpc.aio.AioRpcError, match="batch 5 comes after batch 5; ids must grow"):
        await served.prepare(5)


async def test_slots_are_those_of_all_ranks_or_an_error(served):
    """Ranks that disagree are not averaged."""
    answer = await served.client.GetSlots(pb.GetSlotsRequest())
    assert [(layer.layer, list(layer.experts)) for layer in answer.layers] == [(0, [1])]
    served.ranks.slots[1] = {"0": [0]}
    with pytest.raises(grpc.aio.AioRpcError, match="the ranks' slots differ"):
        await served.client.GetSlots(pb.GetSlotsRequest())


async def test_a_batch_is_copied_when_a_later_one_is(served):
    """Acknowledgements are one word a rank, and copies are in order."""
    await served.prepare(1)
    await served.prepare(2)
    first = await served.client.WaitCopied(pb.WaitCopiedRequest(batch_id=1))
    assert first.bytes == 400  # of two ranks, since it was prepared
    await served.client.PublishMoves(pb.PublishMovesRequest(batch_id=1))
    await served.client.WaitCopied(pb.WaitCopiedRequest(batch_id=2))


async def test_a_failure_of_a_later_batch_is_seen_by_who_waits_for_the_first(served):
    """Both are taken back then, so nothing is lost by it."""
    await served.prepare(1)
    served.ranks.errors[1, "copy"] = "rank 1: no"
    await served.prepare(2)
    with pytest.raises(grpc.aio.AioRpcError, match="rank 1: no"):
        await served.client.WaitCopied(pb.WaitCopiedRequest(batch_id=1))


async def test_silent_schedulers_end_the_host_and_say_why(served, monkeypatch):
    """The daemon learns it from the failure that is left, and from the call."""
    monkeypatch.setattr(collective, "_SILENCE_SECONDS", 0.0)
    await served.prepare(1)
    batches = served.service._batches
    batches.append(type(batches[0])(2, [], 0))
    with pytest.raises(grpc.aio.AioRpcError, match="has not copied batch 2"):
        await served.client.WaitCopied(pb.WaitCopiedRequest(batch_id=2))
    assert served.given_up == ["rank 0 has not copied batch 2 and does not answer"]


async def test_shutdown_answers_before_it_stops(served):
    """The daemon must not take the end for a crash."""
    await served.client.Shutdown(pb.ShutdownRequest())
    await asyncio.wait_for(served.stopped.wait(), 10)


async def test_a_control_socket_that_cannot_be_bound_is_an_error_and_not_a_hang(short_dir):
    """The main thread waits for the socket to be served."""
    spec = dataclasses.replace(SPEC, runtime_dir=str(short_dir / "not" / "there"))
    thread = ControlThread(spec, stop=lambda: None, give_up=lambda _: None)
    with pytest.raises(OSError, match=r"control\.sock cannot be served"):
        await asyncio.to_thread(thread.start)
    thread.close()


# --- state --------------------------------------------------------------------------------


async def test_a_watcher_sees_the_state_at_once_and_then_each_last_change(served):
    """Facts that were set before stay; a change from another thread wakes the watcher."""
    watch = served.client.WatchState(pb.WatchStateRequest())
    first = await watch.read()
    assert first.phase == pb.HostState.PHASE_UNSPECIFIED
    await asyncio.to_thread(
        served.state.set, pb.HostState.PHASE_LOADING, "loading", torch_version="9"
    )
    assert (await watch.read()).message == "loading"
    served.state.set(pb.HostState.PHASE_READY, "serving", num_ranks=2)
    last = await watch.read()
    assert (last.message, last.torch_version, last.num_ranks) == ("serving", "9", 2)
    watch.cancel()


async def test_a_slow_watcher_skips_values_but_never_the_last(served):
    """Nothing is queued for it."""
    for number in range(100):
        served.state.set(pb.HostState.PHASE_LOADING, str(number))
    async for state in served.client.WatchState(pb.WatchStateRequest()):
        assert state.message == "99"
        break
