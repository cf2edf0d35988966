"""Python, SGLang, torch and the plugins found, from package metadata: nothing is imported."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version

from ktd.cli.checks.finding import Finding, Level
from ktd.version import __version__, release_numbers, untried_on_gpus

_OLDEST_PYTHON = (3, 11)
_OLDEST_SGLANG = (0, 5, 17)
_INSTALL_ENGINE = "pip install 'ktd[engine]'"
_PLUGIN_GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")


def software_findings(*, gpu: bool = False) -> list[Finding]:
    """Versions and plugins.

    Args:
        gpu: Models would run on one.
    """
    return [
        _python(),
        Finding("software", "ktd", Level.OK, __version__, data={"version": __version__}),
        _sglang(gpu=gpu),
        _torch(),
        *(_plugins(group) for group in _PLUGIN_GROUPS),
    ]


def installed(package: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    found = platform.python_version()
    data = {"version": found}
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("software", "Python", Level.PROBLEM, found, "3.11 or newer is needed", data)
    return Finding("software", "Python", Level.OK, found, data=data)


def _sglang(*, gpu: bool) -> Finding:
    found = installed("sglang")
    data = {"version": found}
    if found is None:
        text = "not installed: this host can be a client, not a server"
        return Finding("software", "SGLang", Level.PROBLEM, text, _INSTALL_ENGINE, data)
    if release_numbers(found) < _OLDEST_SGLANG:
        advice = f"0.5.17 or newer is needed: {_INSTALL_ENGINE}"
        return Finding("software", "SGLang", Level.PROBLEM, found, advice, data)
    if gpu and (text := untried_on_gpus(found)):
        return Finding("software", "SGLang", Level.NOTE, text, data=data)
    return Finding("software", "SGLang", Level.OK, found, data=data)


def _torch() -> Finding:
    found = installed("torch")
    data = {"version": found}
    if found is None:
        return Finding("software", "torch", Level.PROBLEM, "not installed", _INSTALL_ENGINE, data)
    return Finding("software", "torch", Level.OK, found, data=data)


def _plugins(group: str) -> Finding:
    """SGLang loads plugins by entry point, and only logs those that fail: say what it will find."""
    found = {point.name: point.value for point in entry_points(group=group)}
    text = ", ".join(f"{name} ({value})" for name, value in sorted(found.items())) or "none"
    data = {"entry_points": found}
    if "ktd" not in found:
        advice = "ktd is not installed as a package here (running from a folder?); install it"
        return Finding("software", group, Level.PROBLEM, text, advice, data)
    return Finding("software", group, Level.OK, text, data=data)
