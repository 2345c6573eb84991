"""Draws the demo: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
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
    rtt_text,
)
from ztna.v1 import control_pb2

# Rendering takes a few milliseconds of a core that the daemons need too.
REFRESH_PER_SECOND = 5

# The panel's borders.
FRAME_LINES = 2

# A step's mark and time, with the spaces behind them.
STEP_INDENT = 11

PATH_STYLES = {"direct": "bold green", "relay": "bold yellow"}

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
        self._is_over = False
        self._live = Live(
            console=console,
            get_renderable=lambda: render(progress, read, is_cut=not self._is_over),
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
        self._is_over = True
        self._live.stop()

    def step(self, step: Step) -> None:
        """Draw now: a step is worth a frame of its own."""
        del step  # it is in the progress already
        self._live.refresh()


def render(progress: Progress, read: StatusReader, *, is_cut: bool = False) -> RenderableType:
    """The whole screen; `is_cut` leaves out the oldest steps where the terminal is too low for all."""
    return Panel(
        _Story(
            Group(_facts(progress, read), Text(), _transfer(progress), Text()), progress.steps, is_cut=is_cut
        ),
        title="[bold]ztna demo[/bold]",
        subtitle=f"{progress.elapsed_s:.1f} s",
        box=box.ROUNDED,
        padding=(0, 2),
    )


class _Story:
    """What there is to know now, and below it the steps that led there."""

    def __init__(self, head: RenderableType, steps: Sequence[Step], *, is_cut: bool) -> None:
        self._head = head
        self._steps = steps
        self._is_cut = is_cut

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._head
        yield _steps(self._that_fit(console, options) if self._is_cut else self._steps)

    def _that_fit(self, console: Console, options: ConsoleOptions) -> Sequence[Step]:
        """The newest steps that leave the whole panel on the terminal."""
        room = options.size.height - FRAME_LINES - len(console.render_lines(self._head, options))
        width = max(1, options.max_width - STEP_INDENT)
        count = 0
        for step in reversed(self._steps):
            room -= len(Text(step.text).wrap(console, width))
            if room < 0:
                break
            count += 1
        return self._steps[len(self._steps) - count :]


def _facts(progress: Progress, read: StatusReader) -> Table:
    intermediate, agent = read("intermediate-1"), read("agent-1")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("place", progress.place or Text("being built", style="dim"))
    table.add_row("registered", "; ".join(registered_nodes(intermediate)) or Text("nobody yet", style="dim"))
    table.add_row("services", "; ".join(registered_services(intermediate)) or Text("none yet", style="dim"))
    session = newest_session(agent)
    if session is None:
        table.add_row("session", Text("none yet: it is opened on first use", style="dim"))
        return table
    table.add_row("session", f"{session.session_id.hex()[:8]}  agent-1 → {session.peer_id}  {session.state}")
    table.add_row("path", _path(session, newest_session(read("connector-1"))))
    table.add_row("RTT", rtt_text(session))
    table.add_row(
        "sealed",
        f"{bytes_text(session.bytes_received)} received, {bytes_text(session.bytes_sent)} sent, "
        f"{session.packets_lost} packets lost",
    )
    return table


def _path(at_agent: control_pb2.SessionStatus, at_connector: control_pb2.SessionStatus | None) -> Text:
    """What carries the session; each end decides for what it sends, the connector for the download."""
    text = Text(path_text(at_agent), style=PATH_STYLES.get(at_agent.path, "bold red"))
    if at_connector is not None and at_connector.path != at_agent.path:
        text.append(
            f"; from the connector {path_text(at_connector)}",
            style=PATH_STYLES.get(at_connector.path, "bold red"),
        )
    return text


def _transfer(progress: Progress) -> Table:
    transfer = progress.transfer
    table = Table.grid(padding=(0, 2))
    table.add_row(
        ProgressBar(total=transfer.size, completed=transfer.received, width=40),
        f"{bytes_text(transfer.received)} of {bytes_text(transfer.size)}",
        f"{transfer.rate / 1e6:.1f} MB/s",
    )
    return table


def _steps(steps: Sequence[Step]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for step in steps:
        mark = Text("✗", style="bold red") if step.is_failure else Text("✓", style="green")
        table.add_row(mark, f"{step.at_s:5.1f} s ", step.text)
    return table
