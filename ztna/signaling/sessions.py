"""The sessions of an intermediate: one per agent and connector, opened by an agent, ended by either party.

    open ──> BINDING ──channels made──> RELAYED
                ^  └<── a party re-attached ──┘
                └──both attached── WAITING <── resume

Only the two parties of a session may speak about it, each only in its own direction; whatever anybody else
sends is answered with an error and goes nowhere. Nothing is stored: after a restart, the parties bring their
sessions back by showing a grant that an intermediate of this deployment signed.

A session whose party attaches again without resuming it is over: that process no longer holds it.

One that ended because a party was lost may live on between its nodes; `ztna.signaling.lost_sessions` has it
in mind, so that it is judged with the others when the rules change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from ztna.access.grant import SESSION_ID_BYTES, GrantClaims
from ztna.access.identity import Role
from ztna.access.policy import ANY, AccessRules
from ztna.deadlines import Deadlines
from ztna.errors import RemoteProtocolError
from ztna.signaling.exchange import start_delays_ms
from ztna.signaling.lost_sessions import LOST_LIFETIME_S, LostSession, LostSessions
from ztna.signaling.resume import MAX_RESUMED_SESSIONS, judge_grant, parties_of
from ztna.signaling.session import DIRECTIONS, FrameKind, Session, SessionFrame, SessionState
from ztna.signaling.session_effects import (
    AccessChanged,
    BindWanted,
    ClosedAlready,
    Ended,
    Failed,
    Forwarded,
    Offered,
    Opened,
    PunchingStarted,
    Rebound,
    ReleaseWanted,
    SessionEffect,
)
from ztna.signaling.values import Code, Party
from ztna.token_bucket import TokenBucket

MAX_SESSIONS = 100_000
"""In all, unless configured: about 2 KB each."""

MAX_SESSIONS_PER_AGENT = 256
"""One per connector it uses; a deployment whose agents need more sites at once will split its services."""

MAX_SESSIONS_PER_CONNECTOR = 4096
"""What a connector itself accepts."""

MAX_PENDING_REQUESTS = 1024
"""Per session while its channels are made: an agent that starts eagerly asks for all its services at once."""

MAX_SERVICES_SHOWN = 64
"""Per session: names kept for people to see."""

MAX_SERVICES_TOLD = 512
"""Names in one frame, 33 KB of its 64. A session that may carry more, and not all, is not resumed, and is
ended when the rules change: its agent opens another one at once."""

MAX_ENDED_REMEMBERED = 4096
"""Sessions that a party closed, the oldest forgotten first: the other party cannot bring them back meanwhile.
One forgotten too early waits for a party that never comes, and ends after `RESUME_PATIENCE_S`."""

RESUME_PATIENCE_S = 60.0
"""For the other party of a resumed session: twice the longest pause between attempts to attach. Whoever has
not come by then has died, and connections that wait for it would hang."""

OPENS_PER_SECOND = 20.0
"""From one agent: it asks once per service and then once per half grant lifetime."""

OPEN_BURST = 1024.0
"""All services of an agent at its start."""

BIND_LIMIT_S = 5.0
"""For the relay to make channels, which takes it no network round trip: longer means that it restarted."""


@dataclass(slots=True)
class _Node:
    party: Party
    opens: TokenBucket
    resumed: int = 0
    round_trip_s: float | None = None


_OTHER: Final = {Role.AGENT: Role.CONNECTOR, Role.CONNECTOR: Role.AGENT}


class SessionManager:
    """All sessions. `random` is a CSPRNG in production; what a session may carry is decided by `rules`.

    `refused` counts what was not allowed, by reason; `opened_total` and `resumed_total` count sessions,
    `changes` how often one came, went or was to be bound anew, which not all is told to anybody.
    """

    def __init__(
        self,
        random: Random,
        rules: AccessRules,
        *,
        max_offline_s: float,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self._random = random
        self._rules = rules
        self._max_offline_s = max_offline_s
        self._max_sessions = max_sessions
        self._nodes: dict[bytes, _Node] = {}
        self._attached: dict[tuple[Role, str], bytes] = {}
        self._sessions: dict[bytes, Session] = {}
        self._held: dict[tuple[Role, str], dict[bytes, Session]] = {}
        self._pairs: dict[tuple[str, str], Session] = {}
        self._deadlines: Deadlines[bytes] = Deadlines()
        self._ended: dict[bytes, None] = {}
        self._lost = LostSessions(max_sessions)
        self._effects: list[SessionEffect] = []
        self.refused: Counter[str] = Counter()
        self.opened_total = 0
        self.resumed_total = 0
        self.changes = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> Sequence[Session]:
        """All sessions, oldest first. For looking at only."""
        return tuple(self._sessions.values())

    @property
    def lost_sessions(self) -> Sequence[LostSession]:
        """Sessions that have lost a party, oldest first. For looking at only."""
        return self._lost.sessions

    def party_of(self, attach_id: bytes) -> Party | None:
        """Who is attached there, or None when nobody is any more."""
        node = self._nodes.get(attach_id)
        return None if node is None else node.party

    def handle_attached(
        self,
        attach_id: bytes,
        party: Party,
        resumed: Sequence[GrantClaims],
        rejected: Collection[bytes],
        now: float,
        now_wall: float,
        *,
        announced: Collection[bytes] = (),
    ) -> None:
        """A node attached and brings sessions.

        `resumed` are claims whose signature and issuer are verified, of sessions to bring back; `rejected`
        are ids of sessions whose grant did not verify. `now_wall` is unix seconds. Grants of `announced`
        sessions are still being verified: `handle_resumed` follows.
        """
        former = self._attached.get(party.name)
        if former is not None:
            del self._nodes[former]
        self._lost.handle_gone(party)
        self._nodes[attach_id] = _Node(party, TokenBucket(OPENS_PER_SECOND, OPEN_BURST, now))
        self._attached[party.name] = attach_id
        self._end_all_but({*announced, *rejected, *(claims.session_id for claims in resumed)}, party, now)
        for session_id in announced:
            self._suspend(session_id, party, now)
        self.handle_resumed(attach_id, resumed, rejected, now, now_wall)

    def handle_resumed(
        self,
        attach_id: bytes,
        resumed: Sequence[GrantClaims],
        rejected: Iterable[bytes],
        now: float,
        now_wall: float,
    ) -> None:
        """Grants of sessions that an attached node brings are verified, or are not; see `handle_attached`."""
        node = self._nodes.get(attach_id)
        if node is None:
            return
        for session_id in rejected:
            self._refuse_resume(attach_id, session_id, Code.ACCESS_DENIED, "the grant is not valid")
            self._end_unresumed(session_id, node.party, attach_id, now)
        accepted: dict[bytes, Session] = {}
        for claims in resumed:
            session = self._resume(attach_id, node, claims, now, now_wall)
            if session is None:
                self._end_unresumed(claims.session_id, node.party, attach_id, now)
            else:
                accepted[session.session_id] = session
        for session in accepted.values():
            self._rebind(session, now)

    def handle_detached(self, attach_id: bytes, now: float, *, is_clean: bool, reason: str) -> None:
        """A node is gone and its sessions with it; harmless for a superseded attachment."""
        node = self._nodes.pop(attach_id, None)
        if node is None:
            return
        del self._attached[node.party.name]
        self._lost.handle_gone(node.party)
        if is_clean:
            self.handle_expelled(node.party, reason)
        for session in list(self._held.get(node.party.name, {}).values()):
            session.attachments.pop(node.party.role, None)
            if is_clean:
                self._remember_ended(session.session_id)
                self._end(session, Code.PEER_CLOSED, _farewell(node.party, reason))
            else:
                self._lose(session, _farewell(node.party, reason), now)

    def handle_expelled(self, party: Party, reason: str) -> None:
        """A node that was lost is not accepted any more: whoever holds a session with it ends that."""
        for lost in self._lost.take_lost(party):
            self._end_lost(lost, Code.PEER_CLOSED, _farewell(party, reason))

    def open(
        self,
        agent_attach_id: bytes,
        request_id: int,
        service: str,
        connector_attach_id: bytes,
        now: float,
    ) -> None:
        """Give an agent a session with the connector chosen for it, or another grant on the one it has."""
        node = self._nodes.get(agent_attach_id)
        if node is None:
            return  # it left while the connector was chosen
        if not node.opens.take(now):
            self._fail(agent_attach_id, Code.RATE_LIMITED, "too many requests", request_id=request_id)
            return
        if not self._rules.access.may_open(node.party.id, service):
            # The rules changed since the connector was chosen.
            self._deny_request(agent_attach_id, request_id, service)
            return
        other = self._nodes.get(connector_attach_id)
        if other is None:
            message = "the chosen connector has just left"
            self._fail(agent_attach_id, Code.NO_CONNECTOR_AVAILABLE, message, request_id=request_id)
            return
        session = self._pairs.get((node.party.id, other.party.id))
        if session is None:
            complaint = self._lacks_room(node.party, other.party)
            if complaint:
                self._fail(agent_attach_id, Code.RATE_LIMITED, complaint, request_id=request_id)
                return
            session_id = self._random.randbytes(SESSION_ID_BYTES)
            session = self._create(session_id, node.party, other.party, now)
            self.opened_total += 1
            session.attachments = {Role.AGENT: agent_attach_id, Role.CONNECTOR: connector_attach_id}
            self._rebind(session, now)
        if len(session.services) < MAX_SERVICES_SHOWN:
            session.services[service] = None
        if session.state is SessionState.RELAYED:
            self._announce_opened(session, request_id, service)
        elif len(session.pending) < MAX_PENDING_REQUESTS:
            session.pending[request_id, service] = None
        else:
            self._fail(agent_attach_id, Code.RATE_LIMITED, "too many requests wait", request_id=request_id)

    def handle_channels_bound(
        self,
        session_id: bytes,
        channels: dict[Role, int],
        attachments: dict[Role, bytes],
    ) -> None:
        """The relay made channels between two attachments, or (0) could not; stale answers change nothing."""
        session = self._sessions.get(session_id)
        if session is None or session.state is not SessionState.BINDING or session.attachments != attachments:
            return
        if 0 in channels.values():
            self._end(session, Code.NO_CONNECTOR_AVAILABLE, "the relay has no channel left")
            return
        session.state = SessionState.RELAYED
        session.is_told = True
        session.channels = dict(channels)
        session.deadline = None
        self._watch(session)
        if session.is_announced:
            for role in (Role.CONNECTOR, Role.AGENT):
                peer = session.parties[_OTHER[role]]
                self._effects.append(
                    Rebound(
                        session.attachments[role], session_id, peer, session.channels[role], session.allowed
                    )
                )
        else:
            session.is_announced = True
            self._lost.handle_offered(session.agent, session.connector)
            self._effects.append(
                Offered(
                    session.attachments[Role.CONNECTOR], session_id, session.agent, channels[Role.CONNECTOR]
                )
            )
        for request_id, service in session.pending:
            self._announce_opened(session, request_id, service)
        session.pending.clear()

    def handle_rules(self, rules: AccessRules) -> None:
        """Judge every session by other rules: end it, or tell both parties what it may carry from now on.

        Of one that has lost a party, the other one is told.
        """
        self._rules = rules
        for session in list(self._sessions.values()):
            self._judge_by_rules(session)
        for lost in self._lost.sessions:
            self._judge_lost(lost)

    def handle_frame(self, attach_id: bytes, frame: SessionFrame, now: float) -> None:
        """A node says something about a session: check that it may, and pass it on to the other party."""
        session = self._sessions.get(frame.session_id)
        if attach_id not in self._nodes:
            self.refused["not_attached"] += 1
            return
        if session is None:
            if frame.kind is FrameKind.CLOSE_SESSION:
                # Both parties report the end of a session, and each may do so as the other's report arrives.
                self._lost.handle_closed(frame.session_id, attach_id)
                self._effects.append(ClosedAlready(frame.session_id))
            else:
                self._fail(attach_id, Code.SESSION_NOT_FOUND, "there is no such session", frame.session_id)
            return
        side = session.side_of(attach_id)
        if side is None or side not in DIRECTIONS[frame.kind]:
            message = f"{frame.kind.value} of this session is not yours to send"
            self._fail(attach_id, Code.NOT_A_PARTY, message, frame.session_id)
            return
        if frame.kind is FrameKind.CLOSE_SESSION:
            self._remember_ended(session.session_id)
            message = f"closed by {session.parties[side]}: {frame.reason}"
            self._end(session, Code.PEER_CLOSED, message, except_for=side)
            return
        try:
            self._referee(session, side, frame, now)
        except RemoteProtocolError as error:
            self._fail(attach_id, Code.INVALID_MESSAGE, str(error), frame.session_id)
            return
        other = session.attachments.get(_OTHER[side])
        if other is not None:
            self._effects.append(Forwarded(other, frame.payload))
        if frame.kind is FrameKind.CANDIDATE_ANSWER:
            self._start_both(session, frame.generation)

    def handle_round_trip(self, attach_id: bytes, round_trip_s: float) -> None:
        """Note how long frames take to a node and back; harmless for one that is gone."""
        node = self._nodes.get(attach_id)
        if node is not None:
            node.round_trip_s = round_trip_s

    def handle_timeout(self, now: float) -> None:
        """Tell both parties of answers that did not come, and end what waited too long."""
        for session_id in self._deadlines.take_due(now):
            session = self._sessions[session_id]
            if session.exchange.handle_timeout(now):
                for target in session.attachments.values():
                    message = "the connector did not answer in time"
                    self._fail(target, Code.SESSION_TIMEOUT, message, session.session_id)
            if session.deadline is not None and now >= session.deadline:
                message = f"{session.state.value} for too long"
                if session.state is SessionState.WAITING:
                    self._lose(session, message, now)
                else:
                    self._end(session, Code.SESSION_TIMEOUT, message)
            else:
                self._watch(session)
        self._lost.handle_timeout(now)

    def next_deadline(self) -> float | None:
        """The earliest limit of a session or its exchange, or of the memory of a lost one."""
        deadlines = (self._deadlines.next(), self._lost.next_deadline())
        return min((each for each in deadlines if each is not None), default=None)

    def drain(self) -> list[SessionEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def _resume(
        self,
        attach_id: bytes,
        node: _Node,
        claims: GrantClaims,
        now: float,
        now_wall: float,
    ) -> Session | None:
        party = node.party
        verdict = judge_grant(
            party, claims, self._rules, self._max_offline_s, now_wall
        ) or self._judge_session(claims, node.resumed)
        if verdict is not None:
            self._refuse_resume(attach_id, claims.session_id, *verdict)
            return None
        session = self._sessions.get(claims.session_id)
        if session is None:
            agent, connector = parties_of(claims)
            session = self._create(claims.session_id, agent, connector, now)
            session.is_announced = True
            session.services[claims.service] = None
        self.resumed_total += 1
        node.resumed += 1
        session.attachments[party.role] = attach_id
        session.holders[party.role] = party
        other_role = _OTHER[party.role]
        if other_role not in session.attachments:
            other = self._attached.get(session.parties[other_role].name)
            # A party that is attached here may hold the session through another intermediate: let it say so.
            if other is not None:
                session.attachments[other_role] = other
                session.holders[other_role] = self._nodes[other].party
        return session

    def _judge_session(self, claims: GrantClaims, resumed: int) -> tuple[Code, str] | None:
        agent, connector = parties = parties_of(claims)
        if claims.session_id in self._ended:
            return Code.PEER_CLOSED, "a party closed this session"
        if not _can_be_told(self._rules.services_between(agent.id, connector.id)):
            return Code.ACCESS_DENIED, "the rules allow more services here than can be told"
        known = self._sessions.get(claims.session_id)
        if known is not None:
            if (known.agent, known.connector) != parties:
                return Code.NOT_A_PARTY, "the session is between others"
            return None
        if (agent.id, connector.id) in self._pairs:
            return Code.SESSION_NOT_FOUND, "a newer session took its place"
        complaint = self._lacks_room(agent, connector)
        if resumed >= MAX_RESUMED_SESSIONS or complaint:
            return Code.RATE_LIMITED, complaint or "too many sessions resumed"
        return None

    def _refuse_resume(self, attach_id: bytes, session_id: bytes, code: Code, message: str) -> None:
        self.refused[f"resume_{code.value}"] += 1
        self._effects.append(Ended(attach_id, session_id, code, message, is_refusal=True))

    def _lacks_room(self, agent: Party, connector: Party) -> str:
        if len(self._sessions) >= self._max_sessions:
            return f"this intermediate carries its {self._max_sessions} sessions"
        if len(self._held.get(agent.name, ())) >= MAX_SESSIONS_PER_AGENT:
            return f"an agent has at most {MAX_SESSIONS_PER_AGENT} sessions"
        if len(self._held.get(connector.name, ())) >= MAX_SESSIONS_PER_CONNECTOR:
            return f"a connector has at most {MAX_SESSIONS_PER_CONNECTOR} sessions"
        return ""

    def _judge_by_rules(self, session: Session) -> None:
        services = self._rules.services_between(session.agent.id, session.connector.id)
        if services == session.allowed:
            return
        session.allowed = services
        session.is_told = session.state is SessionState.RELAYED
        denial = _denial(services)
        if denial:
            self._end(session, Code.ACCESS_DENIED, denial)
            return
        for request_id, service in list(session.pending):
            if not self._rules.access.may_open(session.agent.id, service):
                del session.pending[request_id, service]
                if Role.AGENT in session.attachments:
                    self._deny_request(session.attachments[Role.AGENT], request_id, service)
        if session.is_announced and session.state is SessionState.RELAYED:
            # Otherwise the parties are told when it is bound again.
            for target in session.attachments.values():
                self._effects.append(AccessChanged(target, session.session_id, services))

    def _judge_lost(self, lost: LostSession) -> None:
        services = self._rules.services_between(lost.agent.id, lost.connector.id)
        if services == lost.allowed:
            return
        lost.allowed = services
        denial = _denial(services)
        if denial:
            self._lost.forget(lost.session_id)
            self._end_lost(lost, Code.ACCESS_DENIED, denial)
        else:
            self._effects.append(AccessChanged(lost.attach_id, lost.session_id, services))

    def _end_lost(self, lost: LostSession, code: Code, message: str) -> None:
        self._effects.append(Ended(lost.attach_id, lost.session_id, code, message))

    def _deny_request(self, attach_id: bytes, request_id: int, service: str) -> None:
        message = f"no rule of 'policy' lets this agent open {service[:64]!r}"
        self._fail(attach_id, Code.ACCESS_DENIED, message, request_id=request_id)

    def _create(self, session_id: bytes, agent: Party, connector: Party, now: float) -> Session:
        session = Session(
            session_id,
            {Role.AGENT: agent, Role.CONNECTOR: connector},
            now,
            self._rules.services_between(agent.id, connector.id),
        )
        self._lost.forget(session_id)
        self._sessions[session_id] = session
        self._pairs[agent.id, connector.id] = session
        for party in (agent, connector):
            self._held.setdefault(party.name, {})[session_id] = session
        return session

    def _rebind(self, session: Session, now: float) -> None:
        """Ask for channels if both parties are here, else wait for the other one."""
        if session.state is SessionState.BINDING and session.asked_for == session.attachments:
            # Both parties came back at once. A second answer would make other channels than those that the
            # parties are told of.
            return
        self.changes += 1
        session.channels = {}
        if len(session.attachments) == len(_OTHER):
            session.state = SessionState.BINDING
            session.deadline = now + BIND_LIMIT_S
            session.asked_for = dict(session.attachments)
            agent, connector = (session.attachments[role] for role in (Role.AGENT, Role.CONNECTOR))
            self._effects.append(BindWanted(session.session_id, agent, connector))
        else:
            session.state = SessionState.WAITING
            session.deadline = now + min(RESUME_PATIENCE_S, self._max_offline_s)
        self._watch(session)

    def _watch(self, session: Session) -> None:
        own, exchanges = session.deadline, session.exchange.deadline
        earliest = min((each for each in (own, exchanges) if each is not None), default=None)
        self._deadlines.set(session.session_id, earliest)

    def _announce_opened(self, session: Session, request_id: int, service: str) -> None:
        self._effects.append(
            Opened(
                session.attachments[Role.AGENT],
                request_id,
                session.session_id,
                service,
                session.agent,
                session.connector,
                session.channels[Role.AGENT],
            )
        )

    def _referee(self, session: Session, side: Role, frame: SessionFrame, now: float) -> None:
        exchange = session.exchange
        match frame.kind:
            case FrameKind.CANDIDATE_OFFER:
                exchange.handle_offer(frame.generation, frame.candidates, now)
            case FrameKind.CANDIDATE_ANSWER:
                exchange.handle_answer(frame.generation, frame.candidates, now)
            case FrameKind.CANDIDATE_ADDED | FrameKind.END_OF_CANDIDATES:
                is_end = frame.kind is FrameKind.END_OF_CANDIDATES
                exchange.handle_candidate_added(side, frame.generation, is_end=is_end)
            case FrameKind.PUNCHING_RESULT:
                exchange.handle_result()
            case _:
                pass  # a request to restart carries no state: the agent's next offer does
        self._watch(session)

    def _start_both(self, session: Session, generation: int) -> None:
        delays = start_delays_ms(
            {role: self._nodes[target].round_trip_s for role, target in session.attachments.items()}
        )
        for role, target in session.attachments.items():
            self._effects.append(PunchingStarted(target, session.session_id, generation, delays[role]))

    def _end(self, session: Session, code: Code, message: str, *, except_for: Role | None = None) -> None:
        self.changes += 1
        del self._sessions[session.session_id]
        del self._pairs[session.agent.id, session.connector.id]
        self._deadlines.set(session.session_id, None)
        for party in session.parties.values():
            held = self._held[party.name]
            del held[session.session_id]
            if not held:
                del self._held[party.name]
        if session.state is not SessionState.WAITING:
            self._effects.append(ReleaseWanted(session.session_id))
        for request_id, _service in session.pending:
            if Role.AGENT in session.attachments:
                target = session.attachments[Role.AGENT]
                self._fail(target, Code.NO_CONNECTOR_AVAILABLE, message, request_id=request_id)
        if session.is_announced:
            for role, target in session.attachments.items():
                if role is not except_for:
                    self._effects.append(Ended(target, session.session_id, code, message))

    def _lose(self, session: Session, message: str, now: float) -> None:
        """End a session that lost a party, and remember that the other one may hold it still."""
        self._end(session, Code.PEER_LOST, message)
        if not session.is_announced:
            return
        for role, target in session.attachments.items():
            if not session.is_told:
                self._effects.append(AccessChanged(target, session.session_id, session.allowed))
            who = _OTHER[role]
            lost = LostSession(
                session.session_id,
                (session.agent, session.connector),
                who,
                session.holders.get(who, session.parties[who]),
                target,
                session.allowed,
                now + LOST_LIFETIME_S,
            )
            for each in self._lost.add(lost):
                self._end_lost(each, Code.RATE_LIMITED, "too many sessions have lost a party")

    def _end_all_but(self, kept: Collection[bytes], party: Party, now: float) -> None:
        for session in list(self._held.get(party.name, {}).values()):
            if session.session_id not in kept:
                session.attachments.pop(party.role, None)
                self._lose(session, f"{party} attached anew without this session", now)

    def _end_unresumed(self, session_id: bytes, party: Party, attach_id: bytes, now: float) -> None:
        session = self._held.get(party.name, {}).get(session_id)
        if session is not None and session.attachments.get(party.role) != attach_id:
            session.attachments.pop(party.role, None)
            self._lose(session, f"{party} attached anew without this session", now)

    def _suspend(self, session_id: bytes, party: Party, now: float) -> None:
        """Whoever wants the session waits until its grant is verified; its packets flow on meanwhile."""
        session = self._held.get(party.name, {}).get(session_id)
        if session is not None and session.attachments.pop(party.role, None) is not None:
            if session.state is SessionState.RELAYED:
                session.state = SessionState.BINDING
            session.deadline = now + self._max_offline_s
            self._watch(session)

    def _remember_ended(self, session_id: bytes) -> None:
        self._ended[session_id] = None
        if len(self._ended) > MAX_ENDED_REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _fail(
        self, attach_id: bytes, code: Code, message: str, session_id: bytes = b"", *, request_id: int = 0
    ) -> None:
        self.refused[code.value] += 1
        self._effects.append(Failed(attach_id, code, session_id, request_id, message))


def _denial(services: frozenset[str]) -> str:
    """Why a session that may carry these services now is over, or nothing."""
    if services and _can_be_told(services):
        return ""
    what = "more services than can be told" if services else "nothing"
    return f"the rules have changed, and allow {what} here"


def _farewell(party: Party, reason: str) -> str:
    return f"{party} left: {reason}" if reason else f"{party} left"


def _can_be_told(services: frozenset[str]) -> bool:
    return ANY in services or len(services) <= MAX_SERVICES_TOLD
