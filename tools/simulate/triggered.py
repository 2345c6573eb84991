"""Whoever is heard is checked back: the rule of triggered checks (RFC 8445 §7.3.1.4), as packets show it.

A node that answers a check of its peer sends one of its own to where that came from, under a transaction that
it has not used before: what it sent earlier may have died at a NAT, which is open now. The check is next in
turn, so it has as long as those that were heard before it take, one each `CHECK_PACING_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from google.protobuf.message import Message

from tests.simnet.link import Packet
from ztna.errors import RemoteProtocolError
from ztna.ice.timing import CHECK_PACING_S
from ztna.stun.attributes import Username
from ztna.stun.message import parse
from ztna.v1 import checklist_pb2

if TYPE_CHECKING:
    from tests.simnet.clock import VirtualClock
    from tests.simnet.world import Daemon

SPARE_CHECKS: Final = 5
"""Padded checks go first: one of each pair that may be nominated, and few succeed within so little time."""
REQUEST, SUCCESS = b"\x00\x01", b"\x01\x01"

Search = tuple[str, str]
"""A node, and its ufrag of one generation."""


class TriggeredChecks:
    """Holds nodes to the rule while nothing goes wrong."""

    def __init__(self, report: Callable[[str], None]) -> None:
        """`report` takes violations, in words."""
        self._report = report
        self._ufrags: dict[tuple[str, bytes], str] = {}
        self._running: set[Search] = set()
        self._came: dict[tuple[str, bytes], Search] = {}  # by transaction: checks of the peer
        self._sent: dict[tuple[str, bytes], Search] = {}  # ours
        self._due: dict[tuple[Search, str], None] = {}
        self._done: set[tuple[Search, str]] = set()

    def message(self, daemon: Daemon, message: Message) -> None:
        """Learn which generation a node is at, and until when checks are of use to it."""
        match message:
            case checklist_pb2.PrepareChecks():
                self._end(daemon.id, message.session_id)
                self._ufrags[daemon.id, message.session_id] = message.local.ufrag
            case checklist_pb2.StartChecks() if (daemon.id, message.session_id) in self._ufrags:
                self._running.add((daemon.id, self._ufrags[daemon.id, message.session_id]))
            case checklist_pb2.StopChecks() | checklist_pb2.PairNominated():
                self._end(daemon.id, message.session_id)
            case _:
                pass

    def packet(self, daemon: Daemon, packet: Packet, clock: VirtualClock, *, is_outbound: bool) -> None:
        """Look at one STUN message."""
        kind, transaction_id = packet.payload[:2], packet.payload[8:20]
        key = (daemon.id, transaction_id)
        if kind == REQUEST and is_outbound:
            if key not in self._sent and (ufrags := _ufrags(packet.payload)):
                self._sent[key] = (daemon.id, ufrags[1])
                self._settle((daemon.id, ufrags[1]), str(packet.destination))
        elif kind == REQUEST:
            if ufrags := _ufrags(packet.payload):
                self._came[key] = (daemon.id, ufrags[0])
        elif kind == SUCCESS and is_outbound:
            if key in self._came:
                self._expect(self._came[key], str(packet.destination), clock)
        elif kind == SUCCESS and key in self._sent:
            self._settle(self._sent[key], str(packet.source))
            self._done.add((self._sent[key], str(packet.source)))

    def _expect(self, search: Search, source: str, clock: VirtualClock) -> None:
        due = (search, source)
        if search not in self._running or due in self._due or due in self._done:
            return
        self._due[due] = None
        turns = SPARE_CHECKS + sum(each[0] == search for each in self._due)
        clock.call_at(clock.time() + turns * CHECK_PACING_S, lambda: self._judge(due))

    def _settle(self, search: Search, remote: str) -> None:
        due = (search, remote)
        if due in self._due:
            del self._due[due]
            self._done.add(due)

    def _judge(self, due: tuple[Search, str]) -> None:
        if due in self._due:
            del self._due[due]
            self._report(f"{due[0][0]}: a check of {due[1]} was answered, and none sent back")

    def _end(self, name: str, session_id: bytes) -> None:
        ufrag = self._ufrags.get((name, session_id))
        self._running.discard((name, ufrag or ""))
        self._due = {each: None for each in self._due if each[0] != (name, ufrag)}


def _ufrags(check: bytes) -> tuple[str, str] | None:
    """Those of the receiver and of the sender; none of a packet that was corrupted on its way."""
    try:
        username = parse(check).find(Username)
    except RemoteProtocolError:
        return None
    if username is None:
        return None
    receiver, _, sender = username.text.partition(":")
    return receiver, sender
