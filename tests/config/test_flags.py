"""The command line is taken apart: ktd's options, the model, and SGLang's part unchanged."""

from __future__ import annotations

import pytest

from ktd.config.flags import split
from ktd.errors import ConfigError


class TestSplit:
    def test_what_ktd_does_not_know_is_sglangs_in_order(self):
        """Unknown flags keep their values, both spellings, also several and negative ones."""
        line = split(
            [
                "m",
                "--max-total-tokens",
                "400",
                "--tp=2",
                "--dtype=half",
                "--port",
                "8000",
                "--lora-paths",
                "a",
                "b",
                "--x",
                "-1",
                "--disable-radix-cache",
            ]
        )
        assert line.model == "m"
        assert line.given == {"tp": ("--tp", "2"), "port": ("--port", "8000")}
        assert line.sglang_args == (
            "--max-total-tokens",
            "400",
            "--dtype=half",
            "--lora-paths",
            "a",
            "b",
            "--x",
            "-1",
            "--disable-radix-cache",
        )

    def test_the_model_may_follow_ktds_options(self):
        """A bare word after a ktd option's value is MODEL."""
        assert split(["--port", "1", "m"]).model == "m"

    def test_a_bare_word_after_an_unknown_flag_is_its_value(self):
        """Only SGLang knows which flags take values."""
        line = split(["--foo", "m"])
        assert (line.model, line.sglang_args) == (None, ("--foo", "m"))

    def test_everything_after_two_dashes_is_sglangs(self):
        """Also what would be ktd's."""
        assert split(["m", "--", "--port", "1", "x"]).sglang_args == ("--port", "1", "x")

    def test_a_value_may_begin_with_one_dash(self):
        """A key or a path can look like an option."""
        assert split(["m", "--api-key", "-secret"]).given["api_key"] == ("--api-key", "-secret")

    @pytest.mark.parametrize(
        ("argv", "sentence"),
        [
            (["m", "--port"], "--port needs a value"),
            (["m", "--port", "--tp", "2"], "--port needs a value"),
            (["m", "n"], "'n' is not expected after the model 'm'"),
            (["m", "--kt-num-gpu-expert", "2"], "did you mean --kt-num-gpu-experts"),
            (["m", "--kt-lora-path", "x"], "--kt-lora-path is refused"),
            (["m", "--kt-method"], "--kt-method needs a value"),
        ],
    )
    def test_mistakes_are_named(self, argv, sentence):
        """One sentence with the flag."""
        with pytest.raises(ConfigError, match=sentence):
            split(argv)

    def test_the_last_of_two_wins(self):
        """Wrappers append to what they were given."""
        assert split(["m", "--port", "1", "--http-port", "2"]).given["port"] == ("--http-port", "2")


class TestLegacy:
    def test_flags_of_the_recorder_are_ktds_own_and_do_not_reach_sglang(self) -> None:
        """SGLang would start a recorder of its own, which knows nothing of the slots."""
        line = split(
            [
                *("/m", "--record-kt-gpu-expert-distribution"),
                *("--expert-distribution-recorder-mode", "per_token"),
                *("--expert-distribution-recorder-buffer-size=-1", "--max-total-tokens", "9"),
            ]
        )
        assert line.model == "/m"
        assert line.sglang_args == ("--max-total-tokens", "9")
        assert {name: text for name, (_, text) in line.given.items()} == {
            "record_gpu_expert_distribution": "yes",
            "expert_distribution_recorder_mode": "per_token",
            "expert_distribution_recorder_buffer_size": "-1",
        }

    def test_the_tutorials_command_is_understood(self):
        """Its flags set the budget; those that ktd does not need get one line each."""
        line = split(
            [
                "--model",
                "/m",
                "--kt-weight-path",
                "/w",
                "--kt-method",
                "AMXINT4",
                "--kt-cpuinfer",
                "60",
                "--kt-threadpool-count",
                "2",
                "--kt-numa-nodes",
                "0",
                "1",
                "--kt-num-gpu-experts",
                "8",
                "--kt-expert-placement-strategy",
                "frequency",
                "--init-expert-location",
                "s.pt",
                "--kt-enable-dynamic-expert-update",
                "--kt-gpu-prefill-token-threshold",
                "512",
                "--kt-max-deferred-experts-per-token",
                "2",
                "--record-kt-gpu-expert-distribution",
            ]
        )
        assert line.sglang_args == ()
        assert line.model is None
        assert {name: text for name, (_, text) in line.given.items()} == {
            "model": "/m",
            "num_gpu_experts": "8",
            "expert_placement_strategy": "frequency",
            "init_expert_location": "s.pt",
            "enable_dynamic_expert_update": "yes",
            "gpu_prefill_token_threshold": "512",
            "max_deferred_experts_per_token": "2",
            "record_gpu_expert_distribution": "yes",
        }
        assert len(line.notices) == 5
        assert all("\n" not in notice for notice in line.notices)
        assert "--cpu-threads" in next(n for n in line.notices if "--kt-cpuinfer" in n)
