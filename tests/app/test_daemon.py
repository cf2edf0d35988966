"""`ktd serve` as a process: serves, stops, is killed, and refuses what it cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from pathlib import Path

from ktd.errors import KtdError
from ktd.v1 import engine_pb2


class TestServe:
    async def test_requests_api_and_metrics(self, daemon, http):
        """The OpenAI front, the gRPC API and /metrics speak of the same engine."""
        await daemon.serving("--kt-num-gpu-experts", "8")
        async with http.get(f"{daemon.url}/v1/models") as answer:
            assert (await answer.json())["data"][0]["id"] == "fake"
        async with http.get(f"{daemon.url}/health") as answer:
            assert answer.status == 200
        async with daemon.client() as client:
            status = await client.status()
            placement = await client.placement()
        assert status.phase == engine_pb2.ENGINE_PHASE_READY
        assert status.http_address == daemon.url
        assert status.model.num_experts == 32
        assert status.memory.total_slots == 48
        assert status.versions.sglang == "0.0.fake"
        assert [list(layer.gpu_experts) for layer in placement.layers] == [list(range(8))] * 6
        async with http.get(f"{daemon.url}/metrics") as answer:
            text = await answer.text()
        assert "ktd_engine_ready 1.0" in text
        assert 'ktd_experts_resident{device="gpu"} 48.0' in text

    async def test_503_and_status_while_loading(self, daemon, http):
        """The front and the API answer from the first moment on."""
        daemon.misbehave(load=600)
        await daemon.start()
        await daemon.logged("engine started")
        async with http.get(f"{daemon.url}/v1/models") as answer:
            assert answer.status == 503
            assert "Retry-After" in answer.headers
        async with http.get(f"{daemon.url}/live") as answer:
            assert answer.status == 200
        async with daemon.client() as client:
            status = await client.status()
        assert status.phase in (
            engine_pb2.ENGINE_PHASE_STARTING, engine_pb2.ENGINE_PHASE_LOADING
        )  # fmt: skip
        assert await daemon.stop() == 0
        assert daemon.left() == []

    async def test_stop_and_start_over_the_api(self, daemon, http):
        """StopEngine leaves the daemon up; StartEngine brings the placement back."""
        await daemon.serving()
        async with daemon.client() as client:
            before = await client.placement()
            stopped = await client.stop(1.0)
            assert stopped.phase == engine_pb2.ENGINE_PHASE_STOPPED
            async with http.get(f"{daemon.url}/v1/models") as answer:
                assert answer.status == 503
            await client.start()
            while (await client.status()).phase != engine_pb2.ENGINE_PHASE_READY:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)
            assert await client.placement() == before


class TestStop:
    async def test_requests_in_flight_are_finished(self, daemon, http):
        """SIGTERM lets a stream end, refuses the next request, and leaves nothing."""
        await daemon.serving()
        body = {"n": 10, "delay": 0.1}
        async with http.post(f"{daemon.url}/v1/completions", json=body) as stream:
            await stream.content.readline()
            daemon.process.send_signal(signal.SIGTERM)
            await daemon.logged('"stopping"')
            async with http.get(f"{daemon.url}/v1/models") as refused:
                assert refused.status == 503
            async with http.get(f"{daemon.url}/live") as live:
                assert live.status == 200
            async with http.get(f"{daemon.url}/health") as health:
                assert health.status == 503
            assert (await stream.read()).endswith(b"data: [DONE]\n\n")
        assert await daemon.ended() == 0
        assert daemon.left() == []

    async def test_requests_that_take_too_long_are_cut_off(self, daemon, http):
        """After --shutdown-timeout the daemon stops all the same."""
        await daemon.serving("--shutdown-timeout", "0.5")
        body = {"n": 1000, "delay": 1}
        async with http.post(f"{daemon.url}/v1/completions", json=body) as stream:
            await stream.content.readline()
            assert await daemon.stop() == 0
        assert "requests cut off" in daemon.log
        assert daemon.left() == []

    async def test_a_second_signal_does_not_wait(self, daemon, http):
        """Ctrl-C twice ends a drain."""
        await daemon.serving()
        body = {"n": 1000, "delay": 1}
        async with http.post(f"{daemon.url}/v1/completions", json=body) as stream:
            await stream.content.readline()
            daemon.process.send_signal(signal.SIGINT)
            await daemon.logged('"stopping"')
            daemon.process.send_signal(signal.SIGINT)
            assert await daemon.ended() == 0
        assert "stopping at once" in daemon.log
        assert daemon.left() == []

    async def test_an_open_watch_does_not_keep_it(self, daemon):
        """Streams of the API end when the daemon does."""
        await daemon.serving()
        async with daemon.client() as client:
            watching = asyncio.create_task(_follow(client))
            await asyncio.sleep(0.2)
            assert await daemon.stop() == 0
            await asyncio.wait_for(watching, 5)

    async def test_a_client_that_goes_cancels_its_request(self, daemon, http):
        """The engine hears of it through the whole daemon."""
        await daemon.serving()
        body = {"n": 1000, "delay": 0.05}
        async with http.post(f"{daemon.url}/v1/completions", json=body) as stream:
            await stream.content.readline()
        log = daemon.run_dir / "requests.log"
        async with asyncio.timeout(5):
            while not log.exists() or log.read_text() != "cancelled\n":  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.02)
        log.unlink()


async def _follow(client) -> None:
    with contextlib.suppress(KtdError):  # any way of ending is an end
        async for _ in client.watch_stats():
            pass


class TestKilled:
    async def test_the_next_start_restores_the_placement(self, daemon):
        """kill -9 of the daemon: its children go, and the placement comes back."""
        await daemon.serving()
        async with daemon.client() as client:
            etag = (await client.placement()).etag
            await client.apply_and_wait(strategy="random", etag=etag)
            before = await client.placement()
        daemon.process.kill()
        await daemon.ended()
        async with asyncio.timeout(15):
            while any(isinstance(item, int) for item in daemon.left()):  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)
        await daemon.serving()
        async with daemon.client() as client:
            after = await client.placement()
        assert after.layers == before.layers
        assert after.revision == before.revision
        assert after.etag != before.etag

    async def test_what_does_not_go_by_itself_is_cleared(self, daemon):
        """A host that hangs and an orphan that renamed itself are ended by the next start."""
        daemon.misbehave(deaf=True, orphan=True)
        await daemon.serving()
        daemon.process.kill()
        await daemon.ended()
        await asyncio.sleep(0.5)
        left = daemon.left()
        assert sum(isinstance(item, int) for item in left) >= 2
        daemon.misbehave()
        await daemon.serving()
        assert "processes of an earlier daemon were ended" in daemon.log
        assert await daemon.stop() == 0
        assert daemon.left() == []

    async def test_placement_flags_beat_what_was_stored(self, daemon):
        """Explicit flags start afresh."""
        await daemon.serving("--kt-gpu-experts-ratio", "0.5")
        await daemon.stop()
        await daemon.serving("--kt-num-gpu-experts", "2")
        async with daemon.client() as client:
            placement = await client.placement()
        assert [layer.slots for layer in placement.layers] == [2] * 6
        await daemon.stop()
        await daemon.serving()
        async with daemon.client() as client:
            assert [layer.slots for layer in (await client.placement()).layers] == [2] * 6

    async def test_a_budget_in_the_environment_counts_when_it_changes(self, daemon):
        """The same budget restores, another one does not."""
        daemon.environment["KTD_GPU_EXPERTS_RATIO"] = "0.25"
        await daemon.serving()
        async with daemon.client() as client:
            etag = (await client.placement()).etag
            await client.apply_and_wait(strategy="random", etag=etag)
            moved = (await client.placement()).layers
        await daemon.stop()
        await daemon.serving()
        async with daemon.client() as client:
            assert (await client.placement()).layers == moved
        await daemon.stop()
        daemon.environment["KTD_GPU_EXPERTS_RATIO"] = "0.5"
        await daemon.serving()
        async with daemon.client() as client:
            assert [layer.slots for layer in (await client.placement()).layers] == [16] * 6


class TestRefused:
    async def refused(self, daemon, code: int, *argv: str, **more) -> str:
        await daemon.start(*argv, **more)
        assert await daemon.ended() == code
        assert "Traceback" not in daemon.log
        assert daemon.left() == []
        return daemon.sentence()

    async def test_a_port_in_use(self, daemon):
        """Said before anything is started."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            sentence = await self.refused(daemon, 3, "--port", str(port), "--host", "127.0.0.1")
        assert f"Port {port} of 127.0.0.1 is in use" in sentence
        assert "engine started" not in daemon.log

    async def test_a_state_directory_in_use(self, daemon):
        """The sentence has the other daemon's pid."""
        await daemon.serving()
        first, log = daemon.process, daemon.log
        await daemon.start()
        assert await daemon.ended() == 3
        assert f"Another ktd (pid {first.pid}) uses the state directory" in daemon.sentence()
        daemon.process, daemon.log = first, log
        first.terminate()
        await first.wait()

    async def test_a_socket_in_use(self, daemon, tmp_path):
        """A second daemon with another state directory does not take over the socket."""
        await daemon.serving()
        first = daemon.process
        await daemon.start("--state-dir", str(tmp_path / "other"))
        assert await daemon.ended() == 3
        assert str(daemon.socket) in daemon.sentence()
        assert daemon.socket.exists()
        first.terminate()
        await first.wait()

    async def test_a_dense_model(self, daemon, tmp_path):
        """Named before any engine is started."""
        (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        sentence = await self.refused(daemon, 3, model=tmp_path)
        assert "is a dense model (LlamaForCausalLM without experts)" in sentence
        assert "engine started" not in daemon.log

    async def test_a_missing_model(self, daemon):
        """A path that is not there."""
        sentence = await self.refused(daemon, 3, model="/no/such/model")
        assert sentence == "ktd: There is no model folder /no/such/model; check its path."

    async def test_a_device_that_is_not_there(self, daemon):
        """Slots on a GPU are refused, not tried."""
        daemon.environment["CUDA_VISIBLE_DEVICES"] = ""
        sentence = await self.refused(daemon, 3, "--device", "cuda")
        assert "--device cuda needs an NVIDIA GPU" in sentence
        assert "engine started" not in daemon.log

    async def test_a_device_with_too_little_memory(self, daemon, tmp_path):
        """With the sum, before an engine is started."""
        tool = tmp_path / "nvidia-smi"
        tool.write_text('#!/bin/sh\ncase "$*" in *free*) echo 900;; *) echo 8192;; esac\n')
        tool.chmod(0o700)
        daemon.environment["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        sentence = await self.refused(daemon, 3, "--gpu-experts-ratio", "0.5")
        assert "9.0 MiB expert slots + " in sentence
        assert "of device memory, and 0.9 GiB are free: no --kt-gpu-experts-ratio fits" in sentence
        assert "engine started" not in daemon.log

    async def test_statistics_of_another_kind(self, daemon, tmp_path):
        """A file that --init-expert-location cannot use is a usage error."""
        file = tmp_path / "x.pt"
        file.write_bytes(b"not a tensor")
        sentence = await self.refused(
            daemon, 2, "--kt-expert-placement-strategy", "frequency",
            "--init-expert-location", str(file),
        )  # fmt: skip
        assert str(file) in sentence

    async def test_arguments_that_sglang_refuses(self, daemon):
        """SGLang's own words, and the exit status of a usage error."""
        daemon.misbehave(fail=["usage", "unrecognized arguments: --nope"])
        sentence = await self.refused(daemon, 2, "--nope")
        assert sentence == "ktd: unrecognized arguments: --nope"

    async def test_an_engine_out_of_memory(self, daemon):
        """The three levers, with values below the present ones."""
        daemon.misbehave(fail=["memory", "The KV cache does not fit."])
        sentence = await self.refused(
            daemon, 3, "--kt-gpu-experts-ratio", "0.5", "--chunked-prefill-size", "2048",
            "--max-total-tokens=8192",
        )  # fmt: skip
        assert "--kt-gpu-experts-ratio 0.4 (now 0.5)" in sentence
        assert "--chunked-prefill-size 1024" in sentence
        assert "--max-total-tokens 4096" in sentence

    async def test_a_runtime_folder_that_is_too_deep(self, daemon, tmp_path):
        """Sockets of the engine need short paths."""
        deep = "/tmp/" + "d" * 90
        sentence = await self.refused(
            daemon, 3, "--runtime-dir", deep, "--socket", str(daemon.folder / "s.sock")
        )
        assert "Linux allows 107; give a shorter --runtime-dir" in sentence
        Path(deep).rmdir()


class TestSystemd:
    async def test_what_the_manager_is_told(self, daemon):
        """More time while loading, READY once it serves, STOPPING at the end, and beats."""
        path = str(daemon.folder / "notify.sock")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.setblocking(False)
            messages: list[str] = []

            def receive() -> None:
                messages.append(manager.recv(4096).decode())

            asyncio.get_running_loop().add_reader(manager, receive)
            daemon.environment |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000"}
            daemon.misbehave(load=0.5)
            await daemon.serving()
            assert await daemon.stop() == 0
            asyncio.get_running_loop().remove_reader(manager)
        ready = next(i for i, text in enumerate(messages) if "READY=1" in text)
        assert any("EXTEND_TIMEOUT_USEC" in text for text in messages[:ready])
        assert any("LOADING" in text for text in messages[:ready])
        assert not any("EXTEND_TIMEOUT_USEC" in text for text in messages[ready:])
        assert sum("READY=1" in text for text in messages) == 1
        assert any(text.startswith("STOPPING=1") for text in messages[ready:])
        assert "WATCHDOG=1" in messages

    async def test_the_log_is_one_json_object_a_line(self, daemon):
        """Also the lines that the engine prints, which are a field of theirs."""
        daemon.misbehave(noisy=20)
        await daemon.serving()
        await daemon.stop()
        entries = [json.loads(line) for line in daemon.log.splitlines()]
        assert sum(entry.get("line", "").startswith("line ") for entry in entries) == 20
        assert all({"event", "level", "timestamp"} <= set(entry) for entry in entries)
