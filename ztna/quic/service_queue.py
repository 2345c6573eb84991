"""The order in which streams get to send, visiting only those that have something to say.

A QUIC sender that looks at every open stream for each packet pays for idle ones. Here a stream waits in the
queue only from the moment something changed until a visit finds it without work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar

StreamT = TypeVar("StreamT", bound=Hashable)


class ServiceQueue(Generic[StreamT]):
    """Round robin over the streams with work, in an order that depends on nothing but the calls made.

    For each packet the sender iterates twice, as over a list that it means to rebuild: the first pass is the
    walk, the second yields nothing; `settle` then takes the place of the rebuilt list, and `extend` moves the
    streams that sent to the end.
    """

    def __init__(
        self,
        *,
        has_work: Callable[[StreamT], bool],
        has_room: Callable[[], bool],
    ) -> None:
        self._has_work = has_work
        self._has_room = has_room
        self._waiting: dict[StreamT, None] = {}
        self._visited: list[StreamT] = []
        self._idle: list[StreamT] = []
        self._is_walking = False
        self.visits = 0
        """Streams looked at since the start, for the cost test and the statistics."""

    def __len__(self) -> int:
        return len(self._waiting)

    def has_any(self, condition: Callable[[StreamT], bool]) -> bool:
        """Whether a stream that waits fulfils a condition."""
        return any(map(condition, self._waiting))

    def append(self, stream: StreamT) -> None:
        """Let a stream wait for its turn; harmless if it does already."""
        self._waiting.setdefault(stream)

    def __iter__(self) -> Iterator[StreamT]:
        if self._is_walking:
            return iter(())
        self._is_walking = True
        return self._walk()

    def _walk(self) -> Iterator[StreamT]:
        for stream in self._waiting:
            if not self._has_room():
                return
            self.visits += 1
            if self._has_work(stream):
                self._visited.append(stream)
                yield stream
            else:
                self._idle.append(stream)

    def settle(self) -> None:
        """End the walk: streams found without work leave the queue until `append` brings them back."""
        if self._idle:
            for stream in self._idle:
                del self._waiting[stream]
            self._idle.clear()
        self._is_walking = False

    def extend(self, sent: Collection[StreamT]) -> None:
        """Move the streams that sent to the end, in the order of the walk."""
        if len(self._waiting) > 1:
            for stream in self._visited:
                if stream in sent:
                    self._waiting[stream] = self._waiting.pop(stream)
        self._visited.clear()
