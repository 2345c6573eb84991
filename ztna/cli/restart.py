"""`ztna restart`: have a running daemon search anew for the direct path of its sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ztna.cli.control_client import (
    CALL_LIMIT_S,
    WrongRequestError,
    choose_socket,
    control_stub,
    socket_options,
)


@click.command("restart")
@click.argument("session", required=False, default="")
@socket_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def restart(session: str, path: Path | None, config: Path | None, as_json: bool) -> None:
    """Search anew for the direct path of SESSION, or of every session.

    SESSION is the id that `ztna sessions` shows, or enough of its first digits. The sessions go on meanwhile
    over the paths they have.
    """
    with control_stub(choose_socket(path, config)) as stub:
        from ztna.v1 import control_pb2  # noqa: PLC0415 - not needed to say that nobody is there

        session_id = _find(stub, session) if session else b""
        request = control_pb2.RestartIceRequest(session_id=session_id)
        response = stub.RestartIce(request, timeout=CALL_LIMIT_S)
    restarted = [each.hex() for each in response.session_ids]
    if as_json:
        click.echo(json.dumps({"restarted": restarted}))
        return
    for each in restarted:
        click.echo(f"searching anew for a direct path of session {each}")
    if not restarted:
        click.echo("there is no session")


def _find(stub: Any, start: str) -> bytes:
    """The one session whose id starts so."""
    from ztna.v1 import control_pb2  # noqa: PLC0415

    status = stub.GetStatus(control_pb2.GetStatusRequest(), timeout=CALL_LIMIT_S).status
    ids: list[bytes] = [each.session_id for each in status.sessions]
    found = [each for each in ids if each.hex().startswith(start.lower())]
    if len(found) != 1:
        how_many = f"{len(found)} sessions have" if found else "no session has"
        raise WrongRequestError(f"{how_many} an id that starts with {start}")
    return found[0]
