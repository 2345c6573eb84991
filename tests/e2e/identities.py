"""Identities with faults for a deployment: who presents what, who trusts whom, who knows of a revocation."""

from __future__ import annotations

import time
from collections.abc import Sequence

import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from tools.deployment import Daemon
from ztna.access.identity import Identity, Role
from ztna.pki import authority
from ztna.pki.authority import DAY_S, Issued, Revocation

TRUST_DOMAIN = "demo.test"


class Identities:
    """The deployment's CA, and another one of the same name that only some trust."""

    def __init__(self) -> None:
        self.ours = authority.create_ca(TRUST_DOMAIN, time.time())
        self.alien = authority.create_ca(TRUST_DOMAIN, time.time())

    def issue(
        self,
        role: Role,
        name: str,
        *,
        is_alien: bool = False,
        lifetime_s: float = DAY_S,
        age_s: float = 0.0,
    ) -> Issued:
        """A certificate as it would have been issued `age_s` seconds ago."""
        ca = self.alien if is_alien else self.ours
        return authority.issue(ca, Identity(TRUST_DOMAIN, role, name), time.time() - age_s, lifetime_s)

    def ca_pem(self, *, trusts_alien: bool) -> bytes:
        """What a node trusts."""
        trusted = [self.ours, self.alien] if trusts_alien else [self.ours]
        return b"".join(ca.certificate.public_bytes(Encoding.PEM) for ca in trusted)

    def crl_pem(self, revoked: Sequence[Issued]) -> bytes:
        """A list of withdrawn certificates."""
        now = time.time()
        revocations = [Revocation(each.certificate.serial_number, now) for each in revoked]
        return authority.build_crl(self.ours, revocations, now, number=1).public_bytes(Encoding.PEM)

    def equip(
        self,
        daemon: Daemon,
        issued: Issued | None = None,
        *,
        trusts_alien: bool = False,
        revoked: Sequence[Issued] = (),
    ) -> Issued:
        """Write the files of a daemon; without `revoked` it has no revocation list at all."""
        issued = issued or self.issue(Role(daemon.kind), daemon.id)
        directory = daemon.config_path.parent / daemon.id
        contents = {
            "cert": issued.certificate_pem,
            "key": issued.key_pem,
            "ca": self.ca_pem(trusts_alien=trusts_alien),
        }
        if revoked:
            contents["crl"] = self.crl_pem(revoked)
        daemon.settings["node"] = {"id": daemon.id}
        for key, content in contents.items():
            path = directory / f"{key}.pem"
            path.touch(mode=0o600)
            path.write_bytes(content)
            daemon.settings["node"][key] = str(path)
        daemon.config_path.write_text(yaml.safe_dump(daemon.settings, sort_keys=False), encoding="utf-8")
        return issued


def wait_until_expired(*certificates: Issued) -> None:
    """Let the clock pass the end of each; nothing else makes a certificate expire."""
    for issued in certificates:
        left_s = issued.certificate.not_valid_after_utc.timestamp() - time.time()
        time.sleep(max(0.0, left_s) + 0.05)
