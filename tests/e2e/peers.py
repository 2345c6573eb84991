"""Hand-made ends of the links to an intermediate, which present whatever certificate they are given."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager

import grpc
from cryptography import x509

from tests.e2e.identities import TRUST_DOMAIN
from ztna.access.identity import Identity, Role
from ztna.pki.authority import Issued
from ztna.quic import demux
from ztna.quic.connection import Connection
from ztna.quic.events import ConnectionClosed, HandshakeCompleted
from ztna.quic.options import ConnectionOptions
from ztna.v1 import signaling_pb2, signaling_pb2_grpc

LIMIT_S = 10.0
POLL_S = 0.02


def leg_options(own: Issued) -> ConnectionOptions:
    """A relay leg whose other end is never doubted."""

    def believe(chain: Sequence[x509.Certificate]) -> object:
        return chain[0]

    return ConnectionOptions.leg(
        certificate=own.certificate,
        private_key=own.private_key,
        verify_peer=believe,
    )


def dial_leg(address: str, own: Issued) -> ConnectionClosed | HandshakeCompleted:
    """Try to open a relay leg; what became of it."""
    host, _, port = address.rpartition(":")
    connection = Connection.client(leg_options(own))
    deadline = time.monotonic() + LIMIT_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug:
        plug.connect((host, int(port)))
        connection.connect(time.monotonic())
        while time.monotonic() < deadline:
            for event in connection.events():
                if isinstance(event, ConnectionClosed | HandshakeCompleted):
                    return event
            for data in connection.transmit(time.monotonic()):
                plug.send(data)
            if select.select([plug], [], [], POLL_S)[0]:
                connection.receive([plug.recv(2048)], time.monotonic())
            connection.handle_timeout(time.monotonic())
    raise TimeoutError(address)


def attach_over_grpc(address: str, intermediate_id: str, own: Issued, ca_pem: bytes) -> grpc.RpcError:
    """Try to open a signaling stream and send an AttachRequest; how the stream ended."""
    name = Identity(TRUST_DOMAIN, Role.INTERMEDIATE, intermediate_id).dns_name
    options = (("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0))
    channel_credentials = grpc.ssl_channel_credentials(ca_pem, own.key_pem, own.certificate_pem)
    request = signaling_pb2.SignalingFrame(
        seq=1, attach_request=signaling_pb2.AttachRequest(protocol_version=1, nonce=bytes(32))
    )
    with grpc.secure_channel(address, channel_credentials, options=options) as channel:
        call = signaling_pb2_grpc.SignalingServiceStub(channel).Attach(iter([request]), timeout=LIMIT_S)
        try:
            answers = list(call)
        except grpc.RpcError as error:
            return error
    raise AssertionError(f"the stream ended well after {answers}")


class _Leg:
    """The server's end of one address: a new connection for each client that comes."""

    def __init__(self, listener: socket.socket, options: ConnectionOptions) -> None:
        self._listener = listener
        self._options = options
        self._connections: list[tuple[Connection, tuple[str, int]]] = []

    def turn(self) -> None:
        if select.select([self._listener], [], [], POLL_S)[0]:
            data, source = self._listener.recvfrom(2048)
            connection_id = demux.destination_cid(data) or b""
            known = [each for each, _ in self._connections if connection_id in each.local_connection_ids]
            if not known and demux.is_long_header(data) and demux.opens_connection(data):
                known = [Connection.server(self._options, destination_cid=connection_id)]
                self._connections.append((known[0], source))
            for connection in known:
                connection.receive([data], time.monotonic())
        for connection, source in self._connections:
            connection.handle_timeout(time.monotonic())
            connection.events()
            for data in connection.transmit(time.monotonic()):
                self._listener.sendto(data, source)


@contextmanager
def posing_as_intermediate(quic: str, grpc_address: str, own: Issued) -> Iterator[None]:
    """Serve both links of an intermediate with a certificate that is none of an intermediate."""
    server = grpc.server(futures.ThreadPoolExecutor(2), options=(("grpc.so_reuseport", 0),))
    server.add_secure_port(
        grpc_address,
        grpc.ssl_server_credentials([(own.key_pem, own.certificate_pem)]),
    )
    host, _, port = quic.rpartition(":")
    stop = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((host, int(port)))
        leg = _Leg(listener, leg_options(own))

        def serve() -> None:
            while not stop.is_set():
                leg.turn()

        thread = threading.Thread(target=serve)
        thread.start()
        server.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            server.stop(None).wait()
