"""Whose STUN message is it? Verified before anybody is told, and told to exactly one.

A node is reachable by strangers as soon as its NAT has a hole. So this core gives every message the cheapest
possible end: one look at the header, one look into a table, and only a message that names something we know
costs an HMAC. What does not pass is dropped and counted; there is no reply to anything here, which departs
from RFC 8489 §9.1.3 and RFC 8445 §7.3 (they want 400 and 401): a stranger shall not learn that we exist.

Requests are known by their USERNAME, `<local ufrag>:<remote ufrag>` (RFC 8445 §7.2.2), and have to carry
the integrity of the local password. Responses are known by their transaction, and have to carry the integrity
that its request was sent with.

A check that somebody overheard and sends again is answered with silence (`ztna.stun.replays`). Expired
entries cost memory only until `handle_timeout`; no decision depends on it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.stun.attributes import MAGIC_COOKIE, MAX_USERNAME_BYTES, Username
from ztna.stun.integrity import ATTRIBUTE_HEADER_BYTES, HEADER_BYTES
from ztna.stun.message import MAX_ATTRIBUTES, TRANSACTION_ID_BYTES, Message, parse
from ztna.stun.replays import ReplayMemory
from ztna.token_bucket import TokenBucket

MIN_UFRAG_CHARACTERS: Final = 4
MIN_PWD_CHARACTERS: Final = 22
MAX_CREDENTIAL_CHARACTERS: Final = 256
"""RFC 8445 §5.3. A shorter password could be guessed at the rate at which we verify."""

MAX_UFRAGS_PER_SESSION: Final = 8
"""One per generation; former ones live `FORMER_CREDENTIALS_S`, and restarts are seconds apart."""
MAX_UFRAGS: Final = 8192
"""A thousand sessions at the bound above; about 2 MB without their replay memory."""

MAX_TRANSACTIONS_PER_SESSION: Final = 512
"""What 100 pairs, their triggered checks and two restarts ask within a minute. Beyond it the oldest is given
up, which costs the session a late answer."""
MAX_TRANSACTIONS: Final = 32_768
"""Of all sessions; about 10 MB. New ones are refused beyond it."""
TRANSACTION_LIFETIME_S: Final = 60.0
"""A check fails after 4.7 s, yet a late answer still counts; no network keeps a packet for a minute."""

CHECKS_PER_SECOND: Final = 100.0
CHECK_BURST: Final = 300.0
"""Per ufrag, of new checks, which only who holds the password can make: an agent paces them by 20 ms or more
(RFC 8445 §14.2), and has a checklist of 100 pairs."""
FORMER_CREDENTIALS_S: Final = 5.0
"""How long checks with former credentials are still answered: those under way when a restart began."""

_REQUEST: Final = b"\x00\x01"
_SUCCESS: Final = b"\x01\x01"
_ERROR: Final = b"\x01\x11"
_COOKIE: Final = MAGIC_COOKIE.to_bytes(4, "big")


class Asker(Enum):
    """Who sent a request, and is told of its response."""

    CHECKLIST = "checklist"
    KEEPALIVE = "keepalive"
    CANDIDATE_GATHERER = "candidate_gatherer"


@dataclass(frozen=True, slots=True)
class Route:
    """Who is told of a message: `asker`, of this session (empty for the candidate gatherer).

    `ufrag` is the local one of a request, and empty for a response.
    """

    asker: Asker
    session_id: bytes
    ufrag: str = ""


@dataclass(slots=True)
class _Credentials:
    session_id: bytes
    key: bytes
    budget: TokenBucket
    ends_at: float | None = None
    """Once they are former ones."""
    replays: ReplayMemory = field(default_factory=ReplayMemory)


@dataclass(slots=True)
class _Transaction:
    asker: Asker
    session_id: bytes
    remote: TransportAddress
    key: bytes
    expires_at: float
    is_told_of_stranger: bool = False


class StunRouter:
    """The table of one process: local ufrag to session, transaction to asker. `now` is monotonic seconds."""

    def __init__(
        self,
        *,
        max_ufrags: int = MAX_UFRAGS,
        max_transactions: int = MAX_TRANSACTIONS,
    ) -> None:
        self._max_ufrags = max_ufrags
        self._max_transactions = max_transactions
        self._credentials: dict[bytes, _Credentials] = {}  # by local ufrag
        self._ufrags: dict[bytes, OrderedDict[bytes, None]] = {}  # by session
        self._transactions: OrderedDict[bytes, _Transaction] = OrderedDict()  # the next to expire first
        self._pending: dict[bytes, OrderedDict[bytes, None]] = {}  # transaction ids by session
        self.dropped: Counter[str] = Counter()
        """Messages that nobody was told of, and what was not entered, by reason."""

    @property
    def ufrags(self) -> int:
        """Local ufrags held, former ones included."""
        return len(self._credentials)

    @property
    def transactions(self) -> int:
        """Transactions whose response would be passed on."""
        return len(self._transactions)

    def accept(self, session_id: bytes, ufrag: str, pwd: str, now: float) -> bool:
        """Pass checks with these local credentials on to `session_id`; False when they are not acceptable.

        Credentials that another session holds, or that are no ICE credentials, are refused. A session's
        oldest ones give way when it has too many.
        """
        self._forget_former(now)
        key = ufrag.encode()
        held = self._credentials.get(key)
        is_well_formed = (
            MIN_UFRAG_CHARACTERS <= len(ufrag) <= MAX_CREDENTIAL_CHARACTERS
            and MIN_PWD_CHARACTERS <= len(pwd) <= MAX_CREDENTIAL_CHARACTERS
            and ":" not in ufrag
        )
        if not is_well_formed or (held is not None and held.session_id != session_id):
            self.dropped["stun_credentials_refused"] += 1
            return False
        if held is not None:
            held.key, held.ends_at = pwd.encode(), None
            return True
        if len(self._ufrags.get(session_id, ())) >= MAX_UFRAGS_PER_SESSION:
            self._remove_credentials(next(iter(self._ufrags[session_id])))
        if len(self._credentials) >= self._max_ufrags:
            self.dropped["stun_credentials_refused"] += 1
            return False
        budget = TokenBucket(CHECKS_PER_SECOND, CHECK_BURST, now)
        self._credentials[key] = _Credentials(session_id, pwd.encode(), budget)
        self._ufrags.setdefault(session_id, OrderedDict())[key] = None
        return True

    def refuse(self, session_id: bytes, ufrag: str, now: float) -> None:
        """Pass such checks on for `FORMER_CREDENTIALS_S` more; empty `ufrag`: all of this session."""
        self._forget_former(now)
        for key in [ufrag.encode()] if ufrag else list(self._ufrags.get(session_id, ())):
            held = self._credentials.get(key)
            if held is not None and held.session_id == session_id and held.ends_at is None:
                held.ends_at = now + FORMER_CREDENTIALS_S

    def expect(
        self,
        transaction_id: bytes,
        asker: Asker,
        session_id: bytes,
        remote: TransportAddress,
        key: bytes,
        now: float,
    ) -> bool:
        """Pass the response to this transaction on to `asker`; again: renews it. False when there is no room.

        `key` is what the response's integrity is verified with; empty: it need not carry any.
        """
        if len(transaction_id) != TRANSACTION_ID_BYTES:
            self.dropped["stun_transaction_refused"] += 1
            return False
        self._forget_expired(now)
        self._remove_transaction(transaction_id)
        pending = self._pending.get(session_id, OrderedDict())
        if len(pending) >= MAX_TRANSACTIONS_PER_SESSION:
            self._remove_transaction(next(iter(pending)))
        if len(self._transactions) >= self._max_transactions:
            self.dropped["stun_transaction_refused"] += 1
            return False
        expires_at = now + TRANSACTION_LIFETIME_S
        self._transactions[transaction_id] = _Transaction(asker, session_id, remote, key, expires_at)
        self._pending.setdefault(session_id, OrderedDict())[transaction_id] = None
        return True

    def route(self, datagram: bytes, source: TransportAddress, now: float) -> Route | None:
        """Who is told of this datagram; None: nobody, and `dropped` says why. Raises nothing."""
        outcome = self._judge(datagram, source, now)
        if isinstance(outcome, Route):
            return outcome
        self.dropped[outcome] += 1
        return None

    def handle_timeout(self, now: float) -> None:
        """Let go of what has expired; call it now and then."""
        self._forget_former(now)
        self._forget_expired(now)
        for held in self._credentials.values():
            held.replays.handle_timeout(now)

    def _judge(self, datagram: bytes, source: TransportAddress, now: float) -> Route | str:
        """The route, or why there is none."""
        if len(datagram) < HEADER_BYTES or datagram[4:8] != _COOKIE:
            return "stun_malformed"
        kind = datagram[:2]
        if kind == _REQUEST:
            return self._judge_request(datagram, source, now)
        if kind in {_SUCCESS, _ERROR}:
            return self._judge_response(datagram, source, now)
        return "stun_unexpected"

    def _judge_request(self, datagram: bytes, source: TransportAddress, now: float) -> Route | str:
        username = _username(datagram)
        ufrag, colon, _ = username.partition(b":")
        if not username:
            return "stun_without_username"
        held = self._credentials.get(ufrag) if colon else None
        if held is None or (held.ends_at is not None and now >= held.ends_at):
            return "stun_unknown_ufrag"
        message = _parse(datagram)
        if message is None:
            return "stun_malformed"
        # The first USERNAME may stand behind the integrity, where nobody vouches for it.
        vouched = message.find(Username)
        if vouched is None or vouched.text.encode() != username or not message.verify_integrity(held.key):
            return "stun_wrong_integrity"
        complaint = _remember(held, message.transaction_id, source, now)
        if complaint:
            return complaint
        return Route(Asker.CHECKLIST, held.session_id, ufrag.decode())

    def _judge_response(self, datagram: bytes, source: TransportAddress, now: float) -> Route | str:
        transaction_id = datagram[8:HEADER_BYTES]
        asked = self._transactions.get(transaction_id)
        if asked is None or now >= asked.expires_at:
            return "stun_unknown_transaction"
        is_from_remote = source == asked.remote
        # The checklist hears once of an answer from elsewhere (RFC 8445 §7.2.5.2.1 gives it a meaning); for
        # the others such an answer proves nothing of the address they asked about.
        if not is_from_remote and (asked.asker is not Asker.CHECKLIST or asked.is_told_of_stranger):
            return "stun_foreign_response"
        message = _parse(datagram)
        if message is None:
            return "stun_malformed"
        if asked.key and not message.verify_integrity(asked.key):
            return "stun_wrong_integrity"
        if is_from_remote:
            # Once: an answer that is repeated, by whomever, is work for nobody.
            self._remove_transaction(transaction_id)
        else:
            asked.is_told_of_stranger = True
        return Route(asked.asker, asked.session_id)

    def _forget_former(self, now: float) -> None:
        former = [
            key for key, held in self._credentials.items() if held.ends_at is not None and now >= held.ends_at
        ]
        for key in former:
            self._remove_credentials(key)

    def _forget_expired(self, now: float) -> None:
        while self._transactions:
            transaction_id, oldest = next(iter(self._transactions.items()))
            if now < oldest.expires_at:
                return
            self._remove_transaction(transaction_id)

    def _remove_credentials(self, key: bytes) -> None:
        held = self._credentials.pop(key)
        ufrags = self._ufrags[held.session_id]
        del ufrags[key]
        if not ufrags:
            del self._ufrags[held.session_id]

    def _remove_transaction(self, transaction_id: bytes) -> None:
        asked = self._transactions.pop(transaction_id, None)
        if asked is None:
            return
        pending = self._pending[asked.session_id]
        del pending[transaction_id]
        if not pending:
            del self._pending[asked.session_id]


def _parse(datagram: bytes) -> Message | None:
    try:
        return parse(datagram)
    except RemoteProtocolError:
        return None


def _username(datagram: bytes) -> bytes:
    """The value of the first USERNAME, unverified; empty when there is none within bounds."""
    offset = HEADER_BYTES
    for _ in range(MAX_ATTRIBUTES):
        start = offset + ATTRIBUTE_HEADER_BYTES
        if start > len(datagram):
            return b""
        size = int.from_bytes(datagram[offset + 2 : start], "big")
        if int.from_bytes(datagram[offset : offset + 2], "big") == Username.TYPE:
            return datagram[start : start + size] if size <= MAX_USERNAME_BYTES else b""
        offset = start + size + -size % 4
    return b""


def _remember(held: _Credentials, transaction_id: bytes, source: TransportAddress, now: float) -> str:
    """Note an authentic check; why it is not passed on, or empty."""
    complaint = held.replays.complaint(transaction_id, source, now)
    if complaint is not None:
        return complaint
    if not held.budget.take(now):
        return "stun_too_many_checks"
    held.replays.note(transaction_id, source, now)
    return ""
