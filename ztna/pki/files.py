"""The CA's directory on disk: what lies where, who may read it, and what survives a crash.

    ca.crt  ca.key  crl.pem            the CA, and the revocation list that every daemon reads
    <role>/<id>.crt  <role>/<id>.key   what was issued (or in the directory that the operator named)
    issued.json                        every certificate ever issued, with its revocation

Every file is written beside its place, synced and renamed, so that a reader sees the former or the new
content. Private keys are created with mode 0600. `issued.json` is the truth and is written first; `crl.pem`
follows from it and is written again by each revocation. One lock on the directory orders concurrent
commands.

All failures are `ConfigError`s that name the file and what to do.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from ztna.access.identity import Identity, Role
from ztna.access.profile import UNREADABLE
from ztna.errors import ConfigError
from ztna.pki import authority as pki
from ztna.pki.authority import Authority, Issued, KeyType, Revocation

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
CRL = "crl.pem"
INDEX = "issued.json"
LOCK = ".lock"

INDEX_VERSION = 1

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o700


class Status(Enum):
    """State of an issued certificate."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Record:
    """One issued certificate; times in unix seconds, `serial` in lower-case hexadecimal."""

    role: str
    id: str
    serial: str
    not_before: int
    not_after: int
    revoked_at: int | None = None

    def status(self, now: float) -> Status:
        """State at `now` (unix seconds)."""
        if self.revoked_at is not None:
            return Status.REVOKED
        return Status.EXPIRED if now > self.not_after else Status.VALID


@dataclass(frozen=True, slots=True)
class _Index:
    trust_domain: str
    crl_number: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class IssuedFiles:
    """Where a node's files were written; `superseded` are certificates of the same name that stay valid."""

    certificate: Path
    key: Path
    record: Record
    superseded: tuple[Record, ...]


class PkiDirectory:
    """The files of one CA under `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def init(
        self,
        trust_domain: str,
        now: float,
        lifetime: float = pki.CA_LIFETIME_S,
        *,
        key_type: KeyType = KeyType.P256,
        force: bool = False,
    ) -> Authority:
        """Create the CA and an empty revocation list; `force` replaces a former CA and orphans its nodes."""
        ca = pki.create_ca(trust_domain, now, lifetime, key_type=key_type)
        _make_directory(self.path)
        with self._lock():
            _refuse_existing([self.path / CA_CERTIFICATE, self.path / CA_KEY], force=force)
            _write(self.path / CA_KEY, pki.private_key_pem(ca.private_key), PRIVATE_MODE)
            _write(self.path / CA_CERTIFICATE, ca.certificate.public_bytes(Encoding.PEM), PUBLIC_MODE)
            self._publish(ca, _Index(trust_domain, 0, ()), now)
        return ca

    def issue(
        self,
        role: Role,
        node_id: str,
        now: float,
        lifetime: float = pki.NODE_LIFETIME_S,
        *,
        key_type: KeyType = KeyType.P256,
        dns_names: Sequence[str] = (),
        addresses: Sequence[IPv4Address | IPv6Address] = (),
        out: Path | None = None,
        force: bool = False,
    ) -> IssuedFiles:
        """Issue a certificate and write it, its key, and with `out` also `ca.crt` and `crl.pem` beside them.

        `force` replaces the node's files; its former certificate stays valid until it is revoked.
        """
        with self._lock():
            ca, index = self.load_authority(), self._load_index()
            directory = self.path / role.value if out is None else out
            certificate_path, key_path = directory / f"{node_id}.crt", directory / f"{node_id}.key"
            issued = pki.issue(
                ca,
                Identity(index.trust_domain, role, node_id),
                now,
                lifetime,
                key_type=key_type,
                dns_names=dns_names,
                addresses=addresses,
            )
            _refuse_existing([certificate_path, key_path], force=force)
            record = _record_of(role, node_id, issued.certificate)
            superseded = tuple(
                r
                for r in index.records
                if (r.role, r.id) == (role.value, node_id) and r.status(now) is Status.VALID
            )
            self._write_index(replace(index, records=(*index.records, record)))
            self._write_node(directory, certificate_path, key_path, issued, with_ca=out is not None)
        return IssuedFiles(certificate_path, key_path, record, superseded)

    def records(self) -> tuple[Record, ...]:
        """Every certificate ever issued, oldest first."""
        return self._load_index().records

    def revoke(
        self, now: float, *, role: Role | None = None, node_id: str | None = None, serial: str | None = None
    ) -> tuple[Record, ...]:
        """Revoke every certificate of `role` and `node_id`, or the one with `serial`, and publish the list.

        Returns the records this call revoked: none if all were revoked before (the list is published again
        all the same, in case a former call was interrupted).
        """
        with self._lock():
            ca, index = self.load_authority(), self._load_index()
            wanted = {r.serial for r in index.records if _is_meant(r, role, node_id, serial)}
            if not wanted:
                what = f"with serial {serial}" if role is None else f"for {role.value} {node_id}"
                raise ConfigError(
                    f"no certificate {what} was issued here; 'ztna pki show --dir {self.path}' lists them"
                )
            records = tuple(
                replace(r, revoked_at=int(now)) if r.serial in wanted and r.revoked_at is None else r
                for r in index.records
            )
            self._publish(ca, replace(index, records=records), now)
        return tuple(new for old, new in zip(index.records, records, strict=True) if new is not old)

    def publish_crl(self, now: float) -> None:
        """Sign the revocation list again, so that it does not become stale."""
        with self._lock():
            self._publish(self.load_authority(), self._load_index(), now)

    def _publish(self, ca: Authority, index: _Index, now: float) -> None:
        index = replace(index, crl_number=index.crl_number + 1)
        self._write_index(index)
        revocations = [
            Revocation(int(record.serial, 16), record.revoked_at)
            for record in index.records
            if record.revoked_at is not None
        ]
        crl = pki.build_crl(ca, revocations, now, number=index.crl_number)
        _write(self.path / CRL, crl.public_bytes(Encoding.PEM), PUBLIC_MODE)

    def _write_node(
        self, directory: Path, certificate_path: Path, key_path: Path, issued: Issued, *, with_ca: bool
    ) -> None:
        _make_directory(directory)
        _write(key_path, issued.key_pem, PRIVATE_MODE)
        _write(certificate_path, issued.certificate_pem, PUBLIC_MODE)
        if with_ca:
            for name in (CA_CERTIFICATE, CRL):
                _write(directory / name, _read(self.path / name), PUBLIC_MODE)

    def load_authority(self) -> Authority:
        """The CA with its key, for `authority.issue`; raises `ConfigError` if there is no sound one."""
        index = self._load_index()
        certificate_path, key_path = self.path / CA_CERTIFICATE, self.path / CA_KEY
        try:
            certificate = x509.load_pem_x509_certificate(_read(certificate_path))
            key = load_pem_private_key(_read(key_path), password=None)
            public_key = certificate.public_key()  # read only now
        except UNREADABLE as error:
            raise ConfigError(f"{certificate_path} or {key_path.name} is no readable PEM: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise ConfigError(f"{key_path} is neither a P-256 nor an Ed25519 key")
        if key.public_key() != public_key:
            raise ConfigError(f"{key_path} is not the key of {certificate_path}")
        return Authority(certificate, key, index.trust_domain)

    def _load_index(self) -> _Index:
        path = self.path / INDEX
        if not path.exists():
            raise self._no_ca()
        try:
            content = json.loads(_read(path))
            if content["version"] != INDEX_VERSION:
                raise ConfigError(f"{path} has version {content['version']}, we know {INDEX_VERSION}")
            records = tuple(Record(**record) for record in content["certificates"])
            return _Index(content["trust_domain"], content["crl_number"], records)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is damaged ({error}); restore it from a backup") from error

    def _no_ca(self) -> ConfigError:
        return ConfigError(
            f"{self.path} holds no CA: name its directory with --dir, "
            f"or create one with 'ztna pki init --dir {self.path}'"
        )

    def _write_index(self, index: _Index) -> None:
        content: dict[str, Any] = {
            "version": INDEX_VERSION,
            "trust_domain": index.trust_domain,
            "crl_number": index.crl_number,
            "certificates": [asdict(record) for record in index.records],
        }
        _write(self.path / INDEX, json.dumps(content, indent=1).encode() + b"\n", PRIVATE_MODE)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        except FileNotFoundError:
            raise self._no_ca() from None
        except OSError as error:
            raise ConfigError(f"cannot lock {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _record_of(role: Role, node_id: str, certificate: x509.Certificate) -> Record:
    return Record(
        role=role.value,
        id=node_id,
        serial=f"{certificate.serial_number:x}",
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )


def _is_meant(record: Record, role: Role | None, node_id: str | None, serial: str | None) -> bool:
    if role is None:
        return record.serial == serial
    return (record.role, record.id) == (role.value, node_id)


def _refuse_existing(paths: Sequence[Path], *, force: bool) -> None:
    for path in paths:
        if not force and path.exists():
            raise ConfigError(f"{path} exists; use --force to replace it")


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the directory {path}: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace `path` atomically with a file that never had a wider mode than `mode`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(descriptor, "wb") as stream:  # noqa: PTH123 - a descriptor, not a path
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
