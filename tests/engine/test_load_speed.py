"""The line that says how loading goes."""

from ktd.engine.load_speed import LoadSpeed
from ktd.engine.status import LoadProgress

GIB = 1 << 30


def progress(done, total=40):
    return LoadProgress(int(done * GIB), int(total * GIB))


def test_the_line_has_share_size_speed_and_what_is_left():
    """Two GB/s for five seconds."""
    speed = LoadSpeed()
    speed.note(LoadProgress(0, 40 * 10**9), 100.0)
    done = LoadProgress(10 * 10**9, 40 * 10**9)
    speed.note(done, 105.0)
    assert speed.text(done) == (
        "25 % of 37.3 GiB of experts are in memory, 2.0 GB/s, 15 s left."
    )  # fmt: skip


def test_no_speed_is_claimed_before_there_is_one():
    """One look, or no bytes between two."""
    speed = LoadSpeed()
    assert speed.text(progress(0)) == "0 % of 40.0 GiB of experts are in memory."
    speed.note(progress(1), 1.0)
    speed.note(progress(1), 2.0)
    assert speed.text(progress(1)) == "2 % of 40.0 GiB of experts are in memory."


def test_the_speed_is_that_of_the_last_seconds():
    """A fast beginning out of the page cache is forgotten."""
    speed = LoadSpeed()
    for second in range(30):
        speed.note(progress(5 * min(second, 5) + max(second - 5, 0)), float(second))
    assert abs(speed.bytes_per_second() / GIB - 1.0) < 0.01


def test_another_engine_begins_anew():
    """After a crash the bytes start at nothing."""
    speed = LoadSpeed()
    speed.note(progress(30), 1.0)
    speed.note(progress(31), 2.0)
    speed.note(progress(0), 3.0)
    assert speed.bytes_per_second() == 0.0
    speed.note(progress(1), 4.0)
    assert speed.bytes_per_second() == GIB


def test_minutes_are_minutes():
    """A long wait is not told in seconds."""
    speed = LoadSpeed()
    speed.note(progress(0, 640), 0.0)
    speed.note(progress(2, 640), 1.0)
    assert speed.text(progress(2, 640)).endswith("2.1 GB/s, 5 min left.")
