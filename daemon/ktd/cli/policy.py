"""`ktd policy`: what moves experts without being asked, and why it did."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import UsageError, add_command, nonnegative_int, positive_int
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.policy_output import explanation_json, policy_json, print_explanation, print_policy
from ktd.cli.terminal import out
from ktd.config import values
from ktd.errors import ConfigError

if TYPE_CHECKING:
    from ktd.cli.arguments import Subparsers
    from ktd.client import Policy, PolicyExplanation

_NAMES = ("off", "dynamic", "adaptive")
_READ_BY = {
    "--copy-cost": ("adaptive",),
    "--copy-rate": ("dynamic", "adaptive"),
    "--threshold": ("dynamic",),
}


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd policy` and its actions."""
    parser = add_command(
        subparsers,
        "policy",
        summary="what moves experts while serving, and why",
        description=(
            "A policy moves experts while requests run. `adaptive` follows what the router takes\n"
            "and moves what pays for its copy; `dynamic` is KTransformers' rule: a long prefill\n"
            "decides alone; `off` leaves the placement to operators. An operator's plan holds its\n"
            "moves for 60 seconds, and an operator's change pauses it until it is set again."
        ),
        examples=[
            "ktd policy get",
            "ktd policy set adaptive",
            "ktd policy set dynamic --threshold 512",
            "ktd policy explain",
        ],
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    add_command(actions, "get", summary="the policy that runs")
    chosen = add_command(
        actions,
        "set",
        summary="run a policy from now on",
        description=(
            "Runs a policy from now on, and ends a pause of it. Options that are left out stay as\n"
            "they are; an adaptive policy that is set again keeps what it has learned."
        ),
        examples=["ktd policy set adaptive --copy-rate 500M", "ktd policy set off"],
    )
    chosen.add_argument("policy", metavar="NAME", choices=_NAMES, help=", ".join(_NAMES))
    chosen.add_argument(
        "--copy-cost",
        metavar="PAIRS",
        help="pairs on the CPU that a copied expert costs adaptive: 0 or more, or default",
    )
    chosen.add_argument(
        "--copy-rate", metavar="BYTES", help="bytes per second that copies may take (500M, 2G)"
    )
    chosen.add_argument(
        "--threshold",
        metavar="TOKENS",
        type=positive_int,
        help="tokens of a prefill that decides, for dynamic",
    )
    explain = add_command(
        actions,
        "explain",
        summary="its last moves, and why others were not made",
        description=(
            "Prints what decisions rest on, the last moves, and the best exchanges of now with\n"
            "what speaks against each. Scores are expected uses per token; gain, noise and cost\n"
            "are (token, expert) pairs: an exchange is made when gain > cost + noise."
        ),
        examples=["ktd policy explain --moves 5", "ktd policy explain --json"],
    )
    for name, what in (("moves", "last moves"), ("candidates", "candidates")):
        explain.add_argument(
            f"--{name}",
            metavar="N",
            type=nonnegative_int,
            default=10,
            help=f"how many {what} to show (default: 10)",
        )


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Runs the chosen action and prints."""
    as_json = getattr(args, "json", False)
    if args.action == "explain":
        found = asyncio.run(_explain(args))
        if as_json:
            out().line(json.dumps(explanation_json(found)))
        else:
            print_explanation(out(), found)
        return ExitCode.OK
    policy = asyncio.run(_get(args) if args.action == "get" else _set(args))
    if as_json:
        out().line(json.dumps(policy_json(policy)))
    else:
        print_policy(out(), policy)
    return ExitCode.OK


async def _get(args: argparse.Namespace) -> Policy:
    async with client_of(args) as client:
        return await client.policy()


async def _set(args: argparse.Namespace) -> Policy:
    for option, policies in _READ_BY.items():
        given = getattr(args, option[2:].replace("-", "_")) is not None
        if given and args.policy not in policies:
            raise UsageError(
                f"{option} is read by {' and '.join(policies)} only, not by {args.policy}; see "
                "'ktd policy set --help'"
            )
    default = args.copy_cost == "default"
    cost = None if args.copy_cost is None or default else _number(args.copy_cost)
    rate = None if args.copy_rate is None else _size(args.copy_rate)
    async with client_of(args) as client:
        return await client.set_policy(
            args.policy,
            copy_cost=cost,
            default_copy_cost=default,
            copy_rate=rate,
            threshold=args.threshold,
        )


async def _explain(args: argparse.Namespace) -> PolicyExplanation:
    async with client_of(args) as client:
        return await client.explain_policy(moves=args.moves, candidates=args.candidates)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--copy-cost {text!r} is neither a number nor default.") from None


def _size(text: str) -> float:
    try:
        return values.size(text)
    except ValueError as error:
        raise ConfigError(f"--copy-rate {text!r} is not {error}.") from None
