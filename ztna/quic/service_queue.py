"""The order in which streams get to send, visiting only those that have something to say.

A QUIC sender that looks at every open stream for each packet pays for idle ones. Here a stream waits in the
queue only from the moment something changed until a visit finds it without work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Generic, TypeVar

StreamT = TypeVar("StreamT")


class ServiceQueue(Generic[StreamT]):
    """Round robin over the streams with work, in an order that depends on nothing but the calls made.

    For each packet the sender iterates twice, as over a list that it means to rebuild: the first pass is the
    walk, the second yields nothing; `settle` then takes the place of the rebuilt list, and `extend` moves the
    streams that sent to the end.
    """

    def __init__(
        self,
        *,
        key: Callable[[StreamT], int],
        has_work: Callable[[StreamT], bool],
        has_room: Callable[[], bool],
    ) -> None:
        self._key = key
        self._has_work = has_work
        self._has_room = has_room
        self._waiting: dict[int, StreamT] = {}
        self._visited: list[StreamT] = []
        self._idle: list[int] = []
        self._is_walking = False
        self.visits = 0
        """Streams looked at since the start, for the cost test and the statistics."""

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, stream: StreamT) -> None:
        """Let a stream wait for its turn; harmless if it does already."""
        self._waiting.setdefault(self._key(stream), stream)

    def __iter__(self) -> Iterator[StreamT]:
        if self._is_walking:
            return iter(())
        self._is_walking = True
        return self._walk()

    def _walk(self) -> Iterator[StreamT]:
        for key, stream in self._waiting.items():
            if not self._has_room():
                return
            self.visits += 1
            if self._has_work(stream):
                self._visited.append(stream)
                yield stream
            else:
                self._idle.append(key)

    def settle(self) -> None:
        """End the walk: streams found without work leave the queue until `append` brings them back."""
        for key in self._idle:
            del self._waiting[key]
        self._idle.clear()
        self._is_walking = False

    def extend(self, sent: Collection[StreamT]) -> None:
        """Move the streams that sent to the end, in the order of the walk."""
        for stream in self._visited:
            key = self._key(stream)
            if stream in sent:
                self._waiting[key] = self._waiting.pop(key)
        self._visited.clear()
