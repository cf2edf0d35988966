"""The extension itself, where its Python face does not reach: tickets, forks, addresses."""

from __future__ import annotations

import ctypes
import os
import signal

import pytest

torch = pytest.importorskip("torch", reason="the tests keep their memory in torch tensors")

from ktd.experts import _native  # noqa: E402 - after the skip


class Prepared:
    """A pool with one layer, and the arguments of one call on it."""

    def __init__(self, step, threads=1):
        self.pool = _native.Pool(threads)
        experts, hidden, inner = step.w2.shape
        layer = self.pool.add_layer(experts, hidden, inner, step.w13.data_ptr(), step.w2.data_ptr())
        self.out = torch.full(step.x.shape, float("nan"), dtype=torch.float32)
        self.arguments = {
            "layer": layer,
            "x": step.x.data_ptr(),
            "ids": step.ids.data_ptr(),
            "weights": step.weights.data_ptr(),
            "out": self.out.data_ptr(),
            "tokens": step.x.shape[0],
            "top_k": step.ids.shape[1],
        }


@pytest.fixture(name="step")
def step_fixture(moe_step):
    return moe_step(4, 48, 16, 3, 2)


def test_a_submitted_call_gives_what_forward_gives(step):
    """Submit and wait write the same bits and return the same bytes."""
    case = Prepared(step, threads=2)
    read = case.pool.forward(**case.arguments)
    expected = case.out.clone()
    case.out.fill_(float("nan"))
    ticket = case.pool.submit(**case.arguments)
    assert case.pool.wait(ticket) == read > 0
    assert torch.equal(case.out, expected)
    assert case.pool.calls == 2
    assert case.pool.bytes_read == 2 * read


def test_a_ticket_is_good_for_one_wait(step):
    """A ticket that was waited for, or never given, is refused by number."""
    case = Prepared(step)
    with pytest.raises(ValueError, match="ticket 7 is not outstanding"):
        case.pool.wait(7)
    ticket = case.pool.submit(**case.arguments)
    case.pool.wait(ticket)
    with pytest.raises(ValueError, match=f"ticket {ticket} is not outstanding"):
        case.pool.wait(ticket)


def test_the_heartbeat_moves_with_a_call(step):
    """The word at heartbeat_address grows when experts are computed."""
    case = Prepared(step)
    heartbeat = ctypes.c_uint64.from_address(case.pool.heartbeat_address())
    before = heartbeat.value
    case.pool.forward(**case.arguments)
    assert heartbeat.value > before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 3}, "x is at an address that is no multiple of 2"),
        ({"out": 2}, "out is at an address that is no multiple of 4"),
        ({"ids": 0}, "an argument of a call with tokens is at address 0"),
        ({"tokens": -1}, "tokens must not be negative, but is -1"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"layer": 1}, "no layer with handle 1: the pool has 1"),
    ],
)
def test_wrong_addresses_and_counts_are_refused(step, change, message):
    """What the boundary can see is refused in one sentence, and a note says where."""
    case = Prepared(step)
    with pytest.raises(ValueError, match=message) as refused:
        case.pool.forward(**{**case.arguments, **change})
    assert "refused at " in refused.value.__notes__[0]
    assert case.out.isnan().all()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_is_refused_and_ends_cleanly(step):
    """A pool copied by fork says that its threads stayed behind, and neither hangs nor crashes."""
    case = Prepared(step, threads=2)
    case.pool.wait(case.pool.submit(**case.arguments))
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.alarm(20)
            case.pool.forward(**case.arguments)
        except ValueError as error:
            code = 0 if "when the process forked" in str(error) else 2
        finally:
            del case
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    case.pool.forward(**case.arguments)
