"""What follows from an engine's spec: layers with a path to the CPU, and what may be late."""

from dataclasses import replace

import pytest

from ktd.enginespec import Bench, EngineSpec

SPEC = EngineSpec(
    engine_id="e",
    runtime_dir="/r",
    model_path="/m",
    sglang_args=(),
    device="cuda",
    # Interleaved: what is no MoE layer has no position.
    moe_layers=(1, 3, 5, 7),
    num_experts=8,
    experts_per_token=4,
    slots=(8, 3, 0, 8),
    initial=((), (), (), ()),
    deferred_experts=2,
)


def test_a_layer_whose_every_expert_has_a_slot_has_no_path_to_the_cpu():
    """Unless a bench wants to take slots away."""
    assert [SPEC.has_cpu_path(n) for n in range(4)] == [False, True, True, False]
    kept = replace(SPEC, bench=Bench("f", "id", keep_cpu_path=True))
    assert all(kept.has_cpu_path(n) for n in range(4))


@pytest.mark.parametrize(
    ("slots", "late"),
    [
        # The third has none behind it that could add what is late, although a layer follows.
        ((8, 3, 0, 8), [2, 2, 0, 0]),
        ((3, 3, 3, 3), [2, 2, 2, 0]),
        ((8, 8, 8, 8), [0, 0, 0, 0]),
    ],
)
def test_experts_are_late_only_where_a_later_layer_adds_them(slots, late):
    """The last MoE layer with a path to the CPU leaves nothing behind."""
    spec = replace(SPEC, slots=slots)
    assert [spec.deferred_of(n) for n in range(4)] == late
    none = replace(spec, deferred_experts=0)
    assert [none.deferred_of(n) for n in range(4)] == [0, 0, 0, 0]


def test_a_spec_is_read_as_it_was_written(tmp_path):
    """Tuples and what a bench asks for included."""
    spec = replace(SPEC, runtime_dir=str(tmp_path), bench=Bench("f", "id", keep_cpu_path=True))
    assert EngineSpec.read(spec.write()) == spec
