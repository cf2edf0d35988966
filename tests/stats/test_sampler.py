"""Samples of rank files: which rank counts, which are summed."""

import pytest

from ktd.rankfile import RankFileWriter, Word, path_of
from ktd.stats.sampler import RankSampler


def _rank(folder, rank, *, layers=2, experts=3):
    return RankFileWriter(path_of(folder, rank), rank=rank, num_layers=layers, num_experts=experts)


def _sampler(folder, ranks=2, moe_layers=(1, 3)):
    return RankSampler(
        engine_id="e1",
        runtime_dir=folder,
        num_ranks=ranks,
        moe_layers=moe_layers,
        clock=lambda: 5.0,
    )


def test_tokens_count_once_and_bytes_add_up(tmp_path):
    """Tensor-parallel ranks see the same tokens, but copy and read their own bytes."""
    for rank in range(2):
        writer = _rank(tmp_path, rank)
        writer.counters.cast("Q")[2 * 4] = 7 + rank
        writer.counters.cast("Q")[12 + 2 * 5 + 1] = 4 + rank
        writer.words[Word.DECODE_TOKENS] = 10 + rank
        writer.words[Word.SWAP_BYTES] = 100
        writer.words[Word.MOVE_CALLS] = 3 + rank
        writer.words[Word.MOVE_CALL_NS] = 1_500_000
        writer.words[Word.CPU_WEIGHT_BYTES] = 1000
    sampler = _sampler(tmp_path)
    sample = sampler.sample()
    sampler.close()
    assert (sample.gpu_pairs, sample.cpu_pairs, sample.decode_tokens) == (7, 4, 10)
    assert (sample.swap_bytes, sample.cpu_weight_bytes) == (200, 2000)
    assert (sample.move_calls, sample.move_call_seconds) == (3, 0.0015)
    assert sample.prefill[1].tolist() == [[0, 0], [7, 0], [0, 0]]
    assert sample.decode[1].tolist() == [[0, 0], [0, 0], [0, 4]]


def test_each_rank_reports_its_own_error_and_heartbeat(tmp_path):
    """A rank that is in trouble is told from one that is not."""
    writers = [_rank(tmp_path, rank) for rank in range(2)]
    writers[1].words[Word.ERROR] = 3
    writers[1].beat()
    sampler = _sampler(tmp_path)
    first, second = sampler.sample().ranks
    sampler.close()
    assert (first.error, first.heartbeat_ns) == (0, 0)
    assert second.error == 3
    assert second.heartbeat_ns > 0


def test_missing_rank_is_an_error_and_leaves_nothing_open(tmp_path):
    """A sampler is made when every rank has said hello, not before."""
    _rank(tmp_path, 0)
    with pytest.raises(FileNotFoundError):
        _sampler(tmp_path)


def test_file_of_another_shape_is_refused(tmp_path):
    """Both layer counts are named."""
    _rank(tmp_path, 0, layers=5)
    with pytest.raises(ValueError, match="has 5 MoE layers, the model 2"):
        _sampler(tmp_path, ranks=1)


def test_counts_outlive_the_file(tmp_path):
    """An engine's folder may be removed before its last counts are read."""
    writer = _rank(tmp_path, 0)
    sampler = _sampler(tmp_path, ranks=1)
    writer.words[Word.DECODE_STEPS] = 4
    path_of(tmp_path, 0).unlink()
    assert sampler.sample().decode_steps == 4
    sampler.close()
