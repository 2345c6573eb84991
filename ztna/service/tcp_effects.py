"""What a carried TCP connection asks of its surroundings, and the codes it ends with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class StreamError(IntEnum):
    """Application error codes of RESET_STREAM and STOP_SENDING on service streams (RFC 9000 §20.2)."""

    NO_ERROR = 0
    REFUSED = 1
    BACKEND_UNREACHABLE = 2
    BACKEND_RESET = 3
    CLIENT_RESET = 4
    ACCESS_DENIED = 5
    UNKNOWN_SERVICE = 6
    LIMIT = 7
    SHUTTING_DOWN = 8
    INTERNAL = 9
    INVALID = 10
    GRANT_REFUSED = 11


BACKEND_FAILED_MESSAGE = "the connector cannot reach the service"
"""All that an agent is told of it: addresses and names of the private network stay there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The connector's verdict: `NO_ERROR` accepts, any other code refuses; `message` is for people."""

    code: StreamError
    message: str = ""


@dataclass(frozen=True, slots=True)
class WriteToSocket:
    """Write these bytes; report what the kernel took with `handle_socket_written`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class WriteSocketEof:
    """Shut down the socket's sending direction (FIN) behind everything written."""


@dataclass(frozen=True, slots=True)
class AbortSocket:
    """Drop what is unwritten and reset the socket (RST), or give up connecting it."""


@dataclass(frozen=True, slots=True)
class PauseReading:
    """Read no more from the socket."""


@dataclass(frozen=True, slots=True)
class ResumeReading:
    """Read from the socket again."""


@dataclass(frozen=True, slots=True)
class SendToStream:
    """Send these bytes, report with `handle_sent` once they were acknowledged; `end` closes the direction."""

    data: bytes
    end: bool


@dataclass(frozen=True, slots=True)
class ResetStream:
    """Abandon the sending direction (RESET_STREAM)."""

    code: StreamError


@dataclass(frozen=True, slots=True)
class StopStream:
    """Ask the peer to abandon its sending direction (STOP_SENDING)."""

    code: StreamError


@dataclass(frozen=True, slots=True)
class Consumed:
    """This many received bytes no longer occupy memory: flow-control credit may follow."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class HeaderReceived:
    """The stream's header is complete (connector); answer with `accept` or `refuse`."""

    header: bytes


@dataclass(frozen=True, slots=True)
class ConnectBackend:
    """Connect the backend's socket (connector)."""


@dataclass(frozen=True, slots=True)
class Established:
    """Bytes of the service may pass from now on."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole story of one connection.

    `code` is NO_ERROR when both directions ended in order. `detail` is a snake_case word, fit to be a metric
    label; `message` is the connector's, for people. The byte counts are the application's: what was read from
    the socket, and what the kernel took.
    """

    code: StreamError
    detail: str
    message: str
    bytes_from_socket: int
    bytes_to_socket: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The connection is over, always the last effect: close the socket and forget the stream."""

    summary: Summary


TcpEffect = (
    WriteToSocket
    | WriteSocketEof
    | AbortSocket
    | PauseReading
    | ResumeReading
    | SendToStream
    | ResetStream
    | StopStream
    | Consumed
    | HeaderReceived
    | ConnectBackend
    | Established
    | Finished
)
