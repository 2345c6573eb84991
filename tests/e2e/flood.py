"""Garbage for UDP sockets at a fixed rate, from a process of its own: `python -m tests.e2e.flood HOST:PORT…`.

Sends until its standard input ends, and never for longer than `MAX_DURATION_S`. It prints a line once every
socket had its `HEAD_START`, and at the end a `Summary` as JSON.
"""

from __future__ import annotations

import itertools
import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass

from tests import garbage

RATE_PER_S = 10_000
"""At each socket."""
MIN_RATE_PER_S = 200
"""What each socket gets on the average even on a machine whose processor belongs to others: a core sends more
than 100 000 per second, so that a hundredth of one is enough for four sockets. A sender that gets half
of a core keeps to `RATE_PER_S`."""
MAX_DURATION_S = 240.0
"""A download meanwhile takes minutes on a machine that is shared."""
HEAD_START = 2000
PORTION = 50
"""Datagrams for one socket between two looks at the clock: 5 ms at the rate."""
ASSORTMENT = 560


@dataclass(frozen=True, slots=True)
class Summary:
    """What a flood was.

    Attributes:
        sent: datagrams, to all sockets together.
        seconds: how long it lasted.
        slowest_per_s: datagrams per second, from the head start on, at the socket that got fewest.
    """

    sent: int
    seconds: float
    slowest_per_s: float


def is_told_to_stop() -> bool:
    """Whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def say(words: str) -> None:
    """A line for the test."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main(targets: list[tuple[str, int]]) -> None:
    """Send to each target in turn, a portion at a time, no faster than the rate."""
    supply = itertools.cycle(garbage.assortment(ASSORTMENT))
    sent = dict.fromkeys(targets, 0)
    early: dict[tuple[str, int], int] = {}
    portions = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        started = flooding_since = time.monotonic()
        while time.monotonic() - started < MAX_DURATION_S and not is_told_to_stop():
            for target in targets:
                for datagram in itertools.islice(supply, PORTION):
                    try:
                        sender.sendto(datagram, target)
                    except OSError:  # a full buffer, or nobody there: the test sees that itself
                        continue
                    sent[target] += 1
            portions += 1
            if portions == HEAD_START // PORTION:
                early, flooding_since = dict(sent), time.monotonic()
                say("flooding")
            time.sleep(max(0.0, started + portions * PORTION / RATE_PER_S - time.monotonic()))
        ended = time.monotonic()
    flooding_s = max(ended - flooding_since, PORTION / RATE_PER_S)
    slowest = min(sent[target] - early.get(target, 0) for target in targets)
    say(json.dumps(asdict(Summary(sum(sent.values()), ended - started, slowest / flooding_s))))


if __name__ == "__main__":
    main([(host, int(port)) for host, _, port in (each.rpartition(":") for each in sys.argv[1:])])
