"""What the benchmarks compute, against a server whose timing is known."""

import json

import pytest

from ktd.bench.decode import DecodeResult, common_rate, measure_decode, variant
from ktd.bench.passthrough import measure_passthrough
from ktd.bench.servers import RunningServer
from ktd.bench.summary import Summary
from ktd.bench.timed_stream import TcpEndpoint, TimedStream, timed_completion
from ktd.cli.exit_codes import ExitCode
from ktd.cli.program import run
from ktd.errors import EngineFailed


def test_a_stream_keeps_its_text_its_tokens_and_one_arrival_each(endpoint):
    """The usage event is no token, and times never run backwards."""
    stream = timed_completion(endpoint, "prompt", 5)
    assert stream.text == "0 1 2 3 4 "
    assert stream.tokens == len(stream.arrivals) == 5
    assert list(stream.arrivals) == sorted(stream.arrivals)
    assert stream.first == stream.arrivals[0] > 0


def test_the_rate_is_of_the_tokens_after_the_first(endpoint):
    """Time to the first token is prefill, not decoding."""
    stream = timed_completion(endpoint, "prompt", 5)
    seconds = stream.arrivals[-1] - stream.arrivals[0]
    assert stream.decode_tokens_per_second == pytest.approx(4 / seconds)
    assert stream.seconds_per_token == pytest.approx(seconds / 4)


def test_requests_are_greedy_and_of_fixed_length(server, endpoint):
    """Both servers of a comparison do the same work."""
    timed_completion(endpoint, "prompt", 3)
    body = server.bodies[0]
    assert (body["temperature"], body["ignore_eos"], body["stream"]) == (0, True, True)


def test_a_server_that_refuses_is_named_with_its_answer(server, endpoint):
    """Not a division by zero."""
    server.refuse = lambda _: True
    with pytest.raises(EngineFailed, match="answered 503"):
        timed_completion(endpoint, "prompt", 3)


def test_decode_takes_turns_and_pairs_neighbours(server, endpoint):
    """One run of each that does not count, then as many pairs as asked for."""
    servers = [RunningServer("a", endpoint), RunningServer("b", endpoint)]
    lines = []
    rates = measure_decode(servers, prompt="p", tokens=4, runs=3, progress=lines.append)
    result = DecodeResult.of(rates, 1)
    assert len(server.bodies) == 2 + 6
    assert result.ratio.count == result.tokens_per_second["a"].count == 3
    assert [line.split(": ")[1].split()[0] for line in lines[2:]] == ["a", "b"] * 3


def test_streams_together_have_prompts_of_their_own():
    """The same prompt would be the same experts, however many streams there are."""
    prompts = [variant("one two three", number) for number in range(7)]
    assert len(set(prompts)) == 7
    assert prompts[1] == "2. two three one"


def test_one_server_alone_has_no_ratio(endpoint):
    """Without --against there is nothing to divide by."""
    alone = [RunningServer("a", endpoint)]
    rates = measure_decode(alone, prompt="p", tokens=4, runs=2, progress=lambda _: None)
    result = DecodeResult.of(rates, 1)
    assert result.ratio is None
    assert json.loads(json.dumps(result.as_json()))["ratio"] is None


def test_several_streams_are_sent_at_once(server, endpoint):
    """A batch is one run, and its rate is that of all streams together."""
    alone = [RunningServer("a", endpoint)]
    rates = measure_decode(alone, prompt="p", tokens=4, runs=2, progress=lambda _: None, batch=3)
    assert len(server.bodies) == 3 * (1 + 2)
    assert len(rates["a"]) == 2


def test_a_batch_is_timed_while_all_its_streams_decode():
    """From the last first token to the first last one; events of two tokens count as two."""
    early = TimedStream("", (1.0, 2.0, 3.0, 4.0, 5.0), 5, began=10.0)
    late = TimedStream("", (0.5, 1.5, 2.5, 3.5), 8, began=12.0)
    # From 12.5 to 15: 13, 14, 15 of the one, and 13.5, 14.5 with two tokens each of the other.
    assert common_rate([early, late]) == pytest.approx((3 + 4) / 2.5)


def test_passthrough_alternates_who_goes_first(endpoint):
    """The differences of a server with itself lie around zero."""
    result = measure_passthrough(
        endpoint, TcpEndpoint(endpoint.port), prompt="p", tokens=4, runs=4, progress=lambda _: None
    )
    assert result.first_token_ms.count == 4
    assert result.first_token_ms.low <= result.first_token_ms.median <= result.first_token_ms.high


def test_a_summary_shows_its_spread():
    """Median, range and number of runs."""
    assert Summary.of([3.0, 1.0, 2.0]).text() == "2.0 (1.0 to 3.0, 3 runs)"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["decode", "/no/such/model"], "/no/such/model is not a folder"),
        (["decode", ".", "--tokens", "1"], "--tokens 1 is too few"),
        (["passthrough", ".", "--runs", "0"], "--runs 0 is too few"),
        (["serve", "/no/such/model"], "/no/such/model is not a folder"),
        (["serve", ".", "--against", "vllm"], "--against vllm is neither stock nor an address"),
        (["serve", ".", "--longest", "3"], "--longest 3 is too few"),
        (["prefill", "."], "does not say how many tokens the model knows"),
        (["swap", "."], "does not say how many tokens the model knows"),
        (["decode", ".", "--batch", "1,x"], "invalid list of numbers value"),
    ],
)
def test_bad_arguments_end_before_a_server_starts(arguments, sentence, capsys):
    """One sentence and the code for a wrong value."""
    assert run(["bench", *arguments]) == ExitCode.USAGE
    assert sentence in capsys.readouterr().err
