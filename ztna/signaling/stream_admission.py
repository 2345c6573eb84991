"""Which gRPC streams of nodes are judged: so many per certificate, all others are refused unseen.

To judge one costs as much as a step of a handshake, and whoever was refused may ask again at once, also a
node that is revoked: TLS looks at the CA and the dates alone. It has proved whose the certificate is, so
that nobody can use up the share of another, and nodes behind one address have one each.
"""

from __future__ import annotations

import hashlib

from ztna.token_bucket import TokenBuckets

MAX_STREAMS_PER_S = 1.0
MAX_STREAM_BURST = 16.0
"""`Attach` and `Relay` together. A node opens two when it comes, and again when its network changes or its
intermediate was away: a few times a minute at worst, then ever more seldom."""
MAX_CERTIFICATES = 1024
"""Remembered at a time, 300 kB. Who is forgotten begins with a full share, so the one who asked longest ago
is."""

TOO_MANY_STREAMS = "too_many_streams"
"""Why a stream is refused unjudged; fit to be a metric label."""


class StreamAdmission:
    """Streams of one listener; `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._shares: TokenBuckets[bytes] = TokenBuckets(
            MAX_STREAMS_PER_S, MAX_STREAM_BURST, MAX_CERTIFICATES
        )

    def admit(self, certificate: bytes, now: float) -> bool:
        """Whether to judge a stream that shows this certificate, in whatever encoding."""
        return self._shares.use(hashlib.sha256(certificate).digest(), now).take(now)
