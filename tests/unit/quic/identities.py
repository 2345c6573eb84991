"""Options of QUIC connections with certificates of the test CA, and any fault a test asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from cryptography import x509

from tests import pki_fixtures as pki
from ztna.access.identity import Role
from ztna.pki.authority import Issued
from ztna.quic.options import ConnectionOptions

AGENT = pki.issue("agent", "a1")
CONNECTOR = pki.issue("connector", "c1")
INTERMEDIATE = pki.issue("intermediate", "i1")


def judge(
    expect: str, *, as_server: bool, revoked: Iterable[Issued] = ()
) -> Callable[[Sequence[x509.Certificate]], object]:
    """A verifier of the test CA that expects one role of its peer."""
    verifier = pki.verifier(revoked=revoked)

    def verify(chain: Sequence[x509.Certificate]) -> object:
        peer = verifier.verify(chain, expect=Role(expect), now_wall=pki.NOW, as_server=as_server)
        return peer.identity.uri

    return verify


def client_options(issued: Issued = AGENT, **changes: Any) -> ConnectionOptions:
    """An agent that expects a connector."""
    options = ConnectionOptions.inner(
        certificate=issued.certificate,
        private_key=issued.private_key,
        verify_peer=judge("connector", as_server=True),
    )
    return replace(options, **changes)


def server_options(
    issued: Issued = CONNECTOR, revoked: Iterable[Issued] = (), **changes: Any
) -> ConnectionOptions:
    """A connector that expects an agent."""
    options = ConnectionOptions.inner(
        certificate=issued.certificate,
        private_key=issued.private_key,
        verify_peer=judge("agent", as_server=False, revoked=revoked),
    )
    return replace(options, **changes)


def leg_options(issued: Issued, expect: str, *, is_client: bool, **changes: Any) -> ConnectionOptions:
    """Either end of a relay leg."""
    options = ConnectionOptions.leg(
        certificate=issued.certificate,
        private_key=issued.private_key,
        verify_peer=judge(expect, as_server=is_client),
    )
    return replace(options, **changes)
