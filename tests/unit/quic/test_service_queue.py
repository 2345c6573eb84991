"""Only streams with work are visited, in turn, and in an order that no hash decides."""

from __future__ import annotations

from collections.abc import Callable

from ztna.quic.service_queue import ServiceQueue


def new_queue(
    busy: set[int], has_room: Callable[[], bool] = lambda: True, streams: int = 5
) -> ServiceQueue[int]:
    queue: ServiceQueue[int] = ServiceQueue(has_work=lambda stream: stream in busy, has_room=has_room)
    for stream in range(streams):
        queue.append(stream)
    return queue


def walk(queue: ServiceQueue[int], sent: set[int]) -> list[int]:
    """One packet, as aioquic does it."""
    visited = list(queue)
    assert list(queue) == []
    queue.settle()
    queue.extend(sent)
    return visited


def test_idle_streams_leave_until_something_changes() -> None:
    busy = {1, 3}
    queue = new_queue(busy)
    assert walk(queue, set()) == [1, 3]
    assert (len(queue), queue.visits) == (2, 5)
    assert walk(queue, set()) == [1, 3]
    assert queue.visits == 7
    busy.add(4)
    queue.append(4)
    queue.append(4)
    assert walk(queue, set()) == [1, 3, 4]


def test_streams_that_sent_go_to_the_end_in_the_order_of_the_walk() -> None:
    queue = new_queue({0, 1, 2, 3, 4})
    assert walk(queue, {3, 0}) == [0, 1, 2, 3, 4]
    assert walk(queue, {2}) == [1, 2, 4, 0, 3]
    assert walk(queue, set()) == [1, 4, 0, 3, 2]


def test_walk_ends_when_the_packet_is_full() -> None:
    room = iter([True, True, False])
    queue = new_queue({0, 1, 2, 3, 4}, has_room=lambda: next(room, True))
    assert walk(queue, {0, 1}) == [0, 1]
    assert walk(queue, set()) == [2, 3, 4, 0, 1]


def test_interrupted_walk_loses_nobody() -> None:
    queue = new_queue({0, 1, 2})
    for stream in queue:
        if stream == 1:
            break
    assert list(queue) == []
    queue.settle()
    queue.extend({0})
    assert walk(queue, set()) == [1, 2, 0]
