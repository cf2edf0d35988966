"""Marks for tests of engines that make sense on one kind of device alone."""

from __future__ import annotations

import pytest

from tests.device import VARIABLE, gpus, on_gpu

needs_gpu = pytest.mark.skipif(not on_gpu(), reason=f"needs a GPU, and {VARIABLE}=cuda")
two_ranks = pytest.mark.skipif(on_gpu() and gpus() < 2, reason="two ranks need two GPUs")
# Starts of engines that on a CPU repeat, with more formats or ranks, what others show.
repeats = () if on_gpu() else (pytest.mark.soak,)
