"""Planted bugs: each makes the real code wrong in one way while it runs, and has to be found.

A mutation is an edit of the source of a function, or of a table: it says the text that it replaces, which has
to be there exactly once. One whose text is gone raises `MutationError` and so cannot rot unseen.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, Final
from unittest.mock import patch

from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoContext, CryptoPair

from actors.timers import DeadlineTimer
from actors.udp_socket import UdpSocket
from ztna.access import identity
from ztna.access.policy import AccessPolicy, AccessRules
from ztna.deadlines import Deadlines
from ztna.ice.checklist import Checklist
from ztna.ice.consent import Consent
from ztna.ice.hole_punch import HolePunch
from ztna.path.manager import PathManager
from ztna.path.rules import RULES, Action, Event
from ztna.path.traffic import Traffic
from ztna.quic.adapter import Engine
from ztna.quic.packet_numbers import PacketNumberWindow
from ztna.quic.windows import ReceiveWindows
from ztna.relay.bindings import SessionBindings
from ztna.relay.hub import RelayHub
from ztna.relay.leg import Leg
from ztna.service.connector_flows import ConnectorFlows
from ztna.service.flows import FlowTable
from ztna.service.fragments import Reassembler, SequenceWindow
from ztna.service.tcp_connection import TcpConnection
from ztna.signaling.client import AttachmentClient
from ztna.signaling.sessions import SessionManager
from ztna.stun.routing import StunRouter


class MutationError(Exception):
    """What a mutation changes is no longer there, or no longer what it was."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace `old`, which stands once in the source of a method of `owner`, by `new`."""

    owner: type | ModuleType
    name: str
    old: str
    new: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Make it so; raises `MutationError`."""
        where = f"{self.owner.__name__}.{self.name}"
        held = vars(self.owner).get(self.name)
        function = getattr(held, "__func__", held)
        if not isinstance(function, FunctionType):
            raise MutationError(f"{where} is no function")
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise MutationError(
                f"{where} has {source.count(self.old)} times what is to be replaced: {self.old}"
            )
        if set(function.__code__.co_freevars) - {"__class__"}:
            raise MutationError(f"{where} is a closure")
        edited = textwrap.indent(source.replace(self.old, self.new), "    ")
        made: dict[str, Any] = {}
        # In a function of its own, so that `super()` finds its class.
        text = f"def make(__class__):\n{edited}\n    return {self.name}\n"
        exec(compile(text, f"<mutation of {where}>", "exec"), function.__globals__, made)  # noqa: S102 - our own text
        with patch.object(self.owner, self.name, made["make"](self.owner)):
            yield


@dataclass(frozen=True, slots=True)
class Entry:
    """Let a row of a table, which must contain `without`, do nothing."""

    table: dict[Event, tuple[Action, ...]]
    key: Event
    without: Action

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Make it so; raises `MutationError`."""
        if self.without not in self.table.get(self.key, ()):
            raise MutationError(f"{self.key} does not lead to {self.without}")
        with patch.dict(self.table, {self.key: ()}):
            yield


@dataclass(frozen=True, slots=True)
class Mutation:
    """One planted bug; `scenario` names what it shows in."""

    name: str
    layer: str
    what: str
    scenario: str
    changes: tuple[Edit | Entry, ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Plant it; raises `MutationError`."""
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.applied())
            yield


class _NoCipher:
    """Protects nothing, and is as long."""

    def encrypt(self, payload: bytes, _header: bytes, _number: int) -> bytes:
        return payload + bytes(16)

    def decrypt(self, payload: bytes, _header: bytes, _number: int) -> bytes:
        return payload[:-16]


def unprotected(pair: CryptoPair) -> CryptoPair:
    """For a planted bug: a pair of keys that, once it has them, uses none."""
    for context in (pair.send, pair.recv):
        vars(context)["setup"] = partial(_set_up, context)
    return pair


def _set_up(context: CryptoContext, **settings: Any) -> None:
    CryptoContext.setup(context, **settings)
    vars(context)["aead"] = _NoCipher()


_ALL: Final = (
    Mutation(
        "no-mirror-rule",
        "path",
        "packets of the peer on the other path are not answered there",
        "failover",
        (Entry(RULES, Event.MIRROR, Action.SEND_BOTH_FOR_A_WHILE),),
    ),
    Mutation(
        "no-suspicion",
        "path",
        "a path that fell silent under traffic is not doubted",
        "failover",
        (
            Edit(
                Traffic,
                "_suspect_at",
                "if not self._may_suspect:",
                "if True:",
            ),
        ),
    ),
    Mutation(
        "no-pto-reset",
        "path",
        "after a switch of paths RTT and backoff of the probe timeout stay as they were",
        "failover",
        (
            Edit(Engine, "forget_rtt", "self._loss.forget_rtt()", "pass"),
            Edit(Engine, "probe", "self._loss._pto_count = 0\n    self._probe_pending = True", "pass"),
        ),
    ),
    Mutation(
        "doubt-for-ever",
        "timers",
        "a path that stayed silent is given up again and again: a deadline that lies in the past",
        "relapse",
        (Edit(Traffic, "handle_timeout", "suspicion.is_told = True", "pass"),),
    ),
    Mutation(
        "check-counts-when-sent",
        "ICE",
        "consent is renewed by asking for it: no answer is waited for",
        "paths",
        (
            Edit(
                Consent,
                "_send",
                "SendCheck(watch.pair, check.transaction_id, check.remote.pwd, check.datagram)\n        )",
                "SendCheck(watch.pair, check.transaction_id, check.remote.pwd, check.datagram)\n        )\n"
                "        watch.confirmed_at, watch.missed = now, 0\n"
                "        self._effects.append(PathConfirmed(watch.pair, None))",
            ),
        ),
    ),
    Mutation(
        "controlled-side-nominates",
        "ICE",
        "the controlled side nominates pairs, too",
        "direct",
        (Edit(Checklist, "_send", "is_padded and self.is_controlling", "is_padded"),),
    ),
    Mutation(
        "check-integrity-off",
        "ICE",
        "checks are answered whoever made them: nobody verifies their integrity",
        "abuse",
        (
            Edit(StunRouter, "_judge_request", " or not message.verify_integrity(held.key)", ""),
            Edit(Checklist, "_take_request", "not message.verify_integrity(local.key)", "False"),
        ),
    ),
    Mutation(
        "answer-waits-for-its-leg",
        "ICE",
        "an answer is dropped when the offer comes before the relay leg is up",
        "direct",
        (
            Edit(
                HolePunch,
                "_carrier",
                "(wanted and wanted not in self._lost_relays)",
                "wanted in self._relays",
            ),
        ),
    ),
    Mutation(
        "no-triggered-checks",
        "ICE",
        "a check of the peer triggers none of ours",
        "direct",
        (
            Edit(
                Checklist,
                "_trigger",
                "if pair.state is PairState.SUCCEEDED or",
                "if True or pair.state is PairState.SUCCEEDED or",
            ),
        ),
    ),
    Mutation(
        "check-replay-memory-off",
        "STUN",
        "a check that a stranger overheard and sends again is answered",
        "abuse",
        (
            Edit(
                StunRouter,
                "_judge_request",
                "complaint = _remember(held, message.transaction_id, source, now)",
                'complaint = ""',
            ),
        ),
    ),
    Mutation(
        "answers-strangers",
        "addresses",
        "a node sends an Initial of a stranger back to it",
        "abuse",
        (
            Edit(
                UdpSocket,
                "_strangers_received",
                "del batch",
                "self._send(self._by_family[batch.remote.family], datagrams, batch.remote, '')",
            ),
        ),
    ),
    Mutation(
        "amplification",
        "addresses",
        "the intermediate answers any Initial with three kilobytes and more",
        "abuse",
        (
            Edit(
                RelayHub,
                "handle_unknown",
                "case quic_endpoint.Drop() | quic_endpoint.Wait():\n                pass",
                "case quic_endpoint.Drop() | quic_endpoint.Wait():\n"
                "                self._effects.append(HubTransmit(remote, local_host, [bytes(1200)] * 4))",
            ),
        ),
    ),
    Mutation(
        "channel-not-rewritten",
        "relay",
        "a packet keeps the channel of the leg that it came from",
        "relay_only",
        (Edit(RelayHub, "_relay", "frame.pack(destination.channel, packet)", "frame.pack(channel, packet)"),),
    ),
    Mutation(
        "wrong-attachment",
        "relay",
        "packets go to the latest leg, not to that of their session",
        "relay_only",
        (
            Edit(
                RelayHub,
                "_relay",
                "target = self._bound.get(destination.attach_id)",
                "target = list(self._bound.values())[-1]",
            ),
        ),
    ),
    Mutation(
        "channels-not-released",
        "relay",
        "the channels of a session stay when it is over, and when its parties left",
        "relay_only",
        (
            Edit(
                RelayHub,
                "release",
                "for attach_id in self._bindings.release(session_id, now):",
                "for attach_id in ():",
            ),
            Edit(
                SessionBindings,
                "release_attachment",
                "in self.channels.release_attachment(attach_id, now):",
                "in ():",
            ),
        ),
    ),
    Mutation(
        "leg-back-untold",
        "relay",
        "a leg that is lost and comes back does not say so to its sessions",
        "resume",
        (Edit(Leg, "_use", "self._announce(session_id, is_up=True)", "pass"),),
    ),
    Mutation(
        "no-ownership-check",
        "signaling",
        "who attached may speak for the sessions of others",
        "insider",
        (
            Edit(
                SessionManager,
                "handle_frame",
                "side = session.side_of(attach_id)",
                "side = session.side_of(attach_id) or next(iter(DIRECTIONS[frame.kind]))",
            ),
        ),
    ),
    Mutation(
        "revoked-intermediate-kept",
        "signaling",
        "a node stays attached at an intermediate that the list it was given names",
        "certificates",
        (
            Edit(
                AttachmentClient,
                "handle_untrusted",
                'self._lose("untrusted_intermediate", detail, now, is_clean=False, '
                "is_authentication_failure=True)",
                "del detail, now",
            ),
        ),
    ),
    Mutation(
        "end-told-to-nobody",
        "signaling",
        "when the intermediate ends a session, its parties are not told",
        "revoked",
        (Edit(SessionManager, "_end", "if session.is_announced:", "if False:"),),
    ),
    Mutation(
        "policy-ignored",
        "access",
        "every agent may open everything",
        "mixed",
        (
            Edit(AccessPolicy, "may_open", "return _decide(self._table, agent, service)", "return ALLOWED"),
            Edit(
                AccessRules,
                "services_between",
                "opened, offered = self.access.services_of(agent), self.offers.services_of(connector)",
                "opened, offered = frozenset({ANY}), self.offers.services_of(connector)",
            ),
        ),
    ),
    Mutation(
        "wrong-channel-after-resume",
        "resume",
        "a resumed session is told a channel that is not its own",
        "resume",
        (
            Edit(
                SessionManager,
                "handle_channels_bound",
                "session.channels[role], session.allowed",
                "session.channels[role] + 1, session.allowed",
            ),
        ),
    ),
    Mutation(
        "credit-withheld",
        "sessions",
        "bytes that were consumed do not open the window of their stream",
        "mixed",
        (Edit(ReceiveWindows, "consume", "(stream.limit - stream.consumed) * 2 > stream.window", "True"),),
    ),
    Mutation(
        "credit-ignored",
        "services",
        "bytes count as consumed before the service took them",
        "slow",
        (
            Edit(
                TcpConnection,
                "_deliver",
                "self._unwritten += len(data)",
                "self._unwritten += len(data)\n        self._consume(len(data))",
            ),
            Edit(TcpConnection, "handle_socket_written", "self._consume(size_bytes)", "pass"),
        ),
    ),
    Mutation(
        "duplicate-window-128",
        "QUIC",
        "of packets that come late, those behind the last 128 count as come again",
        "bulk",
        (
            Edit(
                Engine,
                "_initialize",
                "PacketNumberWindow(self.options.duplicate_window_packets)",
                "PacketNumberWindow(128)",
            ),
        ),
    ),
    Mutation(
        "duplicates-accepted",
        "QUIC",
        "a packet that comes twice is taken twice",
        "paths",
        (Edit(PacketNumberWindow, "__contains__", "if distance >= 0 and", "if False and"),),
    ),
    Mutation(
        "sequence-window-small",
        "services",
        "datagrams that others of their flow overtook by eight are dropped",
        "bulk",
        (Edit(SequenceWindow, "is_behind", "self._highest - SEQUENCE_WINDOW", "self._highest - 8"),),
    ),
    Mutation(
        "reassembly-shared",
        "services",
        "fragments of all flows of a session are put together in one place",
        "mixed",
        (
            Edit(
                FlowTable,
                "_new_parts",
                "Reassembler(self.counts.reassembly)",
                "self.__dict__.setdefault('_shared', Reassembler(self.counts.reassembly))",
            ),
        ),
    ),
    Mutation(
        "last-fragment-not-awaited",
        "services",
        "a datagram is handed over when all but one of its fragments are there",
        "mixed",
        (
            Edit(
                Reassembler,
                "receive",
                "if len(partial.pieces) < partial.count:\n        return None\n"
                "    self._forget(sequence)\n    self._window.add(sequence)\n"
                '    return b"".join(partial.pieces[index] for index in range(partial.count))',
                "if len(partial.pieces) < partial.count - 1:\n        return None\n"
                "    self._forget(sequence)\n    self._window.add(sequence)\n"
                '    return b"".join(partial.pieces[index] for index in sorted(partial.pieces))',
            ),
        ),
    ),
    Mutation(
        "flow-not-freed",
        "services",
        "the socket of a flow stays open when the flow is over",
        "mixed",
        (
            Edit(
                ConnectorFlows, "_close", "if flow.state in {FlowState.OPENING, FlowState.OPEN}:", "if False:"
            ),
        ),
    ),
    Mutation(
        "stream-not-freed",
        "services",
        "a connection whose both directions ended is kept",
        "mixed",
        (Edit(TcpConnection, "_finish_if_done", "if is_done and", "if False and"),),
    ),
    Mutation(
        "timer-not-cancelled",
        "timers",
        "the timer of an actor that stopped stays with the loop",
        "mixed",
        (Edit(DeadlineTimer, "cancel", "self._timer.cancel()", "pass"),),
    ),
    Mutation(
        "expiry-not-judged",
        "access",
        "a certificate that ended goes on to count",
        "certificates",
        (Edit(identity, "_check_dates", "if now_wall > ends.timestamp():", "if False:"),),
    ),
    Mutation(
        "unpadded-nomination",
        "ICE",
        "the check that nominates a pair is not padded, so that nobody knows what the pair carries",
        "direct",
        (
            Edit(
                Checklist,
                "_send",
                "uses_candidate=uses_candidate,\n        is_padded=is_padded,",
                "uses_candidate=uses_candidate,\n        is_padded=False,",
            ),
        ),
    ),
    Mutation(
        "nomination-untold",
        "ICE",
        "the pair that one end selects is not told to the other one",
        "direct",
        (
            Edit(
                Checklist,
                "_send",
                "uses_candidate=uses_candidate,\n        is_padded=is_padded,",
                "uses_candidate=False,\n        is_padded=is_padded,",
            ),
        ),
    ),
    Mutation(
        "two-paths-selected",
        "path",
        "every path that works passes for the selected one",
        "direct",
        (Edit(PathManager, "figures", "path is self._selected_path", "path.state is PathState.ACTIVE"),),
    ),
    Mutation(
        "table-unbounded",
        "timers",
        "deadlines that were replaced stay in the table, whose bound is not kept",
        "mixed",
        (
            Edit(
                Deadlines,
                "set",
                "if len(self._heap) > 2 * len(self._current) + _MIN_STALE_ENTRIES:",
                "if False:",
            ),
        ),
    ),
    Mutation(
        "session-unencrypted",
        "QUIC",
        "packets of a session are not encrypted, so that intermediates read what they relay",
        "relay_only",
        (
            Edit(
                QuicConnection,
                "_update_traffic_key",
                "crypto = self._cryptos[epoch]",
                "crypto = self._cryptos[epoch]\n"
                "    from tools.simulate.mutations import unprotected\n"
                "    if epoch is tls.Epoch.ONE_RTT and not self.options.inner_governs:\n"
                "        crypto = unprotected(crypto)",
            ),
        ),
    ),
)
MUTATIONS: Final[Mapping[str, Mutation]] = {each.name: each for each in _ALL}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant a mutation by its name; the empty one plants nothing."""
    if not name:
        yield
        return
    with MUTATIONS[name].applied():
        yield
