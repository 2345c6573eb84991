"""Which gRPC streams of nodes are judged: so many per certificate, and all others are refused unseen.

To judge one costs as much as a step of a handshake, and whoever was refused may ask again at once, also a
node that is revoked: TLS looks at the CA and the dates alone. It has proved whose the certificate is, so
that nobody can use up the share of another, and nodes behind one address have one each.

Whoever has very many certificates is bounded by what all judgements together may take of the event loop
(`ztna.quic.budget`). A network that asks for much gets what others leave: it may never use the second half of
that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ztna.token_bucket import TokenBuckets

MAX_STREAMS_PER_S = 1.0
MAX_STREAM_BURST = 16.0
"""`Attach` and `Relay` together. A node opens two when it comes, and again when its network changes or its
intermediate was away: a few times a minute at worst, then ever more seldom."""
MAX_CERTIFICATES = 1024
"""Remembered at a time, 300 kB. Who is forgotten begins with a full share, so the one who asked longest ago
is."""

NETWORK_STREAMS_PER_S = 20.0
NETWORK_STREAM_BURST = 128.0
"""Judged for a network whatever others do: a site whose 64 nodes all come back in one moment."""
OTHERS_SHARE = 0.5
"""Of the room there is for judgements: what a network that asks for more never uses."""
MAX_NETWORKS = 1024
"""As many as certificates are remembered."""

TOO_MANY_STREAMS = "too_many_streams"
"""This certificate was shown too often; as all reasons here, fit to be a metric label."""
TOO_MANY_NETWORK_STREAMS = "too_many_network_streams"
"""Its network asks for much while others do, too."""
STREAM_BUDGET = "stream_budget"
"""Judgements took all that they may."""


class StreamAdmission:
    """Streams of one listener; `now` is monotonic seconds."""

    def __init__(self, has_room: Callable[[float, float], bool]) -> None:
        """`has_room` tells, of now and a share to reserve for others, whether another may be judged.

        Whoever judges a stream that was admitted charges for it what is asked there.
        """
        self._has_room = has_room
        self._shares: TokenBuckets[bytes] = TokenBuckets(
            MAX_STREAMS_PER_S, MAX_STREAM_BURST, MAX_CERTIFICATES
        )
        self._networks: TokenBuckets[str] = TokenBuckets(
            NETWORK_STREAMS_PER_S, NETWORK_STREAM_BURST, MAX_NETWORKS
        )

    def admit(self, certificate: bytes, network: str, now: float) -> str:
        """Empty if a stream that shows this certificate, in whatever encoding, is to be judged; else why not.

        `network` is the prefix that it came from.
        """
        if not self._shares.use(hashlib.sha256(certificate).digest(), now).take(now):
            return TOO_MANY_STREAMS
        if not self._has_room(now, 0.0):
            return STREAM_BUDGET
        is_modest = self._networks.use(network, now).take(now)
        if not is_modest and not self._has_room(now, OTHERS_SHARE):
            return TOO_MANY_NETWORK_STREAMS
        return ""
