"""What sessions say about their direct paths, between `ztna.ice.signals` and protobuf. Pure.

What a peer said raises `RemoteProtocolError` and nothing else; a candidate that cannot be read costs that
candidate alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from actors import translate
from ztna.errors import RemoteProtocolError
from ztna.ice import signals
from ztna.ice.candidate import Candidate
from ztna.nat.behaviour import NatBehaviour
from ztna.v1 import signaling_pb2, types_pb2

_CODE_PREFIX: Final = "SIGNALING_CODE_"


def credentials_to_proto(credentials: signals.Credentials) -> types_pb2.IceCredentials:
    """Credentials as messages between actors carry them."""
    return types_pb2.IceCredentials(ufrag=credentials.ufrag, pwd=credentials.pwd)


def candidates_from_proto(
    messages: Iterable[types_pb2.Candidate], dropped: Counter[str]
) -> tuple[Candidate, ...]:
    """The candidates that can be read; the others are counted in `dropped`, by reason."""
    read = []
    for message in messages:
        try:
            read.append(translate.candidate_from_proto(message))
        except RemoteProtocolError as error:
            dropped[error.reason] += 1
    return tuple(read)


def signal_to_proto(signal: signals.Signal, session_id: bytes) -> signaling_pb2.IceSignal:
    """A signal about a session, as the wire has it."""
    match signal:
        case signals.Offer():
            return signaling_pb2.IceSignal(
                candidate_offer=signaling_pb2.CandidateOffer(
                    session_id=session_id,
                    generation=signal.generation,
                    ufrag=signal.credentials.ufrag,
                    pwd=signal.credentials.pwd,
                    candidates=map(translate.candidate_to_proto, signal.candidates),
                    nat=translate.nat_to_proto(signal.nat),
                )
            )
        case signals.Answer():
            return signaling_pb2.IceSignal(
                candidate_answer=signaling_pb2.CandidateAnswer(
                    session_id=session_id,
                    generation=signal.generation,
                    ufrag=signal.credentials.ufrag,
                    pwd=signal.credentials.pwd,
                    candidates=map(translate.candidate_to_proto, signal.candidates),
                    nat=translate.nat_to_proto(signal.nat),
                )
            )
        case signals.CandidateAdded() | signals.EndOfCandidates() | signals.NatLearned():
            return signaling_pb2.IceSignal(candidate_added=_added_to_proto(signal, session_id))
        case signals.StartPunching():
            return signaling_pb2.IceSignal(
                start_punching=signaling_pb2.StartPunching(
                    session_id=session_id,
                    generation=signal.generation,
                    start_delay_ms=signal.start_delay_ms,
                )
            )
        case signals.RestartRequested():
            return signaling_pb2.IceSignal(
                restart_requested=signaling_pb2.RestartRequested(session_id=session_id, reason=signal.reason)
            )
        case signals.PunchingResult():
            address = signal.working_address
            return signaling_pb2.IceSignal(
                punching_result=signaling_pb2.PunchingResult(
                    session_id=session_id,
                    success=signal.is_success,
                    working_address=None if address is None else translate.address_to_proto(address),
                    rtt_us=signal.rtt_us,
                    reason=signal.reason,
                )
            )
        case signals.SignalingError():
            return signaling_pb2.IceSignal(
                error=signaling_pb2.SignalingError(
                    code=signaling_pb2.SignalingCode.Value(_CODE_PREFIX + signal.code.upper()),
                    session_id=session_id,
                    message=signal.message,
                )
            )


def signal_from_proto(message: signaling_pb2.IceSignal, dropped: Counter[str]) -> signals.Signal:
    """What a peer, or an intermediate, said; candidates that cannot be read are counted in `dropped`.

    Raises `RemoteProtocolError` (`malformed_credentials`, `too_many_candidates`, `malformed_generation`,
    `malformed_candidate`, `malformed_address`, `unknown_signal`).
    """
    match message.WhichOneof("body"):
        case "candidate_offer":
            return signals.Offer(*_exchange_from_proto(message.candidate_offer, dropped))
        case "candidate_answer":
            return signals.Answer(*_exchange_from_proto(message.candidate_answer, dropped))
        case "candidate_added":
            return _added_from_proto(message.candidate_added)
        case "start_punching":
            start = message.start_punching
            return signals.StartPunching(start.generation, start.start_delay_ms)
        case "restart_requested":
            return signals.RestartRequested(signals.word(message.restart_requested.reason))
        case "punching_result":
            result = message.punching_result
            address = None
            if result.HasField("working_address"):
                address = translate.address_from_proto(result.working_address)
            reason = signals.word(result.reason) if result.reason else ""
            return signals.PunchingResult(result.success, address, result.rtt_us, reason)
        case "error":
            return signals.SignalingError(_code_name(message.error.code), message.error.message)
        case _:
            raise RemoteProtocolError("unknown_signal")  # of a later version


def session_id_of(message: signaling_pb2.IceSignal) -> bytes:
    """The session that a signal says it is about."""
    body = message.WhichOneof("body")
    return b"" if body is None else bytes(getattr(message, body).session_id)


def with_session_id(message: signaling_pb2.IceSignal, session_id: bytes) -> signaling_pb2.IceSignal:
    """The same signal about this session, whatever it said."""
    filled = signaling_pb2.IceSignal()
    filled.CopyFrom(message)
    body = filled.WhichOneof("body")
    if body is not None:
        getattr(filled, body).session_id = session_id
    return filled


def _added_to_proto(
    signal: signals.CandidateAdded | signals.EndOfCandidates | signals.NatLearned, session_id: bytes
) -> signaling_pb2.CandidateAdded:
    added = signaling_pb2.CandidateAdded(session_id=session_id, generation=signal.generation)
    match signal:
        case signals.CandidateAdded():
            added.candidate.CopyFrom(translate.candidate_to_proto(signal.candidate))
        case signals.EndOfCandidates():
            added.end_of_candidates = True
        case signals.NatLearned():
            added.nat.CopyFrom(translate.nat_to_proto(signal.nat))
    return added


def _added_from_proto(
    added: signaling_pb2.CandidateAdded,
) -> signals.CandidateAdded | signals.EndOfCandidates | signals.NatLearned:
    match added.WhichOneof("item"):
        case "candidate":
            return signals.CandidateAdded(added.generation, translate.candidate_from_proto(added.candidate))
        case "nat":
            return signals.NatLearned(added.generation, translate.nat_from_proto(added.nat))
        case "end_of_candidates" if added.end_of_candidates:
            return signals.EndOfCandidates(added.generation)
        case _:
            raise RemoteProtocolError("unknown_signal", "nothing was added")


def _exchange_from_proto(
    message: signaling_pb2.CandidateOffer | signaling_pb2.CandidateAnswer, dropped: Counter[str]
) -> tuple[int, signals.Credentials, tuple[Candidate, ...], NatBehaviour]:
    if not message.generation:
        raise RemoteProtocolError("malformed_generation", "0 stands for none")
    credentials = signals.Credentials(message.ufrag, message.pwd)
    credentials.check()
    if len(message.candidates) > signals.MAX_CANDIDATES:
        count = len(message.candidates)
        raise RemoteProtocolError("too_many_candidates", f"{count}, limit {signals.MAX_CANDIDATES}")
    candidates = candidates_from_proto(message.candidates, dropped)
    return message.generation, credentials, candidates, translate.nat_from_proto(message.nat)


def _code_name(code: signaling_pb2.SignalingCode.ValueType) -> str:
    try:
        name = signaling_pb2.SignalingCode.Name(code)
    except ValueError:
        return "unknown"
    return name.removeprefix(_CODE_PREFIX).lower()
