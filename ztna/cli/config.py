"""`ztna config`: what a configuration file means, before a daemon reads it.

Exit codes: 0 fine (there may be warnings), 2 wrong usage or configuration, 3 credentials not acceptable.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import yaml
from rich.table import Table
from rich.text import Text

from ztna.cli.console import print_view
from ztna.cli.exit_codes import EXIT_AUTHENTICATION, EXIT_CONFIG
from ztna.errors import AuthenticationError, ConfigError
from ztna.settings import DaemonKind, DaemonSettings
from ztna.settings.check import inspect_settings
from ztna.settings.keys import effective_values
from ztna.settings.loader import DEFAULT_ORIGIN, Loaded, load_any

if TYPE_CHECKING:
    from actors.credentials import Credentials

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def parse_overrides(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Split each `KEY.PATH=VALUE` at its first `=`; a repeated key keeps its last value."""
    overrides: dict[str, str] = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key.strip():
            raise click.BadParameter(f"{value!r} is not of the form KEY.PATH=VALUE")
        overrides[key.strip()] = text
    return overrides


def config_options(command: CommandT) -> CommandT:
    """Add `-c FILE` (as `path`) and `--set KEY.PATH=VALUE` (as `overrides`, a dict) to a command."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        callback=parse_overrides,
        metavar="KEY.PATH=VALUE",
        help="Override one key; the value is YAML. May be repeated.",
    )(command)
    return click.option(
        "-c",
        "--config",
        "path",
        required=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The daemon's YAML file.",
    )(command)


_kind_option = click.option(
    "--kind",
    type=click.Choice([kind.value for kind in DaemonKind]),
    help="Which daemon the file is for; by default the file tells.",
)


@click.group()
def config() -> None:
    """Check a configuration file, or show what it comes to."""


@config.command()
@config_options
@_kind_option
def check(path: Path, overrides: dict[str, str], kind: str | None) -> None:
    """Report every fault of a configuration and of the files it names."""
    loaded = _load(path, overrides, kind)
    findings = inspect_settings(loaded.settings)
    for warning in findings.warnings:
        click.echo(f"warning: {warning}", err=True)
    if findings.problems:
        _fail("\n".join(findings.problems))
    credentials = _load_credentials(loaded.settings)
    date = f"{datetime.fromtimestamp(credentials.certificate_ends_at, tz=UTC):%Y-%m-%d}"
    if credentials.ends_soon(time.time()):
        click.echo(f"warning: node.cert: expires on {date}; issue another with 'ztna pki issue'", err=True)
    kind, name = loaded.settings.kind, loaded.settings.node.id
    click.echo(f"{path}: fine, for the {kind} {name} (certificate until {date})")


@config.command(short_help="Print every key, its effective value and where that comes from.")
@config_options
@_kind_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object: key to value and origin.")
def show(path: Path, overrides: dict[str, str], kind: str | None, as_json: bool) -> None:
    """Print every key with its effective value and its origin: default, FILE:LINE, env NAME or flag."""
    loaded = _load(path, overrides, kind)
    rows = [(".".join(key), value) for key, value in effective_values(loaded.settings)]
    if as_json:
        document = {key: {"value": value, "origin": loaded.origins[key]} for key, value in rows}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "value", "origin"):
        table.add_column(heading, overflow="fold")
    for key, value in rows:
        origin = loaded.origins[key]
        style = "dim" if origin == DEFAULT_ORIGIN else ""
        table.add_row(Text(key), Text(_as_yaml(value)), Text(origin), style=style)
    print_view(table)


def _load_credentials(settings: DaemonSettings) -> Credentials:
    """The node's credentials, once the daemon would start with its files."""
    from actors.credentials import load_credentials  # noqa: PLC0415 - `show` does without cryptography
    from ztna.access.identity import Role  # noqa: PLC0415

    try:
        return load_credentials(settings.node, Role(settings.kind.value), time.time())
    except ConfigError as error:
        _fail(str(error))
    except AuthenticationError as error:
        _fail(str(error), EXIT_AUTHENTICATION)


def _fail(problems: str, code: int = EXIT_CONFIG) -> NoReturn:
    click.echo(problems, err=True)
    raise click.exceptions.Exit(code)


def _load(path: Path, overrides: dict[str, str], kind: str | None) -> Loaded[DaemonSettings]:
    try:
        return load_any(path, os.environ, overrides, DaemonKind(kind) if kind else None)
    except ConfigError as error:
        _fail(str(error))


def _as_yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**20, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
