"""Two ends of one session with all that decides on its paths, joined by a relay and a direct path.

Each end is the real `quic_session`, `path_manager` and `keepalive`, told what the wiring would tell them; the
links have delays and can be cut in either direction. Sockets, legs and checklists are played by the world: it
carries what is sent, answers authentic Binding requests, and drops what is cut. Nothing here but the clock of
`ManualIo` decides when anything happens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

from google.protobuf.message import Message

from actors.base import Concern, ConcernRef, Context
from actors.keepalive import Keepalive
from actors.path_manager import PathManager
from actors.quic_session import QuicSession
from actors.runtime import LoopRuntime
from tests.manual_io import ManualIo, RecordingContext, RecordingLife
from tests.pki_fixtures import NOW, verifier
from tests.unit.quic.identities import client_options, server_options
from ztna.access.identity import Role, VerifiedPeer
from ztna.path.manager import Policy
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions
from ztna.stun import message as stun
from ztna.stun.attributes import Username
from ztna.v1 import (
    checklist_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    types_pb2,
    udp_socket_pb2,
)

MessageT = TypeVar("MessageT", bound=Message)
SESSION = b"s" * 16
TICK_S = 0.020
MAX_UNACKNOWLEDGED = 1 << 20

# Who hears whom, as the wiring has it.
HEARERS: dict[type[Message], tuple[str, ...]] = {
    relay_leg_pb2.RelayPathChanged: ("path_manager", "keepalive"),
    path_manager_pb2.PathSelected: ("quic_session",),
    path_manager_pb2.PathStateChanged: ("keepalive",),
    keepalive_pb2.PathConfirmed: ("path_manager", "quic_session"),
    keepalive_pb2.KeepaliveMissed: ("path_manager",),
    keepalive_pb2.ConsentExpired: ("path_manager",),
    keepalive_pb2.RelayedStunReceived: ("keepalive",),
    quic_session_pb2.PathSuspected: ("keepalive",),
    quic_session_pb2.FlowStopped: ("keepalive",),
    quic_session_pb2.PeerOnPath: ("keepalive",),
    quic_session_pb2.PathSilent: ("path_manager",),
    quic_session_pb2.SessionStatistics: ("path_manager", "keepalive"),
    checklist_pb2.PrepareChecks: ("keepalive",),
    checklist_pb2.StartChecks: ("keepalive",),
    checklist_pb2.PairNominated: ("path_manager", "keepalive", "quic_session"),
}


@dataclass
class Link:
    """One direction of one path; `delay` in seconds."""

    delay: float
    is_up: bool = True
    loss: float = 0.0
    carried: int = 0  # packets that set out, lost ones included
    carried_quic: int = 0


@dataclass
class Flow:
    """Bytes of one stream, as the receiving application saw them."""

    data: bytearray = field(default_factory=bytearray)
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def longest_gap(self, start: float, end: float) -> float:
        """Longest time without a new byte between two moments, in seconds."""
        times = [start, *(at for at, _ in self.arrivals if start < at < end), end]
        return max(after - before for before, after in pairwise(times))


class End:
    """One end: its actors, and what it told the outside."""

    def __init__(self, world: PathWorld, name: str, *, address: str, policy: Policy) -> None:
        self.world = world
        self.name = name
        self.host = address
        self.credentials: dict[str, str] = {}
        self.pending: dict[bytes, str] = {}
        self.heard: list[tuple[float, Message]] = []
        self.flows: dict[int, Flow] = {}
        self.datagrams: list[bytes] = []
        self.recording = RecordingContext(world.io)
        self.lives: dict[str, RecordingLife] = {}
        is_client = name == "client"
        self.refs: dict[str, ConcernRef] = {}
        self._start("keepalive", Keepalive)
        self._start("path_manager", lambda context: PathManager(context, policy))
        self._start(
            "quic_session",
            lambda context: QuicSession(context, world.open_connection(name), _accept, is_client=is_client),
        )

    def _start(self, name: str, build: Callable[[Context], Concern]) -> None:
        base = self.recording.context(SESSION.hex(), actor=name)
        context = Context(io=base.io, emit=self.emit, log=base.log, key=base.key)
        self.lives[name] = RecordingLife()
        self.refs[name] = LoopRuntime(self.world.io).start(build, context, life=self.lives[name])

    @property
    def other(self) -> End:
        return self.world.server if self is self.world.client else self.world.client

    def link(self, kind: str) -> Link:
        """The direction of a path that leads away from here."""
        return self.world.links[kind, "up" if self.name == "client" else "down"]

    def tell(self, message: Message) -> None:
        for hearer in HEARERS[type(message)]:
            self.refs[hearer].tell(message)

    def tell_session(self, message: Message) -> None:
        self.refs["quic_session"].tell(message)

    def of(self, kind: type[MessageT]) -> list[MessageT]:
        return [message for _, message in self.heard if isinstance(message, kind)]

    @property
    def path(self) -> types_pb2.PathKind.ValueType:
        """Kind of the path selected last."""
        return self.of(path_manager_pb2.PathSelected)[-1].kind

    def selected_at(self, kind: types_pb2.PathKind.ValueType, after: float) -> float:
        """When this kind of path was selected first after a moment."""
        return next(
            at
            for at, message in self.heard
            if at >= after and isinstance(message, path_manager_pb2.PathSelected) and message.kind == kind
        )

    def emit(self, message: Message) -> None:
        match message:
            case relay_leg_pb2.SendSealed():
                self._send("relay", list(message.packets), self.other.sealed_arrived)
            case udp_socket_pb2.SendDatagrams():
                self._send("direct", list(message.datagrams), self.other.datagrams_arrived)
            case udp_socket_pb2.SendStunRequest():
                self.pending[message.transaction_id] = message.pwd
                self._send("direct", [message.datagram], self.other.check_arrived)
            case udp_socket_pb2.UpdateConnectionIds() | path_manager_pb2.PathStatistics():
                pass
            case quic_session_pb2.PayloadReceived():
                self._payload(message)
            case quic_session_pb2.DatagramPayloadsReceived():
                self.datagrams += message.payloads
            case quic_session_pb2.PayloadAcknowledged():
                self.world.acknowledged(self, message.size_bytes)
            case _:
                self.heard.append((self.world.now, message))
                if type(message) in HEARERS:
                    self.tell(message)

    def _send(self, kind: str, packets: list[bytes], arrive: Callable[[list[bytes]], None]) -> None:
        link = self.link(kind)
        link.carried += len(packets)
        link.carried_quic += sum(packet[0] >= 64 for packet in packets)
        if link.loss:
            packets = [each for each in packets if self.world.random.random() >= link.loss]
        if link.is_up and packets:
            self.world.io.call_at(self.world.now + link.delay, lambda: arrive(packets))

    def sealed_arrived(self, packets: Sequence[bytes]) -> None:
        self.tell_session(
            relay_leg_pb2.SealedReceived(intermediate_id="i1", session_id=SESSION, packets=packets)
        )

    def datagrams_arrived(self, packets: Sequence[bytes]) -> None:
        self.tell_session(
            udp_socket_pb2.DatagramsReceived(
                session_id=SESSION,
                remote=types_pb2.TransportAddress(host=self.other.host, port=4000),
                datagrams=packets,
            )
        )

    def check_arrived(self, packets: Sequence[bytes]) -> None:
        """A peer's socket and checklist: answer what is authentic, and nothing else."""
        request = stun.parse(packets[0])
        username = request.find(Username)
        assert username is not None
        pwd = self.credentials.get(username.text.partition(":")[0])
        if pwd is None or not request.verify_integrity(pwd.encode()):
            return
        answer = stun.Message(stun.BINDING, stun.MessageClass.SUCCESS_RESPONSE, request.transaction_id)
        self._send("direct", [stun.build(answer, key=pwd.encode())], self.other.answer_arrived)

    def answer_arrived(self, packets: Sequence[bytes]) -> None:
        response = stun.parse(packets[0])
        pwd = self.pending.get(response.transaction_id)
        if pwd is not None and response.verify_integrity(pwd.encode()):
            self.refs["keepalive"].tell(
                udp_socket_pb2.KeepaliveResponseReceived(
                    session_id=SESSION,
                    remote=types_pb2.TransportAddress(host=self.other.host, port=4000),
                    datagram=packets[0],
                )
            )

    def _payload(self, message: quic_session_pb2.PayloadReceived) -> None:
        flow = self.flows.setdefault(message.stream_id, Flow())
        if not message.data:
            return
        flow.data += message.data
        flow.arrivals.append((self.world.now, len(message.data)))
        self.tell_session(
            quic_session_pb2.PayloadConsumed(
                session_id=SESSION, stream_id=message.stream_id, size_bytes=len(message.data)
            )
        )


class PathWorld:
    """Both ends on one clock."""

    def __init__(
        self,
        *,
        relay_rtt: float = 0.080,
        direct_rtt: float = 0.010,
        policy: Policy = Policy.PREFER_DIRECT,
        seed: int = 1,
    ) -> None:
        self.io = ManualIo(seed=seed)
        self.random = random.Random(seed)
        self.links = {
            ("relay", "up"): Link(relay_rtt / 2),
            ("relay", "down"): Link(relay_rtt / 2),
            ("direct", "up"): Link(direct_rtt / 2),
            ("direct", "down"): Link(direct_rtt / 2),
        }
        self.client = End(self, "client", address="192.0.2.1", policy=policy)
        self.server = End(self, "server", address="192.0.2.2", policy=policy)
        self.ends = (self.client, self.server)
        self._generation = 0
        self._unacknowledged: dict[str, int] = {}

    @property
    def now(self) -> float:
        return self.io.time()

    def open_connection(self, name: str) -> Callable[[bytes], Connection]:
        def verify(options: ConnectionOptions, expect: Role) -> ConnectionOptions:
            def judge(chain: Any) -> VerifiedPeer:
                return verifier().verify(
                    chain, expect=expect, now_wall=NOW, as_server=expect is Role.CONNECTOR
                )

            return replace(options, verify_peer=judge)

        if name == "client":
            return lambda _: Connection.client(verify(client_options(), Role.CONNECTOR))
        return lambda cid: Connection.server(verify(server_options(), Role.AGENT), destination_cid=cid)

    def on_relay(self) -> PathWorld:
        """The session established through the relay."""
        self.relay(is_up=True)
        self.run(1.0)
        for end in self.ends:
            assert len(end.of(quic_session_pb2.SessionEstablished)) == 1
        return self

    def on_direct(self) -> PathWorld:
        """The session established, and moved to the direct path a while ago."""
        self.on_relay()
        self.nominate()
        self.run(5.0)
        for end in self.ends:
            assert end.path == types_pb2.PATH_KIND_DIRECT
        return self

    def relay(self, *, is_up: bool) -> None:
        for end in self.ends:
            end.tell(
                relay_leg_pb2.RelayPathChanged(
                    intermediate_id="i1", session_id=SESSION, is_up=is_up, max_packet_bytes=1200
                )
            )
        self.io.run_until_idle()

    def prepare(self) -> None:
        """A new generation of credentials, known to both ends."""
        self._generation += 1
        sides = [
            (f"{end.name}{self._generation}", f"{end.name}-password-{self._generation}" * 2)
            for end in self.ends
        ]
        credentials = [types_pb2.IceCredentials(ufrag=ufrag, pwd=pwd) for ufrag, pwd in sides]
        for end, local, remote in zip(self.ends, credentials, reversed(credentials), strict=True):
            end.credentials[local.ufrag] = local.pwd
            end.tell(
                checklist_pb2.PrepareChecks(
                    session_id=SESSION,
                    generation=self._generation,
                    is_controlling=end is self.client,
                    local=local,
                )
            )
            end.tell(
                checklist_pb2.StartChecks(session_id=SESSION, generation=self._generation, remote=remote)
            )
        self._current = credentials

    def nominate(self, *, rtt_us: int = 10_000) -> None:
        """A direct pair, proved at both ends."""
        self.prepare()
        for end, local, remote in zip(self.ends, self._current, reversed(self._current), strict=True):
            end.tell(
                checklist_pb2.PairNominated(
                    session_id=SESSION,
                    generation=self._generation,
                    pair=checklist_pb2.Pair(
                        remote=types_pb2.Candidate(
                            address=types_pb2.TransportAddress(host=end.other.host, port=4000)
                        ),
                        local_host=end.host,
                    ),
                    rtt_us=rtt_us,
                    proven_bytes=1200,
                    local=local,
                    remote=remote,
                )
            )
        self.io.run_until_idle()

    def cut(self, *directions: str, is_up: bool = False) -> None:
        """Cut, or heal, the direct path in these directions (`up`: from the client)."""
        for direction in directions:
            self.links["direct", direction].is_up = is_up

    def run(self, seconds: float) -> None:
        self.io.run_until(self.now + seconds)
        for end in self.ends:
            for name, life in end.lives.items():
                assert life.failure is None, f"{name} of the {end.name} failed: {life.failure!r}"

    def run_until_true(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Move the clock until the condition holds."""
        give_up_at = self.now + timeout_s
        while not condition():
            assert self.now < give_up_at, "the condition never held"
            self.run(TICK_S)

    def transfer(self, sender: End, seconds: float, *, stream_id: int = 0, rate: int = 500_000) -> bytes:
        """Send a stream at a steady rate, as long as the peer keeps up; returns what was sent."""
        sent = bytearray()
        end = self.now + seconds
        while self.now < end:
            if self._unacknowledged.get(sender.name, 0) < MAX_UNACKNOWLEDGED:
                chunk = self.random.randbytes(int(rate * TICK_S))
                self._unacknowledged[sender.name] = self._unacknowledged.get(sender.name, 0) + len(chunk)
                sent += chunk
                sender.tell_session(
                    quic_session_pb2.SendPayload(session_id=SESSION, stream_id=stream_id, data=chunk)
                )
            self.run(TICK_S)
        return bytes(sent)

    def open_stream(self) -> None:
        """A stream that both ends may write to: a client opens it by its first byte."""
        self.client.tell_session(quic_session_pb2.SendPayload(session_id=SESSION, stream_id=0, data=b"?"))
        self.run(0.5)
        for end in self.ends:
            end.flows.clear()

    def acknowledged(self, sender: End, size: int) -> None:
        self._unacknowledged[sender.name] = self._unacknowledged.get(sender.name, 0) - size

    def restarts(self, end: End) -> int:
        return len(end.of(hole_punch_pb2.RestartIce))


def _accept(_peer: VerifiedPeer) -> None:
    """Nothing has changed about a peer."""
