"""The demo's command line, its JSON, and what it waits for."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import grpc
import pytest

from tools.demo import place
from tools.demo.__main__ import main, summary
from tools.demo.backends import Sent
from tools.demo.progress import Transfer, selected_at_s
from tools.demo.run import BackgroundDownload, Demo, DemoError, Result, first_byte_path, judge
from tools.demo.traffic import Download, TrafficError
from tools.demo.view import View
from tools.demo.watch import StatusWatch, WatchTimeoutError
from tools.natlab.namespaces import LabError
from ztna.v1 import control_pb2

KEYS = [
    "ok",
    "sha256_ok",
    "bytes",
    "seconds",
    "bytes_per_second",
    "path",
    "udp_echo_ok",
    "time_to_first_byte_ms",
    "first_byte_path",
    "rtt_ms",
    "time_to_direct_ms",
    "failover_ms",
    "heal_ms",
    "rtt_relay_ms",
    "rtt_direct_ms",
    "lost_bytes",
    "session_id",
    "place",
    "place_reason",
    "error",
]


def becomes_ready(
    _request: control_pb2.WatchStatusRequest, context: grpc.ServicerContext
) -> Iterator[control_pb2.WatchStatusResponse]:
    """A daemon that is ready with its second status, and then changes no more."""
    for is_ready in (False, True):
        status = control_pb2.DaemonStatus(id="agent-1", is_ready=is_ready, not_ready_reason="starting")
        yield control_pb2.WatchStatusResponse(status=status)
    is_over = threading.Event()
    context.add_callback(is_over.set)
    is_over.wait(10)


def control_server() -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_stream_rpc_method_handler(
        becomes_ready,
        request_deserializer=control_pb2.WatchStatusRequest.FromString,
        response_serializer=control_pb2.WatchStatusResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ztna.v1.ControlService", {"WatchStatus": handler}),)
    )
    return server


@pytest.fixture
def control_socket(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


def nothing() -> None:
    pass


def test_json_of_a_run_holds_every_key_in_order() -> None:
    result = Result(ok=True, bytes=8, seconds=1.23456, session_id="00ff", rtt_ms=0.98765)
    document = result.as_json()
    assert list(document) == KEYS
    assert json.loads(json.dumps(document)) == document
    assert (document["seconds"], document["rtt_ms"], document["error"]) == (1.235, 0.988, None)


DONE = Result(
    ok=True,
    sha256_ok=True,
    bytes=1 << 20,
    seconds=2.0,
    bytes_per_second=1e6,
    path="direct",
    time_to_first_byte_ms=45.0,
    first_byte_path="relay",
    time_to_direct_ms=380.4,
    failover_ms=790.0,
    heal_ms=713.0,
    rtt_relay_ms=150.25,
    rtt_direct_ms=85.0,
    lost_bytes=0,
    session_id="00ff",
    place="lab",
)


def test_summary_draws_the_figures_of_a_run() -> None:
    assert summary(DONE).splitlines() == [
        "file        1.0 MiB in 2.0 s, SHA-256 correct, 0 bytes lost",
        "rate        1.0 MB/s",
        "first byte  45 ms after the first connect, from cold, path relay",
        "UDP echo    correct",
        "direct      after 380 ms",
        "fail-over   790 ms after the cut; direct again 713 ms after healing",
        "RTT         relay 150.2 ms, direct 85.0 ms",
        "path        direct",
        "session     00ff",
    ]


def test_summary_on_loopback_says_that_cut_and_healing_were_left_out() -> None:
    done = replace(DONE, place="loopback", failover_ms=None, heal_ms=None)
    assert "fail-over   left out on loopback" in summary(done).splitlines()


def test_place_without_the_packages_is_loopback_and_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "missing_packages", lambda: ["conntrack", "nftables"])
    chosen = place.choose(1, wants_loopback=False)
    assert (chosen.name, chosen.can_cut) == ("loopback", False)
    assert chosen.reason == "Debian packages are missing: conntrack nftables (make lab-tools)"


def test_place_where_the_kernel_refuses_is_loopback_and_tells_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(size: int) -> place.LabPlace:
        raise LabError("unshare failed: Operation not permitted\nmore")

    monkeypatch.setattr(place, "missing_packages", list)
    monkeypatch.setattr(place, "LabPlace", refuse)
    chosen = place.choose(1, wants_loopback=False)
    assert chosen.reason == "no network namespaces here: unshare failed: Operation not permitted"


def test_pause_that_ended_before_it_is_asked_for_does_not_count() -> None:
    transfer = Transfer(100)
    for received, now in ((1, 0.0), (2, 5.0)):
        transfer.note(received, now)
    assert transfer.pause_end_at == 5.0
    transfer.forget_pauses()
    for received, now in ((3, 5.1), (4, 6.0), (5, 6.1)):
        transfer.note(received, now)
    assert transfer.pause_end_at == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("first_byte_at_s", "direct_at_s", "path"),
    [
        (None, 5.0, None),
        (4.9, 5.0, "relay"),
        (5.0, 5.0, "direct"),
        (6.0, 5.0, "direct"),
        (4.9, None, "relay"),
    ],
    ids=["no byte", "before direct", "with direct", "after direct", "never direct"],
)
def test_first_byte_came_over_the_relay_if_its_sender_had_nothing_else(
    first_byte_at_s: float | None, direct_at_s: float | None, path: str | None
) -> None:
    assert first_byte_path(Transfer(1, first_byte_at_s=first_byte_at_s), direct_at_s) == path


def test_first_selection_of_a_path_is_found_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "connector-1.log"
    selected = "path_manager.path_selected"
    entries = [
        {"event": selected, "path": "relay", "timestamp": "2026-01-01T00:00:01.000Z"},
        {"event": "checklist.pair_nominated", "timestamp": "2026-01-01T00:00:01.500Z"},
        {"event": selected, "path": "direct", "timestamp": "2026-01-01T00:00:02.250Z"},
        {"event": selected, "path": "direct", "timestamp": "2026-01-01T00:00:09.000Z"},
    ]
    log.write_text("\n".join(["a warning of the interpreter", *map(json.dumps, entries)]) + "\n")
    relay_at_s, direct_at_s = selected_at_s(log, "relay"), selected_at_s(log, "direct")
    assert relay_at_s is not None
    assert direct_at_s == relay_at_s + 1.25
    assert selected_at_s(log, "none") is None


FILE = Sent(100, "aa")


def arrived(size: int, sha256: str) -> Download:
    return Download(size, seconds=1.0, first_byte_s=0.1, sha256=sha256)


def test_file_that_was_sent_and_arrived_whole_has_lost_nothing() -> None:
    result = Result()
    judge(result, arrived(100, "aa"), FILE, FILE)
    assert (result.sha256_ok, result.lost_bytes) == (True, 0)


@pytest.mark.parametrize(
    ("done", "sent", "lost", "complaint"),
    [
        (arrived(100, "aa"), None, None, "did not say"),
        (arrived(90, "bb"), FILE, 10, "90 bytes arrived, 100 sent"),
        (arrived(90, "bb"), Sent(90, "bb"), 0, "90 bytes arrived, 90 sent, of 100"),
        (arrived(100, "bb"), FILE, 0, "SHA-256 differs"),
        (arrived(100, "bb"), Sent(100, "bb"), 0, "SHA-256 differs"),
    ],
    ids=["service is silent", "bytes lost", "file cut short", "changed on the way", "changed at the service"],
)
def test_bytes_that_were_lost_or_changed_fail_the_demo(
    done: Download, sent: Sent | None, lost: int | None, complaint: str
) -> None:
    result = Result()
    with pytest.raises(TrafficError, match=complaint):
        judge(result, done, sent, FILE)
    assert (result.sha256_ok, result.lost_bytes) == (False, lost)


class Silent:
    """A place whose sockets reach nobody."""

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        raise ConnectionRefusedError("nobody there")


def test_download_in_the_background_hands_on_its_error() -> None:
    woken = threading.Event()
    running = BackgroundDownload(
        cast("place.Place", Silent()), 9, Transfer(10), time.monotonic() + 10, woken.set
    ).start()
    assert woken.wait(10)
    with pytest.raises(TrafficError, match="nobody there"):
        running.join(10)
    with pytest.raises(TrafficError, match="nobody there"):
        running.check()
    assert running.is_over


def test_watch_waits_until_the_daemon_says_ready(control_socket: Path) -> None:
    server = control_server()
    server.add_insecure_port(f"unix:{control_socket}")
    with StatusWatch({"agent-1": control_socket}) as watch:
        server.start()
        status = watch.wait_for(
            "agent-1", lambda status: status.is_ready, "ready", time.monotonic() + 10, nothing
        )
        assert status.id == "agent-1"
        latest = watch.latest("agent-1")
        assert latest is not None
        assert latest.is_ready
    server.stop(0).wait()


def test_watch_of_a_daemon_that_never_answers_ends_at_the_deadline(control_socket: Path) -> None:
    with (
        StatusWatch({"agent-1": control_socket}) as watch,
        pytest.raises(WatchTimeoutError, match="control socket does not answer"),
    ):
        watch.wait_for("agent-1", lambda _status: True, "ready", time.monotonic(), nothing)


def test_failed_run_prints_json_with_the_reason_and_the_logs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Demo, view: View) -> None:
        (self._directory / "agent-1.log").write_text("the last words\n")
        raise DemoError("agent-1 ended\nmore about it")

    monkeypatch.setattr(Demo, "run", fail)
    assert main(["--json", "--size-mib", "1"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out.splitlines()[-1])
    assert (document["ok"], document["error"]) == (False, "agent-1 ended")
    assert "the last words" in err


def test_interrupted_run_says_so_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Path] = []

    def interrupt(self: Demo, view: View) -> None:
        seen.append(self._directory)
        raise KeyboardInterrupt

    monkeypatch.setattr(Demo, "run", interrupt)
    assert main(["--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"] == "interrupted"
    assert not seen[0].exists()


def test_kept_directory_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tools.demo.__main__.MAX_DIRECTORY_BYTES", 4096)
    monkeypatch.setattr(Demo, "run", lambda self, _view: self._directory.mkdir())
    monkeypatch.setattr("tools.demo.__main__.summary", lambda _result: "")
    assert main(["--keep", str(tmp_path / "kept")]) == 0
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize(
    "arguments",
    [["--size-mib", "0"], ["--keep", "/"], ["--keep", "/nowhere/" + "x" * 80]],
    ids=["no bytes", "directory exists", "path too long for unix sockets"],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
