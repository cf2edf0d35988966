"""Copies of experts into slots by the extension, here in host memory."""

import time

import numpy as np
import pytest

from ktd.experts import _native


def addresses(pairs):
    rows = [(to.ctypes.data, source.ctypes.data, source.nbytes) for to, source in pairs]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def random_pairs(*sizes):
    random = np.random.default_rng(0)
    sources = [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    return [(np.zeros_like(source), source) for source in sources]


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("sizes", [(), (1,), (64,), (0, 5, 0), (100, 1, 4096, 63)])
def test_every_byte_arrives_whatever_the_pieces(sizes, piece):
    pairs = random_pairs(*sizes)
    copies = _native.SlotCopies(addresses(pairs), piece)
    total = 0
    while not copies.done:
        total += copies.run(0.01)
    assert total == sum(sizes)
    assert all(np.array_equal(to, source) for to, source in pairs)


def test_nothing_beside_the_destination_is_written():
    whole, source = np.zeros(300, dtype=np.uint8), np.full(100, 7, dtype=np.uint8)
    copies = _native.SlotCopies(addresses([(whole[100:200], source)]), 33)
    copies.run(1.0)
    assert copies.done
    assert not whole[:100].any()
    assert not whole[200:].any()
    assert (whole[100:200] == 7).all()


def test_a_rate_is_kept_over_turns_and_by_the_last_piece():
    """A piece may take several turns; time is only ever too long on a busy host."""
    pairs = random_pairs(1000, 1000)
    copies = _native.SlotCopies(addresses(pairs), 500)
    began, turns = time.monotonic(), []
    while not copies.done:
        turns.append(copies.run(0.01, rate=10_000))
    assert time.monotonic() - began >= 0.2
    assert sum(turns) == 2000
    assert turns.count(0) >= 8


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((addresses([]), 0), {}, "a piece has at least one byte, not 0"),
        (([(0, 8, 8)], 8), {}, "a copy is from or to address 0"),
        (([(8, 8, -8)], 8), {}, "a copy has no less than 0 bytes, not -8"),
        (([8, 8, 8], 8), {}, "copies are rows of destination, source and bytes"),
        ((addresses([]), 8), {"most_ahead": 0}, "at least one byte may be in flight, not 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        _native.SlotCopies(*arguments, **options)


def test_a_host_without_a_driver_says_so():
    try:
        copies = _native.SlotCopies(addresses([]), 8, streams=[1])
    except RuntimeError as error:
        assert "CUDA's driver" in str(error)  # noqa: PT017 - whether it is there depends on the host
    else:
        assert copies.done
