"""QUIC handshakes per second of one core that does both ends, in memory: ours beside aioquic's.

Ours demands a certificate of both ends and judges it (chain, role, dates); the baseline is aioquic as it
comes, where only the server has one and nobody judges it. Of ours there are two: that of a session, and that
of a relay leg, which an intermediate has when a node attaches.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any, Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted
from cryptography import x509

from ztna.access.identity import Identity, Role, VerifiedPeer, Verifier
from ztna.pki import authority
from ztna.quic import demux
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions

HANDSHAKES: Final = 100
ROUNDS: Final = 3
MAX_FLIGHTS: Final = 20
FLIGHT_S: Final = 0.01
"""Time passes, or the pacer would hold the last packets back."""
ADDRESS: Final = ("100.64.0.1", 1)
ALPN: Final = "ztna/1"

MakeOptions = Callable[..., ConnectionOptions]


def run() -> dict[str, Any]:
    """Best of `ROUNDS`; CPU time is that of both ends together."""
    ca = authority.create_ca("bench.test", time.time())
    certificates = {
        role: authority.issue(ca, Identity("bench.test", role, role.value), time.time()) for role in Role
    }
    kinds: dict[str, Callable[[], None]] = {
        "aioquic": lambda: _bare(certificates[Role.CONNECTOR]),
        "session": _ours(ConnectionOptions.inner, ca, certificates, Role.CONNECTOR),
        "leg": _ours(ConnectionOptions.leg, ca, certificates, Role.INTERMEDIATE),
    }
    costs = {name: min(_cost_s(kind) for _ in range(ROUNDS)) for name, kind in kinds.items()}
    return {
        "handshakes": {
            name: {
                "per_s": round(1 / cost_s, 1),
                "cpu_ms": round(cost_s * 1e3, 2),
                "to_aioquic": round(costs["aioquic"] / cost_s, 3),
            }
            for name, cost_s in costs.items()
        }
    }


def _cost_s(handshake: Callable[[], None]) -> float:
    started = time.process_time()
    for _ in range(HANDSHAKES):
        handshake()
    return (time.process_time() - started) / HANDSHAKES


def _ours(
    make_options: MakeOptions,
    ca: authority.Authority,
    certificates: dict[Role, authority.Issued],
    server_role: Role,
) -> Callable[[], None]:
    verifier = Verifier([ca.certificate], ca.trust_domain)

    def options(role: Role, expected: Role) -> ConnectionOptions:
        def verify(chain: list[x509.Certificate]) -> VerifiedPeer:
            return verifier.verify(
                chain, expect=expected, now_wall=time.time(), as_server=expected is server_role
            )

        issued = certificates[role]
        return make_options(certificate=issued.chain[0], private_key=issued.private_key, verify_peer=verify)

    client_options = options(Role.AGENT, server_role)
    server_options = options(server_role, Role.AGENT)

    def handshake() -> None:
        client = Connection.client(client_options)
        client.connect(0.0)
        packets = client.transmit(0.0)
        server = Connection.server(server_options, destination_cid=demux.destination_cid(packets[0]) or b"")
        for flight in range(MAX_FLIGHTS):
            now = flight * FLIGHT_S
            server.receive(packets, now)
            client.receive(server.transmit(now), now)
            packets = client.transmit(now)
            if client.is_established and server.is_established:
                return
        raise RuntimeError("the handshake does not end")

    return handshake


def _bare(issued: authority.Issued) -> None:
    client = QuicConnection(
        configuration=QuicConfiguration(is_client=True, alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
    )
    client.connect(ADDRESS, now=0.0)
    server = QuicConnection(
        configuration=QuicConfiguration(
            is_client=False,
            alpn_protocols=[ALPN],
            certificate=issued.chain[0],
            private_key=issued.private_key,
        ),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    is_client_done = is_server_done = False
    for flight in range(MAX_FLIGHTS):
        is_client_done |= _pass_on(client, server, flight * FLIGHT_S)
        is_server_done |= _pass_on(server, client, flight * FLIGHT_S)
        if is_client_done and is_server_done:
            return
    raise RuntimeError("the handshake does not end")


def _pass_on(sender: QuicConnection, receiver: QuicConnection, now: float) -> bool:
    """Deliver what waits; returns whether the sender's handshake is over."""
    for data, _ in sender.datagrams_to_send(now=now):
        receiver.receive_datagram(data, ADDRESS, now=now)
    is_complete = False
    while (event := sender.next_event()) is not None:
        is_complete |= isinstance(event, HandshakeCompleted)
        if isinstance(event, ConnectionTerminated):
            raise ConnectionError(event.reason_phrase)
    return is_complete
