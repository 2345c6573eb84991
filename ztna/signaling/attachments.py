"""The attachments of an intermediate: which node is attached, over which carrier, and when it is lost.

    attach ──> ATTACHED ──stream broke──> LINGERING ──leg dead, or time is up──> detached (lost)
                  └───────goodbye─────────────┴────────────────────────────────> detached (clean)

A stream that breaks without a goodbye says little: the signaling connection may have died alone, while the
node goes on relaying packets over its leg. So the leg is asked before the node is given up. A node that
attaches again under its name supersedes its former attachment, in whichever state that is; what the former
stream does afterwards concerns nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import TypeAlias

from ztna.access.identity import Role
from ztna.deadlines import Deadlines
from ztna.errors import AccessDenied
from ztna.signaling.values import ATTACH_ID_BYTES, Party
from ztna.token_bucket import TokenBucket

MAX_ATTACHMENTS = 10_000
"""Nodes at a time, unless configured: at about 90 KB of gRPC connection each, just under 1 GB."""

FRAMES_PER_SECOND = 200.0
"""From one node, unless configured: a trickle exchange takes some 40 frames, a node has a few at a time."""

FRAME_BURST_S = 2.0
"""A burst of this many seconds' worth passes: a connector registers all its services at once."""

MAX_SERVICES_NOTED = 65_536
"""Names per attachment: what `limits.services_per_connector` allows at most; the registry refuses earlier."""

JUDGEMENT_LIMIT_S = 4.0
"""For a verdict on the leg: the relay gives one within 3 s; without any the node counts as lost."""

LINGER_LIMIT_S = 60.0
"""With a live leg but no signaling: a node's back-off is 30 s at most, so it has tried twice by then."""


class Carrier(Enum):
    """How the frames of an attachment travel."""

    GRPC = "grpc"
    QUIC = "quic"


class AttachmentState(Enum):
    """Life of an attachment."""

    ATTACHED = "attached"
    LINGERING = "lingering"


@dataclass(frozen=True, slots=True)
class Attached:
    """A node attached. `superseded` is its former attachment, empty when it had none."""

    attach_id: bytes
    party: Party
    carrier: Carrier
    superseded: bytes


@dataclass(frozen=True, slots=True)
class Superseded:
    """Tell the stream of this attachment that another one took its place, and close it."""

    attach_id: bytes


@dataclass(frozen=True, slots=True)
class LegJudgementWanted:
    """Is the leg of this attachment alive? Answer with `handle_leg_judged`."""

    attach_id: bytes


@dataclass(frozen=True, slots=True)
class ServiceUnreachable:
    """A service was offered on a stream that is gone: no agent can be sent there until it is again."""

    attach_id: bytes
    service: str


@dataclass(frozen=True, slots=True)
class Detached:
    """A node is gone; `is_clean` when it said so."""

    attach_id: bytes
    party: Party
    is_clean: bool
    reason: str


AttachmentEffect: TypeAlias = Attached | Superseded | LegJudgementWanted | ServiceUnreachable | Detached


@dataclass(slots=True)
class Attachment:
    """One attachment; `attached_at` is monotonic seconds."""

    attach_id: bytes
    party: Party
    carrier: Carrier
    attached_at: float
    frames: TokenBucket
    state: AttachmentState = AttachmentState.ATTACHED
    services: dict[str, None] = field(default_factory=dict)


class AttachmentTable:
    """All attachments. `random` is a CSPRNG in production: attachment ids are presented as proof on legs."""

    def __init__(
        self,
        random: Random,
        *,
        max_attachments: int = MAX_ATTACHMENTS,
        frames_per_second: float = FRAMES_PER_SECOND,
    ) -> None:
        self._random = random
        self._max_attachments = max_attachments
        self._frames_per_second = frames_per_second
        self._by_id: dict[bytes, Attachment] = {}
        self._by_name: dict[tuple[Role, str], Attachment] = {}
        self._lingering: Deadlines[bytes] = Deadlines()
        self._effects: list[AttachmentEffect] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, attach_id: bytes) -> Attachment | None:
        """The attachment, unless it is over."""
        return self._by_id.get(attach_id)

    def is_attached(self, party: Party) -> bool:
        """Whether a node of this role and name is attached, or lingers: another attachment replaces it."""
        return party.name in self._by_name

    def check_room(self, party: Party) -> None:
        """Raise `AccessDenied("too_many_attachments")` if `attach` would; to refuse before state is built."""
        if party.name not in self._by_name and len(self._by_id) >= self._max_attachments:
            raise AccessDenied(
                "too_many_attachments", f"this intermediate serves {self._max_attachments} nodes"
            )

    def attach(self, party: Party, carrier: Carrier, now: float) -> bytes:
        """Register a verified node and return its attachment id.

        Raises `AccessDenied` (`too_many_attachments`); a node that replaces its own attachment always fits.
        """
        self.check_room(party)
        former = self._by_name.get(party.name)
        if former is not None:
            if former.state is AttachmentState.ATTACHED:
                self._effects.append(Superseded(former.attach_id))
            self._forget(former)
        attach_id = self._random.randbytes(ATTACH_ID_BYTES)
        frames = TokenBucket(self._frames_per_second, self._frames_per_second * FRAME_BURST_S, now)
        if former is not None:
            frames = former.frames  # attaching anew is no way around the limit
        attachment = Attachment(attach_id, party, carrier, now, frames)
        self._by_id[attach_id] = self._by_name[party.name] = attachment
        self._effects.append(Attached(attach_id, party, carrier, former.attach_id if former else b""))
        return attach_id

    def admit_frame(self, attach_id: bytes, now: float) -> bool:
        """Whether another frame of this attachment is within its rate; False for one that is over."""
        attachment = self._by_id.get(attach_id)
        return attachment is not None and attachment.frames.take(now)

    def handle_offered(self, attach_id: bytes, service: str) -> None:
        """Note a service whose offer is only as good as the attachment's stream."""
        attachment = self._by_id.get(attach_id)
        if attachment is not None and len(attachment.services) < MAX_SERVICES_NOTED:
            attachment.services[service] = None

    def handle_withdrawn(self, attach_id: bytes, service: str) -> None:
        """Forget a noted service."""
        attachment = self._by_id.get(attach_id)
        if attachment is not None:
            attachment.services.pop(service, None)

    def handle_goodbye(self, attach_id: bytes, reason: str) -> None:
        """The node leaves on purpose; harmless when the attachment is over."""
        attachment = self._by_id.get(attach_id)
        if attachment is not None:
            self._detach(attachment, reason, is_clean=True)

    def handle_stream_broken(self, attach_id: bytes, now: float) -> None:
        """The stream ended without a goodbye; harmless when the attachment is over or lingers already."""
        attachment = self._by_id.get(attach_id)
        if attachment is None or attachment.state is AttachmentState.LINGERING:
            return
        attachment.state = AttachmentState.LINGERING
        self._lingering.set(attach_id, now + JUDGEMENT_LIMIT_S)
        for service in attachment.services:
            self._effects.append(ServiceUnreachable(attach_id, service))
        attachment.services.clear()
        self._effects.append(LegJudgementWanted(attach_id))

    def handle_leg_judged(self, attach_id: bytes, reason: str, now: float, *, is_alive: bool) -> None:
        """Take a verdict, or news, about a leg; it matters only while the attachment lingers."""
        attachment = self._by_id.get(attach_id)
        if attachment is None or attachment.state is not AttachmentState.LINGERING:
            return
        if is_alive:
            self._lingering.set(attach_id, now + LINGER_LIMIT_S)
        else:
            self._detach(attachment, reason or "leg_dead", is_clean=False)

    def handle_timeout(self, now: float) -> None:
        """Give up whoever lingered too long."""
        for attach_id in self._lingering.take_due(now):
            self._detach(self._by_id[attach_id], "lingered_too_long", is_clean=False)

    def next_deadline(self) -> float | None:
        """The earliest end of lingering."""
        return self._lingering.next()

    def drain(self) -> list[AttachmentEffect]:
        """Hand over the effects of the last mutation, oldest first."""
        effects, self._effects = self._effects, []
        return effects

    def _detach(self, attachment: Attachment, reason: str, *, is_clean: bool) -> None:
        self._forget(attachment)
        self._effects.append(Detached(attachment.attach_id, attachment.party, is_clean, reason))

    def _forget(self, attachment: Attachment) -> None:
        del self._by_id[attachment.attach_id]
        del self._by_name[attachment.party.name]
        self._lingering.set(attachment.attach_id, None)
