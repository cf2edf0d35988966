"""`random` is torch's `randperm(42)`, bit for bit, with or without torch."""

import hashlib

import pytest

from ktd.placement.strategies.torch_random import randperm

# Recorded with torch 2.14.1: torch.randperm(16, generator=torch.Generator().manual_seed(42)).
GOLDEN_16 = [6, 3, 0, 7, 10, 15, 2, 12, 14, 9, 8, 5, 4, 13, 11, 1]
# SHA-256 over the decimal numbers joined by commas, recorded alike.
GOLDEN_HASHES = {
    1: "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9",
    2: "83b97b859aa5f81b2f0f86ba2a675efaf515ad2d5e2b8652cf2de7e1c2267350",
    128: "82882ad8cdbded8025605ad15e49314369a163dce08cc6a958aaaa3182d4d6ea",
    6144: "42b0eb65a4292c2eb85a625c57a85d061c5246c816eca8bbaf11fda9820c2109",
    24576: "9a30354c1bd411a9ced6a714fb4ee2556e6f9b37a41877374af0f871668cc9cf",
    48128: "905cee0be0b9de57100f116ca739fb5a0226307e6de23db9f0295752b7e13d64",
}


def _digest(numbers):
    return hashlib.sha256(",".join(map(str, numbers)).encode()).hexdigest()


def test_small_permutation_is_torchs():
    """A recorded permutation, readable."""
    assert randperm(16, 42) == GOLDEN_16


@pytest.mark.parametrize(("length", "digest"), GOLDEN_HASHES.items())
def test_permutation_of_a_model_is_torchs(length, digest):
    """Sizes of real models and the edges, by digest."""
    assert _digest(randperm(length, 42)) == digest


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 623, 624, 625, 48128, 300000])
def test_permutation_is_that_of_the_installed_torch(length, seed):
    """Around the generator's block size, and beyond the sizes of any model of today."""
    torch = pytest.importorskip("torch", reason="needs torch to compare with")
    generator = torch.Generator().manual_seed(seed)
    assert randperm(length, seed) == torch.randperm(length, generator=generator).tolist()


@pytest.mark.parametrize("length", [-1, 2**32 // 20])
def test_length_that_torch_shuffles_otherwise_is_refused(length):
    """Better an error than other experts."""
    with pytest.raises(ValueError, match="cannot shuffle"):
        randperm(length, 42)
