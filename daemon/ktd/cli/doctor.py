"""`ktd doctor`: what this host can run and why not; needs neither torch nor SGLang."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command
from ktd.cli.checks.cpu import cpu_findings
from ktd.cli.checks.finding import Finding, Level
from ktd.cli.checks.gpu import GPU, gpu_findings
from ktd.cli.checks.memory import memory_findings
from ktd.cli.checks.service import service_findings
from ktd.cli.checks.software import software_findings
from ktd.cli.exit_codes import ExitCode
from ktd.cli.quantities import plural
from ktd.cli.terminal import Terminal, out
from ktd.client import default_socket
from ktd.config.paths import default_state_dir

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers

_MARKS = {
    Level.OK: ("✓", "ok", "green"),
    Level.NOTE: ("·", "--", "dim"),
    Level.WARNING: ("!", "! ", "yellow"),
    Level.PROBLEM: ("✗", "no", "red"),
}


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd doctor`."""
    add_command(
        subparsers,
        "doctor",
        summary="what this host can run, and why not",
        description=(
            "Looks at the processor and its kernels, memory, NUMA nodes, GPUs, Python, SGLang and\n"
            "torch, the plugins that SGLang will find, and the daemon's socket and port. Changes\n"
            "nothing. Exits with 1 if 'ktd serve' cannot work here."
        ),
        examples=["ktd doctor", "ktd doctor --json | jq '.problems'"],
    )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Looks and reports; 1 if there is a problem."""
    socket_path = Path(getattr(args, "socket", None) or default_socket())
    gpus = gpu_findings()
    gpu = any(finding.name.startswith(GPU) for finding in gpus)
    findings = [
        *cpu_findings(),
        *memory_findings(gpu=gpu),
        *gpus,
        *software_findings(gpu=gpu),
        *service_findings(socket_path, default_state_dir(os.environ, os.getuid())),
    ]
    problems = [finding for finding in findings if finding.level is Level.PROBLEM]
    if getattr(args, "json", False):
        out().line(json.dumps(_json(findings, problems), indent=2))
    else:
        _print(out(), findings, problems)
    return ExitCode.ERROR if problems else ExitCode.OK


def _json(findings: list[Finding], problems: list[Finding]) -> dict[str, object]:
    return {
        "ok": not problems,
        "problems": [f"{f.name}: {f.text}" for f in problems],
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _print(terminal: Terminal, findings: list[Finding], problems: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for area, group in groupby(findings, key=lambda finding: finding.area):
        terminal.line(terminal.styled(area, "bold"))
        for finding in group:
            mark, plain, colour = _MARKS[finding.level]
            shown = terminal.styled(mark if terminal.unicode else plain, colour)
            terminal.line(f"  {shown} {finding.name.ljust(width)}  {finding.text}")
            if finding.advice:
                arrow = "→" if terminal.unicode else "->"
                terminal.line(
                    f"    {' ' * width}  {terminal.styled(arrow, colour)} {finding.advice}"
                )
    terminal.line()
    if problems:
        terminal.line(
            terminal.styled(f"{plural(len(problems), 'problem')}:", "red")
            + f" 'ktd serve' cannot work here ({', '.join(f.name for f in problems)})"
        )
    else:
        terminal.line(terminal.styled("This host can serve models.", "green"))
