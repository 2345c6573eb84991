"""Which handshakes an endpoint begins: they cost far more than a packet, and strangers may ask for them.

All together they get a fixed share of the processor (`ztna.quic.budget`) and a fixed number of places. A
network that asks for much gets what others leave: it may never use the second half of either, so that one
stranger who repeats handshakes, or never ends them, keeps nobody else out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ztna.quic.budget import MAX_HANDSHAKE_BURST_S, MAX_HANDSHAKE_SHARE, HandshakeBudget
from ztna.token_bucket import TokenBuckets

MAX_HANDSHAKING = 256
"""Connections between accepted and established: about 25 MB, and several seconds at the budget."""
MAX_HANDSHAKING_PER_NETWORK = 32
"""Beyond it a network is one that asks for much: nodes of one site that all started within a round trip."""
NETWORK_HANDSHAKE_SHARE = MAX_HANDSHAKE_SHARE / 4
"""What a network may take of any second while others ask, too: some ten handshakes."""
NETWORK_HANDSHAKE_BURST_S = MAX_HANDSHAKE_BURST_S * 2 / 5
MAX_NETWORK_DEBT_S = NETWORK_HANDSHAKE_SHARE
"""Whoever took what others left is as good as anybody a second later."""
MAX_NETWORKS = 1024
"""Remembered at a time. At the budget one is forgotten after several seconds at least, and its share is full
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


class Admission:
    """Places of handshakes, and who may begin one while the budget lasts; `now` is monotonic seconds."""

    def __init__(self, budget: HandshakeBudget) -> None:
        self.budget = budget
        rate = NETWORK_HANDSHAKE_SHARE - NETWORK_HANDSHAKE_BURST_S
        self._shares: TokenBuckets[str] = TokenBuckets(rate, NETWORK_HANDSHAKE_BURST_S, MAX_NETWORKS)
        self._handshaking: list[tuple[str, Handshake]] = []

    @property
    def handshaking(self) -> int:
        """Handshakes that began and are neither established nor closed."""
        self._handshaking = [
            each for each in self._handshaking if not (each[1].is_established or each[1].is_closed)
        ]
        return len(self._handshaking)

    def admit(self, network: str, now: float) -> str:
        """Empty if a handshake may begin; else why not (fit to be a metric label).

        `network` is whoever has to share with others, as far as it is proved: a network prefix, or the name
        of a peer. The client sends its Initial again, later each time, so what is refused here only waits.
        """
        if not self.budget.may_begin(now):
            return BUDGET_SPENT
        is_modest = self._shares.use(network, now).level(now) >= 0
        if not is_modest and not self.budget.may_begin(now, MAX_HANDSHAKE_BURST_S / 2):
            return "network_handshake_budget"
        places = self.handshaking
        if places >= MAX_HANDSHAKING:
            return "too_many_handshakes"
        if places >= MAX_HANDSHAKING // 2:
            own = sum(holder == network for holder, _ in self._handshaking)
            if own >= MAX_HANDSHAKING_PER_NETWORK:
                return "too_many_network_handshakes"
        return ""

    @contextmanager
    def charged(self, network: str, now: float, *, is_first: bool = False) -> Iterator[None]:
        """Do within it a step of a handshake of this network; both pay what that took."""
        before_s = self.budget.spent_s
        try:
            with self.budget.charged(now, is_first=is_first):
                yield
        finally:
            self._charge_network(network, self.budget.spent_s - before_s, now)

    def begin(self, network: str, handshake: Handshake) -> None:
        """Note the handshake that was admitted."""
        self._handshaking.append((network, handshake))

    def _charge_network(self, network: str, cost_s: float, now: float) -> None:
        share = self._shares.use(network, now)
        share.charge(now, min(cost_s, share.level(now) + MAX_NETWORK_DEBT_S))
