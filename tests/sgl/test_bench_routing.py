"""Routing that a bench has drawn: which token gets which ids, and for whom it is read."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.bench.table.routing import Routing, RoutingFile
from ktd.sgl.bench_routing import BenchRouting, BenchRoutingRefused, read_routing, which_of

TOKENS, LAYERS, TOP_K, EXPERTS = 10, 3, 2, 8
RUN = "of this run"
CPU = torch.device("cpu")


class TopK(NamedTuple):
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor


class Dispatch(NamedTuple):
    hidden_states: torch.Tensor
    topk_output: TopK


@pytest.fixture(params=[1, 4, 64], ids=lambda rows: f"{rows} rows in graphs")
def routing(request):
    """Ids that say which token and layer they are of; the last is the choice's number."""
    return BenchRouting([table()], which=lambda: 0, device=CPU, rows=request.param)


def table():
    token = torch.arange(TOKENS)[:, None, None]
    layer = torch.arange(LAYERS)[None, :, None]
    return 100 * token + 10 * layer + torch.arange(TOP_K)


def tokens_of(routing, layer, rows, dtype=torch.int32):
    """Which tokens of the table the rows of a step got."""
    ids = routing.ids(layer, torch.zeros(rows, TOP_K, dtype=dtype))
    assert ids.dtype == dtype
    assert ids.shape == (rows, TOP_K)
    assert (ids % 100 == 10 * layer + torch.arange(TOP_K)).all()
    return (ids[:, 0] // 100).tolist()


def test_tokens_follow_each_other_over_steps_of_any_size(routing):
    """And after the last one comes the first; each layer sees the same tokens."""
    expected = 0
    for rows in (1, 3, 2, 5, 1, 9, 20, 1):
        routing.advance(rows)
        wanted = [(expected + row) % TOKENS for row in range(rows)]
        for layer in range(LAYERS):
            assert tokens_of(routing, layer, rows) == wanted
        expected += rows


def test_rows_of_padding_get_some_ids(routing):
    """A graph computes more rows than the step has."""
    routing.advance(2)
    assert tokens_of(routing, 1, 4)[:2] == [0, 1]
    assert all(0 <= token < TOKENS for token in tokens_of(routing, 1, 4))


def test_a_graph_finds_each_steps_ids_at_one_place():
    """What was captured is a view of memory that the next step fills."""
    routing = BenchRouting([table()], which=lambda: 0, device=CPU, rows=4)
    captured = [routing.ids(layer, torch.zeros(2, TOP_K, dtype=torch.int32)) for layer in range(2)]
    for step in range(3):
        routing.advance(2)
        assert [ids[0, 0].item() // 100 for ids in captured] == [2 * step, 2 * step]


def test_only_the_ids_are_replaced(routing):
    """Hidden states and weights are the model's."""
    hidden, weights = torch.randn(3, 5), torch.rand(3, TOP_K)
    routed = Dispatch(hidden, TopK(weights, torch.full((3, TOP_K), 7, dtype=torch.int64)))
    routing.advance(3)
    found = routing.replaced(2, routed)
    assert found.hidden_states is hidden
    assert found.topk_output.topk_weights is weights
    assert found.topk_output.topk_ids.tolist() == [[20, 21], [120, 121], [220, 221]]


@pytest.fixture
def file(tmp_path):
    def write(ids):
        run_id = RUN
        np.savez(tmp_path / "routing.npz", ids=ids, run_id=run_id)
        return tmp_path / "routing.npz"

    return write


def read(path, run_id=RUN):
    return read_routing(path, run_id, layers=LAYERS, experts=EXPERTS, top_k=TOP_K)


def test_a_file_of_this_run_is_read(file):
    """As it was written."""
    ids = np.random.default_rng(0).integers(0, EXPERTS, (TOKENS, LAYERS, TOP_K), np.int16)
    (found,) = read(file(ids))
    assert (found.numpy() == ids).all()


def test_the_bench_says_which_of_its_routings_holds(tmp_path):
    """From the next step on; places in either follow from all tokens so far."""
    path = tmp_path / "routing.npz"
    random = np.random.default_rng(0)
    routings = {
        kind: Routing(
            kind,
            "test",
            random.integers(0, EXPERTS, (tokens, LAYERS, TOP_K), np.int16),
            np.zeros((LAYERS, EXPERTS), np.int64),
        )
        for kind, tokens in (("one", TOKENS), ("other", 7))
    }
    chooser = RoutingFile(path, RUN, routings)
    tables = read(path)
    routing = BenchRouting(tables, which=which_of(path, 2), device=CPU, rows=4)
    for seen, kind in enumerate(("one", "one", "other", "one", "other", "other", "other", "other")):
        chooser.choose(kind)
        routing.advance(3)
        ids = routing.ids(1, torch.zeros(3, TOP_K, dtype=torch.int32)).numpy()
        places = np.arange(3 * seen, 3 * seen + 3) % len(routings[kind].ids)
        assert (ids == routings[kind].ids[places, 1]).all()
    (tmp_path / "routing.which").unlink()
    with pytest.raises(BenchRoutingRefused, match="does not say which"):
        which_of(path, 2)


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros((TOKENS, LAYERS, TOP_K + 1), np.int16),
        np.zeros((TOKENS, LAYERS + 1, TOP_K), np.int16),
        np.zeros((0, LAYERS, TOP_K), np.int16),
        np.full((TOKENS, LAYERS, TOP_K), EXPERTS, np.int16),
        np.full((TOKENS, LAYERS, TOP_K), -1, np.int16),
    ],
)
def test_ids_of_another_model_are_refused(file, ids):
    """Before anything is loaded."""
    with pytest.raises(BenchRoutingRefused, match="is not one of 3 layers, 8 experts and 2"):
        read(file(ids))


def test_a_file_without_this_runs_id_is_refused(file, tmp_path):
    """One that was left by another run, and none at all."""
    ids = np.zeros((TOKENS, LAYERS, TOP_K), np.int16)
    with pytest.raises(BenchRoutingRefused, match="id of another run"):
        read(file(ids), run_id=RUN + "x")
    with pytest.raises(BenchRoutingRefused, match="cannot be read"):
        read(tmp_path / "nothing.npz")


def test_slots_for_every_expert_can_be_given_up_where_a_bench_asks_for_it():
    """SGLang's runner skips the id -1 only where it has fewer experts than the model."""
    from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig

    from ktd.sgl.sglang_slots import SglangSlots

    made = []
    for always in (False, True):
        slots = SglangSlots.__new__(SglangSlots)
        slots._method = SimpleNamespace(create_moe_runner=lambda _, config: made.append(config))
        slots._num_slots, slots._always_skips = 8, always
        slots.create_runner(None, MoeRunnerConfig(num_experts=8, num_local_experts=8))
    assert [config.num_experts == config.num_local_experts for config in made] == [True, False]
    assert [config.num_local_experts for config in made] == [8, 8]
