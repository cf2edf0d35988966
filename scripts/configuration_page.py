"""Prints docs/configuration.md from ktd's own tables of options, so that the page cannot drift.

Usage: .venv/bin/python scripts/configuration_page.py >docs/configuration.md
"""

from __future__ import annotations

from itertools import groupby

from ktd.config.legacy import LEGACY_FLAGS, REFUSED_FLAGS
from ktd.config.options import OPTIONS, Option

HEAD = """\
# Configuration of ktd serve

Every option can be a flag, an environment variable or a line of `ktd.toml`. Flags win over the
environment, that over the file, that over the defaults; `ktd config show` prints the result and
where each value came from. The file is `/etc/ktd/ktd.toml` or `$XDG_CONFIG_HOME/ktd/ktd.toml`, or
the one that `--config` names.

What ktd does not know goes to SGLang, unchanged and in order; an option that SGLang does not know
fails at once with SGLang's message. In `ktd.toml` such options are a list: `sglang-args =
["--max-total-tokens", "65536"]`.

This page is written by `scripts/configuration_page.py` from the tables that the program itself
uses.
"""

LEGACY = """
## Flags of KTransformers

The flags of its tutorial that say how many and which experts are on the GPU are options of ktd,
above, under both names: `--kt-gpu-experts-ratio` is `--gpu-experts-ratio`. These are accepted and
not needed, each with one line of notice:

| flag | instead |
|---|---|
"""

REFUSED = """
These are refused, because ignoring them would change the answer:

| flag | reason |
|---|---|
"""


def cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return text.replace("|", "\\|")


def row(option: Option) -> str:
    """One option as a row."""
    flags = "<br>".join(f"`{flag}`" for flag in option.flags)
    default = option.default
    shown = option.shown_default or ("" if default is None else f"`{default}`")
    choices = f" One of {', '.join(f'`{choice}`' for choice in option.choices)}." * bool(
        option.choices
    )
    about = cell(option.help + choices)
    variables = f"`{option.variable}`"
    if option.other_variable:
        variables += f"<br>`{option.other_variable}`"
    return f"| {flags} | {variables} | {about} | {cell(shown)} |"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for group, options in groupby(OPTIONS, key=lambda option: option.group):
        parts.append(
            f"\n## {group}\n\n| flag | variable | what it says | default |\n|---|---|---|---|"
        )
        parts += [row(option) for option in options]
    parts.append(
        LEGACY + "\n".join(f"| `{name}` | {flag.notice} |" for name, flag in LEGACY_FLAGS.items())
    )
    parts.append(
        REFUSED + "\n".join(f"| `{name}` | {reason}. |" for name, reason in REFUSED_FLAGS.items())
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
