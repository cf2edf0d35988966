"""The split of a step's routing between slots and the CPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the split takes torch tensors")

from ktd.experts.pool import split  # noqa: E402 - after the skip

TABLE = [5, -1, 0, -1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("counted", [torch.int64, torch.uint64])
def test_every_pair_goes_to_one_side_and_is_counted(dtype, counted):
    """A mapped expert gives its slot, another its id, padding neither."""
    ids = torch.tensor([[0, 2], [-1, 3], [3, 1]], dtype=dtype)
    counters = torch.zeros(4, 2, dtype=counted)
    result = split(ids, torch.tensor(TABLE, dtype=torch.int32), counters)
    assert result.slots.tolist() == [[5, 0], [-1, -1], [-1, -1]]
    assert result.cpu_ids.tolist() == [[-1, -1], [-1, 3], [3, 1]]
    assert (result.in_slots, result.on_cpu) == (2, 3)
    assert counters.tolist() == [[1, 0], [0, 1], [1, 0], [0, 2]]


def test_counters_are_optional_and_grow():
    """Without counters nothing is counted; with them a second step adds to the first."""
    ids = torch.tensor([[1, 2]])
    table = torch.tensor(TABLE, dtype=torch.int32)
    counters = torch.zeros(4, 2, dtype=torch.int64)
    assert split(ids, table).on_cpu == 1
    split(ids, table, counters)
    split(ids, table, counters)
    assert counters.tolist() == [[0, 0], [0, 2], [2, 0], [0, 0]]


@pytest.mark.parametrize("bad", [4, -2, 1 << 32])
def test_an_id_out_of_range_is_refused_and_nothing_is_counted(bad):
    """The sentence names token and expert; a wide id is not cut to 32 bits."""
    ids = torch.tensor([[0, 2], [3, bad]])
    counters = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"token 1 asks for expert {bad}; the layer has 4"):
        split(ids, torch.tensor(TABLE, dtype=torch.int32), counters)
    assert counters.sum() == 0


def test_no_tokens_give_nothing():
    """An empty step is answered."""
    result = split(torch.empty(0, 4, dtype=torch.int64), torch.tensor(TABLE, dtype=torch.int32))
    assert result.slots.shape == (0, 4)
    assert (result.in_slots, result.on_cpu) == (0, 0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ids", (torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32))),
        ("ids", (torch.zeros(2, dtype=torch.int32), torch.zeros(4, dtype=torch.int32))),
        ("table", (torch.zeros(2, 2, dtype=torch.int32), torch.zeros(4))),
        (
            "counters",
            (
                torch.zeros(2, 2, dtype=torch.int32),
                torch.zeros(4, dtype=torch.int32),
                torch.zeros(3, 2, dtype=torch.int64),
            ),
        ),
    ],
)
def test_tensors_that_are_not_as_described_are_refused(name, arguments):
    """Dtype and shape are checked before an address is passed on."""
    with pytest.raises(ValueError, match=f"{name} must be a contiguous"):
        split(*arguments)
