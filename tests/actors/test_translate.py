from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import translate
from actors.credentials import Credentials, parse_credentials
from tests.pki_fixtures import NOW, issue, of_unknown_version, pem, verifier
from ztna.access.grant import GrantClaims
from ztna.access.identity import Role
from ztna.address import TransportAddress
from ztna.errors import AccessDenied, AuthenticationError, RemoteProtocolError, ZtnaError
from ztna.ice.candidate import Candidate, CandidateType
from ztna.nat.behaviour import Dependence, NatBehaviour, PortAllocation
from ztna.settings.values import ServiceProtocol
from ztna.signaling.values import Code, Party
from ztna.v1 import grant_pb2, signaling_pb2, types_pb2

FINGERPRINTS = st.binary(min_size=32, max_size=32)
CLAIMS = st.builds(
    GrantClaims,
    version=st.integers(0, 2**32 - 1),
    session_id=st.binary(max_size=20),
    agent_id=st.text(max_size=10),
    agent_fingerprint=st.binary(max_size=40),
    connector_id=st.text(max_size=10),
    connector_fingerprint=st.binary(max_size=40),
    service=st.text(max_size=10),
    issued_at=st.integers(-(2**63), 2**63 - 1),
    expires_at=st.integers(-(2**63), 2**63 - 1),
    issuer=st.text(max_size=10),
)


def intermediate(name: str = "i1", role: Role = Role.INTERMEDIATE, *, foreign: bool = False) -> Credentials:
    own = issue(role, name, foreign=foreign)
    credentials = parse_credentials(
        issue(role, name).certificate_pem, issue(role, name).key_pem, pem(own).ca, None, role, NOW
    )
    return replace(credentials, certificate_chain=own.chain, private_key=own.private_key)


def claims(issuer: str = "i1") -> GrantClaims:
    now = int(NOW)
    return GrantClaims(1, b"s" * 16, "a1", b"a" * 32, "c1", b"c" * 32, "web", now, now + 600, issuer)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_address_survives_the_round_trip(host: object, port: int) -> None:
    address = TransportAddress.of(str(host), port)
    assert translate.address_from_proto(translate.address_to_proto(address)) == address


@pytest.mark.parametrize(("host", "port"), [("", 1), ("example.org", 1), ("::1", 65536), ("1.2.3", 5)])
def test_malformed_address_is_the_senders_fault(host: str, port: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        translate.address_from_proto(types_pb2.TransportAddress(host=host, port=port))
    assert caught.value.reason == "malformed_address"


@given(st.sampled_from(Role), st.text(max_size=63), FINGERPRINTS)
def test_party_survives_the_round_trip(role: Role, node_id: str, fingerprint: bytes) -> None:
    party = Party(role, node_id, fingerprint)
    assert translate.party_from_proto(translate.party_to_proto(party)) == party


@pytest.mark.parametrize(
    "message",
    [
        types_pb2.NodeIdentity(id="a1", fingerprint=bytes(32)),
        types_pb2.NodeIdentity(role=types_pb2.ROLE_AGENT, id="a1", fingerprint=bytes(31)),
    ],
    ids=["no role", "short fingerprint"],
)
def test_incomplete_identity_is_the_senders_fault(message: types_pb2.NodeIdentity) -> None:
    with pytest.raises(RemoteProtocolError):
        translate.party_from_proto(message)


@pytest.mark.parametrize("protocol", ServiceProtocol)
def test_protocol_survives_the_round_trip(protocol: ServiceProtocol) -> None:
    assert translate.protocol_from_proto(translate.protocol_to_proto(protocol)) is protocol


def test_unset_protocol_means_any() -> None:
    assert translate.protocol_from_proto(types_pb2.SERVICE_PROTOCOL_UNSPECIFIED) is None


@pytest.mark.parametrize("code", Code)
def test_every_code_has_its_number(code: Code) -> None:
    assert signaling_pb2.SignalingCode.Name(translate.code_to_proto(code)).endswith(code.name)


@given(CLAIMS)
def test_claims_survive_the_round_trip(stated: GrantClaims) -> None:
    data = translate.claims_to_proto(stated).SerializeToString()
    assert translate.claims_from_bytes(data) == stated


def test_sealed_grant_is_opened_by_whoever_trusts_the_ca() -> None:
    sealed = translate.seal_grant(claims(), intermediate())
    assert translate.open_grant(sealed, verifier(), NOW) == claims()


def test_altered_claims_are_not_believed() -> None:
    sealed = translate.seal_grant(claims(), intermediate())
    altered = translate.claims_to_proto(replace(claims(), service="ssh"))
    sealed.claims = altered.SerializeToString()
    with pytest.raises(AccessDenied) as caught:
        translate.open_grant(sealed, verifier(), NOW)
    assert caught.value.reason == "bad_signature"


@pytest.mark.parametrize(
    ("issuer", "reason"),
    [
        (intermediate("c1", Role.CONNECTOR), "wrong_role"),
        (intermediate("i2"), "wrong_name"),
        (intermediate("i1", foreign=True), "foreign_ca"),
    ],
    ids=["signed by a connector", "signed by another intermediate", "signed under another CA"],
)
def test_grant_of_a_wrong_issuer_is_not_believed(issuer: Credentials, reason: str) -> None:
    sealed = translate.seal_grant(claims(), issuer)
    with pytest.raises(AuthenticationError) as caught:
        translate.open_grant(sealed, verifier(), NOW)
    assert caught.value.reason == reason


def test_grant_of_a_revoked_intermediate_is_not_believed() -> None:
    sealed = translate.seal_grant(claims(), intermediate())
    judge = verifier(revoked=[issue(Role.INTERMEDIATE, "i1")])
    with pytest.raises(AuthenticationError) as caught:
        translate.open_grant(sealed, judge, NOW)
    assert caught.value.reason == "revoked"


def test_grant_without_a_chain_is_not_believed() -> None:
    sealed = translate.seal_grant(claims(), intermediate())
    del sealed.issuer_chain[:]
    with pytest.raises(AuthenticationError) as caught:
        translate.open_grant(sealed, verifier(), NOW)
    assert caught.value.reason == "missing"


def test_certificate_of_an_unknown_version_is_malformed() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        translate.chain_from_der([of_unknown_version(issue(Role.INTERMEDIATE, "i1").certificate)])
    assert caught.value.reason == "malformed_certificate"


def test_overlong_chain_is_refused_unparsed() -> None:
    with pytest.raises(RemoteProtocolError):
        translate.chain_from_der([b"not a certificate"] * 5)


@given(st.binary(max_size=200), st.binary(max_size=80), st.lists(st.binary(max_size=80), max_size=6))
def test_arbitrary_bytes_open_nothing_and_raise_only_ours(
    data: bytes, signature: bytes, chain: list[bytes]
) -> None:
    sealed = grant_pb2.SealedGrant(claims=data, signature=signature, issuer_chain=chain)
    with pytest.raises(ZtnaError):
        translate.open_grant(sealed, verifier(), NOW)


ADDRESSES = st.builds(
    lambda host, port: TransportAddress.of(str(host), port), st.ip_addresses(), st.integers(1, 65535)
)


@given(
    st.sampled_from([CandidateType.SERVER_REFLEXIVE, CandidateType.PEER_REFLEXIVE, CandidateType.RELAY]),
    ADDRESSES,
    ADDRESSES,
    st.integers(1, 2**31 - 1),
    st.text(min_size=1, max_size=32),
)
def test_candidate_survives_the_round_trip(
    kind: CandidateType, address: TransportAddress, base: TransportAddress, priority: int, foundation: str
) -> None:
    candidate = Candidate(kind, address, base, priority, foundation, base)
    assert translate.candidate_from_proto(translate.candidate_to_proto(candidate)) == candidate


def test_host_candidate_is_its_own_base() -> None:
    address = TransportAddress("192.0.2.1", 5000)
    host = Candidate(CandidateType.HOST, address, address, 1, "1")
    assert translate.candidate_from_proto(translate.candidate_to_proto(host)) == host


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": 0}, "malformed_candidate"),
        ({"type": 99}, "malformed_candidate"),
        ({"priority": 0}, "malformed_candidate"),
        ({"priority": 2**31}, "malformed_candidate"),
        ({"foundation": ""}, "malformed_candidate"),
        ({"foundation": "f" * 33}, "malformed_candidate"),
        ({"address": types_pb2.TransportAddress(host="192.0.2.1", port=0)}, "malformed_candidate"),
        ({"address": types_pb2.TransportAddress(host="example.org", port=1)}, "malformed_address"),
        ({"related_address": types_pb2.TransportAddress(host="x", port=1)}, "malformed_address"),
    ],
)
def test_malformed_candidate_is_the_senders_fault(change: dict[str, object], reason: str) -> None:
    good: dict[str, object] = {
        "type": types_pb2.Candidate.TYPE_HOST,
        "address": types_pb2.TransportAddress(host="192.0.2.1", port=5000),
        "priority": 1,
        "foundation": "1",
    }
    fields: dict[str, Any] = good | change
    with pytest.raises(RemoteProtocolError) as caught:
        translate.candidate_from_proto(types_pb2.Candidate(**fields))
    assert caught.value.reason == reason


@given(
    st.builds(
        NatBehaviour,
        st.booleans(),
        st.booleans(),
        st.sampled_from(Dependence),
        st.sampled_from(Dependence),
        st.sampled_from(PortAllocation),
        st.integers(-65535, 65535),
        st.booleans(),
    )
)
def test_nat_behaviour_survives_the_round_trip(behaviour: NatBehaviour) -> None:
    assert translate.nat_from_proto(translate.nat_to_proto(behaviour)) == behaviour


def test_nat_behaviour_of_a_newer_peer_is_unknown_where_it_is_news() -> None:
    news = types_pb2.NatBehaviour(is_known=True, port_step=2**31 - 1)
    news.MergeFromString(bytes([3 << 3, 99]))
    behaviour = translate.nat_from_proto(news)
    assert behaviour.mapping is Dependence.UNKNOWN
    assert behaviour.port_step == 65535
