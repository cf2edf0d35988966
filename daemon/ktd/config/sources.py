"""Flags, else environment, else ktd.toml, else defaults: joined into :class:`Settings`."""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktd.config import paths
from ktd.config.flags import CommandLine, split
from ktd.config.options import BY_NAME, OPTIONS, Option
from ktd.config.settings import Settings
from ktd.errors import ConfigError

_SGLANG_KEY = "sglang-args"
# Variables with the prefix that other parts read themselves.
_FOREIGN_VARIABLES = frozenset({"KTD_ENGINE_SPEC", "KTD_ENGINE_ID", "KTD_LIFELINE_FD"})


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything outside the program that a setting can come from."""

    argv: Sequence[str]
    env: Mapping[str, str]
    uid: int
    terminal: bool = False


def load(sources: Sources, *, model_required: bool = True) -> Settings:
    """Reads and validates all settings.

    Raises:
        ConfigError: a flag, variable or line is unknown or its value wrong; the sentence names it.
    """
    command = split(sources.argv)
    file = _config_file(command, sources)
    table = _read_toml(file) if file else {}
    chosen: dict[str, object] = {}
    provenance: dict[str, str] = {}
    for option in OPTIONS:
        found = _lookup(option, command, sources.env, table, file)
        if found is None:
            continue
        source, raw = found
        try:
            chosen[option.name] = option.parse(raw)
        except ValueError as error:
            shown = "the given value" if option.secret else repr(raw)
            raise ConfigError(f"{source}: {shown} is not {error}.") from None
        provenance[option.name] = source
    if file:
        chosen["config"] = file
    if "model" not in chosen:
        if model_required:
            raise ConfigError(
                "No model is named; give a folder or a Hugging Face id: ktd serve MODEL."
            )
        chosen["model"] = ""
    _fill_in(chosen, sources)
    file_args = _sglang_args(table, file)
    return Settings(
        **chosen,  # type: ignore[arg-type]  # each parser gives its field's type
        sglang_args=(*file_args, *command.sglang_args),
        notices=(*command.notices, *_notices(chosen, provenance)),
        provenance={option.name: provenance.get(option.name, "default") for option in OPTIONS},
    )


def _lookup(
    option: Option,
    command: CommandLine,
    env: Mapping[str, str],
    table: Mapping[str, object],
    file: Path | None,
) -> tuple[str, object] | None:
    if option.name == "model" and command.model is not None:
        named = command.given.get("model")
        if named and named[1] != command.model:
            raise ConfigError(f"{named[0]} {named[1]} contradicts the model {command.model!r}.")
        return "argument MODEL", command.model
    if option.name in command.given:
        flag, text = command.given[option.name]
        return f"flag {flag}", text
    if env.get(option.variable):
        return f"environment {option.variable}", env[option.variable]
    if option.other_variable and env.get(option.other_variable):
        return f"environment {option.other_variable}", env[option.other_variable]
    if option.key in table:
        return f"file {file}", table[option.key]
    return None


def _config_file(command: CommandLine, sources: Sources) -> Path | None:
    named = command.given.get("config", ("", sources.env.get("KTD_CONFIG", "")))[1]
    if named:
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"The configuration file {path} does not exist.")
        return path
    candidates = paths.default_config_files(sources.env, sources.uid)
    return next((path for path in candidates if path.is_file()), None)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The configuration file {path} is not TOML: {error}.") from error
    table: dict[str, object] = {}
    known = [option.key for option in OPTIONS if option.name != "config"] + [_SGLANG_KEY]
    for key, value in raw.items():
        canonical = key.replace("_", "-").removeprefix("kt-")
        if canonical not in known:
            near = difflib.get_close_matches(canonical, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; see `ktd serve --help`."
            raise ConfigError(f"The configuration file {path} has an unknown key {key!r}{hint}")
        if canonical in table:
            raise ConfigError(f"The configuration file {path} sets {canonical!r} twice.")
        table[canonical] = value
    return table


def _sglang_args(table: Mapping[str, object], file: Path | None) -> tuple[str, ...]:
    value = table.get(_SGLANG_KEY, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(
            f"{file}: {_SGLANG_KEY} must be a list of strings, such as "
            '["--max-total-tokens", "4096"].'
        )
    # The same rules as on the command line, so that ktd's own flags cannot slip through here.
    command = split(value)
    own = [flag for flag, _ in command.given.values()]
    own += [word for word in (command.model, *command.notices) if word is not None]
    if own:
        raise ConfigError(f"{file}: {_SGLANG_KEY} has {own[0]!r}, which is ktd's own, with a key.")
    return command.sglang_args


def _fill_in(chosen: dict[str, object], sources: Sources) -> None:
    """Defaults that depend on the user or the terminal."""
    for option in OPTIONS:
        if option.default is not None:
            chosen.setdefault(option.name, option.default)
    chosen.setdefault("state_dir", paths.default_state_dir(sources.env, sources.uid))
    chosen.setdefault("runtime_dir", paths.default_runtime_dir(sources.env, sources.uid))
    runtime_dir = chosen["runtime_dir"]
    if isinstance(runtime_dir, Path):
        chosen.setdefault("socket", runtime_dir / paths.SOCKET_NAME)
    chosen.setdefault("log_format", "console" if sources.terminal else "json")


def _notices(chosen: Mapping[str, object], provenance: Mapping[str, str]) -> list[str]:
    notices = []
    if "gpu_experts_ratio" in provenance and "num_gpu_experts" in provenance:
        notices.append(
            f"--kt-gpu-experts-ratio {chosen['gpu_experts_ratio']} wins over "
            f"--kt-num-gpu-experts {chosen['num_gpu_experts']}, which is ignored."
        )
    strategy = chosen["expert_placement_strategy"]
    if "init_expert_location" in provenance and strategy in ("uniform", "front-loading", "random"):
        notices.append(
            f"--init-expert-location is not read: --kt-expert-placement-strategy {strategy} looks "
            "at no statistics; frequency does."
        )
    policy = chosen.get("placement_policy")
    if chosen.get("enable_dynamic_expert_update"):
        if policy not in (None, "dynamic"):
            notices.append(
                f"--placement-policy {policy} wins over --kt-enable-dynamic-expert-update, which "
                "is ignored."
            )
        policy = policy or "dynamic"
    without_gpu = chosen.get("device") == "cpu"
    if "gpu_prefill_token_threshold" in provenance and policy != "dynamic" and without_gpu:
        notices.append(
            "--kt-gpu-prefill-token-threshold is read, on a CPU, only by --placement-policy "
            "dynamic, which is what --kt-enable-dynamic-expert-update turns on."
        )
    return notices


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """Variables that look like ktd's and are not: probably mistyped."""
    known = {option.variable for option in BY_NAME.values()} | _FOREIGN_VARIABLES
    return sorted(name for name in env if name.startswith("KTD_") and name not in known)


def from_process(argv: Sequence[str], *, model_required: bool = True) -> Settings:
    """:func:`load` with this process's environment, user and terminal."""
    sources = Sources(argv, dict(os.environ), os.getuid(), sys.stderr.isatty())
    return load(sources, model_required=model_required)
