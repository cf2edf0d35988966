"""Numbers, tables, maps and JSON as commands print them."""

from __future__ import annotations

import io

import pytest

from ktd.cli.heat import PALETTE, HeatRow, heat_strip
from ktd.cli.id_ranges import id_ranges
from ktd.cli.message_json import enum_name, message_json
from ktd.cli.quantities import bytes_text, count_text, number_text, plural, seconds_text, share_text
from ktd.cli.tables import display_width, facts, table
from ktd.cli.terminal import Terminal
from ktd.client import EnginePhase, EngineStatus, Move


class Tty(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def terminal(*, colour: bool = False, unicode: bool = True) -> Terminal:
    return Terminal(io.StringIO(), interactive=colour, colour=colour, unicode=unicode)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1023 * 1024, "1023 KiB"),
        (3 << 40, "3.0 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_bytes_have_binary_units(count: int, text: str) -> None:
    """At most four digits before the unit."""
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9999, "9999"), (12345, "12.3k"), (1234567, "1.23M")]
)
def test_counts_are_short(count: int, text: str) -> None:
    """Exact while they are small."""
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.786, "0.8"), (59.87, "59.9"), (99.94, "99.9"), (999.7, "1000"), (8477.1, "8477")],
)
def test_numbers_never_have_an_exponent(value: float, text: str) -> None:
    """A speed of 8477 tokens/s is not 8.48e+03."""
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.94, "9.9s"), (59.4, "59s"), (75.2, "1m15s"), (7265, "2h01m")],
)
def test_seconds_are_short(seconds: float, text: str) -> None:
    """One unit below a minute, two above."""
    assert seconds_text(seconds) == text


def test_words_agree_with_numbers() -> None:
    """One move, two moves."""
    assert (plural(1, "move"), plural(2, "move"), share_text(0.4267)) == (
        "1 move",
        "2 moves",
        "42.7 %",
    )


@pytest.mark.parametrize(
    ("ids", "text"), [([], ""), ([3], "3"), ([1, 2], "1 2"), ([8, 0, 1, 2, 5, 7], "0-2 5 7 8")]
)
def test_runs_of_ids_become_ranges(ids: list[int], text: str) -> None:
    """Pairs stay as they are."""
    assert id_ranges(ids) == text


def test_a_table_is_aligned_whatever_its_colours() -> None:
    """Escape sequences and wide characters take the columns that they take."""
    plain = terminal()
    table(plain, ("a", "long"), [("\x1b[32m1\x1b[0m", "x"), ("22", "語")], "rl")
    assert plain.stream.getvalue() == " a  long\n \x1b[32m1\x1b[0m  x\n22  語\n"
    assert display_width("\x1b[32m語\x1b[0m") == 2


def test_facts_leave_out_what_is_empty() -> None:
    """Names are padded to the longest that is shown."""
    plain = terminal()
    facts(plain, [("one", "1"), ("longest of all", ""), ("three", "3")])
    assert plain.stream.getvalue() == "one    1\nthree  3\n"


def test_colours_are_for_terminals_that_want_them() -> None:
    """A pipe, NO_COLOR and a dumb terminal get plain text."""
    assert Terminal.of(Tty(), {"TERM": "xterm"}).colour
    assert not Terminal.of(Tty(), {"TERM": "xterm", "NO_COLOR": "1"}).colour
    assert Terminal.of(Tty(), {"TERM": "xterm", "NO_COLOR": ""}).colour
    assert not Terminal.of(Tty(), {"TERM": "dumb"}).colour
    assert not Terminal.of(io.StringIO(), {"TERM": "xterm"}).colour
    assert Terminal.of(Tty(), {"NO_COLOR": "1"}).styled("x", "red") == "x"


def test_progress_is_for_people() -> None:
    """A pipe does not fill with rewritten lines."""
    pipe, screen = terminal(), terminal(colour=True)
    for one in (pipe, screen):
        one.progress("half")
        one.progress_done()
    assert pipe.stream.getvalue() == ""
    assert "half" in screen.stream.getvalue()


def test_a_strip_marks_slots_and_shades_heat() -> None:
    """Without colours: the hottest is full, zero is blank, a dot is a slot."""
    row = HeatRow(0, [0, 5, 10, 1], gpu_experts={2, 3})
    assert heat_strip(terminal(), row, room=8) == "  ▒ █•░•"
    assert heat_strip(terminal(), row, room=4) == " ▒••"
    assert heat_strip(terminal(unicode=False), row, room=8) == "  : #o.o"


def test_a_strip_that_is_too_long_shares_cells() -> None:
    """256 experts in 100 columns: three to a cell, never wider than the room."""
    row = HeatRow(0, [1] * 256)
    assert len(heat_strip(terminal(), row, room=100)) == -(-256 // 3)


def test_a_coloured_strip_uses_the_palettes_ends() -> None:
    """Cold is the first colour, hot the last; widths do not depend on colours."""
    strip = heat_strip(terminal(colour=True), HeatRow(0, [0, 7]), room=4)
    assert f"48;5;{PALETTE[0]}m" in strip
    assert f"48;5;{PALETTE[-1]}m" in strip
    assert display_width(strip) == 4


def test_a_strip_of_nothing_is_cold() -> None:
    """No division by a maximum of zero."""
    assert heat_strip(terminal(), HeatRow(0, [0, 0]), room=4) == "    "


def test_messages_become_json_with_the_apis_names() -> None:
    """Unset messages and optional fields are null, enums lose their prefix."""
    value = message_json(EngineStatus(phase=EnginePhase.ENGINE_PHASE_READY, restarts=2**40))
    assert (value["phase"], value["restarts"], value["model"]) == ("READY", 2**40, None)
    assert message_json(Move(layer=1, load=0)) == {"layer": 1, "evict": None, "load": 0}


def test_an_enum_value_of_a_newer_daemon_is_its_number() -> None:
    """An older client does not fall over."""
    status = EngineStatus()
    status.ParseFromString(b"\x10\x63")  # field 2 (phase) = 99
    assert enum_name(status, "phase") == "99"
