# A unix socket's file is looked at while the loop has nothing else to do.
# ruff: noqa: ASYNC240
from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from actors import control_server
from actors.control_server import (
    MAX_REQUEST_BYTES,
    MAX_SOCKET_PATH_BYTES,
    CloseWish,
    ControlServer,
    OpenWish,
    Refusal,
    ReloadWish,
    RestartWish,
    check_path,
)
from actors.daemon_hooks import DaemonHooks
from actors.status_board import (
    AgentStatusBoard,
    BoardSettings,
    ConnectorStatusBoard,
    IntermediateStatusBoard,
)
from actors.status_book import BookSettings, ServiceLine
from tests.manual_io import actor_harness
from ztna.errors import ConfigError
from ztna.v1 import (
    control_pb2,
    control_pb2_grpc,
    session_table_pb2,
    signaling_client_pb2,
    types_pb2,
    udp_socket_pb2,
)

SESSION = bytes(range(16))
LIMIT_S = 10


class Owner:
    """Answers every wish at once, and has a status that counts."""

    def __init__(self) -> None:
        self.reads = 0
        self.wishes: list[OpenWish] = []

    def status(self) -> control_pb2.DaemonStatus:
        self.reads += 1
        return control_pb2.DaemonStatus(daemon="agent", id="agent-1", uptime_s=self.reads)

    def open_session(self, wish: OpenWish) -> None:
        self.wishes.append(wish)
        if wish.service == "web":
            wish.answer(control_pb2.OpenSessionResponse(session_id=SESSION, connector_id="connector-1"))
        elif wish.service == "forbidden":
            wish.answer(Refusal("access_denied", "no rule allows it"))
            wish.answer(Refusal("not_found", "too late"))

    def close_session(self, wish: CloseWish) -> None:
        wish.answer(Refusal("not_found", ""))

    def restart_ice(self, wish: RestartWish) -> None:
        wish.answer(Refusal("unsupported", "only agents and connectors look for direct paths"))

    def reload(self, wish: ReloadWish) -> None:
        wish.answer(control_pb2.ReloadResponse(applied=["policy"], needs_restart=["quic.listen"]))


class Watchers(set[asyncio.Event]):
    """Tells when the last watcher has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.emptied = asyncio.Event()

    def discard(self, watcher: object) -> None:
        super().discard(watcher)
        if not self:
            self.emptied.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control" / "agent.sock"


@asynccontextmanager
async def client(path: Path) -> AsyncIterator[Any]:
    async with aio.insecure_channel(f"unix:{path}") as channel:
        yield control_pb2_grpc.ControlServiceStub(channel)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main()
            rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if rest:
                await asyncio.wait(rest, timeout=1)

    asyncio.run(limited())


def test_the_status_is_served_on_a_socket_of_the_user_alone(path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, Owner())
        async with client(path) as stub:
            answer = await stub.GetStatus(control_pb2.GetStatusRequest())
        assert answer.status.id == "agent-1"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == ["agent.sock"]
        server.close()
        assert not path.exists()

    run(main)


def test_a_watcher_sees_the_status_now_and_at_each_change_but_not_too_often(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "MIN_WATCH_INTERVAL_S", 0.05)

    async def main() -> None:
        owner = Owner()
        server = ControlServer(path, owner)
        watchers = server._watchers = Watchers()
        async with client(path) as stub:
            call = stub.WatchStatus(control_pb2.WatchStatusRequest())
            assert (await call.read()).status.uptime_s == 1
            began = asyncio.get_running_loop().time()
            for _ in range(100):
                server.changed()
            assert (await call.read()).status.uptime_s == 2
            assert asyncio.get_running_loop().time() - began >= 0.04
            waiting = asyncio.ensure_future(call.read())
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done
            server.changed()
            assert (await waiting).status.uptime_s == 3
            call.cancel()
            await watchers.emptied.wait()
            assert not watchers
        server.close()

    run(main)


def test_a_watcher_learns_that_the_daemon_has_ended(path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, Owner())
        async with client(path) as stub:
            call = stub.WatchStatus(control_pb2.WatchStatusRequest())
            await call.read()
            server.close()
            with pytest.raises(aio.AioRpcError):
                while await call.read() is not aio.EOF:
                    pass

    run(main)


@pytest.mark.parametrize(
    ("service", "code", "words"),
    [
        ("forbidden", grpc.StatusCode.PERMISSION_DENIED, "no rule allows it"),
        ("silent", grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within 0.1 s"),
    ],
)
def test_a_wish_that_is_not_granted_says_why(
    path: Path, service: str, code: grpc.StatusCode, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "WISH_LIMIT_S", 0.1)

    async def main() -> None:
        owner = Owner()
        server = ControlServer(path, owner)
        async with client(path) as stub:
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.OpenSession(control_pb2.OpenSessionRequest(service=service))
        assert (caught.value.code(), caught.value.details()) == (code, words)
        assert owner.wishes[0].is_over
        server.close()

    run(main)


def test_a_session_is_opened_and_one_that_is_not_there_cannot_be_closed(path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, Owner())
        async with client(path) as stub:
            opened = await stub.OpenSession(control_pb2.OpenSessionRequest(service="web"))
            assert (opened.session_id, opened.connector_id) == (SESSION, "connector-1")
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.CloseSession(control_pb2.CloseSessionRequest(session_id=SESSION))
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "not found")
        server.close()

    run(main)


def test_a_search_begins_anew_where_there_are_searches(path: Path) -> None:
    class Searcher(Owner):
        def restart_ice(self, wish: RestartWish) -> None:
            wish.answer(control_pb2.RestartIceResponse(session_ids=[wish.session_id or SESSION]))

    async def main() -> None:
        request = control_pb2.RestartIceRequest()
        server = ControlServer(path, Searcher())
        async with client(path) as stub:
            assert list((await stub.RestartIce(request)).session_ids) == [SESSION]
        server.close()
        # Another path: the former server may still be closing.
        other = path.with_name("other.sock")
        server = ControlServer(other, Owner())
        async with client(other) as stub:
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.RestartIce(request)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        server.close()

    run(main)


def test_a_request_is_as_long_as_allowed_and_no_longer(path: Path) -> None:
    overhead = control_pb2.OpenSessionRequest(service="x" * MAX_REQUEST_BYTES).ByteSize() - MAX_REQUEST_BYTES
    longest = "x" * (MAX_REQUEST_BYTES - overhead)

    class Refuser(Owner):
        def open_session(self, wish: OpenWish) -> None:
            super().open_session(wish)
            wish.answer(Refusal("not_found", "no such service"))

    async def main() -> None:
        owner = Refuser()
        server = ControlServer(path, owner)
        async with client(path) as stub:
            for service, code in (
                (longest, grpc.StatusCode.NOT_FOUND),
                (longest + "x", grpc.StatusCode.RESOURCE_EXHAUSTED),
            ):
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.OpenSession(control_pb2.OpenSessionRequest(service=service))
                assert caught.value.code() is code
        assert [wish.service for wish in owner.wishes] == [longest]
        server.close()

    run(main)


def test_a_second_daemon_leaves_the_socket_to_the_first(path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, Owner())
        with pytest.raises(OSError, match=r"another daemon is running: it answers at .*agent\.sock"):
            ControlServer(path, Owner())
        async with client(path) as stub:
            await stub.GetStatus(control_pb2.GetStatusRequest())
        server.close()

    run(main)


def test_a_socket_whose_queue_is_full_belongs_to_somebody(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as caller:
        busy.bind(bytes(path))
        busy.listen(0)
        caller.connect(bytes(path))

        async def main() -> None:
            with pytest.raises(OSError, match="another daemon is running"):
                ControlServer(path, Owner())

        run(main)


def test_the_socket_of_a_daemon_that_was_killed_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(bytes(path))
        dead.listen()

    async def main() -> None:
        server = ControlServer(path, Owner())
        async with client(path) as stub:
            await stub.GetStatus(control_pb2.GetStatusRequest())
        server.close()

    run(main)


def test_a_successor_takes_over_while_its_predecessor_still_ends(path: Path) -> None:
    async def main() -> None:
        predecessor = ControlServer(path, Owner())
        predecessor.close()
        successor = ControlServer(path, Owner())
        async with client(path) as stub:
            await stub.GetStatus(control_pb2.GetStatusRequest())
        await predecessor._task
        async with client(path) as stub:
            await stub.GetStatus(control_pb2.GetStatusRequest())
        assert path.exists()
        successor.close()

    run(main)


def test_a_socket_that_somebody_else_replaced_is_not_removed(path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, Owner())
        path.unlink()
        server.close()
        server = ControlServer(path, Owner())
        path.unlink()
        path.write_text("mine")
        server.close()
        assert path.read_text() == "mine"

    run(main)


def _file_there(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_text("a file")


def _open_directory(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o755)


def _file_as_directory(path: Path) -> None:
    path.parent.write_text("a file")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (_file_there, "exists and is not a socket"),
        (_open_directory, r"let nobody else in \(mode 0755, should be 0700\)"),
        (_file_as_directory, "is not a directory"),
    ],
)
def test_a_place_that_is_not_fit_is_a_fault_of_the_configuration(
    path: Path, prepare: Callable[[Path], None], words: str
) -> None:
    prepare(path)

    async def main() -> None:
        with pytest.raises(ConfigError, match=words):
            ControlServer(path, Owner())

    run(main)


def test_a_directory_that_cannot_be_made_is_named() -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=r"control.socket: /proc/self/net/a: "):
            ControlServer(Path("/proc/self/net/a/x.sock"), Owner())

    run(main)


def test_a_path_is_as_long_as_the_kernel_allows_and_no_longer(tmp_path: Path) -> None:
    room = MAX_SOCKET_PATH_BYTES - len(bytes(tmp_path)) - 1
    check_path(tmp_path / ("x" * room))
    with pytest.raises(ConfigError, match="has at most 107 bytes, this one has 108"):
        check_path(tmp_path / ("x" * (room + 1)))


def test_the_longest_path_works(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    path = directory / ("x" * (MAX_SOCKET_PATH_BYTES - len(bytes(directory)) - 1))

    async def main() -> None:
        server = ControlServer(path, Owner())
        async with client(path) as stub:
            await stub.GetStatus(control_pb2.GetStatusRequest())
        server.close()

    run(main)


def _settings(daemon: str, path: Path | None) -> BoardSettings:
    services = (ServiceLine("web", types_pb2.SERVICE_PROTOCOL_TCP, "127.0.0.1:8080"),)
    return BoardSettings(BookSettings(daemon, f"{daemon}-1", ("int-1",), services), path)


def test_an_agent_asks_for_the_service_and_answers_with_the_session(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        harness = actor_harness(AgentStatusBoard, lambda: _settings("agent", path), DaemonHooks(list))
        asked = asyncio.Event()
        open_session = harness.concern.open_session

        def noticed(wish: OpenWish) -> None:
            open_session(wish)
            asked.set()

        monkeypatch.setattr(harness.concern, "open_session", noticed)
        async with client(path) as stub:
            call = stub.OpenSession(control_pb2.OpenSessionRequest(service="web"))
            await asked.wait()
            assert harness.take_emitted() == [session_table_pb2.RequestService(service="web")]
            harness.tell(session_table_pb2.ServiceReady(service="other", session_id=bytes(16)))
            harness.tell(
                session_table_pb2.ServiceReady(service="web", session_id=SESSION, connector_id="connector-1")
            )
            assert (await call).session_id == SESSION

            asked.clear()
            call = stub.OpenSession(control_pb2.OpenSessionRequest(service="web"))
            await asked.wait()
            assert harness.take_emitted()
            harness.tell(session_table_pb2.ServiceUnavailable(service="web", code="access_denied"))
            with pytest.raises(aio.AioRpcError, match="access denied"):
                await call
            with pytest.raises(aio.AioRpcError, match="this agent has no service 'nope'"):
                await stub.OpenSession(control_pb2.OpenSessionRequest(service="nope"))
        harness.stop()

    run(main)


def test_a_node_closes_a_session_that_it_has(path: Path) -> None:
    async def main() -> None:
        harness = actor_harness(ConnectorStatusBoard, lambda: _settings("connector", path), DaemonHooks(list))
        harness.tell(signaling_client_pb2.SessionOffered(session_id=SESSION))
        async with client(path) as stub:
            await stub.CloseSession(control_pb2.CloseSessionRequest(session_id=SESSION))
            assert harness.take_emitted() == [
                session_table_pb2.CloseSessionRequested(session_id=SESSION, reason="operator")
            ]
            with pytest.raises(aio.AioRpcError, match="there is no session 00ff"):
                await stub.CloseSession(control_pb2.CloseSessionRequest(session_id=b"\x00\xff"))
            with pytest.raises(aio.AioRpcError, match="only an agent opens sessions; this is the connector"):
                await stub.OpenSession(control_pb2.OpenSessionRequest(service="web"))
        harness.stop()

    run(main)


def test_an_intermediate_shows_its_status_and_closes_nothing(path: Path) -> None:
    async def main() -> None:
        harness = actor_harness(
            IntermediateStatusBoard, lambda: _settings("intermediate", path), DaemonHooks(list)
        )
        async with client(path) as stub:
            call = stub.WatchStatus(control_pb2.WatchStatusRequest())
            assert not (await call.read()).status.is_ready
            harness.tell(udp_socket_pb2.SocketsBound(addresses=[types_pb2.TransportAddress(port=1)]))
            assert (await call.read()).status.is_ready
            call.cancel()
            with pytest.raises(aio.AioRpcError, match="only an agent or a connector closes sessions"):
                await stub.CloseSession(control_pb2.CloseSessionRequest(session_id=SESSION))
        harness.stop()
        assert not path.exists()

    run(main)


def test_a_board_whose_socket_is_taken_fails_to_start(path: Path) -> None:
    async def main() -> None:
        server = ControlServer(path, Owner())
        harness = actor_harness(AgentStatusBoard, lambda: _settings("agent", path), DaemonHooks(list))
        assert isinstance(harness.failure, OSError)
        assert "another daemon is running" in str(harness.failure)
        server.close()

    run(main)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.chown(path.parent, 12345, 12345)

    async def main() -> None:
        with pytest.raises(ConfigError, match="must belong to the daemon's user"):
            ControlServer(path, Owner())

    run(main)
