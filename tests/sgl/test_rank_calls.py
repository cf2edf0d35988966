"""Batches of moves on one rank, from the call to its acknowledgement, without SGLang's engine."""

import json
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

import torch

from ktd.enginespec import EngineSpec, read_failure
from ktd.rankfile import RankFileReader, Status, Word, path_of
from ktd.sgl.cuda_side import CudaSide
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.rank import Rank
from ktd.sgl.slot_source import PlainSource

LAYERS, EXPERTS, SLOTS = (1, 4), 8, 2


class OneRank:
    """A rank with two small layers, called as its scheduler would call it."""

    def __init__(self, folder, rank=0):
        spec = EngineSpec(
            engine_id="t-1",
            runtime_dir=str(folder),
            model_path="/nowhere",
            sglang_args=(),
            device="cpu",
            moe_layers=LAYERS,
            num_experts=EXPERTS,
            experts_per_token=1,
            slots=(SLOTS,) * 2,
            initial=((),) * 2,
            cpu_threads=1,
        )
        self.rank = Rank(spec, rank=rank, world_size=1)
        self.reader = RankFileReader(path_of(folder, rank))
        self._sequence = 0
        for layer in LAYERS:
            self.rank.add_layer(
                ExpertLayer(
                    layer=layer,
                    num_experts=EXPERTS,
                    num_slots=SLOTS,
                    store=PlainSource({"w": torch.randn(EXPERTS, 16)}),
                    slots={"w": torch.zeros(SLOTS, 16)},
                    table=torch.full((EXPERTS,), -1, dtype=torch.int32),
                )
            )

    def call(self, name, **fields):
        self._sequence += 1
        self.rank.call(json.dumps({"sequence": self._sequence, "call": name, **fields}))
        ack = self.reader.call_ack()
        assert ack.sequence == self._sequence
        return ack

    def prepare(self, batch, *moves, **fields):
        return self.call("prepare", batch=batch, moves=[list(move) for move in moves], **fields)

    def copied(self, batch):
        while self.reader.copy_ack().sequence < batch:
            time.sleep(0.001)
        return self.reader.copy_ack()

    def swap(self, batch, *moves):
        assert self.prepare(batch, *moves).status is Status.OK
        assert self.copied(batch).status is Status.OK
        assert self.call("publish", batch=batch).status is Status.OK

    def slots(self):
        return {layer: self.rank.layers[layer].mapped() for layer in LAYERS}


@pytest.fixture
def rank(tmp_path):
    return OneRank(tmp_path)


def test_a_batch_is_mapped_when_it_is_published_and_its_bytes_are_there(rank):
    """Copies and tables of two layers in one batch."""
    rank.prepare(1, (1, -1, 5), (4, -1, 6))
    rank.copied(1)
    assert rank.slots() == {1: [-1, -1], 4: [-1, -1]}
    assert rank.call("publish", batch=1).status is Status.OK
    assert rank.slots() == {1: [5, -1], 4: [6, -1]}
    layer = rank.rank.layers[4]
    assert torch.equal(layer.slots["w"][0], layer.store.tensors["w"][6])
    assert rank.reader.word(Word.SWAP_BYTES) == 2 * 64


def test_what_moving_takes_of_the_scheduler_is_counted(rank):
    """Of calls that move experts, refused ones too; no others."""
    began = time.monotonic_ns()
    rank.swap(1, (1, -1, 5))
    assert rank.prepare(2, (1, 0, 7)).status is Status.FAILED
    took = time.monotonic_ns() - began
    rank.call("slots")
    assert rank.reader.word(Word.MOVE_CALLS) == 3
    assert 0 < rank.reader.word(Word.MOVE_CALL_NS) < took


def test_a_refused_batch_restores_what_it_had_unmapped_and_acknowledges_both(rank):
    """Nobody waits for copies that will never come."""
    rank.swap(1, (1, -1, 5), (4, -1, 6))
    ack = rank.prepare(2, (1, 5, 7), (4, 0, 1))
    assert (ack.status, ack.text) == (
        Status.FAILED,
        "rank 0: expert 0 of layer 4 is not in a slot",
    )
    assert rank.copied(2).text == "rank 0: expert 0 of layer 4 is not in a slot"
    assert rank.slots() == {1: [5, -1], 4: [6, -1]}
    assert rank.rank.layers[1].table.tolist() == [-1, -1, -1, -1, -1, 0, -1, -1]


def test_a_third_batch_waits_for_the_first(rank):
    """Two batches are open at a time, on the rank's own word; each slot holds what was meant."""
    rank.prepare(1, (1, -1, 5))
    assert rank.prepare(2, (1, -1, 6)).status is Status.OK
    assert rank.prepare(3, (4, -1, 6)).text == "rank 0: batches 1 and 2 are still open"
    rank.copied(3)
    rank.call("publish", batch=1)
    assert rank.slots()[1] == [5, -1]
    assert rank.prepare(4, (4, -1, 6)).status is Status.OK
    rank.copied(4)
    rank.call("publish", batch=2)
    rank.call("publish", batch=4)
    assert rank.slots() == {1: [5, 6], 4: [6, -1]}


def test_a_batch_is_published_and_another_prepared_in_one_call(rank):
    """Mapped and unmapped in one pause; what the second one evicts, the first may have loaded."""
    rank.prepare(1, (1, -1, 5), (4, -1, 6))
    rank.copied(1)
    assert rank.prepare(2, (1, 5, 7), publish=1).status is Status.OK
    assert rank.slots() == {1: [-1, -1], 4: [6, -1]}
    rank.copied(2)
    assert rank.prepare(3, (4, 6, 2), publish=2).status is Status.OK
    rank.copied(3)
    rank.call("publish", batch=3)
    assert rank.slots() == {1: [7, -1], 4: [2, -1]}


def test_a_batch_that_cannot_be_published_lets_none_be_prepared(rank):
    """Nobody waits for copies that never begin, and nothing is mapped or unmapped."""
    rank.swap(1, (1, -1, 5))
    ack = rank.prepare(2, (1, 5, 7), publish=9)
    assert ack.text == rank.copied(2).text == "rank 0: batch 9 was not prepared"
    assert rank.slots()[1] == [5, -1]


def test_a_batch_that_is_refused_leaves_the_one_before_it_published(rank):
    """A roll-back empties its slots as if they had been published alone."""
    rank.prepare(1, (1, -1, 5))
    rank.copied(1)
    ack = rank.prepare(2, (4, 0, 7), publish=1)
    assert ack.text == "rank 0: expert 0 of layer 4 is not in a slot"
    assert rank.slots()[1] == [5, -1]
    rank.copied(2)
    rank.call("abort", batch=2, moves=[(4, 0, 7)])
    rank.call("abort", batch=1, moves=[(1, -1, 5)])
    assert rank.slots() == {1: [-1, -1], 4: [-1, -1]}


def test_open_batches_can_both_be_taken_back(rank):
    """The last one first; what they unmapped stays unmapped."""
    rank.swap(1, (1, -1, 5), (4, -1, 6))
    rank.prepare(2, (1, 5, 7))
    rank.prepare(3, (4, 6, 1))
    rank.copied(3)
    rank.call("abort", batch=3, moves=[[4, 6, 1]])
    rank.call("abort", batch=2, moves=[[1, 5, 7]])
    assert rank.slots() == {1: [-1, -1], 4: [-1, -1]}
    rank.swap(4, (1, -1, 7), (4, -1, 1))
    assert rank.slots() == {1: [7, -1], 4: [1, -1]}


def test_a_batch_is_published_once(rank):
    """A repeated or invented publish changes nothing."""
    rank.swap(1, (1, -1, 5))
    assert rank.call("publish", batch=1).text == "rank 0: batch 1 was not prepared"
    assert rank.call("publish", batch=9).text == "rank 0: batch 9 was not prepared"
    assert rank.slots()[1] == [5, -1]


@pytest.mark.parametrize("point", ["refused", "prepared", "published"])
def test_abort_leaves_the_slots_of_a_batch_empty_however_far_it_came(rank, point):
    """Ranks that came to different points hold the same slots after it."""
    rank.swap(1, (1, -1, 5), (4, -1, 6))
    moves = [(1, 5, 7), (4, 6, 2)]
    if point == "refused":
        rank.prepare(2, *moves, (4, 0, 1))
    else:
        rank.prepare(2, *moves)
        rank.copied(2)
        if point == "published":
            rank.call("publish", batch=2)
    assert rank.call("abort", batch=2, moves=moves).status is Status.OK
    assert rank.slots() == {1: [-1, -1], 4: [-1, -1]}
    rank.swap(3, (1, -1, 5), (4, -1, 6))
    assert rank.slots() == {1: [5, -1], 4: [6, -1]}


def test_abort_empties_the_slots_of_a_batch_that_was_published_by_half(rank, monkeypatch):
    """Publishing failed after the first expert; a roll-back finds every slot free."""
    rank.swap(1, (1, -1, 5), (4, -1, 6))
    moves = [(1, 5, 7), (4, 6, 2)]
    rank.prepare(2, *moves)
    rank.copied(2)
    publish = ExpertLayer.publish

    def fail_for_the_second(layer, expert):
        if layer.layer == 4:
            raise OSError("planted")
        publish(layer, expert)

    monkeypatch.setattr(ExpertLayer, "publish", fail_for_the_second)
    assert rank.call("publish", batch=2).text == "rank 0: publish failed: planted"
    assert rank.slots() == {1: [7, -1], 4: [-1, -1]}
    monkeypatch.undo()
    assert rank.call("abort", batch=2, moves=moves).status is Status.OK
    assert rank.slots() == {1: [-1, -1], 4: [-1, -1]}
    rank.swap(3, (1, -1, 5), (4, -1, 6))
    assert rank.slots() == {1: [5, -1], 4: [6, -1]}


@pytest.mark.parametrize("call", ["prepare", "publish", "abort"])
def test_tables_that_cannot_be_written_end_the_engine(rank, tmp_path, monkeypatch, call):
    """Until the daemon has ended it nothing is moved, and nobody waits for an answer."""
    rank.swap(1, (1, -1, 5))
    moves = [(1, 5, 7)]
    if call != "prepare":
        rank.prepare(2, *moves)
        rank.copied(2)

    def fail(_):
        raise OSError("planted")

    monkeypatch.setattr(Rank, "_upload_tables", fail)
    sentence = "rank 0: the tables of slots cannot be written: planted"
    assert rank.call(call, batch=2, moves=[list(move) for move in moves]).text == sentence
    assert read_failure(tmp_path).message == sentence
    assert read_failure(tmp_path).kind == "internal"
    monkeypatch.undo()
    held = rank.slots()
    assert rank.prepare(3, (4, -1, 6)).text == sentence
    assert rank.slots() == held


def test_a_batch_whose_tables_cannot_be_written_is_acknowledged_and_not_copied(rank, monkeypatch):
    """The GPU may still compute with the slots that were to be overwritten."""
    rank.swap(1, (1, -1, 5))
    monkeypatch.setattr(Rank, "_upload_tables", lambda _: 1 / 0)
    rank.prepare(2, (1, 5, 7))
    assert rank.copied(2).status is Status.FAILED
    layer = rank.rank.layers[1]
    assert torch.equal(layer.slots["w"][0], layer.store.tensors["w"][5])
    assert rank.slots()[1] == [5, -1]


def test_an_unexpected_error_leaves_no_trace_either_and_names_the_rank(rank):
    """What is sent may be malformed; the scheduler lives on."""
    rank.swap(1, (1, -1, 5))
    ack = rank.call("prepare", batch=2, moves=[[1, 5, 7], [1, "x", 2]])
    assert ack.status is Status.FAILED
    assert ack.text.startswith("rank 0: prepare failed: ")
    assert rank.slots()[1] == [5, -1]
    assert rank.call("no such call").text.startswith("rank 0: no such call failed: ")


def test_slots_are_reported_under_the_sequence_of_the_call(rank, tmp_path):
    """An old file is told from a new one."""
    rank.swap(1, (1, -1, 5))
    rank.call("slots")
    report = json.loads((tmp_path / "slots-0.json").read_text())
    assert report == {"sequence": 3, "slots": {"1": [5, -1], "4": [-1, -1]}}


def test_statistics_are_forgotten_on_reset_and_nothing_else(rank):
    """Warming up is not counted; loading and swapping stay."""
    rank.swap(1, (1, -1, 5))
    rank.rank.begin_step(rows=3, decode_rows=None)
    rank.rank.route(0, torch.tensor([[2, 0]] * 3), rank.rank.layers[1].table)
    rank.rank.end_step(tokens=3)
    assert rank.reader.word(Word.DECODE_TOKENS) == 3
    assert sum(rank.reader.counters) == 6
    rank.call("reset_statistics")
    assert rank.reader.word(Word.DECODE_TOKENS) == 0
    assert sum(rank.reader.counters) == 0
    assert rank.reader.word(Word.SWAP_BYTES) == 64
    assert rank.reader.word(Word.SLOT_BYTES) == 2 * SLOTS * 64


@pytest.mark.parametrize(("decode_rows", "prefill", "decode"), [(None, 0, 3), (0, 3, 0), (2, 1, 2)])
def test_a_step_counts_for_prefill_or_decode_or_each_row_for_its_own(
    rank, decode_rows, prefill, decode
):
    """Rows at the end of a mixed step decode; the routing is divided as in any other step."""
    table = rank.rank.layers[1].table
    ids = torch.tensor([[0], [1], [2]])
    rank.rank.begin_step(rows=3, decode_rows=decode_rows)
    routed = rank.rank.route(0, ids, table)
    rank.rank.end_step(tokens=3)
    assert torch.equal(routed.cpu_ids, ids.int())
    counted = torch.tensor(list(rank.reader.counters)).view(2, 2, 8, 2)
    assert counted[:, 0].sum((1, 2)).tolist() == [prefill, decode]
    assert counted[:, 1].sum().item() == 0
    words = [rank.reader.word(word) for word in (Word.PREFILL_TOKENS, Word.DECODE_TOKENS)]
    assert words == [prefill, decode]


def test_a_rank_that_starts_again_in_the_same_folder_replaces_its_file(tmp_path):
    """A reader of the old one keeps the old one; a new reader sees the new."""
    old = OneRank(tmp_path)
    old.swap(1, (1, -1, 5))
    new = OneRank(tmp_path)
    assert new.reader.call_ack().sequence == 0
    assert new.reader.hello() is None
    assert old.reader.word(Word.SWAP_BYTES) == 64


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (None, {}),
        (SimpleNamespace(threshold=1024, num_bytes=0), {}),
        (
            SimpleNamespace(threshold=1024, num_bytes=99),
            {"prefill_threshold": 1024, "prefill_buffer_bytes": 99},
        ),
    ],
)
def test_hello_tells_how_prefills_run_on_a_gpu(rank, stream, told):
    """Without graphs; of the buffer only where there is one."""
    rank.rank.say_hello("cpu")
    assert not any(name.startswith("prefill") for name in rank.reader.hello())
    side = object.__new__(CudaSide)  # which would need a GPU to be made
    side.stream = stream
    rank.rank.side = side
    rank.rank.say_hello("cuda:0")
    hello = rank.reader.hello()
    assert {name: hello[name] for name in hello if name.startswith("prefill")} == {
        "prefill_graphs": False,
        **told,
    }
