"""SGLang's command line: parsed by its own parser, completed, and checked against what ktd runs."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator
from typing import Any

from ktd.enginespec import EngineSpec
from ktd.sgl import quantised_checkpoint
from ktd.sgl.refused_options import incompatible

# KV cache on a host without a GPU, where SGLang would otherwise take most of the memory.
_CPU_KV_TOKENS = 65_536


class ArgumentsRefused(Exception):  # says what happened
    """SGLang or ktd does not accept the arguments; ``kind`` is the failure's kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def command_line(spec: EngineSpec) -> list[str]:
    """The complete argument list for SGLang's parser.

    Defaults come first: of an option given twice the last one counts, however it is spelt.
    """
    arguments = [
        "--sleep-on-idle",
        "--disable-shared-experts-fusion",
        # The app is served on a Unix socket, where SGLang's own warm-up cannot reach it.
        "--skip-server-warmup",
    ]
    if spec.device == "cpu":
        arguments += ("--device", "cpu", "--attention-backend", "torch_native")
        arguments += ("--disable-cuda-graph", "--max-total-tokens", str(_CPU_KV_TOKENS))
    else:
        arguments += ("--device", spec.device, "--moe-runner-backend", "triton")
        # A captured prefill would hold a split between two launches.
        arguments += ("--disable-prefill-cuda-graph",)
    arguments += ("--dtype", "bfloat16")
    return [*arguments, "--model-path", spec.model_path, *spec.sglang_args]


def parse(spec: EngineSpec) -> Any:
    """Returns SGLang's ``ServerArgs``.

    Options that do not go with ktd are looked for twice: as given, because SGLang's own checks of
    a combination would hide the name that matters, and as completed, because one option may
    switch on another.

    Raises:
        ArgumentsRefused: with SGLang's own words, or with the options that do not go with ktd.
    """
    from sglang.srt.server_args import ServerArgs, prepare_server_args

    try:
        quantised_checkpoint.prepare(spec)
    except quantised_checkpoint.ReleaseTooOld as error:
        raise ArgumentsRefused("model", str(error)) from error
    arguments = command_line(spec)
    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    with _sglangs_own_words():
        given = parser.parse_args(arguments)
    _refuse(given)
    with _sglangs_own_words():
        server_args = prepare_server_args(arguments)
    _refuse(server_args)
    if server_args.device != spec.device:
        raise ArgumentsRefused(
            "incompatible",
            f"--device {server_args.device} is not supported here: ktd has chosen {spec.device} "
            "for this host; leave it out",
        )
    return server_args


@contextlib.contextmanager
def _sglangs_own_words() -> Iterator[None]:
    """Turns whatever SGLang's parser or checks raise into :class:`ArgumentsRefused`."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            yield
    except SystemExit as stop:
        lines = [line for line in errors.getvalue().splitlines() if ": error: " in line]
        words = lines[-1].split(": error: ", 1)[1] if lines else f"exit code {stop.code}"
        raise ArgumentsRefused(
            "usage",
            f"SGLang does not accept the arguments: {words}; ktd's flags are in 'ktd serve --help',"
            " SGLang's in 'python -m sglang.launch_server --help'",
        ) from stop
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ArgumentsRefused("usage", f"SGLang does not accept the arguments: {words}") from error


def _refuse(arguments: Any) -> None:
    problems = incompatible(arguments)
    if problems:
        rest = "leave it out" if len(problems) == 1 else "leave them out"
        raise ArgumentsRefused(
            "incompatible", f"not supported together with ktd: {'; '.join(problems)}; {rest}"
        )
