from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.pki_fixtures import as_pem, of_unknown_version
from ztna.access.identity import Role
from ztna.access.revocation import RevocationList
from ztna.errors import ConfigError
from ztna.pki.authority import DAY_S, KeyType
from ztna.pki.files import PkiDirectory, Status

NOW = 1_800_000_000.0


@pytest.fixture
def directory(tmp_path: Path) -> PkiDirectory:
    made = PkiDirectory(tmp_path / "pki")
    made.init("example.org", NOW)
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def crl(directory: PkiDirectory) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((directory.path / "crl.pem").read_bytes())


def revoked(directory: PkiDirectory, serial: str) -> bool:
    ca = x509.load_pem_x509_certificate((directory.path / "ca.crt").read_bytes())
    data = (directory.path / "crl.pem").read_bytes()
    return RevocationList.parse(data, [ca]).is_revoked(int(serial, 16))


def test_layout_and_modes_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        directory = PkiDirectory(tmp_path / "pki")
        directory.init("example.org", NOW)
        directory.issue(Role.AGENT, "laptop", NOW)
    finally:
        os.umask(former)
    files = {str(p.relative_to(directory.path)): mode(p) for p in directory.path.rglob("*") if p.is_file()}
    assert files == {
        ".lock": 0o600,
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "crl.pem": 0o644,
        "issued.json": 0o600,
        "agent/laptop.crt": 0o644,
        "agent/laptop.key": 0o600,
    }
    assert mode(directory.path) == 0o700


def test_grpc_loads_the_files(directory: PkiDirectory) -> None:
    files = directory.issue(Role.INTERMEDIATE, "relay", NOW)
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    root = (directory.path / "ca.crt").read_bytes()
    assert grpc.ssl_server_credentials([pair], root, require_client_auth=True)


def test_bundle_holds_all_that_a_node_needs(directory: PkiDirectory, tmp_path: Path) -> None:
    out = tmp_path / "node"
    files = directory.issue(Role.CONNECTOR, "site", NOW, out=out)
    assert sorted(p.name for p in out.iterdir()) == ["ca.crt", "crl.pem", "site.crt", "site.key"]
    assert files.key == out / "site.key"
    assert mode(files.key) == 0o600


def test_nothing_is_overwritten_unless_forced(directory: PkiDirectory) -> None:
    first = directory.issue(Role.AGENT, "laptop", NOW)
    key = first.key.read_bytes()
    with pytest.raises(ConfigError, match=r"laptop\.crt exists; use --force"):
        directory.issue(Role.AGENT, "laptop", NOW)
    with pytest.raises(ConfigError, match=r"ca\.crt exists; use --force"):
        directory.init("example.org", NOW)
    assert first.key.read_bytes() == key
    second = directory.issue(Role.AGENT, "laptop", NOW, force=True)
    assert second.superseded == (first.record,)
    assert second.key.read_bytes() != key
    assert directory.records() == (first.record, second.record)


def test_forced_init_starts_a_new_ca(directory: PkiDirectory) -> None:
    directory.issue(Role.AGENT, "laptop", NOW)
    directory.init("example.net", NOW, force=True, key_type=KeyType.ED25519)
    assert directory.records() == ()


def test_status_follows_time_and_revocation(directory: PkiDirectory) -> None:
    record = directory.issue(Role.AGENT, "laptop", NOW, DAY_S).record
    assert record.status(NOW + DAY_S) is Status.VALID
    assert record.status(NOW + DAY_S + 1) is Status.EXPIRED
    (after,) = directory.revoke(NOW, role=Role.AGENT, node_id="laptop")
    assert after.status(NOW + DAY_S + 1) is Status.REVOKED


def test_revoking_a_name_revokes_all_its_certificates_and_no_other(directory: PkiDirectory) -> None:
    first = directory.issue(Role.AGENT, "laptop", NOW).record
    second = directory.issue(Role.AGENT, "laptop", NOW, force=True).record
    others = [directory.issue(Role.OPERATOR, "laptop", NOW), directory.issue(Role.AGENT, "phone", NOW)]
    done = directory.revoke(NOW, role=Role.AGENT, node_id="laptop")
    assert [record.serial for record in done] == [first.serial, second.serial]
    assert revoked(directory, first.serial)
    assert revoked(directory, second.serial)
    assert not any(revoked(directory, other.record.serial) for other in others)


def test_revoking_a_serial_spares_the_name(directory: PkiDirectory) -> None:
    first = directory.issue(Role.AGENT, "laptop", NOW).record
    second = directory.issue(Role.AGENT, "laptop", NOW, force=True).record
    directory.revoke(NOW, serial=first.serial)
    assert revoked(directory, first.serial)
    assert not revoked(directory, second.serial)


def test_revoking_again_publishes_a_list_lost_to_a_crash(directory: PkiDirectory) -> None:
    record = directory.issue(Role.AGENT, "laptop", NOW).record
    before = (directory.path / "crl.pem").read_bytes()
    directory.revoke(NOW, serial=record.serial)
    (directory.path / "crl.pem").write_bytes(before)
    assert directory.revoke(NOW + 1, serial=record.serial) == ()
    assert revoked(directory, record.serial)


@pytest.mark.parametrize("by", [{"serial": "77"}, {"role": Role.AGENT, "node_id": "nobody"}])
def test_revoking_what_was_never_issued_is_an_error(directory: PkiDirectory, by: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="was issued here"):
        directory.revoke(NOW, **by)  # type: ignore[arg-type]


def test_concurrent_revocations_are_all_kept(directory: PkiDirectory) -> None:
    records = [directory.issue(Role.AGENT, f"n{i}", NOW).record for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda r: PkiDirectory(directory.path).revoke(NOW, serial=r.serial), records))
    assert all(revoked(directory, record.serial) for record in records)
    assert crl(directory).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 13


def test_published_list_is_newer_and_numbered(directory: PkiDirectory) -> None:
    directory.publish_crl(NOW + DAY_S)
    assert crl(directory).last_update_utc.timestamp() == NOW + DAY_S
    assert crl(directory).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2


def test_a_directory_without_a_ca_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="ztna pki init"):
            PkiDirectory(path).issue(Role.AGENT, "laptop", NOW)
        with pytest.raises(ConfigError, match="ztna pki init"):
            PkiDirectory(path).records()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "certificates": [{}]}', "\udcff"]
)
def test_damaged_index_is_named(directory: PkiDirectory, content: str) -> None:
    (directory.path / "issued.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"issued\.json"):
        directory.records()


def test_ca_files_that_do_not_fit_are_named(directory: PkiDirectory, tmp_path: Path) -> None:
    other = PkiDirectory(tmp_path / "other")
    other.init("example.org", NOW)
    key = directory.path / "ca.key"
    key.write_bytes((other.path / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        directory.publish_crl(NOW)
    key.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(ConfigError, match="neither a P-256 nor"):
        directory.publish_crl(NOW)
    key.write_bytes(b"garbage")
    with pytest.raises(ConfigError, match="no readable PEM"):
        directory.publish_crl(NOW)
    key.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        directory.publish_crl(NOW)


@pytest.mark.parametrize("fault", ["no key", "unknown version"])
def test_ca_certificate_that_cannot_be_read_is_named(directory: PkiDirectory, fault: str) -> None:
    path = directory.path / "ca.crt"
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[der.index(b"\x03\x42\x00\x04") + 4] ^= 1
    path.write_bytes(as_pem(bytes(der) if fault == "no key" else of_unknown_version(certificate)))
    with pytest.raises(ConfigError, match="no readable PEM"):
        directory.publish_crl(NOW)


def test_unwritable_places_are_named_and_leave_nothing_behind(
    directory: PkiDirectory, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="cannot create the directory"):
        directory.issue(Role.AGENT, "laptop", NOW, out=blocked)
    with pytest.raises(ConfigError, match="cannot lock"):
        PkiDirectory(blocked).publish_crl(NOW)
    out = tmp_path / "out"
    (out / "laptop.key" / "in-the-way").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot write .*laptop\.key"):
        directory.issue(Role.AGENT, "laptop", NOW, out=out, force=True)
    assert [p.name for p in out.iterdir()] == ["laptop.key"]


def test_index_is_plain_json(directory: PkiDirectory) -> None:
    directory.issue(Role.AGENT, "laptop", NOW)
    content = json.loads((directory.path / "issued.json").read_text())
    assert content["trust_domain"] == "example.org"
    assert content["certificates"][0]["id"] == "laptop"
