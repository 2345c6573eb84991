from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from actors.credentials import MAX_PEM_BYTES, load_credentials, parse_credentials
from tests.pki_fixtures import NOW, as_pem, authority, crl_pem, issue, of_unknown_version, pem
from ztna.access.identity import Role, fingerprint
from ztna.errors import AuthenticationError, ConfigError
from ztna.pki.authority import private_key_pem


@dataclass
class Files:
    cert: Path
    key: Path
    ca: Path
    crl: Path | None = None
    id: str = "c1"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    parts = pem(issue(Role.CONNECTOR, "c1"))
    (tmp_path / "node.crt").write_bytes(parts.certificate)
    (tmp_path / "node.key").write_bytes(parts.key)
    (tmp_path / "ca.crt").write_bytes(parts.ca)
    return Files(tmp_path / "node.crt", tmp_path / "node.key", tmp_path / "ca.crt")


def test_matching_files_give_the_identity_of_the_certificate(files: Files) -> None:
    credentials = load_credentials(files, Role.CONNECTOR, NOW)
    own = issue(Role.CONNECTOR, "c1").certificate
    assert (credentials.identity.role, credentials.identity.id) == (Role.CONNECTOR, "c1")
    assert credentials.fingerprint == fingerprint(own)
    assert credentials.chain_der == (own.public_bytes(Encoding.DER),)
    assert len(credentials.ca_certificates) == 1


def test_the_private_key_stays_out_of_the_repr(files: Files) -> None:
    credentials = load_credentials(files, Role.CONNECTOR, NOW)
    assert "PRIVATE" not in repr(credentials)
    assert "c1" in repr(credentials)


def test_revocation_list_is_honoured_for_others(files: Files, tmp_path: Path) -> None:
    stolen = issue(Role.AGENT, "a1")
    files.crl = tmp_path / "ca.crl"
    files.crl.write_bytes(crl_pem(stolen))
    verifier = load_credentials(files, Role.CONNECTOR, NOW).verifier
    with pytest.raises(AuthenticationError) as caught:
        verifier.verify(stolen.chain, expect=Role.AGENT, now_wall=NOW, as_server=False)
    assert caught.value.reason == "revoked"


@pytest.mark.parametrize("name", ["cert", "key", "ca", "crl"])
def test_missing_file_is_named(files: Files, tmp_path: Path, name: str) -> None:
    setattr(files, name, tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match=rf"^node\.{name}: cannot read .*absent\.pem"):
        load_credentials(files, Role.CONNECTOR, NOW)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("cert", "holds no PEM certificate"),
        ("key", "holds no PEM private key"),
        ("ca", "holds no PEM certificate"),
    ],
)
def test_file_with_other_content_is_named(files: Files, name: str, complaint: str) -> None:
    path: Path = getattr(files, name)
    path.write_bytes(b"not PEM at all\n")
    with pytest.raises(ConfigError) as caught:
        load_credentials(files, Role.CONNECTOR, NOW)
    assert str(caught.value) == f"node.{name}: {path} {complaint}"


def test_spoiled_pem_is_told_with_the_reason(files: Files) -> None:
    files.cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match=r"^node\.cert: .* holds no PEM certificate \(.+\)$"):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_certificate_of_an_unknown_version_is_told_with_the_reason(files: Files) -> None:
    files.ca.write_bytes(as_pem(of_unknown_version(issue(Role.CONNECTOR, "c1").certificate)))
    with pytest.raises(ConfigError, match=r"^node\.ca: .* holds no PEM certificate \(.+\)$"):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_certificate_whose_public_key_is_none_is_told_with_the_reason(files: Files) -> None:
    der = bytearray(issue(Role.CONNECTOR, "c1").certificate.public_bytes(Encoding.DER))
    point = der.index(b"\x03\x42\x00\x04") + 4
    der[point] ^= 1
    files.cert.write_bytes(as_pem(bytes(der)))
    with pytest.raises(ConfigError, match=r"node\.cert: .* holds no readable public key \("):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_oversized_file_is_refused_unread(files: Files) -> None:
    files.key.write_bytes(b"x" * (MAX_PEM_BYTES + 1))
    with pytest.raises(ConfigError, match=r"node\.key: .* larger than"):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_key_of_another_certificate_is_refused(files: Files) -> None:
    files.key.write_bytes(issue(Role.CONNECTOR, "c2").key_pem)
    with pytest.raises(
        AuthenticationError, match=r"^wrong_key: node\.key: .* is not the key of the certificate"
    ):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_encrypted_key_is_refused_with_the_reason(files: Files) -> None:
    files.key.write_bytes(
        issue(Role.CONNECTOR, "c1").private_key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        )
    )
    with pytest.raises(ConfigError, match=r"node\.key: .* is encrypted"):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_rsa_key_is_refused(files: Files) -> None:
    key = rsa.generate_private_key(65537, 2048)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(
        AuthenticationError, match=r"^malformed: node\.key: .* neither a P-256 nor an Ed25519 key"
    ):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_ca_file_that_holds_a_node_certificate_is_refused(files: Files) -> None:
    files.ca.write_bytes(issue(Role.CONNECTOR, "c1").certificate_pem)
    with pytest.raises(AuthenticationError, match=r"^malformed: node\.ca: "):
        load_credentials(files, Role.CONNECTOR, NOW)


def test_ca_whose_subject_cannot_be_read_is_refused(files: Files) -> None:
    der = authority().certificate.public_bytes(Encoding.DER)
    # The subject's last text, which is a UTF8String, becomes bytes that are no UTF-8; its key no key.
    at = der.rindex(b"CA of ")
    spoiled = bytearray(der[:at] + b"\xff" + der[at + 1 :])
    spoiled[der.index(b"\x03\x42\x00\x04") + 4] ^= 1
    files.ca.write_bytes(as_pem(bytes(spoiled)))
    with pytest.raises(AuthenticationError, match=r"node\.ca: .*of an unreadable subject"):
        load_credentials(files, Role.CONNECTOR, NOW)


@pytest.mark.parametrize("role", [Role.AGENT, Role.INTERMEDIATE, Role.OPERATOR])
def test_certificate_of_another_role_is_refused(files: Files, role: Role) -> None:
    with pytest.raises(AuthenticationError) as caught:
        load_credentials(files, role, NOW)
    whose = f"{files.cert} is the certificate of connector 'c1'"
    assert str(caught.value) == f"wrong_role: node.cert: {whose}, and `kind` is {role.value!r}"


def test_certificate_of_another_id_is_refused(files: Files) -> None:
    files.id = "c9"
    with pytest.raises(AuthenticationError) as caught:
        load_credentials(files, Role.CONNECTOR, NOW)
    whose = f"{files.cert} is the certificate of connector 'c1'"
    assert str(caught.value) == f"wrong_name: node.cert: {whose}, and `node.id` is 'c9'"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("expired", "expired"), ("not_yet_valid", "not_yet_valid"), ("foreign", "foreign_ca")],
)
def test_own_certificate_that_peers_would_refuse_is_refused_at_once(fault: str, reason: str) -> None:
    own = issue(Role.AGENT, "a1", **{fault: True})  # type: ignore[arg-type]
    with pytest.raises(AuthenticationError) as caught:
        parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, None, Role.AGENT, NOW)
    assert str(caught.value).startswith(f"{reason}: node.cert: the certificate: ")
    assert str(caught.value).count(f"{reason}: ") == 1


def test_own_revoked_certificate_is_refused_at_once() -> None:
    own = issue(Role.AGENT, "a1")
    with pytest.raises(AuthenticationError) as caught:
        parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, crl_pem(own), Role.AGENT, NOW)
    assert caught.value.reason == "revoked"


def test_revocation_list_of_another_ca_is_refused() -> None:
    own = issue(Role.AGENT, "a1")
    with pytest.raises(AuthenticationError, match=r"node\.crl") as caught:
        parse_credentials(
            own.certificate_pem, own.key_pem, pem(own).ca, crl_pem(foreign=True), Role.AGENT, NOW
        )
    assert caught.value.reason == "bad_signature"


def test_certificate_without_a_name_of_ours_is_refused() -> None:
    ca = authority()
    certificate = ca.certificate.public_bytes(Encoding.PEM)
    with pytest.raises(AuthenticationError, match=r"node\.cert") as caught:
        parse_credentials(certificate, private_key_pem(ca.private_key), certificate, None, Role.AGENT, NOW)
    assert caught.value.reason == "malformed"
