"""Every way in which configurations say which layers have experts."""

from __future__ import annotations

import pytest

from ktd.model.moe_layers import moe_layers


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        ({"first_k_dense_replace": 2}, (2, 3, 4, 5)),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, (2, 4)),
        ({"moe_layer_freq": [0, 1, 1, 0, 1, 1]}, (1, 2, 4, 5)),
        ({"moe_layer_freq": [0, 1]}, (1,)),
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 5]}, (1, 2, 3, 4)),
        ({"decoder_sparse_step": 0}, ()),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 4}, (1, 2, 3, 4)),
        ({"moe_layer_start_index": [3, 1], "moe_layer_end_index": -1}, (1, 2, 3, 4, 5)),
        ({"moe_layer_interval": 3}, (2, 5)),
        ({"moe_layers_enum": "3,4"}, (3, 4)),
        ({"moe_layers_enum": "3,4,"}, (3, 4)),
        ({"moe_layers": [1, 3, 5], "interleave_moe_layer_step": 1}, (1, 3, 5)),
        ({"interleave_moe_layer_step": 2}, (1, 3, 5)),
        ({"interleave_moe_layer_step": 0}, ()),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, (1, 3, 5)),
        ({"num_dense_layers": 2}, (2, 3, 4, 5)),
        ({"mlp_layer_types": ["dense", "sparse", "hash_moe"] * 2}, (1, 2, 4, 5)),
        ({"mlp_layer_types": None, "first_k_dense_replace": 3}, (3, 4, 5)),
        ({"first_k_dense_replace": 3, "num_hash_layers": 2}, (1, 2, 3, 4, 5)),
        ({"first_k_dense_replace": 1, "num_hash_layers": 3}, (0, 1, 2, 3, 4, 5)),
        # A list wins over a number beside it; KTransformers would read this one as all from 1 on.
        ({"first_k_dense_replace": 3, "moe_layer_freq": [0, 1, 0, 0, 1, 1]}, (1, 4, 5)),
        ({"first_k_dense_replace": None, "moe_layer_freq": None}, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_layers(config, expected):
    """Of six layers."""
    assert moe_layers(config, 6) == expected
