"""``torch.randperm`` on a CPU generator, bit for bit, without torch.

PyTorch's CPU generator is MT19937 seeded as in the authors' ``init_genrand``; ``randperm`` shuffles
forward with ``random() % (n - i)`` for every ``n`` below 2^32 / 20 (ATen, ``randperm_cpu``).
Python's ``random.Random`` is the same generator behind another seeding, so its state is set
directly.
"""

from __future__ import annotations

import random

_WORDS = 624
_LARGEST = 0xFFFFFFFF // 20


def _generator(seed: int) -> random.Random:
    state = [seed & 0xFFFFFFFF]
    for index in range(1, _WORDS):
        last = state[-1]
        state.append((1812433253 * (last ^ (last >> 30)) + index) & 0xFFFFFFFF)
    generator = random.Random()  # noqa: S311  # reproducing a published shuffle, not a secret
    generator.setstate((3, (*state, _WORDS), None))
    return generator


def randperm(length: int, seed: int) -> list[int]:
    """``torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()``.

    Raises:
        ValueError: ``length`` is negative, or so large that PyTorch uses another algorithm.
    """
    if not 0 <= length < _LARGEST:
        raise ValueError(f"cannot shuffle {length} items: the limit is {_LARGEST - 1}")
    order = list(range(length))
    if length < 2:  # noqa: PLR2004  # nothing to shuffle, and no 0-bit draw
        return order
    # One draw of 32*n bits yields the n words of n draws, lowest first, far faster.
    bits = _generator(seed).getrandbits(32 * length)
    words = memoryview(bits.to_bytes(4 * length, "little")).cast("I")
    for index in range(length - 1):
        other = index + words[index] % (length - index)
        order[index], order[other] = order[other], order[index]
    return order
