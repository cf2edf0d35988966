"""Differences of placements, batches of moves, and the hit rate a placement would have."""

import pytest

from ktd.placement.forecast import hit_rate
from ktd.placement.model import ModelShape, Move, PackedMoves, bytes_of, diff
from ktd.placement.swap import BatchLimits

SHAPE = ModelShape((2, 5), 4, (2, 3), 10)


def test_evictions_are_paired_with_loads_inside_a_layer():
    """What is left over fills or empties a slot."""
    assert diff(SHAPE, ((0, 1), (0,)), ((1, 3), (1, 2))) == (
        Move(2, 0, 3),
        Move(5, 0, 1),
        Move(5, None, 2),
    )
    assert diff(SHAPE, ((0, 1), (0,)), ((3,), (0,))) == (Move(2, 0, 3), Move(2, 1, None))


def test_no_difference_is_no_move():
    """A placement is reached from itself for nothing."""
    assert diff(SHAPE, ((0, 1), ()), ((0, 1), ())) == ()


def test_moves_that_load_nothing_cost_no_bytes():
    """Emptying a slot copies nothing."""
    assert bytes_of(SHAPE, (Move(2, 0, 3), Move(2, 1, None))) == 10


def test_reversed_move_takes_it_back():
    """Load and victim change places."""
    assert Move(2, 0, 3).reversed() == Move(2, 3, 0)
    assert Move(2, None, 3).reversed() == Move(2, 3, None)


def test_batches_keep_to_moves_and_bytes():
    """Whichever limit comes first; a batch has at least one move."""
    moves = [Move(2, None, expert) for expert in range(5)]
    assert list(map(len, BatchLimits(moves=2, bytes=1000).split(moves, 10))) == [2, 2, 1]
    assert list(map(len, BatchLimits(moves=9, bytes=25).split(moves, 10))) == [2, 2, 1]
    assert list(map(len, BatchLimits(moves=9, bytes=5).split(moves, 10))) == [1] * 5
    assert BatchLimits().split([], 10) == []


def test_batches_count_evictions_as_moves_only():
    """Emptying slots is free in bytes."""
    moves = [Move(2, expert, None) for expert in range(4)]
    assert list(map(len, BatchLimits(moves=9, bytes=5).split(moves, 10))) == [4]


def test_hit_rate_is_the_share_of_counted_pairs():
    """Without statistics there is none."""
    counts = [[4, 0, 0, 1], [2, 2, 1, 0]]
    assert hit_rate(((0,), (1, 2)), counts) == pytest.approx(0.7)
    assert hit_rate(((0,), (1,)), None) == 0.0
    assert hit_rate(((0,), (1,)), [[0] * 4] * 2) == 0.0


@pytest.mark.parametrize(
    "experts",
    [((0, 1, 2), ()), ((1, 0), ()), ((0, 0), ()), ((0, 4), ()), ((-1,), ()), ((0,),)],
    ids=["too many", "descending", "twice", "unknown", "negative", "layers"],
)
def test_what_does_not_fit_is_seen(experts):
    """A placement of another shape, or a broken one."""
    assert not SHAPE.fits(experts)
    assert SHAPE.fits(((0, 3), (1, 2, 3)))


@pytest.mark.parametrize(
    ("layers", "slots"), [((1, 1), (0, 0)), ((2, 1), (0, 0)), ((1,), (0, 0)), ((1,), (9,))]
)
def test_impossible_shape_is_a_programming_error(layers, slots):
    """Shapes come from the model, not from users."""
    with pytest.raises(ValueError, match=r"slot counts|ascending"):
        ModelShape(layers, 4, slots, 10)


def test_packed_moves_are_the_moves():
    """Also those of which one side is missing."""
    moves = [Move(0, 1, 2), Move(3, None, 0), Move(3, 511, None), Move(70000, 0, 70001)]
    packed = PackedMoves(moves)
    assert list(packed) == moves
    assert packed == tuple(moves)
    assert packed[-1] == moves[-1]
    assert packed[1:3] == tuple(moves[1:3])
    assert len(packed) == 4
    assert moves[2] in packed
    assert packed != moves[:3]
    with pytest.raises(IndexError):
        packed[4]
    assert not PackedMoves([])
