"""A stand-in for the engine host: the same processes, sockets and files, without SGLang.

Started as ``python fake_host.py``; ``FAKE_HOST`` holds JSON with the misbehaviour to show:

    fail        [kind, sentence]: reports this failure and exits with 1
    crash       "import" or "ready": ends with status 7 at that point
    hooked      MoE layers that ranks claim to have hooked (default: all)
    silent      ranks never say hello
    stubborn    ignores SIGTERM and Shutdown
    deaf        does not notice that the daemon has gone
    orphan      leaves a process in a session of its own that renamed itself
    noisy       lines to print before anything else
    load        seconds of loading (default 0)
    version     ktd version to claim

``POST /v1/fake/stop-heartbeat`` makes the ranks hang. Every call on moves is written to
``moves.jsonl`` beside the runtime folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc.aio
from aiohttp import web

from ktd.enginespec import EngineSpec, report_failure
from ktd.internal.v1 import control_pb2 as pb
from ktd.internal.v1 import control_pb2_grpc as rpc
from ktd.rankfile import RankFileWriter, Word, path_of
from ktd.version import __version__

ORPHAN = "import time; time.sleep(600)"
EXPERT_BYTES = 1024


def rank_main(rank: int, spec: EngineSpec, how: dict) -> None:
    """One scheduler: a rank file with a heartbeat, until SIGTERM or a stop file."""
    file = RankFileWriter(
        path_of(Path(spec.runtime_dir), rank),
        rank=rank,
        num_layers=len(spec.moe_layers),
        num_experts=spec.num_experts,
    )
    total = EXPERT_BYTES * spec.num_experts * len(spec.moe_layers)
    file.words[Word.TOTAL_BYTES] = total
    file.beat()
    steps = 10
    for step in range(steps):
        file.words[Word.LOADED_BYTES] = total * (step + 1) // steps
        time.sleep(how.get("load", 0) / steps)
    file.words[Word.SLOT_BYTES] = EXPERT_BYTES * sum(spec.slots)
    if not how.get("silent"):
        file.say_hello(
            {
                "ktd": __version__,
                "sglang": "0.0.fake",
                "torch": "0.0",
                "rank": rank,
                "pid": os.getpid(),
                "isa": "scalar",
                "threads": 1,
                "device": spec.device,
                "moe_layers_hooked": how.get("hooked", len(spec.moe_layers)),
                **how.get("hello", {}),
            }
        )
    stop = Path(spec.runtime_dir) / "stop-heartbeat"
    while True:
        if stop.exists():
            # As long ago as a real hang takes to be noticed.
            file.words[Word.HEARTBEAT_NS] = max(1, time.monotonic_ns() - 3600 * 10**9)
        else:
            file.beat()
        time.sleep(0.05)


class Control(rpc.EngineControlServiceServicer):
    """The control service over tables in memory."""

    def __init__(self, spec: EngineSpec, how: dict, stop: asyncio.Event) -> None:
        self.spec, self.how, self.stop = spec, how, stop
        self.phase, self.changed = pb.HostState.PHASE_IMPORTING, asyncio.Event()
        self.prepared: dict[int, list] = {}
        self.slots = {
            layer: [*initial, *[-1] * (count - len(initial))]
            for layer, count, initial in zip(spec.moe_layers, spec.slots, spec.initial, strict=True)
        }

    def enter(self, phase: int) -> None:
        self.phase = phase
        self.changed.set()
        self.changed = asyncio.Event()

    async def WatchState(self, request, context):  # noqa: N802 - gRPC's name
        while True:
            changed = self.changed
            yield pb.HostState(
                phase=self.phase,
                ktd_version=self.how.get("version", __version__),
                sglang_version="0.0.fake",
                torch_version="0.0",
                num_ranks=int(os.environ.get("FAKE_RANKS", "1")),
            )
            await changed.wait()

    def note(self, call: str, batch: int) -> None:
        with (Path(self.spec.runtime_dir).parent / "moves.jsonl").open("a") as file:
            file.write(json.dumps([call, batch]) + "\n")

    async def PrepareMoves(self, request, context):  # noqa: N802
        self.note("prepare", request.batch_id)
        if self.how.get("refuse_moves"):
            await context.abort(grpc.StatusCode.INTERNAL, "Rank 0 has no such layer.")
        for move in request.moves:
            table = self.slots[move.layer]
            if move.evict >= 0:
                table[table.index(move.evict)] = -1
        self.prepared[request.batch_id] = list(request.moves)
        return pb.PrepareMovesResponse()

    async def WaitCopied(self, request, context):  # noqa: N802
        return pb.WaitCopiedResponse(bytes=EXPERT_BYTES * len(self.prepared[request.batch_id]))

    async def PublishMoves(self, request, context):  # noqa: N802
        self.note("publish", request.batch_id)
        for move in self.prepared.pop(request.batch_id):
            if move.load >= 0:
                table = self.slots[move.layer]
                table[table.index(-1)] = move.load
        return pb.PublishMovesResponse()

    async def AbortMoves(self, request, context):  # noqa: N802
        self.prepared.pop(request.batch_id, None)
        return pb.AbortMovesResponse()

    async def GetSlots(self, request, context):  # noqa: N802
        return pb.GetSlotsResponse(
            layers=[pb.LayerSlots(layer=n, experts=table) for n, table in self.slots.items()]
        )

    async def Shutdown(self, request, context):  # noqa: N802
        if not self.how.get("stubborn"):
            self.stop.set()
        return pb.ShutdownResponse()


def openai_app(spec: EngineSpec) -> web.Application:
    """A few routes that behave as SGLang's do, and one that shows what arrived."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake"}]})

    async def echo(request: web.Request) -> web.Response:
        return web.json_response(
            {
                "method": request.method,
                "path": request.raw_path,
                "headers": [[k.decode(), v.decode()] for k, v in request.raw_headers],
                "body": (await request.read()).hex(),
            },
            status=int(request.query.get("status", 200)),
            headers={"X-Upstream": "fake"},
        )

    async def completions(request: web.Request) -> web.StreamResponse:
        """Streams ``n`` events ``delay`` seconds apart and notes whether the client stayed."""
        body = await request.json()
        log = Path(spec.runtime_dir).parent / "requests.log"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for index in range(body.get("n", 3)):
                await response.write(f'data: {{"token": {index}}}\n\n'.encode())
                if body.get("die_at") == index:
                    os._exit(9)
                await asyncio.sleep(body.get("delay", 0))
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            log.open("a").write("cancelled\n")
            raise
        log.open("a").write("finished\n")
        return response

    async def stop_heartbeat(request: web.Request) -> web.Response:
        (Path(spec.runtime_dir) / "stop-heartbeat").touch()
        return web.Response()

    async def admin(request: web.Request) -> web.Response:
        return web.Response(text="flushed")

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_route("*", "/v1/echo", echo)
    app.router.add_route("*", "/v1/echo/{tail:.*}", echo)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/fake/stop-heartbeat", stop_heartbeat)
    app.router.add_route("*", "/flush_cache", admin)
    return app


async def host_main(spec: EngineSpec, how: dict) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    lifeline = int(os.environ["KTD_LIFELINE_FD"])
    if not how.get("deaf"):
        loop.add_reader(lifeline, stop.set)
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if how.get("stubborn") else stop.set)
    for line in range(how.get("noisy", 0)):
        print(f"line {line} " + "x" * 100)
    if how.get("orphan"):
        subprocess.Popen(
            ["sglang::detokenizer", "-c", ORPHAN], executable=sys.executable, start_new_session=True
        )
    if how.get("crash") == "import":
        print("RuntimeError: no such device")
        return 7
    control = Control(spec, how, stop)
    server = grpc.aio.server()
    rpc.add_EngineControlServiceServicer_to_server(control, server)
    server.add_insecure_port(f"unix:{spec.control_socket}")
    await server.start()
    if "fail" in how:
        report_failure(spec, *how["fail"])
        return 1
    control.enter(pb.HostState.PHASE_LOADING)
    count = int(os.environ.get("FAKE_RANKS", "1"))
    ranks = [
        subprocess.Popen([sys.executable, __file__, "rank", str(rank)]) for rank in range(count)
    ]
    await asyncio.sleep(how.get("load", 0))
    control.enter(pb.HostState.PHASE_WARMING)
    runner = web.AppRunner(openai_app(spec), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(spec.http_socket)).start()
    control.enter(pb.HostState.PHASE_READY)
    if how.get("crash") == "ready":
        await asyncio.sleep(0.3)
        os._exit(7)
    await stop.wait()
    for rank in ranks:
        rank.kill()
    await server.stop(0)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(runner.cleanup(), 1)
    return 0


def main() -> int:
    spec = EngineSpec.from_environment()
    assert spec is not None
    how = json.loads(os.environ.get("FAKE_HOST", "{}"))
    if sys.argv[1:2] == ["rank"]:
        rank_main(int(sys.argv[2]), spec, how)
        return 0
    return asyncio.run(host_main(spec, how))


if __name__ == "__main__":
    sys.exit(main())
