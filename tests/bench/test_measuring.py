"""What the benchmarks compute, against a server whose timing is known."""

import http.server
import json
import threading

import pytest

from ktd.bench.decode import measure_decode
from ktd.bench.passthrough import measure_passthrough
from ktd.bench.servers import RunningServer
from ktd.bench.summary import Summary
from ktd.bench.timed_stream import TcpEndpoint, timed_completion
from ktd.cli.exit_codes import ExitCode
from ktd.cli.program import run
from ktd.errors import EngineFailed


class Handler(http.server.BaseHTTPRequestHandler):
    """Streams one event per token, as an OpenAI server does."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.server.refuse:
            self.send_error(503, "not now")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number in range(body["max_tokens"]):
            self.event({"choices": [{"text": f"{number} "}]})
        self.event({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.bodies, server.refuse = [], False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def endpoint(server):
    return TcpEndpoint(server.server_address[1])


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
    server.refuse = True
    with pytest.raises(EngineFailed, match="answered 503"):
        timed_completion(endpoint, "prompt", 3)


def test_decode_takes_turns_and_pairs_neighbours(server, endpoint):
    """One run of each that does not count, then as many pairs as asked for."""
    servers = [RunningServer("a", endpoint), RunningServer("b", endpoint)]
    lines = []
    result = measure_decode(servers, prompt="p", tokens=4, runs=3, progress=lines.append)
    assert len(server.bodies) == 2 + 6
    assert result.ratio.count == result.tokens_per_second["a"].count == 3
    assert [line.split(": ")[1].split()[0] for line in lines[2:]] == ["a", "b"] * 3


def test_one_server_alone_has_no_ratio(endpoint):
    """Without --against there is nothing to divide by."""
    alone = [RunningServer("a", endpoint)]
    result = measure_decode(alone, prompt="p", tokens=4, runs=2, progress=lambda _: None)
    assert result.ratio is None
    assert json.loads(json.dumps(result.as_json()))["ratio"] is None


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
    ],
)
def test_bad_arguments_end_before_a_server_starts(arguments, sentence, capsys):
    """One sentence and the code for a wrong value."""
    assert run(["bench", *arguments]) == ExitCode.USAGE
    assert sentence in capsys.readouterr().err
