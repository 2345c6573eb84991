"""Owns what people and scripts see of a running daemon; takes every event they ask about, emits their wishes.

The bookkeeping is in `status_book` and the book of each daemon; the control socket and the HTTP listener are
plain objects on the loop that read it and call back. One class per daemon, since each hears of other things.
The board starts before all others, so that it misses nothing. A bug in its bookkeeping must not end it: a
successor would not know what is said only once, such as the addresses of the sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from google.protobuf.message import Message

from actors import translate
from actors.agent_status import AgentStatusBook
from actors.base import Concern, Context, loop_callback
from actors.burst_log import BurstLog
from actors.connector_status import ConnectorStatusBook
from actors.control_server import CloseWish, ControlServer, OpenWish, Refusal, ReloadWish, RestartWish
from actors.daemon_hooks import DaemonHooks
from actors.http_server import HttpServer
from actors.intermediate_status import IntermediateStatusBook
from actors.metrics import Sample
from actors.node_status import NodeStatusBook
from actors.outage_log import OutageLog
from actors.status_book import BookSettings, ServiceLine, StatusBook
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError, ConfigError
from ztna.settings import AgentSettings, ConnectorSettings, DaemonSettings, PeerDaemonSettings
from ztna.v1 import control_pb2, hole_punch_pb2, reload_pb2, session_table_pb2

TICK_S: Final = 1.0
"""How often the loop's lag is measured and actors are counted: often enough to catch a stall of some 100
ms."""

LIMIT_CLEAR_S: Final = 10.0
"""A limit that was nearly reached is told of anew when it was not for so long: strangers come and go."""

LIMIT_CONSEQUENCE: Final = "what is new is refused, and connections to a gRPC port are closed unanswered"

OPERATOR: Final = "operator"


@dataclass(frozen=True, slots=True)
class BoardSettings:
    """A board's slice of the settings; without `control_socket` or `metrics_listen` that one is off."""

    book: BookSettings
    control_socket: Path | None = None
    metrics_listen: TransportAddress | None = None

    @classmethod
    def of(cls, settings: DaemonSettings) -> BoardSettings:
        """Take what a board needs from a daemon's settings."""
        intermediates: tuple[str, ...] = ()
        services: tuple[ServiceLine, ...] = ()
        if isinstance(settings, PeerDaemonSettings):
            intermediates = tuple(each.id for each in settings.intermediates)
        if isinstance(settings, AgentSettings):
            services = tuple(
                ServiceLine(each.id, translate.protocol_to_proto(each.protocol), str(each.listen))
                for each in settings.services
            )
        elif isinstance(settings, ConnectorSettings):
            services = tuple(
                ServiceLine(each.id, translate.protocol_to_proto(each.protocol), str(each.backend))
                for each in settings.services
            )
        book = BookSettings(settings.kind.value, settings.node.id, intermediates, services)
        return cls(book, settings.control.socket, settings.metrics.listen)


class _StatusBoard(Concern):
    """What the boards share: reading, the two listeners, the measured lag."""

    name = "status_board"

    def __init__(
        self, context: Context, settings: BoardSettings, book: StatusBook, hooks: DaemonHooks
    ) -> None:
        super().__init__(context)
        self._settings = settings
        self._hooks = hooks
        self._book = book
        book.validity = hooks.validity
        book.handshake_s = hooks.handshake_s
        book.judgement_s = hooks.judgement_s
        book.garbage_pauses = hooks.garbage_pauses
        book.garbage_pause_s = hooks.garbage_pause_s
        self._reason: str | None = None
        self._tick_at = self.now + TICK_S
        self._has_failed = False
        self._control: ControlServer | None = None
        self._http: HttpServer | None = None
        self._limit_log = OutageLog(self.log, "status_board.limit_nearly_reached")
        self._limit_reached_at: float | None = None
        self._request_log = BurstLog(self.log, "status_board.request_refused")

    def on_start(self) -> None:
        """Listen. Raises `OSError`, or `ConfigError` for a control socket whose place is not fit for it."""
        settings = self._settings
        if settings.metrics_listen is not None:
            self._http = HttpServer(settings.metrics_listen, self)
            self.log.info("status_board.metrics_listening", address=str(self._http.local_address))
        if settings.control_socket is not None:
            self._control = ControlServer(settings.control_socket, self)
            self.log.info("status_board.control_listening", socket=str(settings.control_socket))

    def on_stop(self) -> None:
        """Close both listeners; whoever watches sees the end of the stream."""
        if self._control is not None:
            self._control.close()
        if self._http is not None:
            self._http.close()

    def take(self, message: Message) -> None:
        """Note a message."""
        try:
            self._book.take(message, self.now, self.io.wall_time())
        except Exception:
            if not self._has_failed:  # one line: the same message may come a thousand times
                self._has_failed = True
                self.log.exception("status_board.bookkeeping_failed", message_type=type(message).__name__)
        self._changed()

    def handle_timeout(self, now: float) -> None:
        """Measure how late this is."""
        if now >= self._tick_at:
            self._book.tick(now, self.io.wall_time(), now - self._tick_at)
            self._tick_at = now + TICK_S
            self._book.note_refusals("resources", self.io.shortages())
            self._look_at_limits(now)
            self._request_log.handle_timeout(now)
            self._report_readiness()
            # Ages and rates go on although nothing happens: who watches sees them move.
            self._changed()

    def next_deadline(self) -> float | None:
        """The next measurement."""
        return self._tick_at

    def status(self) -> control_pb2.DaemonStatus:
        """Everything, as of now. To be called on the loop's thread, as all below."""
        return self._book.status(self.io.time(), self.io.wall_time())

    def samples(self) -> list[Sample]:
        """Every metric, as of now."""
        return list(self._book.samples(self.io.time(), self.io.wall_time()))

    def not_ready_reason(self) -> str:
        """Why the daemon is not ready, in words; empty when it is."""
        return self._book.not_ready_reason()

    @loop_callback
    def request_refused(self, reason: str) -> None:
        """Somebody at the metrics' port asked for nothing that it serves."""
        self._book.count_refusal("http", reason)
        self._request_log.note(self.now, (reason,), reason=reason)

    def _look_at_limits(self, now: float) -> None:
        """Name a limit that is nearly reached, also by what nobody here accepted: connections of gRPC."""
        found = self.io.nearly_reached()
        if found is not None:
            self._limit_reached_at = now
            self._limit_log.failed(now, found.reason, found.detail, consequence=LIMIT_CONSEQUENCE)
            self._book.limit_nearly_reached(found.reason, found.detail)
        elif self._limit_reached_at is not None and now >= self._limit_reached_at + LIMIT_CLEAR_S:
            self._limit_reached_at = None
            self.log.info("status_board.limit_left", **self._limit_log.recovered(now))

    def _report_readiness(self) -> None:
        reason = self._book.not_ready_reason()
        if reason != self._reason:
            self._reason = reason
            self._hooks.on_readiness(reason)

    @property
    def http_address(self) -> TransportAddress | None:
        """Where metrics are served, with the real port."""
        return self._http.local_address if self._http else None

    def _changed(self) -> None:
        if self._control is not None:
            self._control.changed()

    @loop_callback
    def open_session(self, wish: OpenWish) -> None:
        """Somebody at the control socket wants a session."""
        self._open_session(wish)

    @loop_callback
    def close_session(self, wish: CloseWish) -> None:
        """Somebody at the control socket wants a session closed."""
        self._close_session(wish)

    @loop_callback
    def restart_ice(self, wish: RestartWish) -> None:
        """Somebody at the control socket wants direct paths searched anew."""
        self._restart_ice(wish)

    @loop_callback
    def reload(self, wish: ReloadWish) -> None:
        """Somebody at the control socket wants the files read again."""
        try:
            change = self._hooks.reload_files()
        except ConfigError as error:
            wish.answer(Refusal("configuration", str(error)))
        except AuthenticationError as error:
            wish.answer(Refusal("credentials", str(error)))
        else:
            response = control_pb2.ReloadResponse(applied=change.applied, needs_restart=change.needs_restart)
            # The actors hear of it in the turn that has been asked for by now: whoever is answered may count
            # on a new listener.
            self.io.call_soon(partial(wish.answer, response))

    def _open_session(self, wish: OpenWish) -> None:
        daemon = self._settings.book.daemon
        wish.answer(Refusal("unsupported", f"only an agent opens sessions; this is the {daemon}"))

    def _close_session(self, wish: CloseWish) -> None:
        wish.answer(Refusal("unsupported", "only an agent or a connector closes sessions"))

    def _restart_ice(self, wish: RestartWish) -> None:
        wish.answer(Refusal("unsupported", "only agents and connectors look for direct paths"))


class NodeStatusBoard(_StatusBoard):
    """What the boards of agent and connector share."""

    book_class: ClassVar[type[NodeStatusBook]]
    emits: ClassVar[tuple[type[Message], ...]] = (
        session_table_pb2.CloseSessionRequested,
        hole_punch_pb2.RestartIce,
    )

    def __init__(self, context: Context, settings: Callable[[], BoardSettings], hooks: DaemonHooks) -> None:
        """`settings` gives the present ones."""
        self._present = settings
        book = settings().book
        self._node = self.book_class(book, hooks.children, context.io.time(), context.io.wall_time())
        super().__init__(context, settings(), self._node, hooks)

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Other services may be configured."""
        self._node.configure(self._present().book.services)
        self._changed()

    def _close_session(self, wish: CloseWish) -> None:
        if not self._node.has_session(wish.session_id):
            wish.answer(Refusal("not_found", f"there is no session {wish.session_id.hex()}"))
            return
        self.emit(session_table_pb2.CloseSessionRequested(session_id=wish.session_id, reason=OPERATOR))
        wish.answer(control_pb2.CloseSessionResponse())

    def _restart_ice(self, wish: RestartWish) -> None:
        known = self._node.session_ids()
        wanted = [wish.session_id] if wish.session_id else known
        if unknown := [each for each in wanted if each not in known]:
            wish.answer(Refusal("not_found", f"there is no session {unknown[0].hex()}"))
            return
        for session_id in wanted:
            self.emit(hole_punch_pb2.RestartIce(session_id=session_id, reason=OPERATOR))
        wish.answer(control_pb2.RestartIceResponse(session_ids=wanted))


class ConnectorStatusBoard(NodeStatusBoard):
    """The board of a connector."""

    book_class = ConnectorStatusBook
    handlers: ClassVar = {
        **dict.fromkeys(ConnectorStatusBook.takers, "take"),
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
    }


class AgentStatusBoard(NodeStatusBoard):
    """The board of an agent; brings sessions up on request."""

    book_class = AgentStatusBook
    handlers: ClassVar = {
        **dict.fromkeys(AgentStatusBook.takers, "take"),
        session_table_pb2.ServiceReady: "service_ready",
        session_table_pb2.ServiceUnavailable: "service_unavailable",
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
    }
    emits = (*NodeStatusBoard.emits, session_table_pb2.RequestService)

    def __init__(self, context: Context, settings: Callable[[], BoardSettings], hooks: DaemonHooks) -> None:
        """`settings` gives the present ones."""
        super().__init__(context, settings, hooks)
        self._wishes: list[OpenWish] = []

    def service_ready(self, message: session_table_pb2.ServiceReady) -> None:
        """Answer whoever waits for the service."""
        self.take(message)
        self._answer(
            message.service,
            control_pb2.OpenSessionResponse(session_id=message.session_id, connector_id=message.connector_id),
        )

    def service_unavailable(self, message: session_table_pb2.ServiceUnavailable) -> None:
        """Answer whoever waits for the service."""
        self.take(message)
        self._answer(message.service, Refusal(message.code, message.message))

    def _open_session(self, wish: OpenWish) -> None:
        if not self._node.has_service(wish.service):
            wish.answer(Refusal("not_found", f"this agent has no service {wish.service!r}"))
            return
        # Those that gave up waiting are let go of here; the server bounds how many wait at a time.
        self._wishes = [each for each in self._wishes if not each.is_over]
        self._wishes.append(wish)
        self.emit(session_table_pb2.RequestService(service=wish.service))

    def _answer(self, service: str, answer: control_pb2.OpenSessionResponse | Refusal) -> None:
        waiting = [each for each in self._wishes if each.service == service]
        self._wishes = [each for each in self._wishes if each.service != service]
        for wish in waiting:
            wish.answer(answer)


class IntermediateStatusBoard(_StatusBoard):
    """The board of an intermediate."""

    handlers: ClassVar = dict.fromkeys(IntermediateStatusBook.takers, "take")

    def __init__(self, context: Context, settings: Callable[[], BoardSettings], hooks: DaemonHooks) -> None:
        """`settings` gives the present ones."""
        now, wall = context.io.time(), context.io.wall_time()
        book = IntermediateStatusBook(settings().book, hooks.children, now, wall)
        super().__init__(context, settings(), book, hooks)
