"""What an earlier daemon counted decides the first placement of the next."""

from __future__ import annotations

import time

import numpy as np

from ktd.stats.profile import Profile, ProfileShape
from ktd.stats.profile_store import ProfileStore
from tests.app.conftest import MODEL

LAYERS, EXPERTS = 6, 32


async def test_frequency_at_the_start_follows_the_profile_that_was_kept(daemon):
    """Without --init-expert-location, and before any request."""
    counts = np.zeros((2, LAYERS, EXPERTS), np.int64)
    counts[0, :, 7] = 50
    counts[1, :, 30] = 60
    shape = ProfileShape(LAYERS, tuple(range(LAYERS)), EXPERTS)
    kept = Profile("auto", time.time(), str(MODEL), shape, counts)
    ProfileStore(daemon.state).save(kept, replace=True)
    await daemon.serving(
        *("--kt-expert-placement-strategy", "frequency", "--kt-num-gpu-experts", "2")
    )
    async with daemon.client() as client:
        placement = await client.placement()
        live = await client.profile("live")
    assert [list(layer.gpu_experts) for layer in placement.layers] == [[7, 30]] * LAYERS
    assert (live.prefill_pairs, live.decode_pairs) == (50 * LAYERS, 60 * LAYERS)
    assert "kept as profile 'auto'" in daemon.log
    assert await daemon.stop() == 0
