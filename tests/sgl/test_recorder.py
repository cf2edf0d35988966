"""What a rank records, keeps, drops and writes, without an engine."""

from __future__ import annotations

import json
import resource
import time
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.enginespec import EngineSpec
from ktd.rankfile import RankFileReader, Status, path_of
from ktd.sgl import recording_report
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.rank import Rank
from ktd.sgl.recorder import PER_PASS, PER_TOKEN, Recorder
from ktd.sgl.recording_calls import RecordingCalls
from ktd.sgl.slot_source import PlainSource

LAYERS, EXPERTS, NUM_LAYERS = (1, 4), 16, 6


def forward_batch(input_ids, *, decode=False):
    """What is read of SGLang's."""
    return SimpleNamespace(
        input_ids=input_ids,
        positions=torch.arange(len(input_ids)) + 5,
        extend_seq_lens_cpu=None if decode else [len(input_ids)],
        forward_mode=SimpleNamespace(value=2 if decode else 1),
    )


class RecordingRank:
    """A rank whose passes and control calls a test makes."""

    def __init__(self, folder, rank=0):
        self.folder = folder
        spec = EngineSpec(
            engine_id="t-1",
            runtime_dir=str(folder),
            model_path="/nowhere",
            sglang_args=(),
            device="cpu",
            moe_layers=LAYERS,
            num_experts=EXPERTS,
            experts_per_token=1,
            slots=(2, 2),
            initial=((), ()),
            cpu_threads=1,
        )
        self.rank = Rank(spec, rank=rank, world_size=2 if rank else 1)
        self.rank.recording.num_layers = NUM_LAYERS
        self.reader = RankFileReader(path_of(folder, rank))
        self.sequence = 0
        self.passes = 0
        for layer in LAYERS:
            table = torch.full((EXPERTS,), -1, dtype=torch.int32)
            table[3] = 0
            self.rank.add_layer(
                ExpertLayer(
                    layer=layer,
                    num_experts=EXPERTS,
                    num_slots=2,
                    store=PlainSource({"w": torch.zeros(EXPERTS, 1)}),
                    slots={"w": torch.zeros(2, 1)},
                    table=table,
                )
            )

    def call(self, name, **fields):
        """The acknowledgement, and rank 0's report."""
        self.sequence += 1
        self.rank.call(json.dumps({"sequence": self.sequence, "call": name, **fields}))
        ack = self.reader.call_ack()
        assert ack.sequence == self.sequence
        if ack.status is not Status.OK:
            return ack, None
        for _ in range(500):
            report = recording_report.take(self.folder, self.sequence)
            if report is not None or self.rank.rank:
                return ack, report
            time.sleep(0.01)
        raise AssertionError(f"no report on {name}")

    def start(self, mode, *, buffer_passes=1000, max_bytes=1 << 20, gpu_masks=False):
        return self.call(
            "record_start",
            mode=mode,
            buffer_passes=buffer_passes,
            max_bytes=max_bytes,
            gpu_masks=gpu_masks,
        )[1]

    def step(self, ids, *, decode=False):
        """A pass in which both layers choose the same experts."""
        ids = torch.tensor(ids)
        tokens = len(ids)
        self.passes += 1
        batch = forward_batch(torch.arange(tokens), decode=decode)
        self.rank.begin_step(rows=tokens, decode_rows=None if decode else 0)
        self.rank.recording.begin_pass(batch)
        for position, layer in enumerate(LAYERS):
            self.rank.route(position, ids, self.rank.layers[layer].table)
        self.rank.end_step(tokens=tokens)
        self.rank.recording.end_pass(self.passes, tokens)

    def dump(self, folder=None):
        return self.call("record_dump", folder=str(folder or self.folder / "out"))[1]

    def load(self, index=0):
        return torch.load(self.dump()["files"][index], weights_only=True)


@pytest.fixture
def rank(tmp_path):
    return RecordingRank(tmp_path)


def test_stat_holds_a_row_for_each_pass_and_zeros(rank):
    """All layers of the model; those without experts are zero."""
    rank.start("stat", buffer_passes=5)
    rank.step([[0, 1], [0, 2]])
    rank.step([[7, 8]], decode=True)
    content = rank.load()
    assert content["rank"] == 0
    assert content["average_utilization_rate_over_window"] is None
    count = content["logical_count"]
    assert count.shape == (5, NUM_LAYERS, EXPERTS)
    assert count[0, 1].tolist()[:4] == [2, 1, 1, 0]
    assert count[1, 4, 7:9].tolist() == [1, 1]
    assert count.sum(dim=2).tolist() == [[0, 4, 0, 0, 4, 0], [0, 2, 0, 0, 2, 0], *[[0] * 6] * 3]


def test_a_growing_buffer_has_a_row_for_each_pass_and_no_more(rank):
    """-1 is SGLang's way to say so."""
    rank.start("stat", buffer_passes=-1)
    for _ in range(7):
        rank.step([[0, 1]], decode=True)
    assert rank.load()["logical_count"].shape[0] == 7


def test_the_latest_passes_stay_and_the_number_of_others_is_told(rank):
    """A full buffer is not silent."""
    rank.start("stat", buffer_passes=2)
    for expert in range(5):
        rank.step([[expert, 15]], decode=True)
    report = rank.dump()
    assert (report["passes"], report["dropped_passes"]) == (5, 3)
    count = torch.load(report["files"][0], weights_only=True)["logical_count"]
    assert count[:, 1, :5].tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("mode", ["per_pass", "per_token"])
def test_memory_is_bounded_in_the_other_modes(rank, mode):
    """By bytes, as passes differ in size."""
    rank.start(mode, max_bytes=4096)
    for _ in range(200):
        rank.step([[0, 1]], decode=True)
    report = rank.dump()
    assert report["bytes"] <= 4096
    assert report["dropped_passes"] > 0
    records = torch.load(report["files"][0], weights_only=True)["records"]
    assert len(records) == 200 - report["dropped_passes"]
    assert records[-1]["forward_pass_id"] == 200


def test_stat_approx_is_exact_and_has_prefill_and_decode_in_rows_of_their_own(rank):
    """What was counted before the start is not in it."""
    rank.step([[5, 6]])
    rank.start("stat_approx")
    rank.step([[0, 1], [0, 2]])
    rank.step([[0, 3]], decode=True)
    report = rank.dump()
    assert (report["passes"], report["tokens"], report["dropped_passes"]) == (2, 3, 0)
    count = torch.load(report["files"][0], weights_only=True)["logical_count"]
    assert count.shape == (2, NUM_LAYERS, EXPERTS)
    assert count[:, 4, :7].tolist() == [[2, 1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0, 0]]
    rank.step([[9, 9]], decode=True)
    assert rank.load()["logical_count"].sum(dim=(0, 2)).tolist() == [0, 2, 0, 0, 2, 0]


def test_per_pass_has_the_number_of_each_pass(rank):
    """And says which physical expert is which."""
    rank.start("per_pass")
    rank.step([[0, 1]])
    rank.step([[0, 3]], decode=True)
    content = rank.load()
    assert [record["forward_pass_id"] for record in content["records"]] == [1, 2]
    assert {record["gatherer_key"] for record in content["records"]} == {"primary"}
    assert content["last_physical_to_logical_map"].tolist() == [list(range(EXPERTS))] * NUM_LAYERS
    assert content["records"][1]["global_physical_count"][4].tolist()[:4] == [1, 0, 0, 1]


def test_more_than_eight_experts_a_token_are_recorded(rank):
    """SGLang's recorder has eight columns and fails; -1 pads what is shorter."""
    rank.start("per_token")
    rank.step([list(range(10)), list(range(5, 15))])
    (record,) = rank.load()["records"]
    ids = record["topk_ids_of_layer"]
    assert ids.shape == (NUM_LAYERS, 2, 10)
    assert ids[4].tolist() == [list(range(10)), list(range(5, 15))]
    assert set(ids[0].flatten().tolist()) == {-1}
    assert record["global_physical_count"].sum(dim=1).tolist() == [0, 20, 0, 0, 20, 0]


def test_fewer_than_eight_experts_are_padded_as_sglang_does(rank):
    """So that its tools find the shape that they know."""
    rank.start("per_token")
    rank.step([[1, 2]], decode=True)
    (record,) = rank.load()["records"]
    assert record["topk_ids_of_layer"][1].tolist() == [[1, 2, -1, -1, -1, -1, -1, -1]]
    assert (record["input_ids"], record["positions"]) == ([0], [5])
    assert (record["extend_seq_lens"], record["forward_mode"]) == (None, 2)


def test_masks_say_which_experts_were_in_slots(rank):
    """A file beside the other one, in any mode."""
    rank.start("stat_approx", gpu_masks=True, buffer_passes=3)
    rank.step([[0, 1]])
    rank.rank.layers[1].table[9] = 1
    rank.step([[0, 1]])
    report = rank.dump()
    assert "gpu_expert_distribution_" in report["files"][1]
    masks = torch.load(report["files"][1], weights_only=True)["gpu_expert_masks"]
    assert (masks.dtype, masks.shape) == (torch.bool, (3, NUM_LAYERS, EXPERTS))
    assert masks[:, 1].nonzero().tolist() == [[0, 3], [1, 3], [1, 9]]
    assert masks[:, 0].sum() == 0


def test_a_dump_that_cannot_be_written_keeps_everything(rank, tmp_path):
    """The next one has it, in order, with what came after."""
    (tmp_path / "file").touch()
    rank.start("per_pass")
    rank.step([[0, 1]])
    failed = rank.dump(tmp_path / "file" / "deeper")
    assert failed["error"]
    rank.step([[0, 1]])
    ids = [record["forward_pass_id"] for record in rank.load()["records"]]
    assert ids == [1, 2]


def test_a_full_disk_leaves_no_part_of_a_file(rank, tmp_path):
    """The system's words are told, the folder is empty, and the next dump has everything."""
    rank.start("stat", buffer_passes=1000)
    rank.step([[0, 1]])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal, so that writing fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        failed = rank.dump()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed["error"] == "File too large"
    assert list((tmp_path / "out").iterdir()) == []
    assert rank.load()["logical_count"].sum().item() == 4


def test_stopping_keeps_what_was_recorded_until_the_dump(rank):
    """Passes after it are not in it."""
    rank.start("stat_approx")
    rank.step([[0, 1]])
    rank.call("record_stop")
    rank.step([[0, 1]])
    report = rank.dump()
    assert (report["recording"], report["passes"]) == (False, 1)
    count = torch.load(report["files"][0], weights_only=True)["logical_count"]
    assert count.sum().item() == 2 * 2


def test_nothing_to_stop_or_dump_is_refused_with_a_sentence(rank):
    """And nothing is written."""
    ack, _ = rank.call("record_stop")
    assert ack.text == "nothing is being recorded"
    ack, _ = rank.call("record_dump", folder="/nowhere")
    assert ack.text == "nothing has been recorded; start recording first"
    rank.start("stat")
    ack, _ = rank.call("record_dump", folder="/nowhere")
    assert ack.text == "no pass has run since recording began"


def test_other_ranks_agree_and_record_nothing(tmp_path):
    """They see the same tokens; counting them again would double everything."""
    rank = RecordingRank(tmp_path, rank=1)
    assert rank.start("per_token") is None
    rank.step([[0, 1]])
    ack, report = rank.call("record_dump", folder=str(tmp_path / "out"))
    assert (ack.status, report) == (Status.OK, None)
    assert not (tmp_path / "out").exists()


def test_a_pass_that_is_not_recorded_keeps_nothing(rank):
    """Memory is for what was asked for."""
    rank.step([[0, 1]])
    rank.start("per_token")
    _, report = rank.call("record_report")
    assert (report["passes"], report["bytes"]) == (0, 0)


def test_on_a_gpu_counters_are_brought_up_to_date_and_it_keeps_the_routing(tmp_path):
    """A GPU counts in its own memory, and replays steps that nobody sees layer by layer."""
    counters = torch.zeros(2, len(LAYERS), EXPERTS, 2, dtype=torch.int64)
    fresh = []

    def refresh():
        fresh.append(None)
        counters[0, 0, 1, 0] += 5

    recorder = Recorder(counters, lambda: torch.zeros(len(LAYERS), EXPERTS, dtype=torch.bool))
    asked = []

    def routed(rows):
        # Asked only when the pass has ended, which bringing counters up to date waits for.
        asked.append((rows, len(fresh)))
        return torch.arange(len(LAYERS) * rows * 2).view(len(LAYERS), rows, 2).short()

    calls = RecordingCalls(
        recorder, tmp_path, tuple(LAYERS), EXPERTS, refresh=refresh, routed=routed
    )
    start = calls.calls()["record_start"]
    options = {"sequence": 1, "buffer_passes": 10, "max_bytes": 1 << 20, "gpu_masks": False}
    start({**options, "mode": PER_PASS})
    calls.end_pass(1, 4)
    calls.end_pass(2, 4)
    assert len(fresh) == 3
    taken = recorder.take()
    assert [int(one.counts[0, 1]) for one in taken.passes] == [5, 5]
    assert not asked
    start({**options, "mode": PER_TOKEN})
    fresh.clear()
    calls.begin_pass(forward_batch([7, 8, 9]))
    calls.end_pass(3, 3)
    assert asked == [(3, 1)]
    (one,) = recorder.take().passes
    assert one.tokens.metadata["input_ids"] == [7, 8, 9]
    assert one.tokens.ids.tolist() == routed(3).tolist()
