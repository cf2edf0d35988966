"""What every ``ktd`` command ends with: one table for all of them.

====  ===================================================================================
code  meaning
====  ===================================================================================
0     done
1     an error that is none of the following; the sentence on standard error says which
2     a wrong flag, variable, line of ktd.toml or argument
3     refused: this model or this host cannot do it (format, memory, port, socket, SGLang)
4     the daemon cannot be reached on its socket
5     conflict: the placement has changed, or another swap is running
6     the engine is not serving now; try again
130   interrupted (Ctrl-C); ``ktd serve`` that was told to stop ends with 0
====  ===================================================================================

``systemd/ktd.service`` has 2 and 3 in ``RestartPreventExitStatus``: a new start would not help.
"""

from __future__ import annotations

from enum import IntEnum

from ktd.errors import ConfigError, EngineNotReady, KtdError


class ExitCode(IntEnum):
    """Exit status of a command."""

    OK = 0
    ERROR = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    CONFLICT = 5
    NOT_READY = 6
    INTERRUPTED = 130


_BY_STATUS = {
    "INVALID_ARGUMENT": ExitCode.USAGE,
    "NOT_FOUND": ExitCode.USAGE,
    "FAILED_PRECONDITION": ExitCode.REFUSED,
    "RESOURCE_EXHAUSTED": ExitCode.REFUSED,
    "ABORTED": ExitCode.CONFLICT,
    "UNAVAILABLE": ExitCode.UNREACHABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNREACHABLE,
}


def exit_code_of(error: KtdError) -> ExitCode:
    """The exit code that stands for ``error``, from its gRPC status code and reason."""
    if isinstance(error, ConfigError):
        return ExitCode.USAGE
    if error.reason == EngineNotReady.reason:
        return ExitCode.NOT_READY
    return _BY_STATUS.get(error.code, ExitCode.ERROR)
