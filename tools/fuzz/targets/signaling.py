"""Signaling: framing, an intermediate with hostile nodes, and nodes whose intermediate is hostile.

The first byte of an input to an actor says what the rest is: bytes of the stream as they are, or one frame
that gets its length, and the next sequence number, so that what is in it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar, Final

from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from actors.registry import Registry
from actors.session_manager import SessionManager
from actors.session_table import AgentSessionTable, ConnectorSessionTable, WantedService
from actors.signaling_client import AgentSignalingClient, ConnectorSignalingClient
from actors.signaling_service import MAX_PENDING_STREAMS, SignalingService
from tools.fuzz import identities
from tools.fuzz.identities import AGENT_ID, CONNECTOR_ID, INTERMEDIATE_ID, SESSION_ID
from tools.fuzz.stage import Stage, total_bytes
from tools.fuzz.target import Target, require
from ztna.access.grant import sign_nonce
from ztna.access.identity import Role
from ztna.access.policy import AccessPolicy, AccessRule, AccessRules, OfferPolicy, OfferRule
from ztna.errors import RemoteProtocolError
from ztna.quic.budget import HandshakeBudget, fixed_cost
from ztna.session import agent_table
from ztna.signaling import registry
from ztna.signaling.framing import MAX_FRAME_BYTES, FrameDecoder, encode
from ztna.v1 import (
    quic_relay_pb2,
    quic_session_pb2,
    relay_leg_pb2,
    session_manager_pb2,
    session_table_pb2,
    signaling_client_pb2,
    signaling_pb2,
    types_pb2,
)

Frame = signaling_pb2.SignalingFrame
NONCE: Final = bytes(range(32))
RAW, FRAME = 0, 1
STEP_S: Final = 0.05
MAX_ANSWER_BYTES: Final = 1 << 20
"""For one piece of at most one frame: the answers to a full AttachRequest are a few hundred KiB."""


def _identity(role: types_pb2.Role.ValueType, node: str) -> types_pb2.NodeIdentity:
    real = Role.AGENT if role == types_pb2.ROLE_AGENT else Role.CONNECTOR
    return types_pb2.NodeIdentity(
        role=role, id=node, fingerprint=identities.credentials(real, node).fingerprint
    )


def _candidate() -> types_pb2.Candidate:
    return types_pb2.Candidate(
        type=types_pb2.Candidate.TYPE_HOST,
        address=types_pb2.TransportAddress(host="192.0.2.1", port=4000),
        priority=1,
        foundation="1",
    )


def node_frames() -> list[bytes]:
    """Whatever a node may say."""
    pb = signaling_pb2
    grant = identities.seal(identities.claims())
    resume = [pb.ResumeSession(session_id=SESSION_ID, grant=grant)]
    request = pb.AttachRequest(protocol_version=1, nonce=NONCE, software="ztna", resume=resume)
    announced = pb.AttachRequest(protocol_version=1, nonce=NONCE, has_more=True)
    tcp = types_pb2.SERVICE_PROTOCOL_TCP
    frames = [
        Frame(seq=1, attach_request=request),
        Frame(seq=1, attach_request=announced),
        Frame(seq=2, resume_more=pb.ResumeMore(resume=resume)),
        Frame(seq=2, goodbye=pb.Goodbye(reason="bye")),
        Frame(seq=2, ping=pb.SignalingPing(id=7)),
        Frame(seq=2, pong=pb.SignalingPong(id=7)),
        Frame(seq=2, register_service=pb.RegisterService(service="web", protocol=tcp)),
        Frame(seq=2, withdraw_service=pb.WithdrawService(service="web")),
        Frame(seq=2, open_session=pb.OpenSession(request_id=1, service="web", protocol=tcp)),
        Frame(seq=2, open_session=pb.OpenSession(request_id=2, service="web", connectors=[CONNECTOR_ID])),
        Frame(seq=2, open_session=pb.OpenSession(request_id=3, service="web", excluded_connectors=["c2"])),
        Frame(seq=2, close_session=pb.CloseSession(session_id=SESSION_ID, reason="done")),
        Frame(seq=2, restart_requested=pb.RestartRequested(session_id=SESSION_ID, reason="moved")),
        Frame(seq=2, punching_result=pb.PunchingResult(session_id=SESSION_ID, success=True, rtt_us=1)),
        Frame(seq=2, candidate_added=pb.CandidateAdded(session_id=SESSION_ID, candidate=_candidate())),
        Frame(
            seq=2,
            candidate_offer=pb.CandidateOffer(
                session_id=SESSION_ID, generation=1, ufrag="abcd", pwd="p" * 22, candidates=[_candidate()]
            ),
        ),
        Frame(
            seq=2,
            candidate_answer=pb.CandidateAnswer(
                session_id=SESSION_ID, generation=1, ufrag="abcd", pwd="p" * 22
            ),
        ),
    ]
    return [frame.SerializeToString() for frame in frames]


def intermediate_frames() -> list[bytes]:
    """Whatever an intermediate may say."""
    pb = signaling_pb2
    agent, connector = (
        _identity(types_pb2.ROLE_AGENT, AGENT_ID),
        _identity(types_pb2.ROLE_CONNECTOR, CONNECTOR_ID),
    )
    chain = identities.credentials(Role.INTERMEDIATE, INTERMEDIATE_ID).chain_der
    grant = identities.seal(identities.claims())
    allowed = pb.AllowedServices(services=["web"])
    code = pb.SIGNALING_CODE_PEER_LOST
    frames = [
        Frame(
            seq=1,
            attach_accepted=pb.AttachAccepted(attach_id=b"a" * 16, certificate_chain=chain, signature=NONCE),
        ),
        Frame(seq=2, goodbye=pb.Goodbye(reason="shutting_down")),
        Frame(seq=2, ping=pb.SignalingPing(id=1)),
        Frame(seq=2, pong=pb.SignalingPong(id=1)),
        Frame(seq=2, registration_accepted=pb.RegistrationAccepted(service="web")),
        Frame(
            seq=2,
            registration_rejected=pb.RegistrationRejected(
                service="web", code=pb.SIGNALING_CODE_RATE_LIMITED, message="no"
            ),
        ),
        Frame(seq=2, session_offer=pb.SessionOffer(session_id=SESSION_ID, agent=agent, channel=5)),
        Frame(
            seq=2,
            session_rebound=pb.SessionRebound(session_id=SESSION_ID, peer=agent, channel=6, allowed=allowed),
        ),
        Frame(seq=2, session_rebound=pb.SessionRebound(session_id=SESSION_ID, peer=connector, channel=6)),
        Frame(seq=2, session_ended=pb.SessionEnded(session_id=SESSION_ID, code=code, message="gone")),
        Frame(seq=2, access_changed=pb.AccessChanged(session_id=SESSION_ID, allowed=allowed)),
        Frame(seq=2, error=pb.SignalingError(code=pb.SIGNALING_CODE_SUPERSEDED, message="superseded")),
        Frame(
            seq=2,
            error=pb.SignalingError(
                code=pb.SIGNALING_CODE_SERVICE_NOT_FOUND, request_id=1, message="no such service"
            ),
        ),
        Frame(
            seq=2, start_punching=pb.StartPunching(session_id=SESSION_ID, generation=1, start_delay_ms=100)
        ),
    ]
    frames += [
        Frame(
            seq=2,
            session_opened=pb.SessionOpened(
                request_id=request_id,
                session_id=SESSION_ID,
                service="web",
                connector=connector,
                channel=5,
                grant=grant,
            ),
        )
        for request_id in (1, 2)
    ]
    return [frame.SerializeToString() for frame in frames]


class Framing(Target):
    """In whatever pieces a stream comes, the frames are the same, and less than one is kept."""

    name = "signaling-framing"
    what = "length-prefixed signaling frames, in pieces"

    def corpus(self) -> list[bytes]:
        frames = [encode(bytes(size)) for size in (1, 4, 300, MAX_FRAME_BYTES)]
        return [*frames, b"".join(frames[:3]), encode(b"x") * 50, frames[3][:-1]]

    def feed(self, data: bytes) -> None:
        decoder, pieces = FrameDecoder(), FrameDecoder()
        whole = decoder.feed(data)
        require(decoder.buffered_bytes < MAX_FRAME_BYTES + 4, "more than a frame is kept")
        step = max(1 + data[-1], len(data) // 64) if data else 1
        found = [
            body for start in range(0, len(data), step) for body in pieces.feed(data[start : start + step])
        ]
        require(found == whole, "pieces make other frames than the whole")
        rest = len(data) - decoder.buffered_bytes
        require(b"".join(map(encode, whole)) == data[:rest], "frames are encoded differently")
        decoder.finish()


class _Actor(Target):
    """Frames get their length and sequence number where the first byte asks for it."""

    documented = ()
    is_protobuf = True

    def frame(self, data: bytes, sequence: int) -> bytes:
        """Bytes of the stream that carry an input."""
        body = data[1:]
        if not data or data[0] & 1 == RAW:
            return body
        try:
            parsed = Frame.FromString(body)
            parsed.seq = sequence
            body = parsed.SerializeToString()
        except (DecodeError, ValueError):
            pass
        return encode(body[:MAX_FRAME_BYTES] or b"\0")


class _Scopes:
    """Starts every session, and nothing; `started` are those not yet established."""

    def __init__(self) -> None:
        self.started: list[bytes] = []

    def start(self, session_id: bytes, peer: object) -> bool:
        del peer
        self.started.append(session_id)
        return True

    def stop(self, session_id: bytes) -> None:
        """Forget nothing."""


class Service(_Actor):
    """Hostile nodes lose their streams; nobody is told what is not for them, and little is kept."""

    name = "signaling-service"
    what = "an intermediate's signaling, registry and sessions with a hostile agent and a hostile connector"
    short_runs = 250
    block = 250
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = tuple(bytes([kind]) for kind in (0, 1, 1, 1, 2, 3, 3, 3))
    """The second bit: the connector instead of the agent."""

    def __init__(self) -> None:
        self._stage = stage = Stage()
        access, offers = AccessRule(("*",), ("*",)), OfferRule(("*",), ("*",))
        rules = AccessRules(AccessPolicy([access]), OfferPolicy([offers]))
        own = identities.credentials(Role.INTERMEDIATE, INTERMEDIATE_ID)
        self._registry = Registry(stage.context(), lambda: rules, 256)
        self._manager = SessionManager(stage.context(), own, lambda: rules, 600.0, 3600.0, 1000)
        self._service = SignalingService(
            stage.context(), own, HandshakeBudget(fixed_cost(0.0)), None, 10, 1000.0
        )
        for concern in (self._registry, self._manager, self._service):
            stage.add(concern)
        stage.start()
        self._connection = 0
        self._streams = {0: self._open(0), 2: self._open(2)}
        self._received = {0: 0, 2: 0}
        self._count = 0

    def corpus(self) -> list[bytes]:
        frames = node_frames()
        framed = [bytes([FRAME | side]) + frame for side in (0, 2) for frame in frames]
        return [*framed, bytes([RAW]) + encode(frames[0]) + encode(frames[3])]

    def feed(self, data: bytes) -> None:
        side = (data[0] if data else 0) & 2
        self._count += 1
        self._stage.io.now += STEP_S
        if self._count % 40 == 0:
            self._stage.advance(0.0)
        if data[:1] and data[0] & 1:
            self._attach(side)
        connection = self._streams[side]
        stream = self._service._leg_streams.get(connection)  # noqa: SLF001 - to go on in its sequence
        if stream is None:
            connection = self._streams[side] = self._open(side)
        sequence = 1 if stream is None else stream.received + 1
        self._send(connection, self.frame(data.replace(SESSION_ID, self._session_id()), sequence))
        answers = self._stage.take()
        for message in answers:
            if isinstance(message, session_manager_pb2.BindChannels):
                self._stage.tell(
                    quic_relay_pb2.ChannelsBound(
                        session_id=message.session_id,
                        agent_attach_id=message.agent_attach_id,
                        agent_channel=self._count % 7,
                        connector_attach_id=message.connector_attach_id,
                        connector_channel=self._count % 7,
                    )
                )
        answers += self._stage.take()
        require(total_bytes(answers) <= MAX_ANSWER_BYTES, f"{total_bytes(answers)} bytes answer one frame")

    def check(self) -> None:
        service = self._service
        require(len(service._pending) <= MAX_PENDING_STREAMS, "too many streams wait")  # noqa: SLF001
        require(len(service._leg_streams) <= 4, "streams that ended are kept")  # noqa: SLF001
        require(
            len(self._registry._core.services()) <= registry.MAX_SERVICES_PER_CONNECTOR,  # noqa: SLF001
            "too many services of one connector",
        )
        for _ in range(5):
            self._stage.advance(10_000.0)
            self._stage.take()

    def _attach(self, side: int) -> None:
        """Attach, on a new stream unless there is one: a former input may have left half a frame on it."""
        stream = self._service._leg_streams.get(self._streams[side])  # noqa: SLF001
        if stream is not None and (stream.attach_id or stream.introduction is not None):
            return
        connection = self._streams[side] = self._open(side)
        self._send(connection, encode(_ATTACH))
        # What the other inputs are about: a service that is there, a session that was opened.
        self._send(connection, encode(_REGISTER if side else _OPEN))

    def _session_id(self) -> bytes:
        sessions = self._manager._core.sessions  # noqa: SLF001 - inputs cannot know what chance decides
        return sessions[self._count % len(sessions)].session_id if sessions else SESSION_ID

    def _send(self, connection: int, data: bytes) -> None:
        self._stage.tell(quic_relay_pb2.LegSignalingBytesReceived(connection=connection, data=data))

    def _open(self, side: int) -> int:
        self._connection += 1
        issued = identities.issue(*((Role.CONNECTOR, CONNECTOR_ID) if side else (Role.AGENT, AGENT_ID)))
        self._stage.tell(
            quic_relay_pb2.LegSignalingChanged(
                connection=self._connection,
                is_open=True,
                certificate=issued.certificate.public_bytes(Encoding.DER),
                remote="192.0.2.1:1",
            )
        )
        return self._connection


_ATTACH: Final = Frame(
    seq=1, attach_request=signaling_pb2.AttachRequest(protocol_version=1, nonce=NONCE)
).SerializeToString()
_REGISTER: Final = Frame(
    seq=2,
    register_service=signaling_pb2.RegisterService(service="web", protocol=types_pb2.SERVICE_PROTOCOL_TCP),
).SerializeToString()
_OPEN: Final = Frame(
    seq=2,
    open_session=signaling_pb2.OpenSession(
        request_id=9, service="web", protocol=types_pb2.SERVICE_PROTOCOL_TCP
    ),
).SerializeToString()


class Client(_Actor):
    """A hostile intermediate can deny, and nothing else: the node attaches again.

    The first byte: bit 0 a frame, bit 1 to the connector instead of the agent, bit 2 before the attachment.
    """

    name = "signaling-client"
    what = "an agent's and a connector's signaling and session tables with a hostile intermediate"
    short_runs = 250
    block = 250
    prefix_bytes = 1
    prefixes: ClassVar[Sequence[bytes]] = tuple(bytes([kind]) for kind in (0, 1, 1, 1, 2, 3, 3, 3, 5, 7))

    def __init__(self) -> None:
        self._nodes = {0: _Node(is_agent=True), 2: _Node(is_agent=False)}

    def corpus(self) -> list[bytes]:
        frames = intermediate_frames()
        framed = [bytes([FRAME | side]) + frame for side in (0, 2) for frame in frames]
        early = [bytes([FRAME | side | 4]) + frames[0] for side in (0, 2)]
        return framed + early + [bytes([RAW]) + encode(frames[2]) * 3]

    def feed(self, data: bytes) -> None:
        first = data[0] if data else 0
        node = self._nodes[first & 2]
        node.attach(is_early=bool(first & 4))
        node.receive(node.answered(self.frame(data, 2)))

    def check(self) -> None:
        for node in self._nodes.values():
            sessions = node.table._core.sessions  # noqa: SLF001 - its bound
            require(len(sessions) <= agent_table.MAX_SESSIONS, f"{len(sessions)} sessions are kept")
            node.attach(is_early=False)


class _Node:
    """Signaling client and session table of one node."""

    def __init__(self, *, is_agent: bool) -> None:
        self.stage = stage = Stage()
        self._is_agent = is_agent
        self._requests: list[bytes] = []
        role, node = (Role.AGENT, AGENT_ID) if is_agent else (Role.CONNECTOR, CONNECTOR_ID)
        self._own = identities.credentials(role, node)
        tcp = types_pb2.SERVICE_PROTOCOL_TCP
        context = stage.context(INTERMEDIATE_ID)
        self._scopes = _Scopes()
        self._asked = 0
        self.client: AgentSignalingClient | ConnectorSignalingClient
        self.table: AgentSessionTable | ConnectorSessionTable
        if is_agent:
            wanted = {"web": WantedService(tcp, ())}
            self.client = AgentSignalingClient(context, self._own, None)
            self.table = AgentSessionTable(
                stage.context(),
                self._scopes,
                [INTERMEDIATE_ID],
                lambda: wanted,
                max_offline_s=3600.0,
                is_eager=True,
            )
        else:
            self.client = ConnectorSignalingClient(context, self._own, {"web": tcp}, None)
            self.table = ConnectorSessionTable(
                stage.context(), self._scopes, [INTERMEDIATE_ID], max_offline_s=3600.0
            )
        for concern in (self.client, self.table):
            stage.add(concern)
        stage.start()
        stage.tell(signaling_client_pb2.Attach(intermediate_id=INTERMEDIATE_ID))
        stage.tell(relay_leg_pb2.LegConnected(intermediate_id=INTERMEDIATE_ID))
        self._listen()

    def attach(self, *, is_early: bool) -> None:
        """Let the client attach, or with `is_early` come to the point where it waits for the answer."""
        if is_early:
            self.stage.tell(signaling_client_pb2.Reattach(intermediate_id=INTERMEDIATE_ID))
        for _ in range(50):
            self._listen()
            if not is_early and self.client._core.state.name == "ATTACHED":  # noqa: SLF001
                break
            if self._requests:
                if is_early:
                    break
                self._accept(self._requests.pop())
                continue
            self.stage.advance(30.0)
            self.stage.tell(
                signaling_client_pb2.Attach(intermediate_id=INTERMEDIATE_ID),
                relay_leg_pb2.LegConnected(intermediate_id=INTERMEDIATE_ID),
            )
        else:
            require(False, f"the node does not come back from {self.client._core.state.name}")  # noqa: SLF001
        if self._is_agent:
            self.stage.tell(session_table_pb2.RequestService(service="web"))

    def receive(self, data: bytes) -> None:
        """Bytes of the hostile intermediate."""
        self.stage.io.now += STEP_S
        self._requests.clear()
        self.stage.tell(relay_leg_pb2.LegSignalingReceived(intermediate_id=INTERMEDIATE_ID, data=data))
        self.stage.advance(0.0)
        self._listen()

    def answered(self, data: bytes) -> bytes:
        """An answer to request 1 becomes one to the latest, whose number inputs cannot know."""
        with suppress(DecodeError, RemoteProtocolError):
            bodies = FrameDecoder().feed(data)
            frames = [Frame.FromString(body) for body in bodies]
            for frame in frames:
                if frame.WhichOneof("body") == "session_opened" and frame.session_opened.request_id == 1:
                    frame.session_opened.request_id = self._asked
                elif frame.WhichOneof("body") == "error" and frame.error.request_id == 1:
                    frame.error.request_id = self._asked
            if frames:
                return b"".join(encode(frame.SerializeToString() or b"\0") for frame in frames)
        return data

    def _run_sessions(self) -> None:
        """Every second session comes up; those that are to close do."""
        started, self._scopes.started = self._scopes.started, []
        for session_id in started[::2]:
            self.stage.tell(quic_session_pb2.SessionEstablished(session_id=session_id))
        for message in self.stage.unheard[:]:
            if isinstance(message, quic_session_pb2.CloseQuicSession):
                self.stage.tell(
                    quic_session_pb2.SessionClosed(session_id=message.session_id, reason="closed")
                )

    def _listen(self) -> None:
        self._run_sessions()
        messages = self.stage.take()
        require(total_bytes(messages) <= MAX_ANSWER_BYTES, f"{total_bytes(messages)} bytes answer one frame")
        for message in messages:
            if isinstance(message, relay_leg_pb2.SendLegSignaling):
                for body in FrameDecoder().feed(message.data):
                    frame = Frame.FromString(body)
                    if frame.HasField("open_session"):
                        self._asked = frame.open_session.request_id
                    if frame.HasField("attach_request"):
                        self._requests.append(frame.attach_request.nonce)

    def _accept(self, nonce: bytes) -> None:
        issuer = identities.credentials(Role.INTERMEDIATE, INTERMEDIATE_ID)
        accepted = signaling_pb2.AttachAccepted(
            attach_id=b"a" * 16,
            certificate_chain=issuer.chain_der,
            signature=sign_nonce(issuer.private_key, nonce, self._own.fingerprint),
        )
        self.receive(encode(Frame(seq=1, attach_accepted=accepted).SerializeToString()))


TARGETS: Sequence[type[Target]] = (Framing, Service, Client)
