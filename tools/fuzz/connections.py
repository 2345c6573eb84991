"""QUIC connections for targets: established pairs in memory, and packets of an attacker's own making.

An attacker who was let in has the keys, so what it sends is sealed here as its connection would.
"""

# ruff: noqa: SLF001 - an attacker is not bound by the adapter

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.buffer import encode_uint_var
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicPacketType,
    QuicProtocolVersion,
    encode_long_header_first_byte,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.rangeset import RangeSet
from cryptography import x509

from tools.fuzz import identities
from tools.fuzz.identities import AGENT_ID, CONNECTOR_ID, INTERMEDIATE_ID, NOW
from ztna.access.identity import Role, VerifiedPeer
from ztna.quic.adapter import Engine
from ztna.quic.connection import Connection
from ztna.quic.demux import destination_cid
from ztna.quic.options import ConnectionOptions

START: Final = 100.0
STEP_S: Final = 0.005
CLIENT_CID: Final = b"clientid"
FIRST_CID: Final = b"firstcid"
MAX_ROUNDS: Final = 50
INITIAL_BYTES: Final = 1200


def judge(expect: Role, *, as_server: bool) -> Callable[[Sequence[x509.Certificate]], VerifiedPeer]:
    """A verifier of peers of one role."""

    def verify(chain: Sequence[x509.Certificate]) -> VerifiedPeer:
        return identities.verifier().verify(chain, expect=expect, now_wall=NOW, as_server=as_server)

    return verify


def inner_options(*, is_client: bool) -> ConnectionOptions:
    """An end of a session."""
    role, node = (Role.AGENT, AGENT_ID) if is_client else (Role.CONNECTOR, CONNECTOR_ID)
    issued = identities.issue(role, node)
    expect = Role.CONNECTOR if is_client else Role.AGENT
    return ConnectionOptions.inner(
        certificate=issued.certificate,
        private_key=issued.private_key,
        verify_peer=judge(expect, as_server=is_client),
    )


def leg_options(*, is_client: bool, role: Role = Role.AGENT, node: str = AGENT_ID) -> ConnectionOptions:
    """An end of a relay leg; `role` and `node` are the client's."""
    issued = (
        identities.issue(role, node) if is_client else identities.issue(Role.INTERMEDIATE, INTERMEDIATE_ID)
    )
    return ConnectionOptions.leg(
        certificate=issued.certificate,
        private_key=issued.private_key,
        verify_peer=judge(Role.INTERMEDIATE if is_client else role, as_server=is_client),
    )


class Pair:
    """Two ends that lose nothing; `now` moves with every exchange."""

    def __init__(self, client: ConnectionOptions, server: ConnectionOptions) -> None:
        self.now = START
        self.client = Connection.client(client)
        self.client.connect(self.now)
        first = self.client.transmit(self.now)
        cid = destination_cid(first[0])
        if cid is None:
            raise ValueError("our own Initial names no connection")
        self.server = Connection.server(server, destination_cid=cid)
        self.server.receive(first, self.now)

    def established(self) -> Pair:
        """The same after the handshake."""
        for _ in range(MAX_ROUNDS):
            self.exchange()
            if self.client.is_established and self.server.is_established:
                self.exchange()
                return self
        raise ValueError("the handshake never ends")

    def exchange(self) -> None:
        """One flight from each end."""
        self.now += STEP_S
        for sender, receiver in ((self.server, self.client), (self.client, self.server)):
            receiver.receive(sender.transmit(self.now), self.now)
            sender.handle_timeout(self.now)
            sender.events()
            receiver.events()


class RawPeer:
    """An established end whose packets hold what it is told; `now` is the pair's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._engine: Engine = connection._engine
        self._frames = b""
        self._engine._write_application = self._write  # type: ignore[method-assign]

    def packets(self, frames: bytes, now: float) -> list[bytes]:
        """A packet with these frames, sealed."""
        self._frames = frames
        sent = self.connection.transmit(now)
        self._frames = b""
        return sent

    def _write(self, builder: QuicPacketBuilder, network_path: object, now: float) -> None:
        del network_path, now
        if self._frames:
            builder.start_packet(QuicPacketType.ONE_RTT, self._engine._cryptos[tls.Epoch.ONE_RTT])
            builder._buffer.push_bytes(self._frames.ljust(4, b"\0"))


def replace_handshake(connection: Connection, change: Callable[[bytes], bytes]) -> None:
    """Change what an end is about to send of its handshake, before it is sealed."""
    sender = connection._engine._crypto_streams[tls.Epoch.HANDSHAKE].sender
    data = change(bytes(sender._buffer))
    sender._buffer[:] = data
    sender._buffer_stop = sender._buffer_start + len(data)
    sender._pending = RangeSet([range(sender._buffer_start, sender._buffer_stop)] if data else [])


def has_handshake(connection: Connection) -> bool:
    """Whether an end has handshake messages to send."""
    streams = connection._engine._crypto_streams
    return tls.Epoch.HANDSHAKE in streams and bool(streams[tls.Epoch.HANDSHAKE].sender._buffer)


def client_hello() -> bytes:
    """The first TLS message of an agent, without what chance put into it."""
    client = Connection.client(inner_options(is_client=True))
    client.connect(START)
    data = bytes(client._engine._crypto_streams[tls.Epoch.INITIAL].sender._buffer)
    hello = tls.pull_client_hello(Buffer(data=data))
    hello.random = bytes(32)
    hello.legacy_session_id = b""
    hello.key_share = [(tls.Group.X25519, bytes(range(32)))]
    extensions = []
    for kind, value in hello.other_extensions:
        is_ours = kind == tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS
        extensions.append((kind, _with_source_cid(value) if is_ours else value))
    hello.other_extensions = extensions
    buffer = Buffer(capacity=4096)
    tls.push_client_hello(buffer, hello)
    return buffer.data


def _with_source_cid(data: bytes) -> bytes:
    parameters = pull_quic_transport_parameters(Buffer(data=data))
    parameters.initial_source_connection_id = CLIENT_CID
    buffer = Buffer(capacity=1024)
    push_quic_transport_parameters(buffer, parameters)
    return buffer.data


def certificate_message(chain: Iterable[bytes]) -> bytes:
    """A TLS Certificate message (RFC 8446 §4.4.2)."""
    buffer = Buffer(capacity=65_536)
    tls.push_certificate(
        buffer, tls.Certificate(request_context=b"", certificates=[(der, b"") for der in chain])
    )
    return buffer.data


def crypto_frame(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def initial(frames: bytes, *, token: bytes = b"", cid: bytes = FIRST_CID) -> bytes:
    """An Initial with these frames, as a client would seal it (RFC 9001 §5.2)."""
    crypto = CryptoPair()
    crypto.setup_initial(cid, is_client=True, version=QuicProtocolVersion.VERSION_1)
    first = encode_long_header_first_byte(QuicProtocolVersion.VERSION_1, QuicPacketType.INITIAL, 1)
    start = (
        bytes([first])
        + int(QuicProtocolVersion.VERSION_1).to_bytes(4, "big")
        + bytes([len(cid)]) + cid
        + bytes([len(CLIENT_CID)]) + CLIENT_CID
        + encode_uint_var(len(token)) + token
    )  # fmt: skip
    payload = frames.ljust(INITIAL_BYTES - len(start) - 4 - 16, b"\0")
    header = start + (len(payload) + 2 + 16 | 0x4000).to_bytes(2, "big") + b"\0\0"
    return crypto.encrypt_packet(header, payload, 0)
