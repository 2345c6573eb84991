"""Small UDP probes with real sockets on the hosts of a lab, in the manner of RFC 5780."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tools.natlab.lab import Lab
from tools.natlab.topology import (
    INTERMEDIATE_ADDRESS,
    INTERMEDIATE_ADDRESS_V6,
    INTERMEDIATE_SECOND_ADDRESS,
    INTERMEDIATE_SECOND_ADDRESS_V6,
)

LIMIT_S = 15.0
PORTS = (4000, 4001)
ADDRESSES = {
    4: (INTERMEDIATE_ADDRESS, INTERMEDIATE_SECOND_ADDRESS),
    6: (INTERMEDIATE_ADDRESS_V6, INTERMEDIATE_SECOND_ADDRESS_V6),
}

Endpoint = tuple[str, int]
Family = Literal[4, 6]


def udp(lab: Lab, host: str, address: str = "", port: int = 0, family: Family = 4) -> socket.socket:
    """A bound UDP socket on a host; whoever waits too long at it fails."""
    made = lab.socket(host, socket.SOCK_DGRAM, socket.AF_INET6 if family == 6 else socket.AF_INET)
    made.settimeout(LIMIT_S)
    made.bind((address, port))
    return made


def receive(receiver: socket.socket) -> tuple[bytes, Endpoint]:
    """The next datagram and where it came from."""
    data, source = receiver.recvfrom(65536)
    return data, (source[0], source[1])


class Server:
    """Four sockets of the intermediate: two addresses with two ports each."""

    def __init__(self, lab: Lab, family: Family = 4) -> None:
        self.sockets = {
            (address, port): udp(lab, "mid", address, port, family)
            for address in ADDRESSES[family]
            for port in PORTS
        }
        first, second = ADDRESSES[family]
        self.main = (first, PORTS[0])
        self.other_port = (first, PORTS[1])
        self.other_address = (second, PORTS[0])

    def sees(self, client: socket.socket, endpoint: Endpoint | None = None) -> Endpoint:
        """The external endpoint of a client, as one of the sockets sees it."""
        endpoint = endpoint or self.main
        client.sendto(b"who am I", endpoint)
        return receive(self.sockets[endpoint])[1]

    def passes(self, client: socket.socket, external: Endpoint) -> set[Endpoint]:
        """From where a client that has sent to `main` alone can be reached."""
        for endpoint in (self.other_address, self.other_port):
            self.sockets[endpoint].sendto(b"probe", external)
        passed = set()
        # Packets keep their order, or nearly; two that must arrive come after those that perhaps do.
        for mark in (b"first", b"last"):
            self.sockets[self.main].sendto(mark, external)
            while True:
                data, source = receive(client)
                if data == mark:
                    break
                passed.add(source)
        return passed

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()


@contextmanager
def server(lab: Lab, family: Family = 4) -> Iterator[Server]:
    """The sockets, closed in the end."""
    made = Server(lab, family)
    try:
        yield made
    finally:
        made.close()


def round_trips_ms(client: socket.socket, at: Server, count: int) -> list[float]:
    """Times from a client to the server and back, one after the other."""
    found = []
    for _ in range(count):
        started = time.monotonic()
        external = at.sees(client)
        at.sockets[at.main].sendto(b"pong", external)
        receive(client)
        found.append((time.monotonic() - started) * 1e3)
    return found


def median_round_trip_ms(client: socket.socket, at: Server, count: int = 15) -> float:
    """Their median: on a shared machine, single ones say nothing."""
    return statistics.median(round_trips_ms(client, at, count))
