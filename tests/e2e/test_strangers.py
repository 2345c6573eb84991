"""Whoever has no certificate: answered with less than they send, and too weak to stop a download."""

from __future__ import annotations

import json
import random
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests import garbage
from tests.e2e import flood
from tests.e2e.backends import content_digest, download
from tests.e2e.conftest import Site
from tests.e2e.hostile import metrics, resident_kib
from tests.e2e.identities import Identities
from tests.e2e.peers import leg_options
from tests.e2e.test_identity_faults import events
from tests.e2e.test_sockets import udp_address
from tools.deployment import Deployment
from ztna.access.identity import Role
from ztna.quic.connection import Connection

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
LIMIT = 3.0
QUIET_S = 0.3
LIMIT_S = 15.0
# What a daemon may grow by under the flood: its log is on disk, its counters are few. Measured: 1 MiB.
MAX_GROWTH_KIB = 16 * 1024
TCP_INTERVAL_S = 0.05
# Bursts of 5 s: of datagrams dropped by the socket, by STUN and by QUIC, of requests at the metrics' port.
MAX_LINES_PER_S = 1.0
# Of the start, and of the session.
MAX_OTHER_LINES = 150


class Stranger:
    """A source of datagrams, and what came back to it."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._plug.bind(("127.0.0.1", 0))
        self.sent_bytes = 0
        self.received: list[bytes] = []

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self._plug.sendto(datagram, self._target)
            self.sent_bytes += len(datagram)

    def listen(self, quiet_s: float = QUIET_S) -> list[bytes]:
        """Whatever comes, until nothing did for a while."""
        new: list[bytes] = []
        while select.select([self._plug], [], [], quiet_s)[0]:
            new.append(self._plug.recv(4096))
        self.received += new
        return new

    @property
    def ratio(self) -> float:
        return sum(map(len, self.received)) / self.sent_bytes

    def close(self) -> None:
        self._plug.close()


@contextmanager
def strangers(target: str, count: int) -> Iterator[list[Stranger]]:
    made = [Stranger(target) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def test_intermediate_answers_no_source_with_more_than_a_fraction_of_what_came_from_it(
    deployment: Deployment,
) -> None:
    """Every source here may be forged: it has proved nothing. Counted is UDP payload, as RFC 9000 §8 does."""
    identities = Identities()
    daemon = deployment.add_intermediate()
    identities.equip(daemon)
    deployment.start()
    deployment.wait_ready()
    quic = daemon.settings["quic"]["listen"][0]
    alternate = f"127.0.0.1:{daemon.settings['stun']['alternate_port']}"
    ratios: dict[str, float] = {}
    for name, target in (("quic", quic), ("alternate", alternate)):
        kinds = zip(*(garbage.one_of_each(random.Random(seed)) for seed in range(10)), strict=True)
        for number, datagrams in enumerate(kinds):
            with strangers(target, 1) as (stranger,):
                stranger.send(*datagrams)
                stranger.listen(0.1)
                if stranger.sent_bytes:
                    ratios[f"{name}-{number}"] = stranger.ratio
                else:
                    assert not stranger.received
    assert max(ratios.values()) <= LIMIT, ratios
    # Some of it is answered, or there was nothing to measure: Retry, version negotiation, STUN.
    assert sum(each > 0 for each in ratios.values()) >= 4, ratios
    assert all(each < 0.1 for name, each in ratios.items() if name == "quic-2"), ratios

    # A recorded first packet with its token, from another place and, once used, from its own.
    own = identities.issue(Role.AGENT, "mallory")
    client = Connection.client(leg_options(own))
    with strangers(quic, 2) as (home, elsewhere):
        client.connect(time.monotonic())
        home.send(*client.transmit(time.monotonic()))
        client.receive(home.listen(), time.monotonic())
        initials = client.transmit(time.monotonic())
        elsewhere.send(*initials * 10)
        assert not elsewhere.listen()
        home.send(*initials)
        assert home.listen()
        elsewhere.send(*initials * 10)
        assert not elsewhere.listen(1.0)
        # Without an answer the handshake is given up; then the packet is as good as new, but for its token,
        # which was used, and is too old by now.
        deadline = time.monotonic() + 2 * LIMIT_S
        while 'ztna_dropped_total{place="quic",reason="handshake_timeout"}' not in metrics(daemon):
            assert time.monotonic() < deadline
            home.listen()
        home.listen(1.0)
        home.send(*initials * 10)
        assert not home.listen(1.0)
    found = metrics(daemon)
    assert found['ztna_dropped_total{place="quic",reason="invalid_token"}'] >= 30
    assert found["ztna_retry_token_failures_total"] >= 30
    assert found["ztna_retry_tokens_validated_total"] == 1


def pester(addresses: list[str], is_over: threading.Event) -> int:
    """Nonsense for TCP listeners, one connection after the other; how many."""
    chance, count = random.Random(1), 0
    while not is_over.wait(TCP_INTERVAL_S):
        for address in addresses:
            host, _, port = address.rpartition(":")
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=1) as plug:
                plug.sendall(
                    chance.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n"])
                )
                plug.sendall(chance.randbytes(200))
                count += 1
    return count


def start_flood(targets: list[str]) -> subprocess.Popen[str]:
    """Says `flooding` once it is under way; ends with its standard input, and then says how much it sent."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.flood", *targets],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(400)
def test_download_ends_while_every_socket_gets_ten_thousand_garbage_datagrams_a_second(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    daemons = site.deployment.daemons
    intermediate = daemons["intermediate-1"]
    targets = [
        intermediate.settings["quic"]["listen"][0],
        f"127.0.0.1:{intermediate.settings['stun']['alternate_port']}",
        *(udp_address(site.deployment.status(name) or {}) for name in ("agent-1", "connector-1")),
    ]
    listeners = [intermediate.settings["grpc"]["listen"]]
    listeners += [daemon.settings["metrics"]["listen"] for daemon in daemons.values()]
    # With a session: what is asked for is that it goes on. A machine that has no time left for anything may
    # not bring one up within its limit.
    assert download(site.tcp_port, 1000) == content_digest(1000)
    before = {name: resident_kib(daemon) for name, daemon in daemons.items()}
    is_over = threading.Event()
    flooder = start_flood(targets)
    assert flooder.stdin is not None
    assert flooder.stdout is not None
    with ThreadPoolExecutor(1) as pool:
        pestering = pool.submit(pester, listeners, is_over)
        try:
            assert flooder.stdout.readline() == "flooding\n"
            assert download(site.tcp_port, 32 * MIB, timeout_s=flood.MAX_DURATION_S) == content_digest(
                32 * MIB
            )
        finally:
            is_over.set()
            flooder.stdin.close()
            summary = flooder.stdout.read()
            flooder.wait(LIMIT_S)
            flooder.stdout.close()
        assert pestering.result(LIMIT_S) > 0
    told = flood.Summary(**json.loads(summary))
    record_property(
        "flood",
        f"{told.slowest_per_s:.0f} datagrams/s or more at each of {len(targets)} sockets, download included",
    )
    assert told.sent >= flood.HEAD_START * len(targets)
    assert told.seconds < flood.MAX_DURATION_S, "the flood was over before the download"
    assert told.slowest_per_s >= flood.MIN_RATE_PER_S
    site.deployment.wait_ready()
    for name, daemon in daemons.items():
        assert resident_kib(daemon) - before[name] < MAX_GROWTH_KIB, name
        # It came, and was refused for what it was.
        found = metrics(daemon)
        reasons = {"empty", "truncated", "unknown", "relay_frame", "unknown_connection_id"}
        missing = [
            each
            for each in sorted(reasons)
            if not found.get(f'ztna_dropped_total{{place="udp_socket",reason="{each}"}}')
        ]
        assert missing == [], name
        # One line per burst, not one per datagram, and no session was lost.
        lines = daemon.log_path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < MAX_OTHER_LINES + told.seconds * MAX_LINES_PER_S, name
        assert events(daemon, "udp_socket.datagrams_dropped"), name
        assert not events(daemon, "quic_session.session_closed"), name
        assert not [line for line in lines if '"level":"error"' in line.replace(" ", "")], name
        assert found['ztna_refusals_total{place="http",reason="malformed"}'] > 0, name
        # Places are part of the contract.
        places = set(re.findall(r'place="(\w+)"', " ".join(found)))
        documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
        assert {each for each in places if f"`{each}`" not in documented} == set(), name
    refused = metrics(intermediate)
    for place, reason in (
        ("quic", "invalid_token"),
        ("stun", "malformed"),
        ("stun", "source_rate"),
    ):
        assert refused[f'ztna_dropped_total{{place="{place}",reason="{reason}"}}'] > 0


@pytest.mark.timeout(300)
def test_download_ends_while_a_udp_service_of_the_agent_is_sent_ten_thousand_datagrams_a_second(
    site: Site,
) -> None:
    """Garbage or not, that socket takes it: it is what a service's client says, and its echoes come back."""
    daemons = site.deployment.daemons
    assert download(site.tcp_port, 1000) == content_digest(1000)
    before = {name: resident_kib(daemon) for name, daemon in daemons.items()}
    flooder = start_flood([f"127.0.0.1:{site.udp_port}"])
    assert flooder.stdout is not None
    try:
        assert flooder.stdout.readline() == "flooding\n"
        assert download(site.tcp_port, 8 * MIB, timeout_s=200.0) == content_digest(8 * MIB)
    finally:
        summary, _ = flooder.communicate(timeout=LIMIT_S)
    told = flood.Summary(**json.loads(summary))
    assert told.sent >= flood.HEAD_START
    assert told.seconds < flood.MAX_DURATION_S, "the flood was over before the download"
    assert told.slowest_per_s >= flood.MIN_RATE_PER_S
    site.deployment.wait_ready()
    # What the path does not carry is dropped and counted, and never kept.
    assert metrics(daemons["agent-1"])[
        'ztna_dropped_total{place="quic_session",reason="congestion_window_full"}'
    ]
    for name, daemon in daemons.items():
        assert resident_kib(daemon) - before[name] < MAX_GROWTH_KIB, name
        assert not events(daemon, "quic_session.session_closed"), name
        lines = daemon.log_path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 200, name
        assert not [line for line in lines if '"level":"error"' in line.replace(" ", "")], name
