from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from actors.log import (
    MAX_LOGGED_BYTES,
    QUIET_LIBRARIES,
    BurstLimiter,
    configure,
    plain_values,
    redact_addresses,
)
from ztna.address import TransportAddress
from ztna.settings import LogFormat, LogLevel


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield
    root.handlers[:], root.level = handlers, level
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.NOTSET)
    structlog.reset_defaults()


def fail(error: Exception) -> None:
    raise error


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class TestConfigure:
    def test_json_line_has_event_facts_level_and_injected_time(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.JSON, stream, wall_clock=lambda: 86_400.25)
        structlog.get_logger().bind(actor="path_manager").info("path_manager.path_selected", rtt_us=120)
        assert lines(stream) == [
            {
                "event": "path_manager.path_selected",
                "actor": "path_manager",
                "rtt_us": 120,
                "level": "info",
                "timestamp": "1970-01-02T00:00:00.250Z",
            }
        ]

    @pytest.mark.parametrize(
        ("level", "expected"),
        [
            (LogLevel.DEBUG, ["debug", "info", "warning", "error"]),
            (LogLevel.INFO, ["info", "warning", "error"]),
            (LogLevel.WARNING, ["warning", "error"]),
            (LogLevel.ERROR, ["error"]),
        ],
    )
    def test_level_is_the_least_that_is_logged(self, level: LogLevel, expected: list[str]) -> None:
        stream = io.StringIO()
        configure(level, LogFormat.JSON, stream)
        for method in ("debug", "info", "warning", "error"):
            getattr(structlog.get_logger(), method)("x.y")
        assert [line["level"] for line in lines(stream)] == expected

    @pytest.mark.parametrize(
        ("stream", "log_format", "is_json", "has_colors"),
        [
            (io.StringIO(), LogFormat.AUTO, True, False),
            (Terminal(), LogFormat.AUTO, False, True),
            (Terminal(), LogFormat.JSON, True, False),
            (io.StringIO(), LogFormat.CONSOLE, False, False),
        ],
        ids=["auto-file", "auto-terminal", "json-terminal", "console-file"],
    )
    def test_format_follows_the_stream_unless_set(
        self,
        stream: io.StringIO,
        log_format: LogFormat,
        is_json: bool,
        has_colors: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        configure(LogLevel.INFO, log_format, stream)
        structlog.get_logger().info("x.y")
        assert stream.getvalue().startswith("{") is is_json
        assert ("\x1b" in stream.getvalue()) is has_colors

    def test_no_color_is_respected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_COLOR", "")
        stream = Terminal()
        configure(LogLevel.INFO, LogFormat.AUTO, stream)
        structlog.get_logger().info("x.y")
        assert "\x1b" not in stream.getvalue()

    def test_standard_error_is_the_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure(LogLevel.INFO, LogFormat.JSON)
        structlog.get_logger().info("x.y")
        assert json.loads(capsys.readouterr().err)["event"] == "x.y"

    def test_broken_stream_costs_the_line_not_the_actor(self) -> None:
        configure(LogLevel.INFO, LogFormat.JSON, Broken())
        structlog.get_logger().info("x.y")

    def test_closed_stream_costs_the_line_not_the_actor(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.JSON, stream)
        stream.close()
        structlog.get_logger().info("x.y")

    def test_stream_without_unicode_gets_escapes(self) -> None:
        raw = io.BytesIO()
        configure(LogLevel.INFO, LogFormat.CONSOLE, io.TextIOWrapper(raw, encoding="ascii"))
        structlog.get_logger().info("x.y", name="käse")
        assert b"k\\xe4se" in raw.getvalue()

    def test_console_leaves_out_what_its_reader_knows_and_keeps_the_order(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.CONSOLE, stream)
        log = structlog.get_logger().bind(daemon="agent", node="agent-1")
        log.bind(actor="relay_leg", intermediate="i1").info("relay_leg.lost", reason="no_answer", detail="")
        log.info("daemon.stopped", signal=None)
        lost, stopped = (line.partition("]")[2].split() for line in stream.getvalue().splitlines())
        assert lost == ["relay_leg.lost", "intermediate=i1", "reason=no_answer"]
        assert stopped == ["daemon.stopped", "daemon=agent", "node=agent-1"]

    def test_console_keeps_what_is_false_or_zero_and_an_actor_that_the_event_does_not_name(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.CONSOLE, stream)
        structlog.get_logger().info("x.y", actor="relay_leg", is_clean=False, count=0)
        assert stream.getvalue().split()[-3:] == ["actor=relay_leg", "is_clean=False", "count=0"]

    def test_peer_cannot_steer_the_terminal_or_forge_a_line(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.CONSOLE, stream)
        structlog.get_logger().info("x.y", message="\x1b[2J\nforged")
        assert "\x1b" not in stream.getvalue()
        assert stream.getvalue().count("\n") == 1


class TestLibraries:
    @pytest.mark.parametrize("name", ["pykka", "grpc", "aiohttp.access", "asyncio"])
    def test_warning_of_a_library_is_logged_and_chatter_is_not(self, name: str) -> None:
        stream = io.StringIO()
        configure(LogLevel.DEBUG, LogFormat.JSON, stream)
        logging.getLogger(name).debug("chatter")
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("lost %d", 3)
        (line,) = lines(stream)
        assert (line["event"], line["library"], line["message"]) == ("library.logged", name, "lost 3")
        assert line["level"] == "warning"

    def test_warning_of_aioquic_repeats_what_its_driver_logs_and_is_left_out(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.DEBUG, LogFormat.JSON, stream)
        logging.getLogger("quic").warning("Error: 305, reason: wrong_name, frame_type: 6")
        logging.getLogger("quic").error("Could not find a common protocol version")
        assert [line["message"] for line in lines(stream)] == ["Could not find a common protocol version"]

    def test_level_between_the_standard_ones_counts_as_the_lower(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.DEBUG, LogFormat.JSON, stream)
        logging.getLogger("pykka").log(35, "x")
        logging.getLogger("pykka").log(99, "y")
        assert [line["level"] for line in lines(stream)] == ["warning", "critical"]

    def test_format_error_of_a_library_does_not_surface(self) -> None:
        stream = io.StringIO()
        # pytest's own handler, put there after the fixtures, would raise.
        logging.getLogger().handlers.clear()
        configure(LogLevel.INFO, LogFormat.JSON, stream)
        logging.getLogger("pykka").warning("%d", "x")
        assert lines(stream)[0]["message"] == "%d"

    def test_configuring_again_replaces_the_former_stream(self) -> None:
        former, stream = io.StringIO(), io.StringIO()
        configure(LogLevel.INFO, LogFormat.JSON, former)
        configure(LogLevel.INFO, LogFormat.JSON, stream)
        logging.getLogger("pykka").warning("once")
        assert former.getvalue() == ""
        assert len(lines(stream)) == 1


class TestExceptions:
    def test_exception_is_rendered_once_and_named_after_that(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.JSON, stream)
        try:
            fail(LookupError("gone"))
        except LookupError as error:
            structlog.get_logger().exception("relay_leg.failed")
            logging.getLogger("pykka").exception("unhandled")
            structlog.get_logger().error("supervisor.child_failed", exc_info=error)
        texts = [line["exception"] for line in lines(stream)]
        assert texts[0].startswith("Traceback")
        assert texts[0].endswith("LookupError: gone")
        assert texts[1] == texts[2] == "LookupError: gone (traceback logged before)"

    def test_no_exception_leaves_no_key(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.JSON, stream)
        structlog.get_logger().error("x.y", exc_info=True)
        assert "exception" not in lines(stream)[0]

    def test_traceback_keeps_its_lines_on_the_console(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.CONSOLE, stream)
        try:
            fail(LookupError("\x1bgone"))
        except LookupError:
            structlog.get_logger().exception("relay_leg.failed")
        assert "Traceback (most recent call last):\n" in stream.getvalue()
        assert "\x1b" not in stream.getvalue()


class Color(Enum):
    RED = 1


class TestValues:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (b"\x01\xff", "01ff"),
            (b"x" * MAX_LOGGED_BYTES, "78" * MAX_LOGGED_BYTES),
            (b"x" * (MAX_LOGGED_BYTES + 1), f"<{MAX_LOGGED_BYTES + 1} bytes>"),
            (bytearray(99), "<99 bytes>"),
            (memoryview(b"ab"), "6162"),
            ([b"x" * 99, (1, None)], ["<99 bytes>", [1, None]]),
            ({b"k": Color.RED}, {"b'k'": "red"}),
            (LogLevel.INFO, "info"),
            (TransportAddress("::1", 5), "[::1]:5"),
            (True, True),
            (1.5, 1.5),
        ],
    )
    def test_values_become_plain_and_payload_only_a_length(self, value: object, expected: object) -> None:
        assert plain_values(None, "info", {"x": value})["x"] == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("192.0.2.77:4433", "192.0.2.0/24:4433"),
            ("[2001:db8:1:2::3]:80", "[2001:db8:1::/48]:80"),
            ("from 10.1.2.3, to 10.1.2.4.", "from 10.1.2.0/24, to 10.1.2.0/24."),
            ("fe80::1%eth0", "fe80::/48"),
            ("127.0.0.1:80 [::1]:80 0.0.0.0:0 [::]:0", "127.0.0.1:80 [::1]:80 0.0.0.0:0 [::]:0"),
            ("agent-1", "agent-1"),
            ("12:34:56", "12:34:56"),
            ("1.2.3.4.5", "1.2.3.4.5"),
            ("999.1.1.1", "999.1.1.1"),
        ],
    )
    def test_redaction_leaves_the_network_and_the_identity(self, text: str, expected: str) -> None:
        event = {"x": text, "inner": [text, {"y": text}], "number": 7}
        redacted = redact_addresses(None, "info", event)
        assert redacted == {"x": expected, "inner": [expected, {"y": expected}], "number": 7}

    def test_debug_keeps_addresses(self) -> None:
        assert redact_addresses(None, "debug", {"x": "192.0.2.77"}) == {"x": "192.0.2.77"}

    def test_redaction_covers_exceptions_and_libraries(self) -> None:
        stream = io.StringIO()
        configure(LogLevel.INFO, LogFormat.JSON, stream, redact=True)
        remote = TransportAddress("192.0.2.77", 1)
        try:
            fail(OSError(f"no route to {remote.host}"))
        except OSError:
            structlog.get_logger().exception(
                "udp_socket.send_failed", remote=TransportAddress("192.0.2.77", 1)
            )
        logging.getLogger("grpc").warning("lost %s", "192.0.2.77")
        assert "192.0.2.77" not in stream.getvalue()
        assert stream.getvalue().count("192.0.2.0/24") == 3

    @given(st.ip_addresses().filter(lambda ip: not ip.is_loopback and not ip.is_unspecified))
    def test_no_full_address_survives_redaction(self, address: Any) -> None:
        text = f"[{address}]:1" if address.version == 6 else f"{address}:1"
        redacted = str(redact_addresses(None, "info", {"x": text})["x"])
        assert "/24" in redacted or "/48" in redacted


class TestBurstLimiter:
    def test_first_of_a_burst_is_told_and_the_rest_counted(self) -> None:
        limiter = BurstLimiter(interval_s=10)
        assert limiter.note("refused", 0.0) == 0
        assert [limiter.note("refused", now) for now in (1.0, 5.0, 9.9)] == [None, None, None]
        assert limiter.note("refused", 10.0) == 3
        assert limiter.note("refused", 20.0) == 0

    def test_keys_have_bursts_of_their_own(self) -> None:
        limiter = BurstLimiter(interval_s=10)
        assert limiter.note("a", 0.0) == limiter.note("b", 0.0) == 0

    def test_expire_tells_what_no_line_told(self) -> None:
        limiter = BurstLimiter(interval_s=10)
        for key, now in (("a", 0.0), ("b", 1.0), ("a", 2.0), ("a", 3.0), ("c", 8.0), ("c", 9.0)):
            limiter.note(key, now)
        assert limiter.expire(9.9) == []
        assert limiter.expire(11.0) == [("a", 2)]
        assert len(limiter) == 1
        assert limiter.expire(18.0) == [("c", 1)]
        assert len(limiter) == 0

    def test_keys_are_bounded_and_the_oldest_is_forgotten(self) -> None:
        limiter = BurstLimiter(interval_s=10, max_keys=3)
        for index in range(10):
            limiter.note(index, float(index) / 10)
        assert len(limiter) == 3
        assert limiter.note(0, 1.0) == 0
        assert limiter.note(9, 1.0) is None

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5)), max_size=60))
    def test_every_event_is_told_or_counted_once(self, events: list[tuple[str, float]]) -> None:
        limiter = BurstLimiter(interval_s=10)
        now, told = 0.0, 0
        for key, pause in events:
            now += pause
            silent = limiter.note(key, now)
            told += 0 if silent is None else 1 + silent
        told += sum(silent for _, silent in limiter.expire(now + 10))
        assert told == len(events)
        assert len(limiter) == 0
