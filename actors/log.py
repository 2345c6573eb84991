"""Structured logs: one event per line, JSON in production, readable on a terminal.

An event is named after its actor (`path_manager.path_selected`), facts are keys. `configure` sends structlog
and the standard library's loggers (of aioquic, pykka, gRPC, aiohttp) through the same steps to the same
stream: plain values, exceptions rendered once, redaction if asked for, wall-clock time. Bytes longer than an
identifier are logged by their length alone, so that payload stays out of the log.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ztna.settings import LogFormat, LogLevel

LIBRARY_LEVEL: Final = logging.WARNING
"""Libraries speak below it about every packet (aioquic) or request (aiohttp), and not in our terms."""

MAX_LOGGED_BYTES = 32
"""The longest identifier we have is a SHA-256 fingerprint; whatever is longer is payload or a certificate."""

IPV4_PREFIX = 24
IPV6_PREFIX = 48
"""What redaction leaves of an address: the customary size of one site, which still tells networks apart."""

QUIET_LIBRARIES: Final = {"quic": logging.ERROR}
"""The warnings of aioquic are the errors it closes connections for; whoever drives one logs the reason."""

_LEVELS: Final = {
    LogLevel.DEBUG: logging.DEBUG,
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
}
_RENDERED_MARK: Final = "_ztna_log_rendered"
_IPV4: Final = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\.\d)")
_IPV6: Final = re.compile(r"(?<![\w:.])[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\w+)?")


def configure(
    level: LogLevel,
    log_format: LogFormat,
    stream: TextIO | None = None,
    *,
    redact: bool = False,
    wall_clock: Callable[[], float] = time.time,
) -> None:
    """Send every log line to `stream` (standard error if None); may be called again, the last call holds.

    `redact` cuts addresses down to their network above debug. `wall_clock` gives unix seconds; a simulation
    passes its own, so that lines carry virtual time.
    """
    stream = sys.stderr if stream is None else stream
    is_terminal = stream.isatty()
    is_console = log_format is LogFormat.CONSOLE or (log_format is LogFormat.AUTO and is_terminal)
    steps: list[Processor] = [structlog.stdlib.add_log_level, render_exception_once, plain_values]
    if redact:
        steps.append(redact_addresses)
    steps.append(_timestamper(wall_clock))
    if is_console:
        has_colors = is_terminal and "NO_COLOR" not in os.environ
        steps += [
            escape_control_characters,
            shorten_for_people,
            structlog.dev.ConsoleRenderer(colors=has_colors, sort_keys=False),
        ]
    else:
        steps.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=steps,
        wrapper_class=_Logger,
        logger_factory=_writer_factory(stream),
        cache_logger_on_first_use=False,
    )
    set_level(level)
    _route_standard_logging()


def give_up_unwritten(stream: TextIO | None = None) -> None:
    """Forget the lines that a full disk did not take, of standard error if None; called last.

    The interpreter would try them again as it ends, and make that its exit status (120).
    """
    stream = sys.stderr if stream is None else stream
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Logger(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc] # built at run time
    """The one class of all our loggers, so that `set_level` reaches those that actors hold."""


def set_level(level: LogLevel) -> None:
    """Change the least severity that is logged, for every logger there is."""
    # A level below the least one costs an empty method, and no look at a variable.
    for name, member in vars(structlog.make_filtering_bound_logger(_LEVELS[level])).items():
        if not name.startswith("__"):
            setattr(_Logger, name, member)


def render_exception_once(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by a traceback, or by one line where this very exception was logged before."""
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    exception = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(exception, BaseException):
        if getattr(exception, _RENDERED_MARK, False):
            event["exception"] = f"{type(exception).__qualname__}: {exception} (traceback logged before)"
        else:
            event["exception"] = "".join(traceback.format_exception(exception)).rstrip("\n")
            setattr(exception, _RENDERED_MARK, True)
    return event


def plain_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make every value plain: enums by value or name, short bytes in hex, long bytes by their length."""
    for key, value in event.items():
        event[key] = _plain(value)
    return event


def redact_addresses(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Cut every IP address down to its network, above debug; loopback and wildcard addresses stay.

    Identities stay too: an operator cannot act on a line without them.
    """
    if method == "debug":
        return event
    for key, value in event.items():
        event[key] = _redact(value)
    return event


def escape_control_characters(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what could steer a terminal: text from a peer must not forge lines or colours.

    Line ends are kept in `exception` alone, which our own formatter wrote; JSON needs none of this.
    """
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            keep = "\n" if key == "exception" else ""
            event[key] = "".join(
                character
                if character.isprintable() or character in keep
                else character.encode("unicode_escape").decode("ascii")
                for character in value
            )
    return event


def shorten_for_people(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leave out what the terminal or the event tells already, and what is not known.

    Only `daemon.*` lines say whose terminal it is. JSON keeps every key, for searches.
    """
    actor = event["event"].partition(".")[0]
    if event.get("actor") == actor:
        del event["actor"]
    if actor != "daemon":
        event.pop("daemon", None)
        event.pop("node", None)
    return {key: value for key, value in event.items() if value is not None and value != ""}


class BurstLimiter:
    """Lets the first of a burst of equal events be logged, and counts the rest.

    A burst of a key lasts `interval_s` from its last logged line. Bounded: with more than `max_keys` keys at
    a time the one logged longest ago is forgotten, with its count.
    """

    def __init__(self, *, interval_s: float = 10.0, max_keys: int = 1024) -> None:
        self._interval_s = interval_s
        self._max_keys = max_keys
        self._bursts: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bursts)

    def note(self, key: Hashable, now: float) -> int | None:
        """None: stay silent. Otherwise log, with the number of events kept silent since the last line.

        `now`: monotonic seconds.
        """
        started, silent = self._bursts.get(key, (None, 0))
        if started is not None and now < started + self._interval_s:
            self._bursts[key] = (started, silent + 1)
            return None
        self._bursts[key] = (now, 0)
        self._bursts.move_to_end(key)
        if len(self._bursts) > self._max_keys:
            self._bursts.popitem(last=False)
        return silent

    def expire(self, now: float) -> list[tuple[Hashable, int]]:
        """End the bursts that are over, oldest first; returns those with events that no line told of yet."""
        untold = []
        while self._bursts:
            key, (started, silent) = next(iter(self._bursts.items()))
            if now < started + self._interval_s:
                break
            del self._bursts[key]
            if silent:
                untold.append((key, silent))
        return untold


class _Writer:
    """The end of every line. A full disk or a closed pipe costs the line, never the actor that wrote it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        try:
            self._write(message)
        except UnicodeEncodeError:
            self._write(message.encode("ascii", "backslashreplace").decode("ascii"))

    def _write(self, message: str) -> None:
        try:
            self._stream.write(message + "\n")
            self._stream.flush()
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = msg


class _Forwarder(logging.Handler):
    """Turns records of the standard library's loggers into events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        # Levels between the standard ones count as the one below.
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            # A library's own format error must not surface in whoever called the library.
            message = str(record.msg)
        structlog.get_logger().log(
            level, "library.logged", library=record.name, message=message, exc_info=record.exc_info
        )


def _route_standard_logging() -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forwarder)]:
        root.removeHandler(handler)
    root.addHandler(_Forwarder())
    root.setLevel(LIBRARY_LEVEL)
    for library, level in QUIET_LIBRARIES.items():
        logging.getLogger(library).setLevel(level)


def _writer_factory(stream: TextIO) -> Callable[..., _Writer]:
    writer = _Writer(stream)
    return lambda *_: writer


def _timestamper(wall_clock: Callable[[], float]) -> Processor:
    def add_timestamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        moment = datetime.fromtimestamp(wall_clock(), UTC)
        event["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return event

    return add_timestamp


def _plain(value: object) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, str) else value.name.lower()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex() if len(value) <= MAX_LOGGED_BYTES else f"<{len(value)} bytes>"
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {str(key): _plain(element) for key, element in value.items()}
    return str(value)


def _redact(value: object) -> object:
    if isinstance(value, str):
        return _IPV6.sub(_network, _IPV4.sub(_network, value))
    if isinstance(value, list):
        return [_redact(element) for element in value]
    if isinstance(value, dict):
        return {key: _redact(element) for key, element in value.items()}
    return value


def _network(match: re.Match[str]) -> str:
    text = match.group()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if address.is_loopback or address.is_unspecified:
        return text
    prefix = IPV4_PREFIX if address.version == 4 else IPV6_PREFIX  # noqa: PLR2004 - the version of IP
    host_bits = address.max_prefixlen - prefix
    return f"{type(address)(int(address) >> host_bits << host_bits)}/{prefix}"
