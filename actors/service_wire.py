"""What agent and connector say to each other inside a session, to and from bytes (docs/wire.md §6). Pure.

A TCP stream opens with a `StreamHeader` and is answered by a `StreamAnswer`; their 2-byte lengths are the
business of `ztna.service.tcp`. Stream 0 carries `ControlFrame`s behind 4-byte lengths, a hello first.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from ztna import __version__
from ztna.errors import RemoteProtocolError
from ztna.service.tcp_effects import Answer, StreamError
from ztna.signaling import framing
from ztna.v1 import grant_pb2, session_pb2, signaling_pb2

CONTROL_STREAM_ID = 0
FIRST_SERVICE_STREAM_ID = 4
STREAM_ID_STEP = 4
"""Client-initiated bidirectional streams are numbered in steps of four (RFC 9000 §2.1)."""

PROTOCOL_VERSION = 1

MAX_MESSAGE_CHARACTERS = 300
"""A refusal's sentence goes to a log line; three lines of a terminal are enough, whoever wrote it."""

_TO_PROTO = {
    StreamError.REFUSED: session_pb2.REFUSAL_CODE_UNSPECIFIED,
    StreamError.ACCESS_DENIED: session_pb2.REFUSAL_CODE_ACCESS_DENIED,
    StreamError.UNKNOWN_SERVICE: session_pb2.REFUSAL_CODE_UNKNOWN_SERVICE,
    StreamError.BACKEND_UNREACHABLE: session_pb2.REFUSAL_CODE_BACKEND_UNREACHABLE,
    StreamError.LIMIT: session_pb2.REFUSAL_CODE_LIMIT,
    StreamError.SHUTTING_DOWN: session_pb2.REFUSAL_CODE_SHUTTING_DOWN,
    StreamError.INVALID: session_pb2.REFUSAL_CODE_INVALID,
    StreamError.GRANT_REFUSED: session_pb2.REFUSAL_CODE_GRANT_REFUSED,
}
_FROM_PROTO = {value: code for code, value in _TO_PROTO.items()}


def refusal_to_proto(code: StreamError) -> session_pb2.RefusalCode.ValueType:
    """A refusal as the wire has it; codes that only streams know become unspecific."""
    return _TO_PROTO.get(code, session_pb2.REFUSAL_CODE_UNSPECIFIED)


def refusal_from_proto(value: session_pb2.RefusalCode.ValueType) -> StreamError:
    """A refusal; one that a newer peer invented is just a refusal."""
    return _FROM_PROTO.get(value, StreamError.REFUSED)


def encode_header(service: str, grant: grant_pb2.SealedGrant) -> bytes:
    """The header of a stream."""
    return session_pb2.StreamHeader(service=service, grant=grant).SerializeToString()


def decode_header(data: bytes) -> session_pb2.StreamHeader:
    """The header of a stream; raises `RemoteProtocolError("malformed_header")`."""
    try:
        return session_pb2.StreamHeader.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError("malformed_header", str(error)) from error


def encode_answer(answer: Answer) -> bytes:
    """The connector's verdict on a stream."""
    if answer.code is StreamError.NO_ERROR:
        return session_pb2.StreamAnswer(accepted=True).SerializeToString()
    return session_pb2.StreamAnswer(
        # Without a message, an unspecific code would be no byte at all, which the wire does not allow.
        message=shorten(answer.message or answer.code.name.lower()),
        code=refusal_to_proto(answer.code),
    ).SerializeToString()


def decode_answer(data: bytes) -> Answer:
    """The connector's verdict on a stream; raises `RemoteProtocolError("malformed_answer")`."""
    try:
        message = session_pb2.StreamAnswer.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError("malformed_answer", str(error)) from error
    if message.accepted:
        return Answer(StreamError.NO_ERROR)
    return Answer(refusal_from_proto(message.code), shorten(message.message))


def encode_control(frame: session_pb2.ControlFrame) -> bytes:
    """One frame of the control stream, with its length."""
    return framing.encode(frame.SerializeToString())


def hello() -> session_pb2.ControlFrame:
    """The first frame of either side."""
    return session_pb2.ControlFrame(
        hello=session_pb2.SessionHello(protocol_version=PROTOCOL_VERSION, software=f"ztna/{__version__}")
    )


def draining() -> session_pb2.ControlFrame:
    """Open nothing new: we are shutting down."""
    return session_pb2.ControlFrame(draining=session_pb2.SessionDraining())


def renewed_grant(grant: grant_pb2.SealedGrant) -> session_pb2.ControlFrame:
    """A fresh grant of the session, shown without opening anything."""
    return session_pb2.ControlFrame(renewed_grant=session_pb2.RenewedGrant(grant=grant))


def ice_signal(signal: signaling_pb2.IceSignal) -> session_pb2.ControlFrame:
    """Something about the direct path."""
    return session_pb2.ControlFrame(ice_signal=signal)


def shorten(text: str) -> str:
    """A sentence fit for one log line."""
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"


class ControlDecoder:
    """The receiving direction of a control stream: whole frames, of which the first is a hello."""

    __slots__ = ("_frames", "_is_greeted")

    def __init__(self) -> None:
        self._frames = framing.FrameDecoder()
        self._is_greeted = False

    def feed(self, data: bytes, *, end_of_stream: bool) -> list[session_pb2.ControlFrame]:
        """Take the next bytes and return the frames that they complete, hellos left out.

        Raises `RemoteProtocolError`: the framing's reasons, `malformed_frame`, `hello_expected`,
        `unsupported_version` or `control_stream_ended`; the session is of no further use then.
        """
        frames = [_parse_control(body) for body in self._frames.feed(data)]
        if frames and not self._is_greeted:
            _check_hello(frames[0])
            self._is_greeted = True
            del frames[0]
        if end_of_stream:
            raise RemoteProtocolError("control_stream_ended")
        return frames


def _parse_control(body: bytes) -> session_pb2.ControlFrame:
    try:
        return session_pb2.ControlFrame.FromString(body)
    except DecodeError as error:
        raise RemoteProtocolError("malformed_frame", str(error)) from error


def _check_hello(frame: session_pb2.ControlFrame) -> None:
    if frame.WhichOneof("body") != "hello":
        raise RemoteProtocolError("hello_expected", f"got {frame.WhichOneof('body')}")
    if frame.hello.protocol_version != PROTOCOL_VERSION:
        raise RemoteProtocolError("unsupported_version", f"version {frame.hello.protocol_version}")
