"""Loads of many requests: what is sent, and what is made of the times."""

import json
import statistics
import time

import pytest

from ktd.bench.decode_load import DecodeLoad, decoding
from ktd.bench.lengths import draw_lengths
from ktd.bench.prefill import measure_prefill
from ktd.bench.prompts import Prompts
from ktd.bench.serve import Bounds, measure_serve
from ktd.bench.servers import RunningServer, server_at
from ktd.bench.summary import Latency, percentile
from ktd.bench.timed_stream import TimedStream
from ktd.errors import ConfigError, EngineFailed


def serve(endpoint, lengths, **changes):
    options = {"rate": 500.0, "seed": 1, "bounds": Bounds(60.0, 60.0)} | changes
    return measure_serve(
        "a", endpoint, lengths, prompts=Prompts(2048, 0), progress=lambda _: None, **options
    )


def test_lengths_have_the_means_they_are_drawn_for():
    """Somewhat less, as what is too long is drawn again; always the same for a seed."""
    lengths = draw_lengths(4000, 0)
    assert lengths == draw_lengths(4000, 0) != draw_lengths(4000, 1)
    assert 100 < statistics.mean(length.prompt for length in lengths) < 161
    assert 280 < statistics.mean(length.output for length in lengths) < 338
    assert all(4 <= length.prompt <= 1024 and length.output >= 4 for length in lengths)
    assert max(length.prompt + length.output for length in lengths) <= 2048
    assert all(length.prompt + length.output <= 100 for length in draw_lengths(50, 0, longest=100))


def test_prompts_are_exact_and_never_the_same(tmp_path):
    """Nothing is found in a cache; special tokens, at either end, are left out."""
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 800}}))
    prompts = Prompts.of_model(tmp_path, 3)
    one, other = prompts.tokens(64), prompts.tokens(64)
    assert len(one) == len(other) == 64
    assert one != other
    assert set(one) | set(other) <= set(range(100, 400))


def test_every_request_is_sent_and_counted(server, endpoint):
    """With its own prompt and length, after one that warms up."""
    lengths = draw_lengths(20, 0, longest=60)
    result = serve(endpoint, lengths)
    sent = sorted((len(body["prompt"]), body["max_tokens"]) for body in server.bodies[1:])
    assert sent == sorted((length.prompt, length.output) for length in lengths)
    assert (result.requests, result.failed, result.within_bounds) == (20, 0, 1.0)
    assert result.output_tokens == sum(length.output for length in lengths)
    assert result.prompt_tokens == sum(length.prompt for length in lengths)
    assert result.goodput == pytest.approx(20 / result.seconds)
    assert result.first_token.count == 20
    assert result.between_tokens.count == result.output_tokens - 20


def test_requests_come_at_the_rate_that_was_asked_for(endpoint):
    """On average: forty of them at 200 a second take a fifth of a second or so."""
    lengths = draw_lengths(40, 0, longest=20)
    assert serve(endpoint, lengths, rate=200.0).seconds > 0.1


def test_requests_outside_the_bounds_are_no_goodput(endpoint):
    """Neither a late first token nor slow ones."""
    lengths = draw_lengths(5, 0, longest=20)
    assert serve(endpoint, lengths, bounds=Bounds(0.0, 60.0)).goodput == 0
    assert serve(endpoint, lengths, bounds=Bounds(60.0, 0.0)).within_bounds == 0


def test_failed_requests_are_counted_and_quoted(server, endpoint):
    """A server that sheds load does not end the measurement."""
    server.refuse = lambda body: body["max_tokens"] > 12
    lengths = draw_lengths(30, 0, longest=40)
    result = serve(endpoint, lengths)
    assert result.failed == sum(length.output > 12 for length in lengths) > 0
    assert "answered 503" in result.complaint


def test_a_server_that_answers_nothing_has_no_figures(server, endpoint):
    """One sentence instead."""
    server.refuse = lambda body: body["max_tokens"] != 8
    with pytest.raises(EngineFailed, match="a answered no request: the server answered 503"):
        serve(endpoint, [length for length in draw_lengths(9, 0) if length.output != 8])


def test_prefill_divides_the_prompt_by_the_first_token(server, endpoint):
    """One token is generated; the first prompt is not counted."""
    server.pause = 0.02
    running = RunningServer("a", endpoint)
    result = measure_prefill(running, Prompts(2048, 0), tokens=300, runs=3, progress=lambda _: None)
    assert [(len(body["prompt"]), body["max_tokens"]) for body in server.bodies] == [(300, 1)] * 4
    assert result.tokens_per_second["a"].count == 3
    assert result.tokens_per_second["a"].high <= 300 / 0.02


def test_streams_go_on_until_the_load_ends(server, endpoint):
    """Each asks again when its completion has ended, and the last ones are broken off."""
    server.pause = 0.005
    with DecodeLoad(endpoint, lambda: [1], streams=3, tokens=10) as load:
        stretch = load.measure(0.4)
    assert len(server.bodies) > 3
    assert stretch.tokens == pytest.approx(3 * 0.4 / 0.005, rel=0.7)
    # The time between two completions is no time of decoding.
    assert stretch.tokens / 0.4 < stretch.tokens_per_second < 3 / 0.005
    # Between two completions there is no gap to be measured.
    assert 0 < stretch.between_tokens.count < stretch.tokens
    assert stretch.between_tokens.p50 >= 5


def test_no_stream_decodes_while_a_load_is_paused(server, endpoint):
    """Not even one that has begun; afterwards all go on, as often as that is done."""
    server.pause = 0.005
    with DecodeLoad(endpoint, lambda: [1], streams=3, tokens=1000) as load:
        for _ in range(2):
            with load.paused():
                before, asked = load.tokens, len(server.bodies)
                time.sleep(0.1)
                assert (load.tokens, len(server.bodies)) == (before, asked)
            assert load.measure(0.2).tokens > 6
        assert len(server.bodies) == asked + 3


def test_a_stream_that_dies_before_a_pause_is_told(server, endpoint):
    """It would be waited for in vain."""
    server.refuse = lambda _: len(server.bodies) > 1
    with DecodeLoad(endpoint, lambda: [1], streams=1, tokens=3) as load:
        time.sleep(0.2)
        with pytest.raises(EngineFailed, match="a stream broke off"), load.paused():
            pass


def test_what_lies_between_two_completions_is_not_decoding():
    """Inside a stretch, across its begin, and across its end."""
    arrivals = [1.0, 1.1, 3.0, 3.1, 3.2, 6.0, 6.1]
    gaps = [-1.0, 0.1, -1.0, 0.1, 0.1, -1.0, 0.1]
    assert decoding(arrivals, gaps, 1.0, 3.15) == pytest.approx(2.15 - 1.9)
    assert decoding(arrivals, gaps, 2.0, 3.15) == pytest.approx(1.15 - 1.0)
    assert decoding(arrivals, gaps, 3.0, 5.0) == pytest.approx(2.0 - 1.8)
    assert decoding(arrivals, gaps, 3.0, 3.2) == pytest.approx(0.2)
    assert decoding(arrivals, gaps, 6.05, 9.0) == pytest.approx(2.95)
    assert decoding([], [], 0.0, 1.0) == 1.0


def test_a_stretch_counts_what_lies_inside_it(server, endpoint):
    """Before a load began nothing arrived; two halves are the whole."""
    server.pause = 0.002
    begin = time.perf_counter()
    with DecodeLoad(endpoint, lambda: [1], streams=2, tokens=50) as load:
        load.measure(0.2)
        end = time.perf_counter()
        middle = (begin + end) / 2
        halves = load.stretch(begin, middle).tokens + load.stretch(middle, end).tokens
        assert halves == load.stretch(begin, end).tokens > 0
        assert load.stretch(begin - 10, begin).tokens == 0


def test_a_stream_that_dies_ends_the_measurement(server, endpoint):
    """Figures of what is left would be wrong."""
    server.refuse = lambda _: len(server.bodies) > 2
    with pytest.raises(EngineFailed, match="a stream broke off: the server answered 503"):
        with DecodeLoad(endpoint, lambda: [1], streams=2, tokens=3) as load:
            load.measure(5)


def test_another_server_is_asked_what_its_model_is_called(server, endpoint):
    """Any that speaks OpenAI's API, also below a path."""
    url = f"http://127.0.0.1:{endpoint.port}/v1/"
    with server_at(url) as running:
        assert (running.endpoint.model, running.endpoint.prefix) == ("some-model", "")
    with server_at(f"http://127.0.0.1:{endpoint.port}/below/v1") as running:
        assert running.endpoint.prefix == "/below"


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://", "http://127.0.0.1:1"])
def test_an_address_where_nothing_answers_is_named(url):
    """Before anything is measured."""
    with pytest.raises(ConfigError), server_at(url):
        pass


def test_percentiles_lie_between_neighbours():
    """As everybody computes them."""
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentile([7.0], 0.99) == 7.0
    assert Latency.of([]).count == 0
    assert Latency.of([0.003, 0.001, 0.002]).p50 == pytest.approx(2.0)


def test_gaps_are_between_neighbours():
    """One less than there are arrivals."""
    assert TimedStream("", (1.0, 1.5, 3.0), 3).gaps == (0.5, 1.5)
