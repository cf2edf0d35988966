"""`ktd profile`: statistics with a name."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

from ktd.cli.arguments import add_command, positive_int
from ktd.cli.connection import client_of
from ktd.cli.exit_codes import ExitCode
from ktd.cli.heat import HeatRow, heat_strip, legend
from ktd.cli.message_json import message_json
from ktd.cli.profile_diff import differences, differences_json, print_differences
from ktd.cli.quantities import count_text
from ktd.cli.tables import facts, table
from ktd.cli.terminal import out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ktd.cli.arguments import Subparsers
    from ktd.client import Profile

_LAYER_COLUMNS = 30  # what the table's other columns take


def add_parser(subparsers: Subparsers) -> None:
    """Adds `ktd profile` and its actions."""
    parser = add_command(
        subparsers,
        "profile",
        summary="statistics with a name: save, compare, use again",
        description=(
            "A profile is how often each expert was chosen, for prefill and decode, kept in the\n"
            "daemon's state folder. `auto` is kept by the daemon itself for its next start, and\n"
            "`live` stands for what strategies use now. `ktd serve --init-expert-location NAME`\n"
            "takes a profile, too."
        ),
        examples=[
            "ktd profile save weekday",
            "ktd profile list",
            "ktd profile diff weekday live",
            "ktd profile load weekday && ktd placement apply --strategy frequency",
        ],
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    save = add_command(actions, "save", summary="keep what strategies use now, under a name")
    save.add_argument("name", metavar="NAME", help="letters, digits, '.', '_' and '-'")
    save.add_argument("--replace", action="store_true", help="replace a profile of that name")
    add_command(actions, "list", summary="the profiles that are kept")
    show = add_command(actions, "show", summary="how often each expert was chosen")
    show.add_argument("name", metavar="NAME", help="a profile, or live")
    _add_kind(show)
    diff = add_command(
        actions,
        "diff",
        summary="how far two profiles differ",
        description=(
            "Compares two profiles layer by layer: the share of work on other experts (0 %: the\n"
            "same, 100 %: no expert in common), how many of the most used experts they share, and\n"
            "which part of the second's work the most used experts of each would compute."
        ),
        examples=["ktd profile diff weekday weekend", "ktd profile diff auto live --kind decode"],
    )
    diff.add_argument("name", metavar="A", help="a profile, or live")
    diff.add_argument("other", metavar="B", help="another one")
    diff.add_argument(
        "--experts",
        type=positive_int,
        metavar="N",
        help="how many of the most used experts of a layer to compare (default: a quarter)",
    )
    _add_kind(diff)
    load = add_command(
        actions,
        "load",
        summary="make a profile what strategies use from now on",
        description=(
            "From now on strategies use this profile and what is counted after this, instead of\n"
            "what was counted before. It weighs as 200,000 pairs a layer at most, so that the\n"
            "traffic that comes soon counts for more. `ktd stats` is not changed by it."
        ),
        examples=["ktd profile load weekday && ktd placement apply --strategy frequency"],
    )
    load.add_argument("name", metavar="NAME", help="a profile")
    remove = add_command(actions, "rm", summary="remove a profile")
    remove.add_argument("name", metavar="NAME", help="a profile")


def run(args: argparse.Namespace, _rest: list[str]) -> int:
    """Runs the chosen action and prints what came of it."""
    profiles = asyncio.run(_ask(args))
    as_json = getattr(args, "json", False)
    if args.action == "diff":
        found = differences(*profiles, kind=args.kind, experts=args.experts)
        if as_json:
            out().line(json.dumps(differences_json(found)))
        else:
            print_differences(out(), found)
    elif as_json:
        values = [message_json(profile) for profile in profiles]
        value = {"profiles": values} if args.action == "list" else values[0] if values else {}
        out().line(json.dumps(value))
    elif args.action == "list":
        _print_list(profiles)
    elif args.action == "show":
        _print_profile(profiles[0], args.kind)
    else:
        _print_done(args, profiles)
    return ExitCode.OK


async def _ask(args: argparse.Namespace) -> list[Profile]:
    async with client_of(args) as client:
        if args.action == "list":
            return await client.list_profiles()
        if args.action == "save":
            return [await client.save_profile(args.name, replace=args.replace)]
        if args.action == "load":
            return [await client.load_profile(args.name)]
        if args.action == "rm":
            await client.delete_profile(args.name)
            return []
        names = (args.name, args.other) if args.action == "diff" else (args.name,)
        return [await client.profile(name) for name in names]


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind",
        choices=("all", "prefill", "decode"),
        default="all",
        help="which work (default: all)",
    )


def _print_done(args: argparse.Namespace, profiles: Sequence[Profile]) -> None:
    if args.action == "rm":
        out().line(f"{args.name} is removed")
        return
    pairs = count_text(profiles[0].prefill_pairs + profiles[0].decode_pairs)
    verb = "saved" if args.action == "save" else "used from now on"
    out().line(f"{args.name} is {verb}: {pairs} pairs of {profiles[0].model}")


def _print_list(profiles: Sequence[Profile]) -> None:
    if not profiles:
        out().line("No profile is kept; `ktd profile save NAME` keeps one.")
        return
    rows = [
        (
            profile.name,
            f"{profile.save_time.ToDatetime():%Y-%m-%d %H:%M}",
            count_text(profile.prefill_pairs),
            count_text(profile.decode_pairs),
            f"{profile.num_moe_layers} × {profile.num_experts}",
            profile.model,
        )
        for profile in profiles
    ]
    header = ("name", "saved (UTC)", "prefill", "decode", "layers × experts", "model")
    table(out(), header, rows, "llrrrl")


def _print_profile(profile: Profile, kind: str) -> None:
    terminal = out()
    saved = f"{profile.save_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
    facts(
        terminal,
        [
            ("name", profile.name),
            ("model", profile.model),
            ("saved", saved),
            (
                "pairs",
                (
                    f"{count_text(profile.prefill_pairs)} in prefill, "
                    f"{count_text(profile.decode_pairs)} in decode"
                ),
            ),
        ],
    )
    room = max(16, terminal.width - _LAYER_COLUMNS)
    rows = []
    for layer in profile.layers:
        chosen = {"prefill": list(layer.prefill), "decode": list(layer.decode)}
        chosen["all"] = list(map(sum, zip(*chosen.values(), strict=True)))
        strip = heat_strip(terminal, HeatRow(layer.layer, chosen[kind]), room=room)
        rows.append((str(layer.layer), count_text(sum(chosen[kind])), strip))
    terminal.line()
    table(terminal, ("layer", "pairs", "experts"), rows, "rrl")
    terminal.line(legend(terminal))
