"""What goes through the front comes out as it went in, at once, and nothing else goes through."""

from __future__ import annotations

import asyncio
import io
import json

import aiohttp
import pytest


def headers_of(raw) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in raw}


class TestForward:
    async def test_method_path_query_headers_and_body_arrive_unchanged(self, rig):
        """Odd escapes, repeated parameters, unknown headers and binary bodies are not touched."""
        body = bytes(range(256)) * 40
        async with rig.serving() as session:
            url = aiohttp.client.URL(f"{rig.url}/v1/a%2Fb/%C3%BC~?x=1&x=2&y=%20+", encoded=True)
            async with session.put(
                url, data=body, headers={"X-Odd": "a,b; c", "Content-Type": "x/y"}
            ) as answer:
                await answer.read()
        (arrived,) = rig.upstream.arrived
        assert arrived["method"] == "PUT"
        assert arrived["path"].endswith("?x=1&x=2&y=%20+")
        assert arrived["path"].startswith("/v1/a%2Fb/%C3%BC~?")
        assert arrived["body"] == body
        headers = headers_of(arrived["headers"])
        assert headers["x-odd"] == "a,b; c"
        assert headers["content-type"] == "x/y"
        assert headers["content-length"] == str(len(body))
        assert "transfer-encoding" not in headers

    async def test_the_answer_comes_back_byte_for_byte(self, rig):
        """Status, reason, headers and an encoded body stay; headers of one hop do not."""
        async with rig.serving() as session:
            async with session.get(f"{rig.url}/v1/x?status=418") as answer:
                assert (answer.status, answer.reason) == (418, "As You Like")
                assert await answer.read() == b"\x1f\x8b not really gzip \x00\xff"
                assert answer.headers["Content-Encoding"] == "gzip"
                assert answer.headers["Content-Type"] == "text/x-odd; q=1"
                assert answer.headers["X-Up"] == "1"
                assert answer.headers["Set-Cookie"] == "a=b"
                assert "Keep-Alive" not in answer.headers

    async def test_no_header_is_invented(self, rig):
        """A client without User-Agent, Accept and a body looks so to the engine."""
        async with rig.serving():
            reader, writer = await asyncio.open_connection(
                *rig.url.removeprefix("http://").split(":")
            )
            writer.write(
                b"GET /v1/models HTTP/1.1\r\nHost: h\r\n"
                b"Connection: close, X-Hop\r\nX-Hop: 1\r\n\r\n"
            )
            await reader.read()
            writer.close()
        headers = headers_of(rig.upstream.arrived[0]["headers"])
        assert headers == {"host": "h"}

    async def test_a_chunked_body_is_streamed(self, rig):
        """A request without a length arrives whole."""

        async def pieces():
            for index in range(50):
                yield b"%d," % index

        async with rig.serving() as session:
            async with session.post(f"{rig.url}/v1/x", data=pieces()) as answer:
                await answer.read()
        assert rig.upstream.arrived[0]["body"] == b"".join(b"%d," % i for i in range(50))

    async def test_a_large_body_goes_through(self, rig):
        """There is no limit on the size of a prompt."""
        body = b"x" * (8 << 20)
        async with rig.serving() as session:
            async with session.post(f"{rig.url}/v1/x", data=io.BytesIO(body)) as answer:
                assert answer.status == 200
        assert len(rig.upstream.arrived[0]["body"]) == len(body)

    @pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE", "PATCH"])
    async def test_every_method_goes_through(self, rig, method):
        """The engine decides what a method means."""
        async with rig.serving() as session:
            async with session.request(method, f"{rig.url}/v1/x") as answer:
                assert answer.headers["X-Up"] == "1"
        assert rig.upstream.arrived[0]["method"] == method

    async def test_an_answer_without_a_body(self, rig):
        """304 has none, and stays so."""
        async with rig.serving() as session:
            async with session.get(f"{rig.url}/v1/x?status=304") as answer:
                assert answer.status == 304
                assert await answer.read() == b""


class TestStream:
    async def test_each_piece_is_passed_on_before_the_next_exists(self, rig):
        """Nothing is held back: a piece is read by the client while the engine has no other."""
        async with rig.serving() as session, session.post(f"{rig.url}/v1/stream") as answer:
            for index in range(5):
                piece = b"data: %d\n\n" % index
                rig.upstream.next_piece.put_nowait(piece)
                assert await asyncio.wait_for(answer.content.readany(), 5) == piece
            rig.upstream.next_piece.put_nowait(None)
            assert await answer.read() == b""
        assert await rig.upstream.outcome.get() == "finished"

    async def test_headers_are_passed_on_before_the_first_piece(self, rig):
        """A client sees the status of a stream that has not said anything yet."""
        async with rig.serving() as session:
            answer = await asyncio.wait_for(session.post(f"{rig.url}/v1/stream"), 5)
            assert answer.status == 200
            rig.upstream.next_piece.put_nowait(None)
            await answer.read()

    @pytest.mark.parametrize("late", ["", "?late=1"])
    async def test_a_client_that_goes_cancels_upstream_at_once(self, rig, late):
        """Before the first byte and in the middle, the engine's handler is ended."""
        async with rig.serving() as session:
            request = asyncio.create_task(session.post(f"{rig.url}/v1/stream{late}"))
            while not rig.gate.in_flight:  # noqa: ASYNC110  # it has no event for arrivals
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            if late:
                request.cancel()
            else:
                (await request).close()
            assert await asyncio.wait_for(rig.upstream.outcome.get(), 5) == "cancelled"
            assert await rig.gate.drained(5)

    async def test_an_engine_that_dies_in_the_middle_cuts_the_answer(self, rig):
        """Half an answer is not passed off as a whole one."""
        async with rig.serving() as session, session.post(f"{rig.url}/v1/stream") as answer:
            rig.upstream.next_piece.put_nowait(b"data: 0\n\n")
            assert await answer.content.readany() == b"data: 0\n\n"
            rig.upstream.next_piece.put_nowait("die")
            with pytest.raises(aiohttp.ClientPayloadError):
                await asyncio.wait_for(answer.read(), 5)

    async def test_an_engine_that_dies_before_its_answer_is_a_502(self, rig):
        """The client gets an error in OpenAI's shape."""
        async with rig.serving() as session:
            rig.upstream.next_piece.put_nowait("die")
            async with session.post(f"{rig.url}/v1/stream?late=1") as answer:
                assert answer.status == 502
                error = (await answer.json())["error"]
                assert error["code"] == "engine_gone"

    async def test_many_streams_at_once(self, rig):
        """There is no limit on connections to the engine."""
        async with rig.serving() as session:
            answers = await asyncio.wait_for(
                asyncio.gather(*(session.post(f"{rig.url}/v1/stream") for _ in range(90))), 20
            )
            assert rig.gate.in_flight == 90
            for _ in answers:
                rig.upstream.next_piece.put_nowait(None)
            await asyncio.gather(*(answer.read() for answer in answers))


class TestGate:
    async def test_503_while_the_engine_is_not_there(self, rig):
        """Retry-After and an OpenAI-shaped error, and nothing reaches the engine."""
        async with rig.serving() as session:
            rig.gate.close("The engine is loading.")
            async with session.post(f"{rig.url}/v1/chat/completions", json={}) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) > 0
                assert (await answer.json())["error"] == {
                    "message": "The engine is loading.",
                    "type": "service_unavailable",
                    "param": None,
                    "code": "engine_not_ready",
                }
        assert rig.upstream.arrived == []

    async def test_drain_lets_the_running_request_finish(self, rig):
        """A closed gate refuses new requests while the old one goes on; then it is drained."""
        async with rig.serving() as session:
            async with session.post(f"{rig.url}/v1/stream") as answer:
                rig.gate.close("Stopping.")
                async with session.get(f"{rig.url}/v1/models") as refused:
                    assert refused.status == 503
                assert not await rig.gate.drained(0.05)
                rig.upstream.next_piece.put_nowait(b"rest")
                rig.upstream.next_piece.put_nowait(None)
                assert await answer.read() == b"rest"
            assert await rig.gate.drained(5)

    async def test_a_socket_without_a_listener_is_a_502(self, rig):
        """An engine that has just ended is an error, not a hang."""
        async with rig.serving() as session:
            rig.gate.open(rig.folder / "nobody.sock")
            async with session.get(f"{rig.url}/v1/models") as answer:
                assert answer.status == 502

    async def test_another_engine_gets_the_next_requests(self, rig):
        """After a restart the new socket is used."""
        async with rig.serving() as session:
            async with session.get(f"{rig.url}/v1/models") as answer:
                assert answer.status == 200
            rig.gate.open(rig.folder / "nobody.sock")
            rig.gate.open(rig.socket)
            async with session.get(f"{rig.url}/v1/models") as answer:
                assert answer.status == 200


class TestKey:
    @pytest.mark.parametrize(
        "sent", [None, "Bearer", "Bearer wrong", "Basic sesame", "sesame", "Bearer ses\udce4me"]
    )
    async def test_a_missing_or_wrong_key_is_refused(self, rig, sent):
        """401 in OpenAI's shape; the engine sees nothing."""
        rig.key = "sesame"
        async with rig.serving():
            host, port = rig.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, port)
            line = (
                b"" if sent is None else b"Authorization: " + sent.encode(errors="surrogateescape")
            )
            writer.write(
                b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                + line
                + (b"\r\n" if line else b"")
                + b"\r\n"
            )
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
        assert b" 401 " in head.splitlines()[0]
        assert b"WWW-Authenticate: Bearer" in head
        assert json.loads(body)["error"]["code"] == "invalid_api_key"
        assert rig.upstream.arrived == []

    async def test_the_right_key_passes_and_health_needs_none(self, rig):
        """Probes and metrics stay open, as SGLang's do."""
        rig.key = "sesame"
        async with rig.serving() as session:
            ok = {"Authorization": "bearer sesame"}
            async with session.get(f"{rig.url}/v1/models", headers=ok) as answer:
                assert answer.status == 200
            for path in ("/live", "/health", "/metrics"):
                async with session.get(rig.url + path) as answer:
                    assert answer.status == 200

    async def test_a_preflight_needs_no_key(self, rig):
        """A browser's OPTIONS reaches the engine, which answers it."""
        rig.key = "sesame"
        async with rig.serving() as session:
            async with session.options(f"{rig.url}/v1/models") as answer:
                assert answer.status == 200


class TestRoutes:
    @pytest.mark.parametrize(
        "path",
        [
            "/flush_cache",
            "/",
            "/v1x",
            "/v10/models",
            "/generate",
            "/v1/../flush_cache",
            "/v1/%2e%2e/flush_cache",
            "/v1/..%2fflush_cache",
            "/v1/%2E./flush_cache",
            "/v1/x/../../flush_cache",
            "/v1/..",
            "//v1/models",
        ],
    )
    async def test_other_routes_of_the_engine_are_out_of_reach(self, rig, path):
        """404 for everything beside /v1, also by way of it."""
        async with rig.serving() as session:
            url = aiohttp.client.URL(rig.url + path, encoded=True)
            async with session.post(url) as answer:
                assert answer.status == 404
                assert "error" in await answer.json()
        assert rig.upstream.arrived == []

    async def test_live_stays_while_health_does_not(self, rig):
        """/health says why it is not 200; /live only that the process lives."""
        async with rig.serving() as session:
            async with session.get(f"{rig.url}/health") as answer:
                assert answer.status == 200
            rig.source.reason = "rank 0 has not shown life for 30 s"
            async with session.get(f"{rig.url}/health") as answer:
                assert answer.status == 503
                assert (await answer.json())["reason"] == rig.source.reason
            async with session.get(f"{rig.url}/live") as answer:
                assert answer.status == 200
