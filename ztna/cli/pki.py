"""`ztna pki`: the deployment's certificate authority from the command line.

Exit codes: 0 done, 2 wrong usage or a directory that cannot be used, 1 anything else.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from ztna.access.identity import Role
from ztna.cli.errors import CommandError
from ztna.errors import AuthenticationError, ConfigError
from ztna.pki import authority
from ztna.pki.authority import DAY_S, KeyType
from ztna.pki.files import CA_CERTIFICATE, CRL, PkiDirectory, Record, Status

MAX_DAYS = 36_500
"""A hundred years: beyond it, a lifetime is a slip of the keyboard."""

_STATUS_STYLE = {Status.VALID: "", Status.EXPIRED: "yellow", Status.REVOKED: "red"}

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class _AddressType(click.ParamType[ipaddress.IPv4Address | ipaddress.IPv6Address]):
    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        try:
            return ipaddress.ip_address(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _dir_option(command: CommandT) -> CommandT:
    option = click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("pki"),
        show_default="./pki",
        help="Directory of the CA.",
    )
    return option(command)


def _days_option(default_s: float) -> Callable[[CommandT], CommandT]:
    return click.option(
        "--days",
        type=click.IntRange(1, MAX_DAYS),
        default=int(default_s / DAY_S),
        show_default=True,
        help="Days until it expires.",
    )


_key_type_option = click.option(
    "--key-type",
    type=click.Choice([kind.value for kind in KeyType]),
    default=KeyType.P256.value,
    show_default=True,
    help="Kind of key; gRPC cannot use ed25519.",
)

_role_type = click.Choice([role.value for role in Role])


@contextmanager
def _reported() -> Iterator[None]:
    """Turn expected failures into one line on stderr and an exit code."""
    try:
        yield
    except AuthenticationError as error:  # a name that breaks the syntax of identities
        raise click.UsageError(str(error)) from error
    except ConfigError as error:
        raise CommandError(str(error)) from error


@click.group()
def pki() -> None:
    """Create and revoke the identities of a deployment's nodes."""


@pki.command()
@_dir_option
@click.option("--trust-domain", default="example.org", show_default=True, help="Name of the deployment.")
@_days_option(authority.CA_LIFETIME_S)
@_key_type_option
@click.option("--force", is_flag=True, help="Replace the CA there; every node needs a new certificate then.")
def init(directory: Path, trust_domain: str, days: int, key_type: str, force: bool) -> None:
    """Create the CA of a deployment."""
    with _reported():
        ca = PkiDirectory(directory).init(
            trust_domain, time.time(), days * DAY_S, key_type=KeyType(key_type), force=force
        )
    expiry = _date(int(ca.certificate.not_valid_after_utc.timestamp()))
    click.echo(f"CA of {trust_domain}: {directory / CA_CERTIFICATE}, until {expiry}")
    click.echo(f"Keep {directory} off the nodes; they need {CA_CERTIFICATE}, {CRL} and their own two files.")


@pki.command()
@_dir_option
@click.argument("role", type=_role_type)
@click.argument("name")
@click.option("--dns", "dns_names", multiple=True, metavar="NAME", help="Host name of an intermediate.")
@click.option("--ip", "addresses", multiple=True, type=_AddressType(), help="Address of an intermediate.")
@_days_option(authority.NODE_LIFETIME_S)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Write NAME.crt, NAME.key, {CA_CERTIFICATE} and {CRL} there, ready to be copied to the node.",
)
@_key_type_option
@click.option("--force", is_flag=True, help="Replace the node's files; the former certificate stays valid.")
def issue(
    directory: Path,
    role: str,
    name: str,
    dns_names: tuple[str, ...],
    addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...],
    days: int,
    out: Path | None,
    key_type: str,
    force: bool,
) -> None:
    """Issue the certificate and key of the node NAME."""
    with _reported():
        issued = PkiDirectory(directory).issue(
            Role(role),
            name,
            time.time(),
            days * DAY_S,
            key_type=KeyType(key_type),
            dns_names=dns_names,
            addresses=addresses,
            out=out,
            force=force,
        )
    expiry = _date(issued.record.not_after)
    click.echo(f"{role} {name}: {issued.certificate} and {issued.key.name}, until {expiry}")
    if Role(role) is Role.OPERATOR:
        click.echo("No daemon accepts operators yet: people use the control socket on the daemon's machine.")
    for former in issued.superseded:
        command = f"ztna pki revoke --dir {directory} --serial {former.serial}"
        click.echo(f"The former certificate stays valid; withdraw it with: {command}", err=True)


@pki.command()
@_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def show(directory: Path, as_json: bool) -> None:
    """List every certificate that the CA issued."""
    now = time.time()
    with _reported():
        records = PkiDirectory(directory).records()
    if as_json:
        click.echo(json.dumps([{**asdict(r), "status": r.status(now).value} for r in records], indent=2))
        return
    console = Console(highlight=False)
    for line in _lines(records, now):
        console.print(line, soft_wrap=True)


@pki.command(short_help="Withdraw certificates of a node, or one by its serial number.")
@_dir_option
@click.argument("role", type=_role_type, required=False)
@click.argument("name", required=False)
@click.option("--serial", metavar="HEX", help="Revoke this one certificate instead of all of ROLE NAME.")
def revoke(directory: Path, role: str | None, name: str | None, serial: str | None) -> None:
    """Withdraw the certificates of ROLE NAME, or the one with a serial number."""
    if (serial is None) == (role is None) or (role is None) != (name is None):
        raise click.UsageError("give either ROLE and NAME, or --serial")
    if serial is not None:
        serial = _normalise_serial(serial)
    with _reported():
        revoked = PkiDirectory(directory).revoke(
            time.time(), role=None if role is None else Role(role), node_id=name, serial=serial
        )
    for record in revoked:
        click.echo(f"Revoked {record.role} {record.id}, serial {record.serial}")
    if not revoked:
        click.echo("Nothing to do: revoked before")
    click.echo(f"Copy {directory / CRL} to every node; daemons read it when they are sent SIGHUP.")


@pki.command()
@_dir_option
def crl(directory: Path) -> None:
    """Sign the revocation list again, before daemons report it as stale."""
    with _reported():
        PkiDirectory(directory).publish_crl(time.time())
    click.echo(f"Published {directory / CRL}")


def _normalise_serial(text: str) -> str:
    try:
        return f"{int(text.replace(':', ''), 16):x}"
    except ValueError:
        raise click.UsageError(f"{text!r} is not a serial number in hexadecimal") from None


def _date(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s, tz=UTC):%Y-%m-%d}"


def _lines(records: tuple[Record, ...], now: float) -> Iterator[Text]:
    """A header, and a line per certificate that no width cuts: a serial number is there to be copied."""
    rows = [("role", "id", "expires", "status", "serial")]
    styles = ["dim"]
    for record in records:
        status = record.status(now)
        rows.append((record.role, record.id, _date(record.not_after), status.value, record.serial))
        styles.append(_STATUS_STYLE[status])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, style in zip(rows, styles, strict=True):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield Text(line.rstrip(), style)
