"""The text of ``ktd serve --help``, from the table of options."""

from __future__ import annotations

import textwrap

from ktd.config.legacy import LEGACY_FLAGS
from ktd.config.options import OPTIONS, Option

_WIDTH = 100
_INDENT = 34

_INTRODUCTION = """\
usage: ktd serve MODEL [ktd options] [SGLang options]

Serves a Mixture-of-Experts model: SGLang runs as a child process, experts live in host memory
and are computed by native CPU kernels, and the hot ones sit in GPU slots that can be changed
while requests run. The OpenAI API is at http://HOST:PORT/v1, health at /live and /health, metrics
at /metrics, and the gRPC API on a Unix socket.

MODEL is a folder with a checkpoint or a Hugging Face id, which is downloaded. Every option can
also be set in the environment (KTD_PORT=8000) and in ktd.toml (port = 8000); flags win over the
environment, and that over the file. `ktd config show` prints the result. Options that ktd does
not know go to SGLang unchanged, and so does everything after `--`; in ktd.toml they are a list,
sglang-args = ["--max-total-tokens", "65536"].
"""

_EPILOGUE = """
examples:
  ktd serve Qwen/Qwen3-30B-A3B
  ktd serve ./model --kt-gpu-experts-ratio 0.3 --tp 2 --port 8000 --api-key "$KEY"
  ktd serve ./model --kt-num-gpu-experts 8 --kt-expert-placement-strategy frequency \\
      --init-expert-location activation_stats.pt
  ktd serve ./model --max-total-tokens 65536 --chunked-prefill-size 2048

exit status:
  0 stopped as asked, 1 error, 2 wrong option, 3 this model or host cannot be served,
  130 forced to stop
"""


def serve_help() -> str:
    """The whole help text."""
    lines = [_INTRODUCTION]
    group = ""
    for option in OPTIONS:
        if option.group != group:
            group = option.group
            lines.append(f"\n{group}:" if lines[-1] != _INTRODUCTION else f"{group}:")
        lines += _entry(option)
    lines.append("\nKTransformers flags that are accepted and not needed:")
    lines += textwrap.wrap(
        ", ".join(LEGACY_FLAGS),
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_on_hyphens=False,
    )
    return "\n".join(lines) + "\n" + _EPILOGUE


def _entry(option: Option) -> list[str]:
    value = "{" + ",".join(option.choices) + "}" if option.choices else option.metavar
    flags = f"  {', '.join(option.flags)} {value}".rstrip()
    default = option.shown_default or ("" if option.default is None else _text(option.default))
    about = f"{option.help} [{default}]" if default else option.help
    wrapped = textwrap.wrap(about, _WIDTH - _INDENT)
    indent = " " * _INDENT
    if len(flags) + 2 <= _INDENT:
        first = flags.ljust(_INDENT) + wrapped[0]
        return [first, *(indent + line for line in wrapped[1:])]
    return [flags, *(indent + line for line in wrapped)]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
