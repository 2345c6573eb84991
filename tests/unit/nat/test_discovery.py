from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.nat.fake_nat import AD, APD, EI, FakeInternet, FakeNat, FakeServer, NoNat
from tests.unit.stun.strategies import addresses
from ztna.address import TransportAddress
from ztna.nat.behaviour import Dependence, PortAllocation
from ztna.nat.discovery import (
    PROBE_SOCKETS,
    BehaviourDiscovered,
    BehaviourTests,
    CloseProbe,
    OpenProbe,
    SendProbe,
)

FULL = FakeServer(other_host="192.0.2.2")
ONE_ADDRESS = FakeServer()
ONE_PORT = FakeServer(has_other_port=False)
SILENT = FakeServer(is_silent=True)


class Run:
    """The tests of one node, driven to their end on a clock of their own."""

    def __init__(
        self, internet: FakeInternet, server: TransportAddress, *, probes: int = PROBE_SOCKETS
    ) -> None:
        self.internet = internet
        self.now = 100.0
        self.tests = BehaviourTests(server, random.Random(1), probes=probes)
        self.open: dict[int, TransportAddress] = {}
        self.opened = 0
        self.found: list[BehaviourDiscovered] = []
        self.fails_to_open: set[int] = set()

    def perform(self) -> None:
        while effects := self.tests.drain():
            for effect in effects:
                if isinstance(effect, OpenProbe):
                    self.open_probe(effect.probe)
                elif isinstance(effect, SendProbe):
                    self.send(effect)
                elif isinstance(effect, CloseProbe):
                    del self.open[effect.probe]
                else:
                    self.found.append(effect)

    def open_probe(self, probe: int) -> None:
        if probe in self.fails_to_open:
            self.tests.handle_not_opened(probe, self.now)
            return
        self.opened += 1
        self.open[probe] = TransportAddress("10.0.0.2", 40_000 + 37 * self.opened)
        self.tests.handle_opened(probe, self.open[probe], self.now)

    def send(self, effect: SendProbe) -> None:
        answer = self.internet.exchange(effect.transmit.data, self.open[effect.probe], effect.transmit.remote)
        if answer is not None:
            self.tests.handle_datagram(*answer, self.now)

    def finish(self) -> BehaviourDiscovered:
        self.tests.start()
        self.perform()
        while (deadline := self.tests.next_deadline()) is not None:
            assert deadline > self.now - 1e-9
            self.now = max(self.now, deadline)
            self.tests.handle_timeout(self.now)
            self.perform()
            assert self.now < 200
        assert self.tests.is_over
        assert self.open == {}, "every socket is closed"
        (found,) = self.found
        return found


@pytest.mark.parametrize(
    ("filtering", "server", "expected"),
    [
        (EI, FULL, EI),
        (AD, FULL, AD),
        (APD, FULL, APD),
        (EI, ONE_ADDRESS, Dependence.NOT_PORT_DEPENDENT),
        (AD, ONE_ADDRESS, Dependence.NOT_PORT_DEPENDENT),
        (APD, ONE_ADDRESS, APD),
        (APD, ONE_PORT, Dependence.UNKNOWN),
        (EI, SILENT, Dependence.UNKNOWN),
    ],
)
@pytest.mark.parametrize("mapping", [EI, AD, APD])
def test_filtering_is_found(
    mapping: Dependence, filtering: Dependence, server: FakeServer, expected: Dependence
) -> None:
    run = Run(FakeInternet(FakeNat(mapping, filtering), [server]), server.primary)
    assert run.finish().filtering is expected


@pytest.mark.parametrize("mapping", [EI, AD, APD])
@pytest.mark.parametrize(
    ("allocation", "step", "expected"),
    [
        (PortAllocation.PRESERVED, 1, (PortAllocation.PRESERVED, 0)),
        (PortAllocation.SEQUENTIAL, 1, (PortAllocation.SEQUENTIAL, 1)),
        (PortAllocation.SEQUENTIAL, -2, (PortAllocation.SEQUENTIAL, -2)),
        (PortAllocation.RANDOM, 1, (PortAllocation.RANDOM, 0)),
    ],
)
def test_port_allocation_is_found(
    mapping: Dependence, allocation: PortAllocation, step: int, expected: tuple[PortAllocation, int]
) -> None:
    run = Run(FakeInternet(FakeNat(mapping, APD, allocation, step), [FULL]), FULL.primary)
    found = run.finish()
    assert (found.port_allocation, found.port_step) == expected
    assert run.opened == PROBE_SOCKETS


def test_a_filter_without_nat_is_found() -> None:
    run = Run(FakeInternet(NoNat(EI, AD), [FULL]), FULL.primary, probes=1)
    assert run.finish().filtering is AD
    assert run.opened == 1


def test_few_packets_are_sent_even_into_silence() -> None:
    internet = FakeInternet(FakeNat(), [SILENT])
    run = Run(internet, SILENT.primary)
    run.finish()
    assert run.opened == 1
    assert internet.requests == 6


def test_silence_counts_after_six_requests_from_an_answered_socket() -> None:
    internet = FakeInternet(FakeNat(EI, APD), [ONE_ADDRESS])
    assert Run(internet, ONE_ADDRESS.primary).finish().filtering is APD
    assert internet.requests == PROBE_SOCKETS + 6


@pytest.mark.parametrize(("failing", "filtering"), [(0, Dependence.UNKNOWN), (2, EI)])
def test_host_without_further_sockets_finds_what_it_can(failing: int, filtering: Dependence) -> None:
    run = Run(FakeInternet(FakeNat(EI, EI), [FULL]), FULL.primary)
    run.fails_to_open = {failing}
    assert run.finish().filtering is filtering
    assert run.opened == failing


def test_server_that_refuses_another_address_after_all_still_shows_ports() -> None:
    class Liar(FakeServer):
        def answer(
            self, data: bytes, source: TransportAddress, at: TransportAddress
        ) -> tuple[bytes, TransportAddress] | None:
            other_host, self.other_host = (
                self.other_host,
                "" if b"\x00\x03\x00\x04\x00\x00\x00\x06" in data else "x",
            )
            self.other_host = self.other_host and other_host
            try:
                return super().answer(data, source, at)
            finally:
                self.other_host = other_host

    liar = Liar(other_host="192.0.2.2")
    run = Run(FakeInternet(FakeNat(EI, AD), [liar]), liar.primary)
    assert run.finish().filtering is Dependence.NOT_PORT_DEPENDENT


def test_giving_up_closes_what_is_open_and_tells_nothing() -> None:
    run = Run(FakeInternet(FakeNat(), [SILENT]), SILENT.primary)
    run.tests.start()
    run.perform()
    assert run.open
    run.tests.give_up()
    run.perform()
    assert (run.open, run.found, run.tests.next_deadline()) == ({}, [], None)
    run.tests.handle_opened(9, TransportAddress("10.0.0.2", 1), run.now)
    run.tests.handle_not_opened(9, run.now)
    run.tests.handle_timeout(run.now + 60)
    assert run.tests.drain() == []


@given(st.binary(max_size=80), addresses)
def test_arbitrary_bytes_change_nothing(data: bytes, source: TransportAddress) -> None:
    run = Run(FakeInternet(FakeNat(), [FULL]), FULL.primary)
    run.tests.handle_datagram(data, source, run.now)
    assert run.tests.drain() == []
