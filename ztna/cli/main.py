"""The `ztna` command.

Subcommands are imported when they are called: a poll of `ztna status` should not pay for the QUIC stack. Exit
codes: 0 fine, 2 configuration or usage, 3 cannot authenticate, 4 cannot bind or connect, 1 everything else.
"""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Any, Final

import click

from ztna import __version__
from ztna.cli.errors import complain, in_our_form
from ztna.cli.exit_codes import EXIT_AUTHENTICATION, EXIT_CONFIG, EXIT_FAILURE, EXIT_UNREACHABLE
from ztna.errors import AuthenticationError, ConfigError, describe

# Name: module, attribute, what `ztna --help` says.
COMMANDS: Final = {
    "agent": ("ztna.cli.run", "agent", "Run an agent: make private services reachable on this machine."),
    "connector": ("ztna.cli.run", "connector", "Run a connector: let agents reach services near it."),
    "intermediate": ("ztna.cli.run", "intermediate", "Run an intermediate: signaling and relay for both."),
    "status": ("ztna.cli.status", "status", "Show what a running daemon is doing."),
    "sessions": ("ztna.cli.status", "sessions", "Show the sessions of a running daemon."),
    "restart": ("ztna.cli.restart", "restart", "Search anew for the direct path of one session, or all."),
    "reload": ("ztna.cli.reload", "reload", "Have a running daemon read its configuration and files again."),
    "config": ("ztna.cli.config", "config", "Check a configuration file, or show what it comes to."),
    "pki": ("ztna.cli.pki", "pki", "Create and revoke the identities of a deployment's nodes."),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand when it is called, and turns expected errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every subcommand, daemons first."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above says so
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Read what comes before the subcommand."""
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            raise in_our_form(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand; what goes wrong as expected becomes words on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise in_our_form(error) from error
        except ConfigError as error:
            _fail(error, EXIT_CONFIG)
        except AuthenticationError as error:
            _fail(error, EXIT_AUTHENTICATION)
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly when the reader of a pipe is gone
                raise
            is_address = error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.ECONNREFUSED}
            _fail(error, EXIT_UNREACHABLE if is_address else EXIT_FAILURE)


def _fail(error: Exception, code: int) -> None:
    complain(describe(error))
    raise click.exceptions.Exit(code) from error


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit codes: 0 fine, 2 wrong configuration or usage, 3 the node's own credentials are not "
        "acceptable, 4 an address cannot be bound or no daemon answers, 1 anything else."
    ),
)
@click.version_option(__version__, prog_name="ztna", message="%(prog)s %(version)s")
def ztna() -> None:
    """Zero-Trust Network Access: agents reach private services through sealed sessions."""


def main() -> None:
    """Entry point of the `ztna` command."""
    ztna.main(prog_name="ztna")


if __name__ == "__main__":
    main()
