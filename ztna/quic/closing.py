"""Error codes of RFC 9000 §20 and what they mean to us."""

from __future__ import annotations

from ztna.quic.events import CloseReason

NO_ERROR = 0x00
INTERNAL_ERROR = 0x01
TRANSPORT_PARAMETER_ERROR = 0x08
APPLICATION_ERROR = 0x0C
"""How an application's close looks before the handshake is over (RFC 9000 §10.2.3)."""
CRYPTO_ERROR = 0x100
"""Plus the TLS alert (RFC 9001 §4.8)."""

_ALERT_REASONS = {
    42: CloseReason.BAD_CERTIFICATE,
    43: CloseReason.BAD_CERTIFICATE,
    44: CloseReason.CERTIFICATE_REVOKED,
    45: CloseReason.CERTIFICATE_EXPIRED,
    46: CloseReason.BAD_CERTIFICATE,
    48: CloseReason.UNKNOWN_CA,
    49: CloseReason.ACCESS_DENIED,
    51: CloseReason.BAD_CERTIFICATE,
    116: CloseReason.CERTIFICATE_REQUIRED,
}


def reason_of(code: int, *, is_application: bool) -> CloseReason:
    """The label of a CONNECTION_CLOSE frame, of the application's kind or the transport's."""
    if is_application or code in {NO_ERROR, APPLICATION_ERROR}:
        return CloseReason.CLOSED
    if code == INTERNAL_ERROR:
        return CloseReason.INTERNAL_ERROR
    if CRYPTO_ERROR <= code < 2 * CRYPTO_ERROR:
        return _ALERT_REASONS.get(code - CRYPTO_ERROR, CloseReason.TLS_ERROR)
    return CloseReason.PROTOCOL_ERROR
