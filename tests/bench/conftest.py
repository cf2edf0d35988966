"""A server whose timing is known: it streams one event per token, as an OpenAI server does."""

import http.server
import json
import threading
import time

import pytest

from ktd.bench.timed_stream import TcpEndpoint


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers completions; the server's attributes say how."""

    def do_GET(self):
        answer = json.dumps({"data": [{"id": "some-model"}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.server.refuse(body):
            self.send_error(503, "not now")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for number in range(body["max_tokens"]):
                time.sleep(self.server.pause)
                self.event({"choices": [{"text": f"{number} "}]})
            self.event({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.server.broken_off += 1

    def event(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.bodies, server.refuse, server.pause = [], lambda _: False, 0.0
        server.broken_off = 0
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def endpoint(server):
    return TcpEndpoint(server.server_address[1])
