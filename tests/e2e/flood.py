"""Garbage for UDP sockets at a fixed rate, from a process of its own: `python -m tests.e2e.flood HOST:PORT…`.

Sends until its standard input ends, and never for longer than `MAX_DURATION_S`. It prints a line once every
socket had its `HEAD_START`, and at the end how many datagrams it sent, and in how many seconds.
"""

from __future__ import annotations

import itertools
import select
import socket
import sys
import time

from tests import garbage

RATE_PER_S = 10_000
"""At each socket."""
MAX_DURATION_S = 120.0
HEAD_START = 2000
PORTION = 50
"""Datagrams for one socket between two looks at the clock: 5 ms at the rate."""
ASSORTMENT = 560


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
    sent = portions = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        started = time.monotonic()
        while time.monotonic() - started < MAX_DURATION_S and not is_told_to_stop():
            for target in targets:
                for datagram in itertools.islice(supply, PORTION):
                    try:
                        sender.sendto(datagram, target)
                    except OSError:  # a full buffer, or nobody there: the test sees that itself
                        continue
                    sent += 1
            portions += 1
            if portions == HEAD_START // PORTION:
                say("flooding")
            time.sleep(max(0.0, started + portions * PORTION / RATE_PER_S - time.monotonic()))
        say(f"{sent} {time.monotonic() - started:.3f}")


if __name__ == "__main__":
    main([(host, int(port)) for host, _, port in (each.rpartition(":") for each in sys.argv[1:])])
