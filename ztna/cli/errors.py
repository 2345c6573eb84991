"""What goes wrong on the command line: one form for all of it, whichever command says it."""

from __future__ import annotations

from typing import IO, Any

import click

from ztna.cli.exit_codes import EXIT_CONFIG


def complain(message: str, file: IO[Any] | None = None) -> None:
    """One line on standard error, as every error is said; a message of several lines keeps them."""
    click.echo(f"ztna: {message}", file=file, err=True)


class CommandError(click.ClickException):
    """One line on stderr and an exit code."""

    exit_code = EXIT_CONFIG

    def show(self, file: IO[Any] | None = None) -> None:
        """Say it."""
        complain(self.format_message(), file)


class WrongUsageError(click.UsageError):
    """What click does not understand: how the command is used, and one line."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Say it."""
        if self.ctx is not None:
            click.echo(
                f"{self.ctx.get_usage()}\nTry '{self.ctx.command_path} --help' for help.\n", file, err=True
            )
        complain(self.format_message(), file)


def in_our_form(error: click.UsageError) -> click.UsageError:
    """The same error, said as ours are; the help of a command that was given nothing stays what it is."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    return WrongUsageError(error.format_message(), error.ctx)
