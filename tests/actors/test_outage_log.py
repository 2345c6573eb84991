from __future__ import annotations

from typing import cast

import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from actors.outage_log import MAX_REASONS, REMINDER_S, OutageLog


def make() -> tuple[OutageLog, LogCapture]:
    capture = LogCapture()
    log = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return OutageLog(cast("FilteringBoundLogger", log), "leg.lost"), capture


def test_night_without_the_other_end_is_a_line_a_minute_and_one_for_its_end() -> None:
    outage, capture = make()
    for attempt in range(121):
        outage.failed(attempt * 30.0, "timed_out", "", retry_in_s=30.0)
    events = [entry["event"] for entry in capture.entries]
    assert events == ["leg.lost", *["leg.lost_repeated"] * 60]
    assert capture.entries[1] == {
        "event": "leg.lost_repeated",
        "log_level": "warning",
        "reason": "timed_out",
        "detail": "",
        "retry_in_s": 30.0,
        "count": 2,
        "outage_s": REMINDER_S,
    }
    assert outage.recovered(3700.0) == {"outage_s": 3700.0, "failures": 121}


def test_another_reason_is_told_at_once_but_not_over_and_over() -> None:
    outage, capture = make()
    for attempt in range(10):
        outage.failed(float(attempt), "refused" if attempt % 2 else "timed_out", "")
    outage.failed(10.0, "revoked", "", is_error=True)
    told = [(entry["reason"], entry["log_level"]) for entry in capture.entries]
    assert told == [("timed_out", "warning"), ("refused", "warning"), ("revoked", "error")]


def test_reasons_that_a_peer_makes_up_fill_no_log() -> None:
    outage, capture = make()
    for attempt in range(100):
        outage.failed(attempt / 10, "closed", f"because of {attempt}")
    assert len(capture.entries) == MAX_REASONS


def test_recovery_without_an_outage_says_nothing_of_one() -> None:
    outage, _ = make()
    assert outage.recovered(1.0) == {}


def test_next_outage_begins_anew() -> None:
    outage, capture = make()
    outage.failed(0.0, "timed_out", "")
    outage.recovered(1.0)
    outage.failed(2.0, "timed_out", "")
    assert [entry["event"] for entry in capture.entries] == ["leg.lost", "leg.lost"]
    assert outage.recovered(5.0) == {"outage_s": 3.0, "failures": 1}
