from __future__ import annotations

from typing import cast

import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from actors.burst_log import BURST_S, MAX_BURSTS, MAX_VARIANTS, BurstLog


def make(*, is_warning: bool = False) -> tuple[BurstLog, LogCapture]:
    capture = LogCapture()
    log = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    bursts = BurstLog(cast("FilteringBoundLogger", log), "port.refused", is_warning=is_warning)
    return bursts, capture


def test_first_event_is_logged_at_once_and_the_others_are_counted() -> None:
    bursts, capture = make()
    for now in (0.0, 1.0, 2.0):
        bursts.note(now, ("web",), code="limit")
    bursts.handle_timeout(BURST_S - 0.1)
    assert [entry["event"] for entry in capture.entries] == ["port.refused"]
    bursts.handle_timeout(BURST_S)
    assert capture.entries[-1] == {
        "event": "port.refused_repeated",
        "count": 2,
        "code": "limit",
        "log_level": "info",
    }


def test_single_event_is_not_summed_up() -> None:
    bursts, capture = make()
    bursts.note(0.0, ("web",))
    bursts.handle_timeout(BURST_S)
    assert len(capture.entries) == 1


def test_next_burst_begins_with_a_line_and_closes_the_last() -> None:
    bursts, capture = make()
    for now in (0.0, 1.0, BURST_S + 1):
        bursts.note(now, ("web",))
    assert [entry["event"] for entry in capture.entries] == [
        "port.refused",
        "port.refused_repeated",
        "port.refused",
    ]


def test_kinds_beyond_the_bound_are_one_burst_together() -> None:
    bursts, capture = make()
    for index in range(MAX_BURSTS):
        bursts.note(0.0, (f"kind {index}",))
    for index in range(300):
        bursts.note(0.0, (f"one more, {index}",))
    assert len(capture.entries) == MAX_BURSTS + 1
    bursts.handle_timeout(BURST_S)
    assert capture.entries[-1]["count"] == 299


def test_whoever_says_something_else_each_time_fills_no_log() -> None:
    bursts, capture = make()
    for index in range(1000):
        bursts.note(0.0, ("foreign_ca", f"I am agent {index}"))
    bursts.note(0.0, ("expired", "agent 7"))
    assert len(capture.entries) == MAX_VARIANTS + 2
    bursts.handle_timeout(BURST_S)
    (summary,) = [each for each in capture.entries if each["event"].endswith("_repeated")]
    assert summary["count"] == 1000 - MAX_VARIANTS - 1


def test_bursts_of_warnings_are_summed_up_as_warnings_when_they_are_due() -> None:
    bursts, capture = make(is_warning=True)
    assert bursts.next_deadline() is None
    bursts.note(0.0, ("expired",))
    bursts.note(1.0, ("expired",))
    assert bursts.next_deadline() == BURST_S
    bursts.handle_timeout(BURST_S)
    assert [entry["log_level"] for entry in capture.entries] == ["warning", "warning"]
    assert bursts.next_deadline() is None
