"""The intermediate's server endpoint: what becomes of a datagram that belongs to no connection yet.

Every client proves its address by a Retry (RFC 9000 §8.1.2) before anything is remembered about it, so a
forged source costs us one small answer and no memory. Answers that are not part of a connection are far
smaller than what they answer, hence anti-amplification (RFC 9000 §8) holds by construction. A token opens
one connection: whoever recorded a client's Initial could otherwise have us send that client our whole
handshake again and again, six bytes for each of theirs. Agents and connectors have no endpoint: they answer
no stranger.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from aioquic.quic.packet import (
    QuicHeader,
    encode_quic_retry,
    encode_quic_version_negotiation,
)
from aioquic.quic.retry import TOKEN_LIFETIME, QuicRetryTokenHandler

from ztna.address import TransportAddress, network_prefix
from ztna.errors import RemoteProtocolError
from ztna.quic.adapter import parse_header
from ztna.quic.admission import BUDGET_SPENT, Admission
from ztna.quic.budget import HandshakeBudget
from ztna.quic.connection import Connection
from ztna.quic.demux import (
    LOCAL_CID_BYTES,
    LONG_CID_OFFSET,
    SUPPORTED_VERSION,
    ConnectionIdTable,
    destination_cid,
    is_long_header,
    opens_connection,
    version,
)
from ztna.quic.options import ConnectionOptions
from ztna.token_bucket import TokenBucket

OwnerT = TypeVar("OwnerT", bound=Hashable)

MIN_INITIAL_BYTES = 1200
"""Clients pad their first datagram to this (RFC 9000 §14.1); less gets no answer of any kind."""
MAX_STATELESS_REPLIES_PER_S = 2000.0
"""Retry and version negotiation cost about 40 us each: eight per cent of a core."""
MAX_STATELESS_BURST = 200.0
MAX_TOKEN_AGE_S = 8.0
"""A client gives an attempt up ten seconds after it asked for the token. The last Initial before that comes
after six seconds; what comes later is its farewell, which would only spend a handshake."""
MAX_USED_TOKENS = 4096
"""Remembered while they would still be accepted: more than the budget lets begin in those seconds, unless one
begins in less than 0.4 ms. A megabyte."""
MAX_WAITING = 128
"""Clients of proved addresses whose handshake may not begin yet: 160 kB, and what the budget serves in six
seconds. They come in waves, since all of them double the same time-out; without a place to wait, most of
the budget would lie idle between two waves."""
MAX_WAITING_PER_NETWORK = 32
"""Once half of the places are taken: the others are for others."""
MAX_SILENCE_S = 4.0
"""Since a client that waits asked last: it asks again after 3.2 s at most, or has given up."""
LOOK_INTERVAL_S = 0.02
"""How often those who wait are looked at; meanwhile the budget gains about one step of a handshake."""
MAX_LAG_S = 0.05
"""A look that comes later than this shows a machine that is busier than the budget supposes, be it with us or
with others: handshakes then begin one by one, each look later than the last, until those under way have
ended. Otherwise more and more are under way, and in the end all of them time out."""
CLOCK_GRAIN_S = 0.001
"""A token states its issue in whole milliseconds."""
MIN_CLIENT_CID_BYTES = 8
"""RFC 9000 §7.2: the destination connection ID of a client's first Initial."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Not one byte back; `reason` is fit to be a metric label."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Send `data` back to the source and forget it."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Accept:
    """A new connection, which has the datagram already: route its connection IDs, then drive it."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Wait:
    """Its handshake begins later: see `handle_timeout`."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A new connection of a client that waited; `local_host` is what its first packet was handed in with."""

    connection: Connection
    source: TransportAddress
    local_host: str


@dataclass(slots=True)
class _Waiting:
    header: QuicHeader
    original_cid: bytes
    datagram: bytes
    source: TransportAddress
    local_host: str
    network: str
    asked_at: float


@dataclass(frozen=True, slots=True)
class Deliver(Generic[OwnerT]):
    """The datagram belongs to a connection accepted earlier in the same batch."""

    owner: OwnerT


class Endpoint(Generic[OwnerT]):
    """Decides about datagrams of unknown connections; `dropped` and `replied` count what became of them."""

    def __init__(
        self, options: ConnectionOptions, table: ConnectionIdTable[OwnerT], budget: HandshakeBudget
    ) -> None:
        self._options = options
        self._table = table
        self._tokens = QuicRetryTokenHandler()
        self._replies = TokenBucket(MAX_STATELESS_REPLIES_PER_S, MAX_STATELESS_BURST, 0.0)
        self.admission = Admission(budget)
        self._used_tokens: OrderedDict[bytes, float] = OrderedDict()  # the connection ID in each, when used
        self._waiting: OrderedDict[bytes, _Waiting] = OrderedDict()  # by connection ID, last who asked last
        self._look_at = 0.0
        self.dropped: Counter[str] = Counter()
        self.replied: Counter[str] = Counter()

    def update_options(self, options: ConnectionOptions) -> None:
        """Accept further connections with other options, as after a reload of certificates."""
        self._options = options

    @property
    def handshaking(self) -> int:
        """Accepted connections that are neither established nor closed."""
        return self.admission.handshaking

    @property
    def waiting(self) -> int:
        """Clients whose handshake may not begin yet."""
        return len(self._waiting)

    def handle_timeout(self, now: float) -> list[Admitted]:
        """Begin handshakes that waited, as far as the budget allows; forget clients that ask no more.

        Who asked last comes first. While more ask than can be served, nearly all of those who have waited
        longest are about to give up: to begin with them would spend the budget on handshakes that nobody
        ends, each of which makes one more client that asks again.
        """
        if not self._waiting or now < self._look_at:
            return []
        is_late = now - self._look_at > MAX_LAG_S
        self._look_at = now + LOOK_INTERVAL_S
        while self._waiting and now - next(iter(self._waiting.values())).asked_at > MAX_SILENCE_S:
            self._waiting.popitem(last=False)
            self._drop("gave_up_waiting")
        admitted: list[Admitted] = []
        for key, each in reversed(list(self._waiting.items())):
            refusal = self.admission.admit(each.network, now)
            if not refusal:
                del self._waiting[key]
                admitted.append(Admitted(self._begin(each, now), each.source, each.local_host))
                if is_late:
                    break
            elif refusal == BUDGET_SPENT:
                break
        return admitted

    def next_deadline(self) -> float | None:
        """When to look at those who wait."""
        return self._look_at if self._waiting else None

    def handle_datagram(
        self, datagram: bytes, source: TransportAddress, now: float, local_host: str = ""
    ) -> Drop | Reply | Accept | Wait | Deliver[OwnerT]:
        """Decide about one datagram; never raises for what it contains."""
        connection_id = destination_cid(datagram)
        if connection_id is None:
            return self._drop("truncated")
        owner = self._table.owner_of(connection_id)
        if owner is not None:
            return Deliver(owner)
        if not is_long_header(datagram) or not opens_connection(datagram):
            return self._drop("unknown_connection_id")
        if len(datagram) < MIN_INITIAL_BYTES:
            return self._drop("initial_too_small")
        if version(datagram) != SUPPORTED_VERSION:
            return self._negotiate_version(datagram, connection_id, now)
        try:
            header = parse_header(datagram)
        except RemoteProtocolError as error:
            return self._drop(error.reason)
        if len(header.destination_cid) < MIN_CLIENT_CID_BYTES:
            return self._drop("malformed")
        if not header.token:
            return self._retry(header, source, now)
        return self._accept(header, datagram, source, now, local_host)

    def _negotiate_version(self, datagram: bytes, connection_id: bytes, now: float) -> Drop | Reply:
        start = LONG_CID_OFFSET + len(connection_id) + 1
        source_cid = datagram[start : start + datagram[start - 1]]
        if not self._replies.take(now):
            return self._drop("reply_rate")
        self.replied["version_negotiation"] += 1
        return Reply(
            encode_quic_version_negotiation(
                source_cid=connection_id, destination_cid=source_cid, supported_versions=[SUPPORTED_VERSION]
            )
        )

    def _retry(self, header: QuicHeader, source: TransportAddress, now: float) -> Drop | Reply:
        if not self._replies.take(now):
            return self._drop("reply_rate")
        self.replied["retry"] += 1
        retry_cid = os.urandom(LOCAL_CID_BYTES)
        token = self._tokens.create_token(
            address=(source.host, source.port),
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=retry_cid,
            now=now,
        )
        return Reply(
            encode_quic_retry(
                version=SUPPORTED_VERSION,
                source_cid=retry_cid,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            )
        )

    def _accept(
        self, header: QuicHeader, datagram: bytes, source: TransportAddress, now: float, local_host: str
    ) -> Drop | Accept | Wait:
        try:
            original = self._tokens.validate_token(
                address=(source.host, source.port),
                destination_cid=header.destination_cid,
                token=header.token,
                now=now + TOKEN_LIFETIME - MAX_TOKEN_AGE_S,
            )
        except ValueError:
            return self._drop("invalid_token")
        if self._is_used(header.destination_cid, now):
            return self._drop("replayed_token")
        key = header.destination_cid
        if key in self._waiting:
            self._waiting[key].asked_at = now
            self._waiting.move_to_end(key)
            return Wait()
        network = network_prefix(source)
        client = _Waiting(header, original, datagram, source, local_host, network, now)
        # Those who wait have their turn at fixed intervals: who comes between them takes nothing from them.
        refusal = self.admission.admit(network, now) if not self._waiting else BUDGET_SPENT
        if not refusal:
            return Accept(self._begin(client, now))
        self._make_room(network)
        if not self._waiting:
            self._look_at = now + LOOK_INTERVAL_S
        self._waiting[key] = client
        return Wait()

    def _make_room(self, network: str) -> None:
        """Whoever asked longest ago makes room: of the same network, if that has had its places."""
        if len(self._waiting) < MAX_WAITING // 2:
            return
        own = [key for key, each in self._waiting.items() if each.network == network]
        if len(own) >= MAX_WAITING_PER_NETWORK:
            del self._waiting[own[0]]
        elif len(self._waiting) >= MAX_WAITING:
            self._waiting.popitem(last=False)
        else:
            return
        self._drop("no_place_to_wait")

    def _begin(self, client: _Waiting, now: float) -> Connection:
        with self.admission.charged(client.network, now, is_first=True):
            connection = Connection.server(
                self._options,
                destination_cid=client.header.destination_cid,
                original_destination_cid=client.original_cid,
                address=(client.source.host, client.source.port),
            )
            connection.receive([client.datagram], now)
        self.admission.begin(client.network, connection)
        self._used_tokens[client.header.destination_cid] = now
        return connection

    def _is_used(self, retry_cid: bytes, now: float) -> bool:
        """Whether the token made for this connection ID, which names it, opened a connection before."""
        used = self._used_tokens
        while used and (
            len(used) >= MAX_USED_TOKENS or now - next(iter(used.values())) > MAX_TOKEN_AGE_S + CLOCK_GRAIN_S
        ):
            used.popitem(last=False)
        return retry_cid in used

    def _drop(self, reason: str) -> Drop:
        self.dropped[reason] += 1
        return Drop(reason)
