"""The direct path of a session: its search, checks and paths at one end, with a hostile peer or intermediate.

The peer is a party of the session: it knows our credentials, and seals what it sends with them. The first
byte of an input chooses among what it can do; the generation 1 stands for the one that is under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import ClassVar, Final

from google.protobuf.message import DecodeError

from actors import translate
from actors.checklist import Checklist
from actors.hole_punch import HolePunch
from actors.keepalive import Keepalive
from actors.path_manager import PathManager
from tools.fuzz import mutate
from tools.fuzz.identities import SESSION_ID
from tools.fuzz.stage import Stage
from tools.fuzz.target import Target, require
from tools.fuzz.targets import stun
from ztna.address import TransportAddress
from ztna.errors import LocalProtocolError, RemoteProtocolError
from ztna.ice import checks
from ztna.ice.consent import MAX_RELAYED_ANSWERS
from ztna.ice.credentials import IceCredentials
from ztna.ice.hole_punch import HolePunchLimits
from ztna.ice.pair import MAX_PAIRS
from ztna.ice.signals import MAX_CANDIDATES
from ztna.ice.timing import CHECK_PACING_S
from ztna.nat.behaviour import NatBehaviour
from ztna.stun import attributes as a
from ztna.stun import message, replays
from ztna.stun.message import Message, MessageClass
from ztna.stun.routing import Asker, StunRouter
from ztna.stun.transaction import CONNECTIVITY_CHECK
from ztna.v1 import (
    candidate_gatherer_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    signaling_client_pb2,
    signaling_pb2,
    types_pb2,
    udp_socket_pb2,
)

IN_SESSION, BY_INTERMEDIATE, CHECK, ANSWER, WAIT, RELAYED = range(6)
RELAY: Final = "i1"
OURS: Final = TransportAddress("192.0.2.1", 4000)
THEIRS: Final = TransportAddress("198.51.100.1", 4000)
REFUSED: Final = TransportAddress("203.0.113.9", 4433)
UFRAG, PWD = "theirs", "p" * 22
STEP_S: Final = 0.02
WAITS_S: Final = (0.1, 0.1, 0.3, 1.0, 5.0, 31.0)
BURST: Final = MAX_PAIRS * (len(CONNECTIVITY_CHECK.sends_s) + 1)
"""Requests that may be under way at once, padded ones included."""
_UNDER_WAY: Final = frozenset(
    {
        hole_punch_pb2.HOLE_PUNCH_STATE_WAITING_TO_START,
        hole_punch_pb2.HOLE_PUNCH_STATE_CHECKING,
        hole_punch_pb2.HOLE_PUNCH_STATE_CONNECTED,
    }
)


def _candidate(address: TransportAddress, priority: int = 1) -> types_pb2.Candidate:
    return types_pb2.Candidate(
        type=types_pb2.Candidate.TYPE_HOST,
        address=translate.address_to_proto(address),
        priority=priority,
        foundation="1",
    )


def signal_examples() -> list[bytes]:
    """Whatever may be said of a direct path."""
    pb = signaling_pb2
    nat = translate.nat_to_proto(NatBehaviour(is_known=True, has_nat=True))
    hosts = (THEIRS.host, "127.0.0.1", "224.0.0.1", REFUSED.host, OURS.host, "2001:db8::1")
    candidates = [_candidate(TransportAddress(host, 4433), 2**30) for host in hosts]
    added = [pb.CandidateAdded(generation=1, candidate=each) for each in candidates]
    added += [
        pb.CandidateAdded(generation=1, end_of_candidates=True),
        pb.CandidateAdded(generation=1, nat=nat),
    ]
    errors = (pb.SIGNALING_CODE_INVALID_MESSAGE, pb.SIGNALING_CODE_ACCESS_DENIED)
    frames = [
        pb.IceSignal(
            candidate_offer=pb.CandidateOffer(
                generation=1, ufrag=UFRAG, pwd=PWD, candidates=candidates, nat=nat
            )
        ),
        pb.IceSignal(
            candidate_answer=pb.CandidateAnswer(
                generation=1, ufrag=UFRAG, pwd=PWD, candidates=candidates, nat=nat
            )
        ),
        *(pb.IceSignal(candidate_added=each) for each in added),
        pb.IceSignal(start_punching=pb.StartPunching(generation=1, start_delay_ms=20)),
        *(
            pb.IceSignal(restart_requested=pb.RestartRequested(reason=reason))
            for reason in ("operator", "silent")
        ),
        pb.IceSignal(punching_result=pb.PunchingResult(success=True, rtt_us=1)),
        pb.IceSignal(punching_result=pb.PunchingResult(reason="policy_relay_only")),
        *(pb.IceSignal(error=pb.SignalingError(code=code)) for code in errors),
    ]
    return [frame.SerializeToString() for frame in frames]


class _DirectPath(Target):
    """Whatever comes, nothing breaks, little is sent, and never to an address that is none of the peer's."""

    documented = ()
    runs = 100_000
    short_runs = 150
    block = 250
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = tuple(map(bytes, zip(range(6))))
    tokens = stun._Stun.tokens  # noqa: SLF001 - the same attributes
    is_controlling: ClassVar[bool]

    def __init__(self) -> None:
        self._stage = Stage()
        context = self._stage.context(SESSION_ID.hex())
        self._search = HolePunch(
            context, HolePunchLimits(), lambda: (REFUSED,), is_controlling=self.is_controlling
        )
        self._checklist = Checklist(context)
        for concern in (PathManager(context), Keepalive(context), self._checklist, self._search):
            self._stage.add(concern)
        self._stage.start()
        self._honest = signal_examples()[self.is_controlling]
        self._state = hole_punch_pb2.HOLE_PUNCH_STATE_UNSPECIFIED
        self._generation = 0
        self._credentials = types_pb2.IceCredentials()
        self._requests: list[udp_socket_pb2.SendStunRequest] = []
        self._began_at = self._stage.io.now
        self._sent = self._relayed = 0
        self._count = 0
        ours = [_candidate(OURS, 2**30), _candidate(TransportAddress("2001:db8::9", 4000), 2**29)]
        self._stage.tell(
            relay_leg_pb2.RelayPathChanged(
                session_id=SESSION_ID, intermediate_id=RELAY, is_up=True, max_packet_bytes=1200
            ),
            candidate_gatherer_pb2.CandidatesGathered(candidates=ours, is_complete=True),
            quic_session_pb2.SessionEstablished(session_id=SESSION_ID),
        )
        self._look()

    def corpus(self) -> list[bytes]:
        return [
            *(bytes([kind]) + each for kind in (IN_SESSION, BY_INTERMEDIATE) for each in signal_examples()),
            *(bytes([kind]) + each for kind in (CHECK, ANSWER, RELAYED) for each in stun.examples()),
            *(bytes([WAIT, number]) for number in range(len(WAITS_S))),
        ]

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        if mutate.parse_fields(body) and random.random() < 0.8:
            return mutate.mutate_protobuf(random, body, bodies)
        data = super().vary(random, body, bodies)
        return stun.repair(random, data) if random.random() < 0.8 else data

    def feed(self, data: bytes) -> None:
        kind, body = data[0] % len(self.prefixes) if data else WAIT, data[1:]
        self._count += 1
        self._stage.advance(STEP_S)
        if self._count % 2:
            self._play_fair()
        if kind == WAIT:
            self._wait(WAITS_S[body[0] % len(WAITS_S)] if body else 0.0)
        elif kind in {CHECK, ANSWER, RELAYED}:
            self._hear(kind, body)
        else:
            self._say(body, "" if kind == IN_SESSION else RELAY)
        self._look()

    def check(self) -> None:
        core = self._checklist._core  # noqa: SLF001 - its bounds
        require(len(core.view()) <= MAX_PAIRS, "too many pairs")
        snapshot = self._search._core.snapshot  # noqa: SLF001
        require(len(snapshot.remote) <= MAX_CANDIDATES, "too many candidates of the peer")
        require(len(core._former) <= 8 and len(core._early) <= MAX_CANDIDATES, "too much is kept")  # noqa: SLF001
        elapsed_s = self._stage.io.now - self._began_at
        most = BURST + elapsed_s / CHECK_PACING_S * (len(CONNECTIVITY_CHECK.sends_s) + 1)
        require(self._sent <= most, f"{self._sent} requests in {elapsed_s:.1f} s")
        require(self._relayed <= (elapsed_s + 1) * (MAX_RELAYED_ANSWERS + 4), "too many relayed answers")

    def _play_fair(self) -> None:
        """Do what brings the search on: inputs alone seldom get as far as a nomination."""
        if self._state not in _UNDER_WAY:
            self._say(self._honest, "")
        for asked in self._requests:
            remote = translate.address_from_proto(asked.remote)
            if remote.host == THEIRS.host:
                answer = checks.build_answer(message.parse(asked.datagram), OURS, asked.pwd.encode())
                self._deliver(answer, remote)
        self._requests.clear()
        if not self.is_controlling and self._credentials.pwd:
            ours = IceCredentials(self._credentials.ufrag, self._credentials.pwd)
            transaction_id = self._count.to_bytes(12, "little")
            nominating = checks.build_check(
                transaction_id,
                IceCredentials(UFRAG, PWD),
                ours,
                priority=1,
                is_controlling=True,
                tie_breaker=1,
                uses_candidate=True,
            )
            self._deliver(nominating, TransportAddress(THEIRS.host, 4433 + self._count % 3))
        self._look()

    def _deliver(self, datagram: bytes, source: TransportAddress) -> None:
        remote = translate.address_to_proto(source)
        self._stage.tell(
            udp_socket_pb2.CheckReceived(
                session_id=SESSION_ID,
                remote=remote,
                local=translate.address_to_proto(OURS),
                datagram=datagram,
            ),
            udp_socket_pb2.KeepaliveResponseReceived(session_id=SESSION_ID, remote=remote, datagram=datagram),
        )

    def _wait(self, seconds: float) -> None:
        until = self._stage.io.now + seconds
        for _ in range(200):
            if self._stage.io.now >= until:
                return
            self._stage.advance(min(until - self._stage.io.now, max(STEP_S, seconds / 100)))

    def _say(self, body: bytes, via: str) -> None:
        try:
            signal = signaling_pb2.IceSignal.FromString(body)
        except DecodeError:
            return
        said = getattr(signal, signal.WhichOneof("body") or "error")
        if getattr(said, "generation", 0) == 1:
            said.generation = min(2**32 - 1, self._generation + signal.HasField("candidate_offer"))
        self._stage.tell(
            signaling_client_pb2.IceSignalReceived(session_id=SESSION_ID, intermediate_id=via, signal=signal)
        )

    def _hear(self, kind: int, body: bytes) -> None:
        key, transaction_id, source = self._credentials.pwd, self._count.to_bytes(12, "big"), THEIRS
        if kind == ANSWER and self._requests:
            asked = self._requests[len(body) % len(self._requests)]
            key, transaction_id = asked.pwd, asked.transaction_id
            source = translate.address_from_proto(asked.remote)
        elif len(body) % 3 == 0:
            source = TransportAddress("198.51.100.7", 1 + self._count % 65_535)
        datagram = self._sealed(body, kind, transaction_id, key.encode())
        if kind == RELAYED:
            self._stage.tell(
                keepalive_pb2.RelayedStunReceived(
                    session_id=SESSION_ID, intermediate_id=RELAY, datagrams=[datagram]
                )
            )
            return
        self._deliver(datagram, source)

    def _sealed(self, body: bytes, kind: int, transaction_id: bytes, key: bytes) -> bytes:
        """What the peer makes of an input: sealed as it can, unless that is no STUN at all."""
        try:
            parsed = message.parse(body)
            sealing = {a.MessageIntegrity.TYPE, a.MessageIntegritySha256.TYPE, a.Fingerprint.TYPE}
            kept = [each for each in parsed.attributes if each.TYPE not in {*sealing, a.Username.TYPE}]
            message_class = parsed.message_class
            if kind == ANSWER:
                if message_class is MessageClass.REQUEST:
                    message_class = MessageClass.SUCCESS_RESPONSE
                    kept = [a.XorMappedAddress(OURS)]
            else:
                kept.insert(0, a.Username(f"{self._credentials.ufrag}:{UFRAG}"))
            again = Message(parsed.method, message_class, transaction_id, tuple(kept))
            return message.build(again, key=key, with_fingerprint=True)
        except (RemoteProtocolError, LocalProtocolError):
            return body

    def _look(self) -> None:
        for each in self._stage.take():
            match each:
                case udp_socket_pb2.AcceptChecks():
                    self._credentials = each.credentials
                case udp_socket_pb2.SendStunRequest():
                    self._sent += 1
                    self._require_fit(translate.address_from_proto(each.remote))
                    self._requests = [*self._requests[-15:], each]
                case relay_leg_pb2.SendSealed():
                    self._relayed += len(each.packets)
                case hole_punch_pb2.HolePunchChanged():
                    self._generation, self._state = each.generation, each.state
                case _:
                    pass

    def _require_fit(self, remote: TransportAddress) -> None:
        is_unfit = remote in {REFUSED, OURS} or remote.host.startswith(("127.", "0.", "224.", "255."))
        require(not is_unfit, f"a check for {remote}")


class AgentSearch(_DirectPath):
    """At the agent, which offers."""

    name = "ice-agent"
    what = "an agent's search for a direct path: signals, checks and answers of a hostile peer (1 ms each)"
    is_controlling = True


class ConnectorSearch(_DirectPath):
    """At the connector, which answers."""

    name = "ice-connector"
    what = "a connector's search for a direct path: signals, checks and answers of a hostile peer (1 ms each)"
    is_controlling = False


class Router(Target):
    """A message reaches nobody unless it carries what only a party can make."""

    name = "stun-router"
    what = "whose a STUN message is, of any sender: credentials, transactions, replays"
    documented = ()
    tokens = stun._Stun.tokens  # noqa: SLF001 - the same attributes

    def __init__(self) -> None:
        self._router = StunRouter()
        self._now = 100.0
        self._router.accept(SESSION_ID, "evtj", stun.KEY.decode(), self._now)
        self._router.expect(stun.ID, Asker.CHECKLIST, SESSION_ID, stun.SERVER, stun.KEY, self._now)

    def corpus(self) -> list[bytes]:
        return stun.examples()

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        data = super().vary(random, body, bodies)
        return stun.repair(random, data) if random.random() < 0.6 else data

    def feed(self, data: bytes) -> None:
        self._now += 0.01
        self._router.expect(stun.ID, Asker.CHECKLIST, SESSION_ID, stun.SERVER, stun.KEY, self._now)
        source = stun.SERVER if len(data) % 2 else stun.V4
        route = self._router.route(data, source, self._now)
        if route is not None:
            require(message.parse(data).verify_integrity(stun.KEY), "an unsealed message was passed on")
        self._router.handle_timeout(self._now)

    def check(self) -> None:
        require(self._router.ufrags == 1 and self._router.transactions <= 1, "more is kept than was entered")
        held = self._router._credentials[b"evtj"]  # noqa: SLF001 - its bound
        require(len(held.replays) <= replays.MAX_REPLAYS_REMEMBERED, "too many replays remembered")


TARGETS: Sequence[type[Target]] = (AgentSearch, ConnectorSearch, Router)
