"""Which handshakes an endpoint begins: they cost far more than a packet, and strangers may ask for them.

All together they get a fixed share of the processor and a fixed number of places. A network that asks for
much gets what others leave: it may never use the second half of either, so that one stranger who repeats
handshakes, or never ends them, keeps nobody else out.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from ztna.address import TransportAddress, network_prefix
from ztna.token_bucket import TokenBucket

MAX_HANDSHAKING = 256
"""Connections between accepted and established: about 25 MB, and ten seconds of handshakes at the budget."""
MAX_HANDSHAKING_PER_NETWORK = 32
"""Beyond it a network is one that asks for much: nodes of one site that all started within a round trip."""
HANDSHAKE_COST_S = 0.008
"""CPU time of one mutually authenticated handshake, as measured."""
MAX_HANDSHAKE_SHARE = 0.20
"""Of any second: a storm of reconnections must leave time for the sessions that live."""
NETWORK_HANDSHAKE_SHARE = MAX_HANDSHAKE_SHARE / 4
"""What a network may take while others ask, too: six handshakes at once, and six per second."""
MAX_NETWORKS = 1024
"""Remembered at a time. At the budget one is forgotten after forty seconds at least, and its share is full
again after one."""


class Handshake(Protocol):
    """What is looked at of a connection."""

    @property
    def is_established(self) -> bool:
        """Whether the handshake is over."""

    @property
    def is_closed(self) -> bool:
        """Whether it never will be."""


class Admission:
    """Budget and places of handshakes; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._budget = TokenBucket(MAX_HANDSHAKE_SHARE, MAX_HANDSHAKE_SHARE, 0.0)
        self._shares: OrderedDict[str, TokenBucket] = OrderedDict()
        self._handshaking: list[tuple[str, Handshake]] = []

    @property
    def handshaking(self) -> int:
        """Handshakes that began and are neither established nor closed."""
        self._handshaking = [
            each for each in self._handshaking if not (each[1].is_established or each[1].is_closed)
        ]
        return len(self._handshaking)

    def admit(self, source: TransportAddress, now: float) -> str:
        """Take a handshake out of the budget, or say why not (fit to be a metric label).

        Call it for a proved source only. The client sends its Initial again, later each time, so what is
        refused here only waits.
        """
        if self._budget.seconds_until(now, HANDSHAKE_COST_S):
            return "handshake_budget"
        network = network_prefix(source)
        is_modest = self._share_of(network, now).take(now, HANDSHAKE_COST_S)
        reserve = HANDSHAKE_COST_S + MAX_HANDSHAKE_SHARE / 2
        if not is_modest and self._budget.seconds_until(now, reserve):
            return "network_handshake_budget"
        places = self.handshaking
        if places >= MAX_HANDSHAKING:
            return "too_many_handshakes"
        if places >= MAX_HANDSHAKING // 2:
            own = sum(holder == network for holder, _ in self._handshaking)
            if own >= MAX_HANDSHAKING_PER_NETWORK:
                return "too_many_network_handshakes"
        self._budget.take(now, HANDSHAKE_COST_S)
        return ""

    def begin(self, source: TransportAddress, handshake: Handshake) -> None:
        """Note the handshake that was admitted."""
        self._handshaking.append((network_prefix(source), handshake))

    def _share_of(self, network: str, now: float) -> TokenBucket:
        share = self._shares.get(network)
        if share is None:
            share = TokenBucket(NETWORK_HANDSHAKE_SHARE, NETWORK_HANDSHAKE_SHARE, now)
            self._shares[network] = share
            if len(self._shares) > MAX_NETWORKS:
                self._shares.popitem(last=False)
        self._shares.move_to_end(network)
        return share
