"""Shared nouns between cores and protobuf. Pure; what came from outside raises only what each docstring says.

Messages between actors are trusted to be well-formed only as far as their sender checked them, so everything
that reads a message here checks again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from cryptography import x509
from google.protobuf.message import DecodeError

from actors.credentials import Credentials
from ztna.access.grant import GrantClaims, sign, verify_signature
from ztna.access.identity import FINGERPRINT_BYTES, MAX_CHAIN_CERTIFICATES, Role, Verifier
from ztna.access.policy import ANY
from ztna.access.profile import UNREADABLE
from ztna.address import TransportAddress
from ztna.errors import RemoteProtocolError
from ztna.ice.candidate import Candidate, CandidateType
from ztna.ice.consent import Credentials as IceCredentials
from ztna.ice.timing import PathState
from ztna.nat.behaviour import Dependence, NatBehaviour, PortAllocation
from ztna.path.path import PathKind
from ztna.settings.values import ServiceProtocol
from ztna.signaling.values import Code, Party
from ztna.v1 import grant_pb2, path_manager_pb2, signaling_pb2, types_pb2

_ROLES: Final = {
    Role.AGENT: types_pb2.ROLE_AGENT,
    Role.CONNECTOR: types_pb2.ROLE_CONNECTOR,
    Role.INTERMEDIATE: types_pb2.ROLE_INTERMEDIATE,
    Role.OPERATOR: types_pb2.ROLE_OPERATOR,
}
_ROLES_BACK: Final = {value: role for role, value in _ROLES.items()}

_PROTOCOLS: Final = {
    ServiceProtocol.TCP: types_pb2.SERVICE_PROTOCOL_TCP,
    ServiceProtocol.UDP: types_pb2.SERVICE_PROTOCOL_UDP,
}
_PROTOCOLS_BACK: Final = {value: protocol for protocol, value in _PROTOCOLS.items()}

_CODES: Final = {
    code: signaling_pb2.SignalingCode.Value(f"SIGNALING_CODE_{code.name}")  # the names are the same by design
    for code in Code
}


_CANDIDATE_TYPES: Final = {
    kind: types_pb2.Candidate.Type.Value(f"TYPE_{kind.name}")  # the names are the same by design
    for kind in CandidateType
}
_CANDIDATE_TYPES_BACK: Final = {value: kind for kind, value in _CANDIDATE_TYPES.items()}

_DEPENDENCES: Final = {
    Dependence.UNKNOWN: types_pb2.NAT_DEPENDENCE_UNSPECIFIED,
    Dependence.ENDPOINT_INDEPENDENT: types_pb2.NAT_DEPENDENCE_ENDPOINT_INDEPENDENT,
    Dependence.ADDRESS_DEPENDENT: types_pb2.NAT_DEPENDENCE_ADDRESS_DEPENDENT,
    Dependence.ADDRESS_AND_PORT_DEPENDENT: types_pb2.NAT_DEPENDENCE_ADDRESS_AND_PORT_DEPENDENT,
    Dependence.NOT_PORT_DEPENDENT: types_pb2.NAT_DEPENDENCE_NOT_PORT_DEPENDENT,
    Dependence.NOT_ENDPOINT_INDEPENDENT: types_pb2.NAT_DEPENDENCE_NOT_ENDPOINT_INDEPENDENT,
}
_DEPENDENCES_BACK: Final = {value: dependence for dependence, value in _DEPENDENCES.items()}

_ALLOCATIONS: Final = {
    PortAllocation.UNKNOWN: types_pb2.NAT_PORT_ALLOCATION_UNSPECIFIED,
    PortAllocation.PRESERVED: types_pb2.NAT_PORT_ALLOCATION_PRESERVED,
    PortAllocation.SEQUENTIAL: types_pb2.NAT_PORT_ALLOCATION_SEQUENTIAL,
    PortAllocation.RANDOM: types_pb2.NAT_PORT_ALLOCATION_RANDOM,
}
_ALLOCATIONS_BACK: Final = {value: allocation for allocation, value in _ALLOCATIONS.items()}

_PATH_KINDS: Final = {
    PathKind.NONE: types_pb2.PATH_KIND_UNSPECIFIED,
    PathKind.RELAY: types_pb2.PATH_KIND_RELAY,
    PathKind.DIRECT: types_pb2.PATH_KIND_DIRECT,
}
_PATH_KINDS_BACK: Final = {value: kind for kind, value in _PATH_KINDS.items()}

_PATH_STATES: Final = {
    state: path_manager_pb2.PathState.Value(f"PATH_STATE_{state.name}")  # the names are the same by design
    for state in PathState
}
_PATH_STATES_BACK: Final = {value: state for state, value in _PATH_STATES.items()}

MAX_FOUNDATION_CHARACTERS: Final = 32
"""RFC 8839 §5.1."""
MAX_PRIORITY: Final = 2**31 - 1
"""RFC 8445 §5.1.2."""
MAX_PORT_STEP: Final = 65_535


def address_to_proto(address: TransportAddress) -> types_pb2.TransportAddress:
    """An address as messages carry it."""
    return types_pb2.TransportAddress(host=address.host, port=address.port)


def address_from_proto(message: types_pb2.TransportAddress) -> TransportAddress:
    """An address in canonical form; raises `RemoteProtocolError("malformed_address")`."""
    try:
        return TransportAddress.of(message.host, message.port)
    except ValueError as error:
        raise RemoteProtocolError("malformed_address", str(error)) from error


def candidate_to_proto(candidate: Candidate) -> types_pb2.Candidate:
    """A candidate as messages carry it; its base is told only where it is the related address."""
    return types_pb2.Candidate(
        type=_CANDIDATE_TYPES[candidate.type],
        address=address_to_proto(candidate.address),
        priority=candidate.priority,
        foundation=candidate.foundation,
        related_address=None if candidate.related is None else address_to_proto(candidate.related),
    )


def candidate_from_proto(message: types_pb2.Candidate) -> Candidate:
    """A candidate of the peer, or of our own from another actor.

    The base of a host candidate is its address, of a reflexive one the related address if there is one.
    Raises `RemoteProtocolError` (`malformed_candidate`, `malformed_address`).
    """
    kind = _CANDIDATE_TYPES_BACK.get(message.type)
    if kind is None:
        raise RemoteProtocolError("malformed_candidate", f"type {message.type}")
    if not 0 < message.priority <= MAX_PRIORITY:
        raise RemoteProtocolError("malformed_candidate", f"priority {message.priority}")
    if not 0 < len(message.foundation) <= MAX_FOUNDATION_CHARACTERS:
        raise RemoteProtocolError("malformed_candidate", f"a foundation of {len(message.foundation)}")
    address = address_from_proto(message.address)
    if not address.port:
        raise RemoteProtocolError("malformed_candidate", "port 0")
    related = address_from_proto(message.related_address) if message.HasField("related_address") else None
    return Candidate(kind, address, related or address, message.priority, message.foundation, related)


def nat_to_proto(behaviour: NatBehaviour) -> types_pb2.NatBehaviour:
    """What is known of the NATs before a node, as messages carry it."""
    return types_pb2.NatBehaviour(
        is_known=behaviour.is_known,
        has_nat=behaviour.has_nat,
        mapping=_DEPENDENCES[behaviour.mapping],
        filtering=_DEPENDENCES[behaviour.filtering],
        port_allocation=_ALLOCATIONS[behaviour.port_allocation],
        port_step=behaviour.port_step,
        is_udp_blocked=behaviour.is_udp_blocked,
    )


def nat_from_proto(message: types_pb2.NatBehaviour) -> NatBehaviour:
    """The same read; values that a newer peer invented count as unknown."""
    return NatBehaviour(
        is_known=message.is_known,
        has_nat=message.has_nat,
        mapping=_DEPENDENCES_BACK.get(message.mapping, Dependence.UNKNOWN),
        filtering=_DEPENDENCES_BACK.get(message.filtering, Dependence.UNKNOWN),
        port_allocation=_ALLOCATIONS_BACK.get(message.port_allocation, PortAllocation.UNKNOWN),
        port_step=max(-MAX_PORT_STEP, min(message.port_step, MAX_PORT_STEP)),
        is_udp_blocked=message.is_udp_blocked,
    )


def path_kind_to_proto(kind: PathKind) -> types_pb2.PathKind.ValueType:
    """How packets travel, as messages carry it."""
    return _PATH_KINDS[kind]


def path_kind_from_proto(value: types_pb2.PathKind.ValueType) -> PathKind:
    """The same read; an unknown kind is none."""
    return _PATH_KINDS_BACK.get(value, PathKind.NONE)


def path_state_to_proto(state: PathState) -> path_manager_pb2.PathState.ValueType:
    """How a path fares, as messages carry it."""
    return _PATH_STATES[state]


def path_state_from_proto(value: path_manager_pb2.PathState.ValueType) -> PathState | None:
    """The same read; None for an unknown state."""
    return _PATH_STATES_BACK.get(value)


def credentials_from_proto(message: types_pb2.IceCredentials) -> IceCredentials:
    """Credentials of one side and generation, as its own checks carry them."""
    return IceCredentials(message.ufrag, message.pwd)


def party_to_proto(party: Party) -> types_pb2.NodeIdentity:
    """A verified node as messages carry it."""
    return types_pb2.NodeIdentity(role=_ROLES[party.role], id=party.id, fingerprint=party.fingerprint)


def allowed_from_proto(allowed: signaling_pb2.AllowedServices) -> frozenset[str] | None:
    """The services that a session may carry; None: all of them."""
    return None if allowed.all else frozenset(allowed.services)


def allowed_to_proto(services: Collection[str] | None) -> signaling_pb2.AllowedServices:
    """The same for a message; `ANY` among the services stands for all."""
    if services is None or ANY in services:
        return signaling_pb2.AllowedServices(all=True)
    return signaling_pb2.AllowedServices(services=sorted(services))


def party_from_proto(message: types_pb2.NodeIdentity) -> Party:
    """A node named by a message; raises `RemoteProtocolError("malformed_identity")`."""
    role = _ROLES_BACK.get(message.role)
    if role is None or len(message.fingerprint) != FINGERPRINT_BYTES:
        raise RemoteProtocolError("malformed_identity", f"role {message.role}, id {message.id[:64]!r}")
    return Party(role, message.id, message.fingerprint)


def protocol_to_proto(protocol: ServiceProtocol) -> types_pb2.ServiceProtocol.ValueType:
    """A service's transport protocol as messages carry it."""
    return _PROTOCOLS[protocol]


def protocol_from_proto(value: types_pb2.ServiceProtocol.ValueType) -> ServiceProtocol | None:
    """A service's transport protocol; None where a message leaves it open or names an unknown one."""
    return _PROTOCOLS_BACK.get(value)


def code_to_proto(code: Code) -> signaling_pb2.SignalingCode.ValueType:
    """A refusal as frames carry it."""
    return _CODES[code]


def claims_to_proto(claims: GrantClaims) -> grant_pb2.GrantClaims:
    """What a grant states, ready to be serialised once."""
    return grant_pb2.GrantClaims(
        version=claims.version,
        session_id=claims.session_id,
        agent_id=claims.agent_id,
        agent_fingerprint=claims.agent_fingerprint,
        connector_id=claims.connector_id,
        connector_fingerprint=claims.connector_fingerprint,
        service=claims.service,
        issued_at_s=claims.issued_at,
        expires_at_s=claims.expires_at,
        issuer_id=claims.issuer,
    )


def claims_from_bytes(data: bytes) -> GrantClaims:
    """What a grant states, not yet believed; raises `RemoteProtocolError("malformed_grant")`."""
    try:
        message = grant_pb2.GrantClaims.FromString(data)
    except DecodeError as error:
        raise RemoteProtocolError("malformed_grant", str(error)) from error
    return GrantClaims(
        version=message.version,
        session_id=message.session_id,
        agent_id=message.agent_id,
        agent_fingerprint=message.agent_fingerprint,
        connector_id=message.connector_id,
        connector_fingerprint=message.connector_fingerprint,
        service=message.service,
        issued_at=message.issued_at_s,
        expires_at=message.expires_at_s,
        issuer=message.issuer_id,
    )


def seal_grant(claims: GrantClaims, issuer: Credentials) -> grant_pb2.SealedGrant:
    """Serialise and sign claims; `issuer` is this intermediate."""
    data = claims_to_proto(claims).SerializeToString(deterministic=True)
    return grant_pb2.SealedGrant(
        claims=data, signature=sign(issuer.private_key, data), issuer_chain=issuer.chain_der
    )


def open_grant(sealed: grant_pb2.SealedGrant, verifier: Verifier, now_wall: float) -> GrantClaims:
    """Claims that an intermediate of this deployment signed; whether they apply is another question.

    `now_wall` is unix seconds; the issuer's certificate must be valid then. Raises `RemoteProtocolError`
    (`malformed_grant`), `AuthenticationError` (the issuer is not acceptable) or `AccessDenied`
    (`bad_signature`).
    """
    claims = claims_from_bytes(sealed.claims)
    chain = chain_from_der(sealed.issuer_chain)
    issuer = verifier.verify(
        chain, expect=Role.INTERMEDIATE, expect_id=claims.issuer, now_wall=now_wall, as_server=True
    )
    verify_signature(issuer.certificate, sealed.claims, sealed.signature)
    return claims


def chain_from_der(chain: Iterable[bytes]) -> list[x509.Certificate]:
    """Certificates of a message; raises `RemoteProtocolError("malformed_certificate")`."""
    parts = list(chain)
    if len(parts) > MAX_CHAIN_CERTIFICATES:
        raise RemoteProtocolError("malformed_certificate", f"a chain of {len(parts)} certificates")
    try:
        return [x509.load_der_x509_certificate(part) for part in parts]
    except UNREADABLE as error:
        raise RemoteProtocolError("malformed_certificate", str(error)) from error
