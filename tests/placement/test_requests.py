"""What is remembered of calls that may be repeated."""

from ktd.placement.requests import RequestLog


def test_ids_are_known_for_ten_minutes():
    """And no longer; calls without one leave nothing."""
    now = [0.0]
    log = RequestLog(lambda: now[0])
    log.record("a", "first")
    log.record("", "nameless")
    now[0] = 599.0
    log.record("b", "second")
    assert (log.swap_of("a"), log.swap_of("b"), log.swap_of("")) == ("first", "second", None)
    now[0] = 601.0
    assert (log.swap_of("a"), log.swap_of("b")) == (None, "second")


def test_a_storm_of_calls_is_forgotten_from_the_oldest_on():
    """Ten minutes of them would be megabytes."""
    log = RequestLog(lambda: 0.0)
    for number in range(1200):
        log.record(f"id-{number}", f"swap-{number}")
    assert log.swap_of("id-199") is None
    assert log.swap_of("id-200") == "swap-200"
    assert log.swap_of("id-1199") == "swap-1199"
