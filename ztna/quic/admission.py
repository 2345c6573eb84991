"""Which handshakes an endpoint begins: they cost far more than a packet, and strangers may ask for them.

All together they get a fixed share of the processor and a fixed number of places. A network that asks for
much gets what others leave: it may never use the second half of either, so that one stranger who repeats
handshakes, or never ends them, keeps nobody else out.

The share holds of any second, not only in the long run: what may begin at once and what accrues meanwhile
come to no more than that. And few may begin at once, since packets wait behind them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from ztna.token_bucket import TokenBucket

MAX_HANDSHAKING = 256
"""Connections between accepted and established: about 25 MB, and twelve seconds at the budget."""
MAX_HANDSHAKING_PER_NETWORK = 32
"""Beyond it a network is one that asks for much: nodes of one site that all started within a round trip."""
HANDSHAKE_COST_S = 0.008
"""CPU time of one mutually authenticated handshake, as measured."""
MAX_HANDSHAKE_SHARE = 0.20
"""Of any second: a storm of reconnections must leave time for the sessions that live."""
MAX_HANDSHAKE_BURST_S = 0.04
"""Five at once: what all other packets may have to wait behind, less than a relayed round trip."""
NETWORK_HANDSHAKE_SHARE = MAX_HANDSHAKE_SHARE / 4
"""What a network may take of any second while others ask, too: two handshakes at once, four per second."""
NETWORK_HANDSHAKE_BURST_S = MAX_HANDSHAKE_BURST_S * 2 / 5
MAX_NETWORKS = 1024
"""Remembered at a time. At the budget one is forgotten after fifty seconds at least, and its share is full
again after one."""


BUDGET_SPENT = "handshake_budget"
"""Why nobody's handshake may begin now; other refusals concern one network, or the places."""


class Handshake(Protocol):
    """What is looked at of a connection."""

    @property
    def is_established(self) -> bool:
        """Whether the handshake is over."""

    @property
    def is_closed(self) -> bool:
        """Whether it never will be."""


class HandshakeBudget:
    """The share of the processor that all handshakes of a process may take; `now` is monotonic seconds."""

    def __init__(self) -> None:
        rate = MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S
        self._bucket = TokenBucket(rate, MAX_HANDSHAKE_BURST_S, 0.0)

    def take(self, now: float) -> bool:
        """Take one handshake out of it, if it is there."""
        return self._bucket.take(now, HANDSHAKE_COST_S)

    def holds(self, now: float, reserve_s: float = 0.0) -> bool:
        """Whether one handshake could begin and leave `reserve_s` for others."""
        return not self._bucket.seconds_until(now, HANDSHAKE_COST_S + reserve_s)


class Admission:
    """Budget and places of handshakes; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._budget = HandshakeBudget()
        self._shares: OrderedDict[str, TokenBucket] = OrderedDict()
        self._handshaking: list[tuple[str, Handshake]] = []

    @property
    def handshaking(self) -> int:
        """Handshakes that began and are neither established nor closed."""
        self._handshaking = [
            each for each in self._handshaking if not (each[1].is_established or each[1].is_closed)
        ]
        return len(self._handshaking)

    def admit(self, network: str, now: float) -> str:
        """Take a handshake out of the budget, or say why not (fit to be a metric label).

        `network` is whoever has to share with others, as far as it is proved: a network prefix, or the name
        of a peer. The client sends its Initial again, later each time, so what is refused here only waits.
        """
        if not self._budget.holds(now):
            return BUDGET_SPENT
        is_modest = self._share_of(network, now).take(now, HANDSHAKE_COST_S)
        if not is_modest and not self._budget.holds(now, MAX_HANDSHAKE_BURST_S / 2):
            return "network_handshake_budget"
        places = self.handshaking
        if places >= MAX_HANDSHAKING:
            return "too_many_handshakes"
        if places >= MAX_HANDSHAKING // 2:
            own = sum(holder == network for holder, _ in self._handshaking)
            if own >= MAX_HANDSHAKING_PER_NETWORK:
                return "too_many_network_handshakes"
        self._budget.take(now)
        return ""

    def begin(self, network: str, handshake: Handshake) -> None:
        """Note the handshake that was admitted."""
        self._handshaking.append((network, handshake))

    def _share_of(self, network: str, now: float) -> TokenBucket:
        share = self._shares.get(network)
        if share is None:
            rate = NETWORK_HANDSHAKE_SHARE - NETWORK_HANDSHAKE_BURST_S
            share = TokenBucket(rate, NETWORK_HANDSHAKE_BURST_S, now)
            self._shares[network] = share
            if len(self._shares) > MAX_NETWORKS:
                self._shares.popitem(last=False)
        self._shares.move_to_end(network)
        return share
