"""The client side of a daemon's control socket: find it, ask it, and say plainly when nobody answers.

Free of the settings' models, which take longer to import than a status takes to fetch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ztna.cli.errors import CommandError
from ztna.cli.exit_codes import EXIT_AUTHENTICATION, EXIT_UNREACHABLE

MAX_SOCKET_PATH_BYTES: Final = 107
"""The kernel's `sun_path` holds 108 bytes, the last of them zero."""

MAX_STATUS_BYTES: Final = 64 * 2**20
"""Far above any status (1,000 sessions are some 200 KiB); gRPC's own bound of 4 MiB is meant for
strangers."""

CALL_LIMIT_S: Final = 5.0
"""A daemon answers within milliseconds; one that takes longer is stuck."""

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class DaemonUnreachableError(CommandError):
    """No daemon answers at the socket."""

    exit_code = EXIT_UNREACHABLE


class WrongSocketError(CommandError):
    """The socket's path cannot be, or which one is meant does not follow."""


class FaultyFilesError(CommandError):
    """The daemon could not use what it read; nothing has changed."""


class FaultyCredentialsError(CommandError):
    """The daemon could not use its own certificate; nothing has changed."""

    exit_code = EXIT_AUTHENTICATION


class WrongRequestError(CommandError):
    """The daemon has no such thing, or does not do that."""


def socket_options(command: CommandT) -> CommandT:
    """Add the options that tell which daemon is meant: `config` and `path`."""
    for option in (
        click.option(
            "-c",
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Ask the daemon that this file configures.",
        ),
        click.option(
            "--socket",
            "path",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="Ask the daemon at this control socket.",
        ),
    ):
        command = option(command)
    return command


def runtime_directory(environ: Mapping[str, str], *, is_root: bool) -> Path:
    """The directory of the control sockets of all daemons of this user, as `ztna.settings` has it."""
    if is_root:
        return Path("/run/ztna")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "ztna")
    return Path(environ.get("HOME") or Path.home(), ".local", "state", "ztna")


def choose_socket(path: Path | None, config: Path | None) -> Path:
    """The socket that is meant: named, of a configuration, or the only one that answers in the default place.

    Raises `ConfigError` for a configuration that is wrong, or a `click.ClickException` where none is found.
    """
    if path is not None and config is not None:
        raise click.UsageError("give either --socket or -c")
    if path is not None:
        return path
    if config is not None:
        return _configured_socket(config)
    directory = runtime_directory(os.environ, is_root=os.geteuid() == 0)
    try:
        candidates = sorted(entry for entry in directory.iterdir() if entry.suffix == ".sock")
    except OSError:
        candidates = []
    living = [candidate for candidate in candidates if _trouble(candidate) is None]
    if not living:
        raise DaemonUnreachableError(
            f"no daemon is running: none answers in {directory} (name one with --socket PATH or -c CONFIG)"
        )
    if len(living) > 1:
        listed = "".join(f"\n  --socket {candidate}" for candidate in living)
        raise WrongSocketError(f"several daemons are running; choose one:{listed}")
    return living[0]


@contextmanager
def control_stub(path: Path) -> Iterator[Any]:
    """A `ControlServiceStub` on the daemon at `path`; failures of calls become one line and exit code 4."""
    path = path.expanduser().absolute()
    size = len(bytes(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise WrongSocketError(
            f"the path of a unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes, "
            f"this one has {size}: {path}"
        )
    trouble = _trouble(path)
    if trouble is not None:
        raise DaemonUnreachableError(_explain(path, trouble))
    import grpc  # noqa: PLC0415 - not needed to say that nobody is there

    from ztna.v1 import control_pb2_grpc  # noqa: PLC0415

    options = [("grpc.max_receive_message_length", MAX_STATUS_BYTES), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        try:
            yield control_pb2_grpc.ControlServiceStub(channel)
        except grpc.RpcError as error:
            raise _call_error(path, error) from error


def _configured_socket(config: Path) -> Path:
    from ztna.errors import ConfigError  # noqa: PLC0415
    from ztna.settings.loader import load_any  # noqa: PLC0415 - slow, and only this way needs it

    found = load_any(config, os.environ).settings.control.socket
    if found is None:
        raise ConfigError(f"{config}: control.socket is empty, so this daemon has no control socket")
    return found


def _trouble(path: Path) -> OSError | None:
    """What keeps a connection from being made, if anything."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CALL_LIMIT_S)
        try:
            probe.connect(bytes(path.absolute()))
        except OSError as error:
            return error
    return None


def _explain(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the daemon is not running, or as another user: there is no {path}"
    if isinstance(error, ConnectionRefusedError):
        return f"the daemon is not running: nobody answers at {path}"
    if isinstance(error, PermissionError):
        return f"{path} belongs to another user: run this as the daemon's user"
    return f"cannot reach the daemon at {path}: {error.strerror or error}"


def _call_error(path: Path, error: Any) -> CommandError:
    match error.code().name:
        case "UNAVAILABLE" | "CANCELLED":
            return DaemonUnreachableError(f"the daemon at {path} has ended")
        case "DEADLINE_EXCEEDED":
            return DaemonUnreachableError(f"the daemon at {path} does not answer")
        case "INVALID_ARGUMENT":
            return FaultyFilesError(error.details())
        case "FAILED_PRECONDITION":
            return FaultyCredentialsError(error.details())
        case "NOT_FOUND" | "UNIMPLEMENTED" if error.details():
            return WrongRequestError(error.details())
        case code:
            words = code.lower().replace("_", " ")
            return DaemonUnreachableError(f"the daemon at {path}: {error.details() or words}")
