"""The demo's screen and lines, drawn from a canned status."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tools.demo import progress as story
from tools.demo.progress import Progress, Step, Transfer
from tools.demo.view import LiveView, PlainView, render
from ztna.v1 import control_pb2, types_pb2

SESSION_ID = bytes.fromhex("3fa94c21") + bytes(12)


def intermediate_status() -> control_pb2.DaemonStatus:
    status = control_pb2.DaemonStatus(daemon="intermediate", id="intermediate-1", is_ready=True)
    status.nodes.add(role=types_pb2.ROLE_AGENT, id="agent-1", carrier="grpc", is_leg_up=True)
    status.nodes.add(role=types_pb2.ROLE_CONNECTOR, id="connector-1", carrier="quic", is_leg_up=False)
    status.registered_services.add(
        id="files", protocol=types_pb2.SERVICE_PROTOCOL_TCP, connectors=["connector-1"]
    )
    status.registered_services.add(
        id="echo", protocol=types_pb2.SERVICE_PROTOCOL_UDP, connectors=["connector-1", "connector-2"]
    )
    return status


def agent_status() -> control_pb2.DaemonStatus:
    status = control_pb2.DaemonStatus(daemon="agent", id="agent-1", is_ready=True)
    status.sessions.add(
        session_id=SESSION_ID,
        peer_id="connector-1",
        state="established",
        path="relay",
        via="intermediate-1",
        direct_path=control_pb2.DirectPathStatus(rtt_relay_ms=12.34),
        bytes_received=3 << 20,
        packets_lost=7,
    )
    return status


def drawn(statuses: dict[str, control_pb2.DaemonStatus], progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(render(progress, statuses.get))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_screen_shows_who_registered_the_session_its_path_and_the_rate() -> None:
    progress = Progress(Transfer(64 << 20))
    progress.transfer.note(16 << 20, 10.0)
    progress.transfer.note(32 << 20, 11.0)
    progress.steps.append(Step(1.5, "started: intermediate-1"))
    screen = drawn({"intermediate-1": intermediate_status(), "agent-1": agent_status()}, progress)
    for fact in (
        "connector connector-1 (quic), relay leg not up",
        "agent agent-1 (grpc)",
        "echo (udp) at connector-1, connector-2",
        "3fa94c21",
        "relay via intermediate-1",
        "relay 12.3 ms, direct -",
        "3.0 MiB received",
        "7 packets lost",
        "32.0 MiB of 64.0 MiB",
        "16.8 MB/s",
        "started: intermediate-1",
    ):
        assert fact in screen


def test_screen_shows_where_a_direct_path_leads_and_what_the_other_end_uses() -> None:
    agent, connector = agent_status(), agent_status()
    session = agent.sessions[0]
    session.path, session.via = "direct", ""
    session.direct_path.rtt_direct_ms = 8.5
    remote = session.direct_path.selected_pair.remote.address
    remote.host, remote.port = "198.51.100.34", 4711
    statuses = {"agent-1": agent}
    progress = Progress(Transfer(1), place="lab: two NATs")
    screen = drawn(statuses, progress)
    for fact in ("lab: two NATs", "direct, to 198.51.100.34:4711", "relay 12.3 ms, direct 8.5 ms"):
        assert fact in screen
    assert "from the connector" not in screen
    # The end that sends falls back on its own.
    screen = drawn({**statuses, "connector-1": connector}, progress)
    assert "198.51.100.34:4711; from the connector relay via intermediate-1" in screen


def test_screen_before_anything_is_known_says_so() -> None:
    screen = drawn({}, Progress(Transfer(1)))
    assert "nobody yet" in screen
    assert "opened on first use" in screen


def test_plain_lines_hold_no_control_codes() -> None:
    stream = io.StringIO()
    with PlainView(stream) as view:
        view.step(Step(0.25, "started"))
        view.step(Step(12.0, "no connector", is_failure=True))
    assert stream.getvalue() == "[  0.2 s] started\n[ 12.0 s] FAILED no connector\n"


def test_live_view_leaves_the_last_screen_behind() -> None:
    stream = io.StringIO()
    progress = Progress(Transfer(1))
    console = Console(file=stream, width=110, force_terminal=True)
    with LiveView(console, progress, lambda _name: None) as view:
        step = Step(0.1, "a step")
        progress.steps.append(step)
        view.step(step)
    assert "a step" in stream.getvalue()


def test_low_terminal_shows_the_newest_steps_while_it_runs_and_all_of_them_at_the_end() -> None:
    stream = io.StringIO()
    progress = Progress(Transfer(1))
    progress.steps += [Step(number, f"step {number} " + "word " * 20) for number in range(10)]
    console = Console(file=stream, width=80, height=20, force_terminal=True)
    with LiveView(console, progress, lambda _name: None):
        while_running = stream.getvalue()
    assert "step 9 " in while_running
    assert "step 0 " not in while_running
    assert "..." not in while_running
    assert while_running.count("\n") < 20
    assert "step 0 " in stream.getvalue()


def test_terminal_too_low_for_any_step_shows_none() -> None:
    progress = Progress(Transfer(1))
    progress.steps.append(Step(0.0, "a step"))
    console = Console(file=io.StringIO(), width=80, height=3)
    with console.capture() as captured:
        console.print(render(progress, lambda _name: None, is_cut=True))
    assert "a step" not in captured.get()


def test_long_step_goes_on_below_its_own_words() -> None:
    progress = Progress(Transfer(1))
    progress.steps.append(Step(1.0, "word " * 30))
    rows = [line for line in drawn({}, progress).splitlines() if "word" in line]
    assert len({line.index("word") for line in rows}) == 1


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        ([], 0.0),
        ([(1.0, 500)], 0.0),
        ([(1.0, 0), (1.5, 500)], 1000.0),
        ([(1.0, 0), (1.01, 400), (1.5, 500)], 1000.0),
        ([(1.0, 0), (2.5, 500), (3.0, 1000)], 1000.0),
    ],
    ids=["none", "one", "two", "too close together to count", "older than the window"],
)
def test_rate_is_over_the_last_second(samples: list[tuple[float, int]], rate: float) -> None:
    transfer = Transfer(10_000)
    for at, received in samples:
        transfer.note(received, at)
    assert transfer.rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (3 << 30, "3.0 GiB")],
)
def test_bytes_are_shown_in_the_unit_that_fits(count: int, text: str) -> None:
    assert story.bytes_text(count) == text
