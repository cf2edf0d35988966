"""What the daemon was told becomes a policy, and what can never fire is said."""

from __future__ import annotations

import pytest

from ktd.app.policies import copy_pairs, never_fires, options_of, usual_copy_cost
from ktd.config.sources import Sources, load
from ktd.errors import ConfigError
from ktd.placement.cost import default_costs
from ktd.placement.cost_meter import CostMeter, StepCounters


def settings(*argv, **env):
    return load(Sources(("/model", *argv), {"HOME": "/nowhere", **env}, uid=1000))


def test_nothing_runs_unless_it_is_asked_for():
    assert options_of(settings()).name == "off"


def test_kts_flags_are_the_policy_dynamic():
    told = settings("--kt-enable-dynamic-expert-update", "--kt-gpu-prefill-token-threshold", "512")
    options = options_of(told)
    assert (options.name, options.threshold) == ("dynamic", 512)
    assert not told.notices
    assert never_fires(told, options, 4096) == ""


def test_ktds_own_flag_wins_and_says_so():
    told = settings("--kt-enable-dynamic-expert-update", "--placement-policy", "adaptive")
    assert options_of(told).name == "adaptive"
    assert "wins over" in told.notices[0]


def test_figures_of_adaptive_can_be_set():
    told = settings(
        "--placement-policy=adaptive", "--policy-copy-cost=0", "--policy-copy-rate=250M"
    )
    options = options_of(told)
    assert (options.copy_cost, options.copy_rate) == (0.0, 2.5e8)
    assert options_of(settings(KTD_PLACEMENT_POLICY="adaptive")).name == "adaptive"


def test_policies_beside_a_gpu_copy_more_freely():
    """Its link is no core's work; what an operator says holds everywhere."""
    told = settings("--placement-policy=adaptive")
    assert options_of(told, "cuda").copy_rate > options_of(told, "cpu").copy_rate
    assert usual_copy_cost("cpu") is None
    assert usual_copy_cost("cuda") == 4.0
    limited = settings("--placement-policy=adaptive", "--policy-copy-rate=250M")
    assert options_of(limited, "cuda").copy_rate == 2.5e8


def test_a_threshold_that_nothing_reads_is_said():
    told = settings("--device", "cpu", "--kt-gpu-prefill-token-threshold", "512")
    assert "only by --placement-policy dynamic" in told.notices[0]


def test_without_a_threshold_dynamic_never_fires():
    told = settings("--kt-enable-dynamic-expert-update")
    assert "never moves anything" in never_fires(told, options_of(told), 4096)


@pytest.mark.parametrize(
    ("chunk", "threshold", "can"),
    [
        (("--chunked-prefill-size", "2048"), "4096", False),
        (("--chunked-prefill-size=4096",), "4096", True),
        (("--chunked-prefill-size", "-1"), "100000", True),
        ((), "4096", True),
        ((), "4097", False),
    ],
)
def test_a_threshold_above_the_chunk_can_never_fire(chunk, threshold, can):
    told = settings(
        "--placement-policy",
        "dynamic",
        "--kt-gpu-prefill-token-threshold",
        threshold,
        *chunk,
    )
    sentence = never_fires(told, options_of(told), 4096)
    assert (sentence == "") is can
    assert can or (threshold in sentence and "can never fire" in sentence)


def test_copies_that_are_slow_are_expensive_once_that_was_measured():
    meter = CostMeter(default_costs("cuda"))
    assert copy_pairs(meter.costs(), 1 << 24) == 0
    for tick in range(20):
        steps = 10 * tick
        # 1 GB/s: the more of a step's bytes the CPU reads, the longer it takes.
        read = sum(10 * 10**6 * (1 + part % 5) for part in range(tick))
        seconds = 0.01 * steps + read / 1e9
        meter.counted(StepCounters(seconds, "e", steps, steps, 0, read))
    meter.copied(10**8, 1.0)
    assert copy_pairs(meter.costs(), 1 << 24) == pytest.approx(10, rel=0.05)
    assert copy_pairs(meter.costs(), 98_304) == 0
    # The CPU reads a quarter of the bytes that a copy writes.
    assert copy_pairs(meter.costs(cpu_share=0.25), 1 << 24) == pytest.approx(40, rel=0.05)


def test_the_last_chunk_size_counts():
    threshold = ("--kt-gpu-prefill-token-threshold", "2048")
    argv = ("--chunked-prefill-size", "512", "--chunked-prefill-size=1024")
    told = settings("--kt-enable-dynamic-expert-update", *threshold, *argv)
    assert "(--chunked-prefill-size 1024)" in never_fires(told, options_of(told), 4096)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("--placement-policy", "best"), "must be one of off, dynamic, adaptive"),
        (("--policy-copy-cost", "-1"), "a number of 0 or more"),
        (("--policy-copy-rate", "0"), "must be > 0"),
        (("--kt-gpu-prefill-token-threshold", "0"), "must be from 1"),
    ],
)
def test_bad_values_are_one_sentence(argv, sentence):
    with pytest.raises(ConfigError, match=sentence):
        settings(*argv)
