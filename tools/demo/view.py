"""Draws the demo: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tools.demo.progress import (
    Progress,
    Step,
    bytes_text,
    newest_session,
    path_text,
    registered_nodes,
    registered_services,
)
from ztna.v1 import control_pb2

# Rendering takes a few milliseconds of a core that the daemons need too.
REFRESH_PER_SECOND = 5

StatusReader = Callable[[str], control_pb2.DaemonStatus | None]


class View(Protocol):
    """Somebody who is shown the steps."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def step(self, step: Step) -> None:
        """Show one more step."""


class PlainView:
    """One line per step, without control codes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing to put back."""

    def step(self, step: Step) -> None:
        """Print it at once."""
        mark = "FAILED " if step.is_failure else ""
        print(f"[{step.at_s:5.1f} s] {mark}{step.text}", file=self._stream, flush=True)


class LiveView:
    """A screen that is drawn anew several times a second from the daemons' latest status."""

    def __init__(self, console: Console, progress: Progress, read: StatusReader) -> None:
        self._live = Live(
            console=console,
            get_renderable=lambda: render(progress, read),
            refresh_per_second=REFRESH_PER_SECOND,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def step(self, step: Step) -> None:
        """Draw now: a step is worth a frame of its own."""
        del step  # it is in the progress already
        self._live.refresh()


def render(progress: Progress, read: StatusReader) -> RenderableType:
    """The whole screen."""
    return Panel(
        Group(
            _facts(read),
            Text(),
            _transfer(progress),
            Text(),
            *(_step(step) for step in progress.steps),
        ),
        title="[bold]ztna demo[/bold]",
        subtitle=f"{progress.elapsed_s:.1f} s",
        box=box.ROUNDED,
        padding=(1, 2),
    )


def _facts(read: StatusReader) -> Table:
    intermediate, agent = read("intermediate-1"), read("agent-1")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("registered", "\n".join(registered_nodes(intermediate)) or Text("nobody yet", style="dim"))
    table.add_row("services", "\n".join(registered_services(intermediate)) or Text("none yet", style="dim"))
    session = newest_session(agent)
    if session is None:
        table.add_row("session", Text("none yet: it is opened on first use", style="dim"))
        return table
    table.add_row("session", f"{session.session_id.hex()[:8]}  agent-1 → {session.peer_id}  {session.state}")
    table.add_row("path", Text(path_text(session), style="green" if session.path != "none" else "red"))
    table.add_row("RTT", f"{session.rtt_ms:.1f} ms" if session.rtt_ms else "-")
    table.add_row(
        "sealed",
        f"{bytes_text(session.bytes_received)} received, {bytes_text(session.bytes_sent)} sent, "
        f"{session.packets_lost} packets lost",
    )
    return table


def _transfer(progress: Progress) -> Table:
    transfer = progress.transfer
    table = Table.grid(padding=(0, 2))
    table.add_row(
        ProgressBar(total=transfer.size, completed=transfer.received, width=40),
        f"{bytes_text(transfer.received)} of {bytes_text(transfer.size)}",
        f"{transfer.rate / 1e6:.1f} MB/s",
    )
    return table


def _step(step: Step) -> Text:
    mark = Text("✗ ", style="bold red") if step.is_failure else Text("✓ ", style="green")
    return mark.append(f"{step.at_s:5.1f} s  ", style="dim").append(step.text, style="default")
