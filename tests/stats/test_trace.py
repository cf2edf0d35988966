"""Reading recorded routing, and who is chosen together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ktd.errors import ConfigError
from ktd.stats.trace import coactivation, read_trace

TRACE = Path(__file__).resolve().parents[2] / "models" / "routing-trace.npz"


def test_the_committed_trace_has_three_phases_of_the_tiny_model():
    """Phases keep the order of the file."""
    trace = read_trace(TRACE)
    assert [phase.name for phase in trace.phases] == ["prose", "code", "docs"]
    assert {phase.ids.shape for phase in trace.phases} == {(20000, 6, 4)}
    assert {phase.ids.dtype for phase in trace.phases} == {np.dtype(np.int16)}
    assert (trace.layers, trace.num_experts) == ((0, 1, 2, 3, 4, 5), 32)


def test_an_array_that_is_no_routing_is_refused_with_its_shape(tmp_path):
    """The array, its type and its shape are named."""
    np.savez(tmp_path / "a.npz", counts=np.zeros((4, 8)))
    with pytest.raises(ConfigError, match=r"'counts' is float64 of shape \[4, 8\]"):
        read_trace(tmp_path / "a.npz")


def test_ids_that_no_expert_can_have_are_refused(tmp_path):
    """-1 stands for none, anything below does not."""
    np.savez(tmp_path / "a.npz", ids=np.full((4, 2, 2), -7))
    with pytest.raises(ConfigError, match="ids from -7 to -7"):
        read_trace(tmp_path / "a.npz")


def test_objects_in_an_array_are_not_unpickled(tmp_path):
    """NumPy would execute them."""
    np.savez(tmp_path / "a.npz", ids=np.array([{}, {}], dtype=object))
    with pytest.raises(ConfigError, match=r"not an \.npz file of arrays"):
        read_trace(tmp_path / "a.npz")


def test_a_file_that_is_missing_or_empty_is_one_sentence(tmp_path):
    """Whatever is wrong, it is one sentence."""
    (tmp_path / "b.npz").write_bytes(b"")
    for path in (tmp_path / "a.npz", tmp_path / "a.pt", tmp_path / "a.csv", tmp_path / "b.npz"):
        with pytest.raises(ConfigError, match=path.name):
            read_trace(path)


def test_coactivation_counts_pairs_of_the_same_token():
    """Compared with counting pair by pair; -1 is nobody."""
    random = np.random.default_rng(1)
    ids = np.stack([random.permuted(np.arange(-1, 6)[None].repeat(50, 0), axis=1)[:, :3]] * 2, 1)
    counted = coactivation(ids.astype(np.int16), 6)
    expected = np.zeros((2, 6, 6), int)
    for token in ids:
        for layer, chosen in enumerate(token):
            for one in chosen[chosen >= 0]:
                for other in chosen[chosen >= 0]:
                    expected[layer, one, other] += 1
    assert (counted == expected).all()
    assert (counted == counted.transpose(0, 2, 1)).all()


def test_coactivation_of_many_tokens_is_the_sum_of_its_parts():
    """Blocks are added up."""
    ids = read_trace(TRACE).phases[0].ids
    whole = coactivation(ids, 32)
    assert (whole == coactivation(ids[:9000], 32) + coactivation(ids[9000:], 32)).all()
    assert whole.trace(axis1=1, axis2=2).tolist() == [20000 * 4] * 6


def test_a_mixed_pass_has_prefill_first_and_decoded_tokens_behind_it(tmp_path):
    """As SGLang puts them; dense layers and unused columns are left out."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    ids = torch.full((3, 5, 8), -1, dtype=torch.int32)
    ids[1:, :, :2] = torch.arange(20).reshape(2, 5, 2)
    records = [
        {"forward_mode": mode, "extend_seq_lens": lengths, "topk_ids_of_layer": ids}
        for mode, lengths in ((1, [4, 1]), (3, [3, 1, 1]), (2, None))
    ]
    torch.save({"records": records}, tmp_path / "a.pt")
    trace = read_trace(tmp_path / "a.pt")
    (phase,) = trace.phases
    assert (trace.layers, trace.num_experts, phase.ids.shape) == ((1, 2), 20, (15, 2, 2))
    assert phase.ids[1].tolist() == [[2, 3], [12, 13]]
    assert phase.decode.tolist() == [False] * 5 + [False] * 3 + [True] * 2 + [True] * 5


def test_counts_without_routing_are_no_trace(tmp_path):
    """A per_pass file; the message says what to record."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.save({"records": [{"global_physical_count": torch.ones(2, 2)}]}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="--mode per_token"):
        read_trace(tmp_path / "a.pt")
