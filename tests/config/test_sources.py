"""Where a setting comes from, which source wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktd.client import default_socket
from ktd.config.options import OPTIONS
from ktd.config.settings import Settings
from ktd.config.sources import Sources, load, unknown_variables
from ktd.errors import ConfigError


def settings(*argv: str, env=None, uid=1000, **more) -> Settings:
    env = {"HOME": "/nonexistent", **(env or {})}
    return load(Sources(argv, env, uid), **more)


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "ktd.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("uid", [0, 7])
@pytest.mark.parametrize(
    "env",
    [
        {},
        {"XDG_RUNTIME_DIR": "/run/user/7"},
        {"XDG_RUNTIME_DIR": "/run/user/7", "KTD_RUNTIME_DIR": "/z"},
        {"KTD_RUNTIME_DIR": "~/z"},
        {"KTD_RUNTIME_DIR": "z"},
        {"KTD_RUNTIME_DIR": "/z", "KTD_SOCKET": "x/y.sock"},
    ],
)
def test_clients_look_where_a_daemon_of_the_same_variables_listens(env, uid, tmp_path):
    """With no system's daemon, whose socket a user's clients would take."""
    found = default_socket(env, uid=uid, **({"system_socket": tmp_path / "absent"} if uid else {}))
    assert settings("m", env=env, uid=uid).socket == found


class TestPrecedence:
    def test_flags_beat_the_environment_which_beats_the_file(self, toml):
        """Each of three options is won by another source, and provenance says which."""
        file = toml('port = 1\nhost = "a"\nlog-level = "error"\n')
        got = settings("m", "--port", "3", "--config", file, env={"KTD_PORT": "2", "KTD_HOST": "b"})
        assert (got.port, got.host, got.log_level) == (3, "b", "error")
        assert got.provenance["port"] == "flag --port"
        assert got.provenance["host"] == "environment KTD_HOST"
        assert got.provenance["log_level"] == f"file {file}"
        assert got.provenance["tp"] == "default"

    def test_every_option_can_be_set_in_the_environment(self):
        """The table gives each option a variable."""
        assert len({option.variable for option in OPTIONS}) == len(OPTIONS)
        got = settings("m", env={"KTD_GPU_EXPERTS_RATIO": "0.37", "KTD_ISA": "avx2"})
        assert (got.gpu_experts_ratio, got.isa) == (0.37, "avx2")

    def test_the_model_can_come_from_the_file(self, toml):
        """A unit's command line needs no model."""
        assert settings("--config", toml('model = "org/name"')).model == "org/name"

    def test_sglang_arguments_of_the_file_come_before_those_of_the_command_line(self, toml):
        """SGLang's parser lets the last one win."""
        file = toml('sglang-args = ["--dtype", "half"]')
        got = settings("m", "--config", file, "--dtype", "bfloat16")
        assert got.sglang_args == ("--dtype", "half", "--dtype", "bfloat16")

    def test_the_users_file_is_found(self, tmp_path):
        """$XDG_CONFIG_HOME/ktd/ktd.toml is read without being named."""
        (tmp_path / "ktd").mkdir()
        (tmp_path / "ktd/ktd.toml").write_text("tp = 2")
        got = settings("m", env={"XDG_CONFIG_HOME": str(tmp_path)})
        assert got.tp == 2
        assert got.config == tmp_path / "ktd/ktd.toml"

    def test_folders_depend_on_the_user(self):
        """Root has system folders, others their own."""
        root, user = settings("m", uid=0), settings("m", env={"XDG_RUNTIME_DIR": "/run/user/7"})
        assert (root.state_dir, root.socket) == (Path("/var/lib/ktd"), Path("/run/ktd/ktd.sock"))
        assert user.socket == Path("/run/user/7/ktd/ktd.sock")
        assert user.state_dir == Path("/nonexistent/.local/state/ktd")
        assert settings("m", "--runtime-dir", "/x").socket == Path("/x/ktd.sock")


class TestRefused:
    @pytest.mark.parametrize(
        ("argv", "sentence"),
        [
            ([], "No model is named"),
            (["m", "--port", "65536"], "--port is 65536; it must be from 0 to 65535"),
            (["m", "--port", "eighty"], "'eighty' is not a whole number"),
            (["m", "--gpu-experts-ratio", "1.5"], "ratio is 1.5; it must be from 0 to 1"),
            (["m", "--gpu-experts-ratio", "-0.1"], "must be from 0 to 1"),
            (["m", "--gpu-experts-ratio", "nan"], "must be from 0 to 1"),
            (["m", "--gpu-experts-ratio", "half"], "not a number from 0 to 1, or auto"),
            (["m", "--num-gpu-experts", "-1"], "is -1; it must be from 0 to 1048576"),
            (
                ["m", "--kt-gpu-prefill-token-threshold", "0"],
                "is 0; it must be from 1 to 2147483648",
            ),
            (
                ["m", "--expert-distribution-recorder-buffer-size", "0"],
                "is 0; it must be from 1 to 1048576, or -1 for all",
            ),
            (["m", "--expert-placement-strategy", "best"], "one of uniform, frequency"),
            (
                ["m", "--shutdown-timeout", "60"],
                "--shutdown-timeout is 60; it must be from 0 to 20",
            ),
            (["m", "--start-timeout", "0"], "must be > 0"),
            (["m", "--swap-rate", "0"], "must be > 0"),
            (["m", "--swap-rate", "fast"], "500M, 2G"),
            (["m", "--isa", "neon"], "one of scalar, avx2"),
            (["m", "--cpu-expert-format", "int2"], "one of auto, checkpoint, int8, int4"),
            (["m", "--host-memory", "huge"], "--host-memory is 'huge'; it must be one of copy, mm"),
            (
                ["m", "--host-memory", "mmap", "--cpu-expert-format", "int4"],
                "--cpu-expert-format int4 wants them quantised, which no file has: leave one",
            ),
            (["m", "--tp", "0"], "--tp is 0"),
            (["m", "--socket", "/" + "x" * 107], "108 bytes, and Linux allows 107"),
            (["m", "--config", "/no/such.toml"], "/no/such.toml does not exist"),
            (["m", "--model", "n"], "contradicts the model 'm'"),
        ],
    )
    def test_a_wrong_value_is_one_sentence(self, argv, sentence):
        """It has the flag, the value and the range."""
        with pytest.raises(ConfigError, match=sentence) as caught:
            settings(*argv)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("prot = 1", "unknown key 'prot'; did you mean port?"),
            ("zzz = 1", "unknown key 'zzz'; see"),
            ("port = ", "is not TOML"),
            ('port = "x"', "'x' is not a whole number"),
            ("port = true", "True is not a whole number"),
            ("[ktd]\nport = 1", "unknown key 'ktd'"),
            ('sglang-args = "--x"', "must be a list of strings"),
            ('sglang-args = ["--port", "1"]', "ktd's own"),
            ("log-level = 'info'\nlog_level = 'info'", "sets 'log-level' twice"),
            ("tp = 2000", "from file"),
        ],
    )
    def test_a_wrong_file_is_one_sentence(self, toml, text, sentence):
        """It has the file and the key, with a near match for a mistyped one."""
        with pytest.raises(ConfigError, match=sentence) as caught:
            settings("m", "--config", toml(text))
        assert "\n" not in str(caught.value)

    def test_a_wrong_variable_is_named(self):
        """The sentence says which variable."""
        with pytest.raises(ConfigError, match="environment KTD_PORT: 'x'"):
            settings("m", env={"KTD_PORT": "x"})

    def test_an_api_key_is_never_shown(self):
        """Neither in the representation nor in an error."""
        assert "sesame" not in repr(settings("m", "--api-key", "sesame"))


class TestNotices:
    def test_the_ratio_wins_over_the_number_with_a_warning(self):
        """As in the tutorial."""
        got = settings("m", "--kt-num-gpu-experts", "8", "--kt-gpu-experts-ratio", "0.3")
        assert any("0.3 wins over --kt-num-gpu-experts 8" in notice for notice in got.notices)

    def test_statistics_without_frequency_are_remarked(self):
        """They would be ignored silently otherwise."""
        got = settings("m", "--init-expert-location", "x.pt")
        assert any("frequency" in notice for notice in got.notices)

    def test_only_flags_of_the_command_line_discard_the_stored_placement(self, toml):
        """A unit's ktd.toml has a budget on every start, also after a crash."""
        file = toml("gpu-experts-ratio = 0.5")
        assert settings("m", "--gpu-experts-ratio", "0.5").placement_given
        assert not settings("m", "--config", file).placement_given
        assert not settings("m").placement_given

    def test_mistyped_variables_are_found(self):
        """KTD_PROT is nobody's; KTD_PORT and what the engine uses are known."""
        env = {"KTD_PROT": "1", "KTD_PORT": "1", "KTD_ENGINE_ID": "x", "HOME": "/"}
        assert unknown_variables(env) == ["KTD_PROT"]


class TestValues:
    @pytest.mark.parametrize(
        ("text", "size"),
        [("1048576", 1048576), ("500M", 5e8), ("2G", 2e9), ("512Mi", 1 << 29), ("1.5GB/s", 1.5e9)],
    )
    def test_sizes(self, text, size):
        """Decimal and binary units."""
        assert settings("m", "--swap-rate", text).swap_rate == size

    def test_relative_paths_are_taken_from_here(self, monkeypatch, tmp_path):
        """The daemon may change its folder later."""
        monkeypatch.chdir(tmp_path)
        assert settings("m", "--state-dir", "s").state_dir == tmp_path / "s"

    def test_without_a_model_the_rest_can_be_shown(self):
        """`ktd config show` needs none."""
        assert settings(model_required=False).model == ""
