"""The control socket: `ztna.v1.ControlService` over gRPC on a unix socket of the daemon's user alone.

The directory is created for this user, and one that lets others in is refused; the socket itself is 0600. The
file of a daemon that is gone is replaced; where somebody answers, another daemon is running and we leave.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
from grpc import aio

from ztna.errors import ConfigError
from ztna.v1 import control_pb2, control_pb2_grpc

MAX_SOCKET_PATH_BYTES: Final = 107
"""The kernel's `sun_path` holds 108 bytes, the last of them zero."""

MIN_WATCH_INTERVAL_S: Final = 0.25
"""Four times a second is as fast as people read, and building a large status takes some milliseconds."""

WISH_LIMIT_S: Final = 12.0
"""The table of sessions gives up on a service after 10 s; a little more, so that its reason arrives."""

MAX_CALLS: Final = 64
"""Calls at a time: a few people, their scripts, and a margin; the next one is refused."""

MAX_REQUEST_BYTES: Final = 65_536
"""The largest request is a service's name."""

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.so_reuseport", 0),
]

_STATUS_CODES: Final = {
    "not_found": grpc.StatusCode.NOT_FOUND,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "access_denied": grpc.StatusCode.PERMISSION_DENIED,
    "configuration": grpc.StatusCode.INVALID_ARGUMENT,
    "credentials": grpc.StatusCode.FAILED_PRECONDITION,
}

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a wish is not granted: a snake_case word, and a sentence for people."""

    code: str
    message: str


class _Wish(Generic[AnswerT]):
    """Something that a caller waits for; the first answer counts."""

    def __init__(self) -> None:
        self._future: asyncio.Future[AnswerT | Refusal] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more."""
        return self._future.done()

    def answer(self, answer: AnswerT | Refusal) -> None:
        """Answer; harmless when it comes too late."""
        if not self._future.done():
            self._future.set_result(answer)

    async def granted(self, context: aio.ServicerContext[Any, Any]) -> AnswerT:
        """The response; ends the call with a status where there is none."""
        try:
            async with asyncio.timeout(WISH_LIMIT_S):
                answer = await self._future
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {WISH_LIMIT_S:g} s")
        if isinstance(answer, Refusal):
            code = _STATUS_CODES.get(answer.code, grpc.StatusCode.UNAVAILABLE)
            await context.abort(code, answer.message or answer.code.replace("_", " "))
        return answer


class OpenWish(_Wish[control_pb2.OpenSessionResponse]):
    """A session that reaches `service`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service


class CloseWish(_Wish[control_pb2.CloseSessionResponse]):
    """The end of a session."""

    def __init__(self, session_id: bytes) -> None:
        super().__init__()
        self.session_id = session_id


class RestartWish(_Wish[control_pb2.RestartIceResponse]):
    """A new search for the direct path of a session; without `session_id`, of every session."""

    def __init__(self, session_id: bytes) -> None:
        super().__init__()
        self.session_id = session_id


class ReloadWish(_Wish[control_pb2.ReloadResponse]):
    """The files read again."""


class ControlOwner(Protocol):
    """Whoever serves the socket; called on the loop's thread."""

    def status(self) -> control_pb2.DaemonStatus:
        """Everything, as of now."""

    def open_session(self, wish: OpenWish) -> None:
        """Answer the wish, now or later."""

    def close_session(self, wish: CloseWish) -> None:
        """Answer the wish, now or later."""

    def restart_ice(self, wish: RestartWish) -> None:
        """Answer the wish, now or later."""

    def reload(self, wish: ReloadWish) -> None:
        """Answer the wish, now or later."""


class ControlServer(control_pb2_grpc.ControlServiceServicer):
    """Listens from its construction until `close`; both must happen on the loop's thread."""

    def __init__(self, path: Path, owner: ControlOwner) -> None:
        """Listen at `path`.

        Raises `ConfigError` for a path that is too long, or a place that is not fit for a socket of this user
        alone: somebody has to mend it. Raises `OSError` with a readable message when another daemon answers
        there (`EADDRINUSE`), or the kernel refuses.
        """
        path = path.absolute()
        check_path(path)
        _prepare_directory(path.parent)
        _leave_to_a_living_daemon(path)
        self._path = path
        self._owner = owner
        self._watchers: set[asyncio.Event] = set()
        self._server = aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        control_pb2_grpc.add_ControlServiceServicer_to_server(self, self._server)
        self._inode = self._bind()
        # asyncio keeps only weak references to tasks.
        self._task = asyncio.get_running_loop().create_task(self._server.start())

    def changed(self) -> None:
        """The status is another one now."""
        for watcher in self._watchers:
            watcher.set()

    def close(self) -> None:
        """Remove the socket at once, for a successor to have its place; end every call soon after."""
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except OSError:
            pass  # somebody else removed it
        starting = self._task
        self._task = asyncio.get_running_loop().create_task(self._stop(starting))
        _closing.add(self._task)
        self._task.add_done_callback(_closing.discard)

    async def GetStatus(  # noqa: N802 - named by the schema
        self, request: control_pb2.GetStatusRequest, context: object
    ) -> control_pb2.GetStatusResponse:
        """The status now."""
        del request, context
        return control_pb2.GetStatusResponse(status=self._owner.status())

    async def WatchStatus(  # noqa: N802 - named by the schema
        self, request: control_pb2.WatchStatusRequest, context: object
    ) -> AsyncIterator[control_pb2.WatchStatusResponse]:
        """The status now, and again at each change."""
        del request, context
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                yield control_pb2.WatchStatusResponse(status=self._owner.status())
                await asyncio.sleep(MIN_WATCH_INTERVAL_S)
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def OpenSession(  # noqa: N802 - named by the schema
        self, request: control_pb2.OpenSessionRequest, context: Any
    ) -> control_pb2.OpenSessionResponse:
        """Bring up the session that reaches a service."""
        wish = OpenWish(request.service)
        self._owner.open_session(wish)
        return await wish.granted(context)

    async def CloseSession(  # noqa: N802 - named by the schema
        self, request: control_pb2.CloseSessionRequest, context: Any
    ) -> control_pb2.CloseSessionResponse:
        """End a session."""
        wish = CloseWish(request.session_id)
        self._owner.close_session(wish)
        return await wish.granted(context)

    async def RestartIce(  # noqa: N802 - named by the schema
        self, request: control_pb2.RestartIceRequest, context: Any
    ) -> control_pb2.RestartIceResponse:
        """Search anew for direct paths."""
        wish = RestartWish(request.session_id)
        self._owner.restart_ice(wish)
        return await wish.granted(context)

    async def Reload(  # noqa: N802 - named by the schema
        self, request: control_pb2.ReloadRequest, context: Any
    ) -> control_pb2.ReloadResponse:
        """Read the files again."""
        del request
        wish = ReloadWish()
        self._owner.reload(wish)
        return await wish.granted(context)

    def _bind(self) -> int:
        # gRPC removes whatever is at the path when it binds, and again when it ends: by then a successor may
        # be there. So it is given a name of its own, and the socket moves to its place when its mode is set.
        private = self._path.with_name(f".{os.getpid() % 0x10000:04x}")
        try:
            self._server.add_insecure_port(f"unix:{private}")
            private.chmod(0o600)
            inode = private.stat().st_ino
            private.rename(self._path)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(errno.EADDRNOTAVAIL, f"control socket {self._path}: {reason}") from error
        return inode

    async def _stop(self, starting: asyncio.Task[None]) -> None:
        await asyncio.wait([starting])
        await self._server.stop(None)


_closing: Final[set[asyncio.Task[None]]] = set()


def check_path(path: Path) -> None:
    """Refuse, with `ConfigError`, a path that is too long for a unix socket."""
    size = len(bytes(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"control.socket: the path of a unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes, "
            f"this one has {size}: {path}"
        )


def _prepare_directory(directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            found = directory.stat()
        else:
            return
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"control.socket: {error.filename} is not a directory") from error
    except OSError as error:
        raise OSError(error.errno, f"control.socket: {directory}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"control.socket: {directory} is not a directory")
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or mode & 0o077:
        raise ConfigError(
            f"control.socket: the directory {directory} must belong to the daemon's user and let nobody else "
            f"in (mode {mode:04o}, should be 0700); name one that does not exist yet and it is created so",
        )


def _leave_to_a_living_daemon(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"control.socket: {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(bytes(path))
        except BlockingIOError:
            pass  # its queue of callers is full: somebody is there
        except OSError:
            return
    raise OSError(errno.EADDRINUSE, f"another daemon is running: it answers at {path}")
