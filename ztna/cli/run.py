"""`ztna agent|connector|intermediate`: run a daemon in the foreground until a signal ends it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ztna.cli.config import config_options
from ztna.settings import DaemonKind, LogFormat, LogLevel


def _daemon_command(kind: DaemonKind, text: str) -> click.Command:
    @click.command(kind.value, help=text)
    @config_options
    @click.option(
        "--log-level",
        type=click.Choice([level.value for level in LogLevel]),
        help="Least severity that is logged.",
    )
    @click.option(
        "--log-format", type=click.Choice([shape.value for shape in LogFormat]), help="Shape of a log line."
    )
    def command(path: Path, overrides: dict[str, str], log_level: str | None, log_format: str | None) -> None:
        if log_level is not None:
            overrides["log.level"] = log_level
        if log_format is not None:
            overrides["log.format"] = log_format
        # gRPC writes a line of its own per failed handshake, which any stranger can cause, into our JSON.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        from actors import daemon  # noqa: PLC0415 - the QUIC stack, which `--help` does without

        raise click.exceptions.Exit(int(daemon.run(kind, path, overrides)))

    return command


agent = _daemon_command(DaemonKind.AGENT, "Run an agent: make private services reachable on this machine.")
connector = _daemon_command(DaemonKind.CONNECTOR, "Run a connector: let agents reach services near it.")
intermediate = _daemon_command(
    DaemonKind.INTERMEDIATE, "Run an intermediate: signaling and relay for agents and connectors."
)
