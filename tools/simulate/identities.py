"""Who the nodes of a deployment are, when their certificates end, and whose revocation lists name them.

Stands for the files that a daemon reads at its start and at every reload. A node without a fault of its
certificate has the one that all tests share, so that scenarios without such faults cost nothing more.
"""

from __future__ import annotations

from typing import Final
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from actors.credentials import Credentials, parse_credentials
from tests import pki_fixtures
from tests.simnet.sim_io import WALL_EPOCH
from ztna.access.identity import Identity, Role
from ztna.pki import authority as pki
from ztna.pki.authority import Issued, KeyType, Revocation

KEY_TYPE: Final = "ed25519"
"""Its signatures have one length."""
BEGIN: Final = 1_000_000_000.0
"""Unix seconds from which every certificate holds: long before any clock of a simulation."""
LIFETIME_S: Final = 3_000_000_000.0
FIRST_SERIAL: Final = 1 << 150
"""As long as those that are drawn by chance."""


class Identities:
    """The certificates that exist, and the lists that were given out."""

    def __init__(self) -> None:
        self._issued: dict[str, Issued] = {}
        self._ends: dict[str, float] = {}
        self._withdrawn: list[Revocation] = []
        self._lists: dict[str, bytes] = {}
        self._number = 0
        self._serial = FIRST_SERIAL

    def end_at(self, name: str, when_wall: float) -> None:
        """Let the certificate that `name` is issued first end at `when_wall`, in unix seconds."""
        self._ends[name] = when_wall

    def credentials(self, role: Role, name: str) -> Credentials:
        """What the node's files say now; it reads them whether they are of any use or not."""
        issued = self._issued.get(name)
        if issued is None:
            issued = self._issued[name] = self._first(role, name)
        files = pki_fixtures.pem(issued, key_type=KEY_TYPE)
        return parse_credentials(
            files.certificate, files.key, files.ca, self._lists.get(name), role, WALL_EPOCH
        )

    def renew(self, role: Role, name: str) -> None:
        """Issue another certificate, of another key."""
        self._issued[name] = self._issue(role, name, LIFETIME_S)

    def revoke(self, role: Role, name: str, now_wall: float) -> None:
        """Withdraw the certificate that the node has."""
        if name not in self._issued:
            self._issued[name] = self._first(role, name)
        self._withdrawn.append(Revocation(self._issued[name].certificate.serial_number, now_wall))
        self._number += 1

    def give_list(self, name: str, now_wall: float) -> None:
        """Put the newest list among a node's files; nothing if it names the node, which would not take it."""
        own = self._issued.get(name)
        if own is not None and own.certificate.serial_number in {each.serial for each in self._withdrawn}:
            return
        crl = pki.build_crl(
            pki_fixtures.authority(KEY_TYPE), self._withdrawn, now_wall - 1.0, number=self._number
        )
        self._lists[name] = crl.public_bytes(Encoding.PEM)

    def _first(self, role: Role, name: str) -> Issued:
        if name in self._ends:
            return self._issue(role, name, self._ends[name] - BEGIN)
        return pki_fixtures.issue(role, name, key_type=KEY_TYPE)

    def _issue(self, role: Role, name: str, lifetime_s: float) -> Issued:
        self._serial += 1
        # It stands in log lines, which the same seed repeats.
        with patch.object(x509, "random_serial_number", lambda: self._serial):
            return pki.issue(
                pki_fixtures.authority(KEY_TYPE),
                Identity(pki_fixtures.TRUST_DOMAIN, role, name),
                BEGIN,
                lifetime_s,
                key_type=KeyType(KEY_TYPE),
            )
