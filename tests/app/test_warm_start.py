"""What an earlier daemon counted decides the first placement of the next."""

from __future__ import annotations

import json
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


async def test_a_file_that_was_given_is_what_live_strategies_begin_with(daemon, tmp_path):
    """Otherwise the first plan would move out what the file has placed."""
    shares = np.full((LAYERS, EXPERTS), 0.001)
    shares[:, 9], shares[:, 21] = 0.5, 0.4
    path = tmp_path / "shares.json"
    path.write_text(json.dumps(shares.tolist()))
    await daemon.serving(
        *("--kt-expert-placement-strategy", "frequency", "--kt-num-gpu-experts", "2"),
        *("--init-expert-location", str(path)),
    )
    async with daemon.client() as client:
        placement = await client.placement()
        plan = await client.plan(strategy="frequency")
        live = await client.profile("live")
    assert [list(layer.gpu_experts) for layer in placement.layers] == [[9, 21]] * LAYERS
    assert not plan.moves
    assert plan.hit_rate_after > 0.9
    assert live.prefill_pairs > 0
    assert await daemon.stop() == 0
