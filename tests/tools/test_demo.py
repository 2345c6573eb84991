"""The demo's command line, its JSON, and what it waits for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tools.demo.__main__ import main, summary
from tools.demo.run import Demo, DemoError, Result
from tools.demo.view import View
from tools.demo.watch import StatusWatch, WatchTimeoutError
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
    "rtt_ms",
    "session_id",
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


def test_summary_draws_the_figures_of_a_run() -> None:
    done = Result(True, True, 1 << 20, 2.0, 1e6, "relay", True, 45.0, 1.5, "00ff")
    assert summary(done).splitlines() == [
        "file        1.0 MiB in 2.0 s, SHA-256 correct",
        "rate        1.0 MB/s",
        "first byte  45 ms after the first connect, from cold",
        "UDP echo    correct",
        "path        relay, RTT 1.5 ms",
        "session     00ff",
    ]


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
