"""The socket, health, reflection, and the end of it all."""

import asyncio
import os
import socket
import stat
from contextlib import aclosing
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ktd.client import DaemonUnreachable, KtdClient, default_socket
from ktd.engine.status import EnginePhase
from ktd.errors import ConfigError, DoesNotFit
from ktd.rpc.listener import claimed
from ktd.rpc.server import SERVICES
from tests.rpc.fake_daemon import fake_daemon

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def channel(daemon):
    async with grpc.aio.insecure_channel(f"unix:{daemon.socket}") as channel:
        yield channel


@pytest.fixture
def health(channel):
    return health_pb2_grpc.HealthStub(channel)


async def _check(health, service):
    return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_socket_is_for_user_and_group_and_its_folder_is_made(tmp_path):
    """0660, in a folder that others cannot enter; gone afterwards."""
    path = tmp_path / "run" / "ktd" / "ktd.sock"
    async with fake_daemon(tmp_path, socket=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o007 == 0
    assert not path.exists()


async def test_umask_is_left_as_it_was(daemon):
    """Binding needs another one for a moment."""
    before = os.umask(0o022)
    os.umask(before)
    assert before != 0o117
    assert daemon.socket.exists()


async def test_second_daemon_on_a_socket_is_refused(tmp_path, daemon):
    """And the first one goes on serving."""
    (tmp_path / "other").mkdir()
    with pytest.raises(DoesNotFit, match=r"Another daemon is listening on .*ktd\.sock"):
        async with fake_daemon(tmp_path / "other", socket=daemon.socket):
            pass
    async with KtdClient(daemon.socket) as client:
        assert (await client.placement()).revision == 1


async def test_foreign_listener_is_not_pushed_aside(tmp_path):
    """A program that knows nothing of our lock file."""
    path = tmp_path / "ktd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(DoesNotFit, match="Another daemon"), claimed(path):
            pass
        assert path.exists()


async def test_socket_of_a_killed_daemon_is_replaced(tmp_path):
    """Nobody listens on it any more."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ktd.sock"))
    assert (tmp_path / "ktd.sock").exists()
    async with fake_daemon(tmp_path) as daemon, KtdClient(daemon.socket) as client:
        assert (await client.status()).phase


async def test_file_in_the_way_is_not_removed(tmp_path):
    """It is somebody's."""
    path = tmp_path / "ktd.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"), claimed(path):
        pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("length", [107, 108])
async def test_too_long_a_path_is_refused_with_the_limit(tmp_path, length):
    """107 bytes are the most that a Unix socket takes; those work."""
    folder = tmp_path / ("d" * (length - len(str(tmp_path)) - len("/") - len("/k.sock")))
    path = folder / "k.sock"
    assert len(str(path)) == length
    if length == 107:
        async with fake_daemon(tmp_path, socket=path), KtdClient(path) as client:
            assert (await client.status()).phase
    else:
        with pytest.raises(ConfigError, match=r"has 108 bytes, but Unix sockets allow 107"):
            async with fake_daemon(tmp_path, socket=path):
                pass
        with pytest.raises(DaemonUnreachable, match="107"):
            KtdClient(path)


async def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    """A file where a folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DoesNotFit, match="cannot be made"), claimed(tmp_path / "file" / "k.sock"):
        pass


async def test_no_daemon_is_one_sentence(tmp_path):
    """It names the socket and what to do."""
    async with KtdClient(tmp_path / "ktd.sock") as client:
        with pytest.raises(DaemonUnreachable, match=r"No daemon is listening on .*ktd serve MODEL"):
            await client.status()
        with pytest.raises(DaemonUnreachable):
            await anext(client.watch_stats())


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
async def test_socket_of_somebody_else_is_one_sentence(daemon):
    """The daemon is there; the caller may not talk to it."""
    groups, group = os.getgroups(), os.getegid()
    daemon.socket.parent.chmod(0o700)
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        async with KtdClient(daemon.socket) as client:
            with pytest.raises(DaemonUnreachable, match=r"You may not open .*ktd\.sock"):
                await client.status()
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


async def test_liveness_and_readiness_are_told_apart(daemon, health):
    """The process lives in every phase; the services follow the engine."""
    for service in SERVICES:
        assert await _check(health, service) == SERVING
    daemon.engine.set(phase=EnginePhase.BACKOFF)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[1]))
    async for status in watch:
        if status.status == NOT_SERVING:
            break
    watch.cancel()
    assert await _check(health, "") == SERVING
    for service in SERVICES:
        assert await _check(health, service) == NOT_SERVING


async def test_health_watch_sends_changes_only(daemon, health):
    """One message per change."""
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
    assert (await watch.read()).status == SERVING
    daemon.engine.set(message="still fine")
    daemon.engine.set(phase=EnginePhase.STOPPED)
    assert (await watch.read()).status == NOT_SERVING
    daemon.engine.set(phase=EnginePhase.READY)
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_unknown_service_is_told_as_the_protocol_says(health):
    """NOT_FOUND on Check, SERVICE_UNKNOWN on Watch."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await _check(health, "nope")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="nope"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_reflection_lists_the_services(channel):
    """So that grpcurl works without our proto files."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]))
    answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert names == {
        *SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
    }  # fmt: skip
    call.cancel()


async def test_every_stream_ends_when_the_daemon_drains(daemon, client, health):
    """Status, statistics, swap and health; unary calls are still answered."""
    gate = daemon.target.hold("wait_copied")
    swap = await client.apply(strategy="random")
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
    await watch.read()
    streams = [client.watch_status(), client.watch_stats(0.1), client.watch_swap(swap.name)]
    for stream in streams:
        await anext(stream)
    waiting = asyncio.ensure_future(client.wait_for_swap(swap.name))
    daemon.server.drain()
    for stream in streams:
        async with aclosing(stream):
            assert [item async for item in stream][2:] == []
    assert await watch.read() is grpc.aio.EOF
    with pytest.raises(DaemonUnreachable, match="stopped before swap"):
        await waiting
    assert (await client.status()).phase
    assert await _check(health, SERVICES[0]) == NOT_SERVING
    gate.set()
    await daemon.placement.swaps.settled()


async def test_client_finds_a_restarted_daemon_again(tmp_path):
    """Over the same connection object, without help."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = tmp_path / "ktd.sock"
    async with KtdClient(path) as client:
        async with fake_daemon(tmp_path / "a", socket=path):
            first = await client.placement()
        async with fake_daemon(tmp_path / "b", socket=path):
            while True:
                try:
                    second = await client.placement()
                    break
                except DaemonUnreachable:
                    await asyncio.sleep(0.05)
    assert first.etag != second.etag


@pytest.mark.parametrize(
    ("environment", "uid", "system", "expected"),
    [
        ({"KTD_SOCKET": "/x/y.sock", "KTD_RUNTIME_DIR": "/z"}, 0, False, "/x/y.sock"),
        ({"KTD_RUNTIME_DIR": "/z"}, 0, True, "/z/ktd.sock"),
        ({"KTD_RUNTIME_DIR": "~/z"}, 7, True, f"{Path.home()}/z/ktd.sock"),
        ({"KTD_SOCKET": "y.sock"}, 7, True, f"{Path.cwd()}/y.sock"),
        ({}, 0, False, "{system}"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, False, "/run/user/7/ktd/ktd.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, True, "{system}"),
        ({}, 7, False, "/tmp/ktd-7/ktd.sock"),
        ({"KTD_SOCKET": ""}, 7, False, "/tmp/ktd-7/ktd.sock"),
    ],
)
def test_default_socket(tmp_path, environment, uid, system, expected):
    """The variables, the system's daemon, then the user's own."""
    path = tmp_path / "ktd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        if system:
            listener.bind(str(path))
        found = default_socket(environment, uid=uid, system_socket=path)
    assert found == Path(expected.format(system=path))
