"""A simulated node: the cores of a real one, its UDP socket and its gRPC carrier, without the actors.

It attaches, keeps its leg up and comes back by the product's own rules. It neither offers nor wants a
service, so whatever it costs an intermediate is the cost of a node that is there.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from actors.credentials import Credentials
from actors.grpc_carrier import GrpcCarrier
from actors.io import DatagramBatch
from actors.udp_asyncio import AsyncioUdpSocket
from ztna.access.grant import verify_nonce
from ztna.access.identity import Identity, Role, VerifiedPeer, Verifier, fingerprint
from ztna.address import TransportAddress
from ztna.pki import authority
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions
from ztna.relay import leg
from ztna.relay import leg_effects as effects
from ztna.relay.carrier import LegState
from ztna.signaling import client
from ztna.signaling.framing import FrameDecoder, encode
from ztna.v1 import relay_pb2, signaling_pb2

PROTOCOL_VERSION = 1
# A node of a fleet has nothing to receive in bulk, and a thousand times 4 MiB is what the kernel may grant.
SOCKET_BUFFER_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class Target:
    """The intermediate that a fleet attaches to; without `grpc`, signaling travels on the leg."""

    intermediate_id: str
    quic: TransportAddress
    grpc: str | None


def make_credentials(ca: authority.Authority, verifier: Verifier, node_id: str) -> Credentials:
    """A fresh agent identity that exists in memory only."""
    identity = Identity(ca.trust_domain, Role.AGENT, node_id)
    issued = authority.issue(ca, identity, time.time())
    return Credentials(
        identity=identity,
        fingerprint=fingerprint(issued.certificate),
        certificate_chain=issued.chain,
        private_key=issued.private_key,
        verifier=verifier,
        certificate_pem=issued.certificate_pem,
        private_key_pem=issued.key_pem,
        ca_pem=ca.certificate.public_bytes(Encoding.PEM),
    )


class SimulatedNode:
    """One node; `losses` counts, by reason, what ended its attempts and attachments."""

    def __init__(
        self,
        credentials: Credentials,
        target: Target,
        local: TransportAddress,
        on_change: Callable[[SimulatedNode], None],
    ) -> None:
        """Bind a UDP socket to `local`; raises `OSError`. `on_change` hears when `is_up` has changed."""
        self._loop = asyncio.get_running_loop()
        self._credentials = credentials
        self._target = target
        self._on_change = on_change
        random = Random()
        options = ConnectionOptions.leg(
            certificate=credentials.certificate_chain[0],
            private_key=credentials.private_key,
            verify_peer=self._verify,
        )
        self._leg = leg.Leg(lambda: Connection.client(options), random)
        self._client = client.AttachmentClient((), random)
        self._grpc: GrpcCarrier | None = None
        self._decoder = FrameDecoder()
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._was_up = False
        self._is_gone = False
        self.last_loss = ""
        self.losses: Counter[str] = Counter()
        self._socket = AsyncioUdpSocket(
            self._loop,
            local,
            self,
            receive_buffer_bytes=SOCKET_BUFFER_BYTES,
            send_buffer_bytes=SOCKET_BUFFER_BYTES,
        )

    @property
    def is_attached(self) -> bool:
        """Whether the intermediate accepted the attachment."""
        return self._client.state is client.ClientState.ATTACHED

    @property
    def is_up(self) -> bool:
        """Whether it is attached and its leg belongs to that attachment: sessions could flow."""
        return self.is_attached and self._leg.state is LegState.UP

    def attach(self) -> None:
        """Dial both connections and keep them, as a daemon does when it starts."""
        self._leg.connect(self._loop.time())
        self._client.attach(self._loop.time())
        self._drive()

    def leave(self) -> None:
        """Say goodbye, close everything and stay away."""
        if self.is_attached:
            self._send(signaling_pb2.SignalingFrame(goodbye=signaling_pb2.Goodbye(reason="leaving")))
        now = self._loop.time()
        self._client.detach(now)
        self._drive()
        self._leg.disconnect(now)
        self._drive()
        self._is_gone = True
        if self._timer is not None:
            self._timer.cancel()
        self._socket.close()

    # From the socket

    def datagrams_received(self, batches: list[DatagramBatch], now: float) -> None:
        """Packets of the leg: nothing else knows this port."""
        for batch in batches:
            self._leg.handle_datagrams(batch.payloads, now)
        self._drive()

    def send_failed(self, remote: TransportAddress, error: OSError, now: float) -> None:
        """The intermediate is not there; the leg finds out by its own clock."""

    # From gRPC

    def carrier_frame(self, carrier: object, frame: signaling_pb2.SignalingFrame) -> None:
        """A frame came over gRPC."""
        if carrier is self._grpc:
            self._frame_received(frame)
            self._drive()

    def carrier_closed(self, carrier: object, reason: str, detail: str, is_authentication: bool) -> None:
        """The gRPC stream ended."""
        if carrier is self._grpc:
            self._grpc = None
            self._client.handle_carrier_closed(
                reason, detail, self._loop.time(), is_authentication_failure=is_authentication
            )
            self._drive()

    # Inside

    def _verify(self, chain: Sequence[x509.Certificate]) -> VerifiedPeer:
        return self._credentials.verifier.verify(
            chain,
            expect=Role.INTERMEDIATE,
            expect_id=self._target.intermediate_id,
            now_wall=time.time(),
            as_server=True,
        )

    def _timed_out(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._client.handle_timeout(now)
        self._leg.handle_timeout(now)
        self._drive()

    def _drive(self) -> None:
        """Do what the cores want until they want nothing, then wait for the earlier of their deadlines."""
        if self._is_gone:
            return
        while True:
            wanted = [*self._client.drain(), *self._leg.drain()]
            if not wanted:
                break
            for effect in wanted:
                if isinstance(effect, client.ClientEffect):
                    self._perform(effect)
                else:
                    self._perform_leg(effect)
        if self._timer is not None:
            self._timer.cancel()
        deadlines = (self._client.next_deadline(), self._leg.next_deadline())
        deadline = min((each for each in deadlines if each is not None), default=None)
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._timed_out)
        if self.is_up is not self._was_up:
            self._was_up = self.is_up
            self._on_change(self)

    def _perform(self, effect: client.ClientEffect) -> None:
        now = self._loop.time()
        match effect:
            case client.OpenCarrier():
                self._sequence = 0
                if self._target.grpc is not None:
                    self._grpc = GrpcCarrier(
                        self._target.grpc, self._target.intermediate_id, self._credentials, self
                    )
                    self._client.handle_carrier_open(now)
                elif self._leg.state in {LegState.CONNECTED, LegState.UP}:
                    self._client.handle_carrier_open(now)
            case client.CloseCarrier():
                if self._grpc is not None:
                    self._grpc.close()
                    self._grpc = None
            case client.SendAttachRequest():
                self._decoder = FrameDecoder()
                request = signaling_pb2.AttachRequest(
                    protocol_version=PROTOCOL_VERSION, nonce=effect.nonce, software="ztna fleet"
                )
                self._send(signaling_pb2.SignalingFrame(attach_request=request))
            case client.SendPing():
                self._send(signaling_pb2.SignalingFrame(ping=signaling_pb2.SignalingPing(id=effect.ping_id)))
            case client.Lost():
                self._note_loss(f"signaling_{effect.reason}", effect.detail)
            case _:
                pass  # services, which it has none of

    def _perform_leg(self, effect: effects.LegEffect) -> None:
        now = self._loop.time()
        match effect:
            case effects.LegTransmit():
                self._socket.send(effect.datagrams, effect.remote)
            case effects.LegDialWanted():
                self._leg.handle_resolved([self._target.quic], "", now)
            case effects.LegConnected():
                if self._target.grpc is None:
                    self._client.handle_carrier_open(now)
                self._client.handle_reachable(now)
            case effects.LegLost():
                self._note_loss(f"leg_{effect.reason}", effect.detail)
                if self._target.grpc is None:
                    self._client.handle_carrier_closed(str(effect.reason), effect.detail, now)
                else:
                    self._client.handle_doubt(now)
            case effects.LegControlReceived():
                self._control_received(relay_pb2.LegFrame.FromString(effect.body))
            case effects.LegSignalingReceived():
                for body in self._decoder.feed(effect.data):
                    self._frame_received(signaling_pb2.SignalingFrame.FromString(body))
            case _:
                pass  # channels, which it has none of, and connection IDs, which its socket needs not

    def _note_loss(self, reason: str, detail: str) -> None:
        self.losses[reason] += 1
        self.last_loss = f"{reason}: {detail}"

    def _control_received(self, frame: relay_pb2.LegFrame) -> None:
        match frame.WhichOneof("body"):
            case "accepted":
                self._leg.handle_accepted(frame.accepted.max_packet_bytes, self._loop.time())
            case "rejected":
                self._note_loss(f"leg_rejected_{frame.rejected.reason}", "")
                self._leg.handle_rejected(self._loop.time())
            case _:
                pass

    def _frame_received(self, frame: signaling_pb2.SignalingFrame) -> None:
        now = self._loop.time()
        match frame.WhichOneof("body"):
            case "attach_accepted":
                accepted = frame.attach_accepted
                chain = [x509.load_der_x509_certificate(der) for der in accepted.certificate_chain]
                self._verify(chain)
                verify_nonce(chain[0], self._client.nonce, self._credentials.fingerprint, accepted.signature)
                if self._client.handle_accepted(now):
                    hello = relay_pb2.LegFrame(hello=relay_pb2.LegHello(attach_id=accepted.attach_id))
                    self._leg.present_attachment(hello.SerializeToString(), now)
            case "goodbye":
                self._client.handle_goodbye(frame.goodbye.reason, now)
            case "ping":
                pong = signaling_pb2.SignalingPong(id=frame.ping.id)
                self._send(signaling_pb2.SignalingFrame(pong=pong))
            case "pong":
                self._client.handle_pong(frame.pong.id)
            case "error":
                self._note_loss(
                    f"error_{signaling_pb2.SignalingCode.Name(frame.error.code).lower()}",
                    frame.error.message,
                )
            case _:
                pass

    def _send(self, frame: signaling_pb2.SignalingFrame) -> None:
        self._sequence += 1
        frame.seq = self._sequence
        if self._grpc is not None:
            self._grpc.send(frame)
        elif self._target.grpc is None:
            self._leg.send_signaling(encode(frame.SerializeToString()), self._loop.time())
