from __future__ import annotations

from typing import cast

import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from actors.burst_log import BURST_S
from actors.drop_log import DropLog


def make() -> tuple[DropLog, LogCapture]:
    capture = LogCapture()
    log = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return DropLog(cast("FilteringBoundLogger", log), "socket.dropped"), capture


def told(capture: LogCapture) -> list[dict[str, int]]:
    return [
        {key: value for key, value in entry.items() if key.startswith("dropped_")}
        for entry in capture.entries
    ]


def test_drops_are_told_at_once_and_then_once_per_burst_while_they_go_on() -> None:
    drops, capture = make()
    for second in range(20):
        drops.note(float(second), {"empty": 1000 * (second + 1), "unknown": 5})
        drops.handle_timeout(float(second))
    assert told(capture) == [
        {"dropped_empty": 1000, "dropped_unknown": 5},
        {"dropped_empty": 5000},
        {"dropped_empty": 5000},
        {"dropped_empty": 5000},
    ]
    assert {entry["event"] for entry in capture.entries} == {"socket.dropped"}


def test_rest_of_a_burst_is_told_when_it_is_over() -> None:
    drops, capture = make()
    drops.note(0.0, {"empty": 1})
    assert drops.next_deadline() is None
    drops.note(1.0, {"empty": 4, "unknown": 0})
    assert drops.next_deadline() == BURST_S
    drops.handle_timeout(BURST_S - 0.1)
    assert told(capture) == [{"dropped_empty": 1}]
    drops.handle_timeout(BURST_S)
    assert told(capture) == [{"dropped_empty": 1}, {"dropped_empty": 3}]
    assert drops.next_deadline() is None


def test_nothing_new_is_no_news() -> None:
    drops, capture = make()
    drops.note(0.0, {"empty": 0})
    drops.note(0.0, {"empty": 2})
    drops.note(BURST_S * 3, {"empty": 2})
    drops.handle_timeout(BURST_S * 3)
    assert len(capture.entries) == 1
