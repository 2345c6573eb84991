"""`ztna reload`: have a running daemon read its files again, and say what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ztna.cli.control_client import CALL_LIMIT_S, choose_socket, control_stub, socket_options


@click.command("reload")
@socket_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def reload(path: Path | None, config: Path | None, as_json: bool) -> None:
    """Read configuration, certificates and revocation list again.

    What is faulty changes nothing, and is named. Keys that changed and need a restart are listed.
    """
    with control_stub(choose_socket(path, config)) as stub:
        from ztna.v1 import control_pb2  # noqa: PLC0415 - not needed to say that nobody is there

        response = stub.Reload(control_pb2.ReloadRequest(), timeout=CALL_LIMIT_S)
    applied, pending = list(response.applied), list(response.needs_restart)
    if as_json:
        click.echo(json.dumps({"applied": applied, "needs_restart": pending}))
        return
    click.echo(f"reloaded; changed: {', '.join(applied) if applied else 'no key (files were read again)'}")
    if pending:
        click.echo(f"changed in the file, and needs a restart: {', '.join(pending)}")
