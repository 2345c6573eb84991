"""`ztna status` and `ztna sessions`: what a running daemon is doing, read from its control socket.

Exit codes: 0 fine, 2 wrong usage or configuration, 4 no daemon answers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ztna.cli.control_client import (
    CALL_LIMIT_S,
    CommandT,
    DaemonUnreachableError,
    choose_socket,
    control_stub,
    socket_options,
)
from ztna.cli.status_json import as_plain
from ztna.v1 import control_pb2

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ztna.cli.status_view import Rates

View = Callable[[control_pb2.DaemonStatus, "Rates | None"], "RenderableType"]


def _options(command: CommandT) -> CommandT:
    for option in (
        click.option("--watch", is_flag=True, help="Go on showing it, with rates, until Ctrl-C."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch one object per line."),
    ):
        command = option(command)
    return socket_options(command)


@click.command()
@_options
def status(path: Path | None, config: Path | None, as_json: bool, watch: bool) -> None:
    """Show what a running daemon is doing.

    Without --socket or -c it is the one daemon of this user that runs.
    """
    _show(choose_socket(path, config), as_plain, _status_view, as_json=as_json, watch=watch)


@click.command()
@_options
def sessions(path: Path | None, config: Path | None, as_json: bool, watch: bool) -> None:
    """Show the sessions of a running daemon.

    Without --socket or -c it is the one daemon of this user that runs.
    """
    _show(choose_socket(path, config), _sessions_object, _sessions_view, as_json=as_json, watch=watch)


def _sessions_object(found: control_pb2.DaemonStatus) -> dict[str, Any]:
    return {"daemon": found.daemon, "id": found.id, "sessions": [as_plain(each) for each in found.sessions]}


def _status_view(found: control_pb2.DaemonStatus, rates: Rates | None) -> RenderableType:
    from ztna.cli.status_view import status_view  # noqa: PLC0415 - scripts that read JSON do without rich

    return status_view(found, time.time(), rates)


def _sessions_view(found: control_pb2.DaemonStatus, rates: Rates | None) -> RenderableType:
    from ztna.cli.status_view import sessions_view  # noqa: PLC0415

    return sessions_view(found, rates)


def _show(
    path: Path,
    to_object: Callable[[control_pb2.DaemonStatus], dict[str, Any]],
    view: View,
    *,
    as_json: bool,
    watch: bool,
) -> None:
    with control_stub(path) as stub:
        if not watch:
            answer = stub.GetStatus(control_pb2.GetStatusRequest(), timeout=CALL_LIMIT_S)
            _print_once(answer.status, to_object, view, as_json=as_json)
            return
        try:
            if as_json:
                for found in _watched(stub):
                    click.echo(json.dumps(to_object(found)))
            else:
                _watch_view(_watched(stub), view)
        except KeyboardInterrupt:
            return  # how watching ends
        raise DaemonUnreachableError(f"the daemon at {path} has ended")


def _watched(stub: Any) -> Iterator[control_pb2.DaemonStatus]:
    for answer in stub.WatchStatus(control_pb2.WatchStatusRequest()):
        yield answer.status


def _print_once(
    found: control_pb2.DaemonStatus,
    to_object: Callable[[control_pb2.DaemonStatus], dict[str, Any]],
    view: View,
    *,
    as_json: bool,
) -> None:
    if as_json:
        click.echo(json.dumps(to_object(found), indent=2))
        return
    from ztna.cli.console import print_view  # noqa: PLC0415

    print_view(view(found, None))


def _watch_view(statuses: Iterator[control_pb2.DaemonStatus], view: View) -> None:
    from rich.live import Live  # noqa: PLC0415

    from ztna.cli.console import print_view  # noqa: PLC0415
    from ztna.cli.status_view import Rates  # noqa: PLC0415

    rates = Rates()
    if not sys.stdout.isatty():
        for found in statuses:
            rates.observe(found)
            print_view(view(found, rates))
        return
    with Live(screen=True, auto_refresh=False) as live:
        for found in statuses:
            rates.observe(found)
            live.update(view(found, rates), refresh=True)
