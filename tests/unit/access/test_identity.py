from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from tests import pki_fixtures
from tests.pki_fixtures import NOW, TRUST_DOMAIN
from ztna.access import identity as subject
from ztna.access.identity import Identity, Role, VerifiedPeer, Verifier, fingerprint
from ztna.access.profile import UNREADABLE
from ztna.errors import AuthenticationError, ConfigError
from ztna.pki.authority import Authority, Issued

KEY_TYPES = ["p256", "ed25519"]
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def judge(
    issued: Issued,
    *,
    key_type: str = "p256",
    expect: Role | tuple[Role, ...] = Role.AGENT,
    as_server: bool = False,
    expect_id: str | None = None,
    now_wall: float = NOW,
    judge_with: Verifier | None = None,
) -> VerifiedPeer:
    verifier = judge_with or pki_fixtures.verifier(key_type=key_type)
    return verifier.verify(
        issued.chain, expect=expect, now_wall=now_wall, as_server=as_server, expect_id=expect_id
    )


def reason_of(issued: Issued, **options: object) -> tuple[str, str]:
    with pytest.raises(AuthenticationError) as caught:
        judge(issued, **options)  # type: ignore[arg-type]
    return caught.value.reason, str(caught.value)


class TestIdentity:
    def test_uri_and_dns_name_follow_the_role(self) -> None:
        identity = Identity("example.org", Role.CONNECTOR, "site-1")
        assert identity.uri == "ztna://example.org/connector/site-1"
        assert identity.dns_name == "site-1.connector.example.org"

    @given(LABELS, st.sampled_from(Role), st.lists(LABELS, min_size=1, max_size=2))
    def test_uri_round_trips(self, node_id: str, role: Role, labels: list[str]) -> None:
        identity = Identity(".".join(labels), role, node_id)
        assert Identity.from_uri(identity.uri) == identity

    @given(st.text() | st.from_regex(r"ztna://.*/.*/.*"))
    def test_arbitrary_text_raises_only_authentication_errors(self, text: str) -> None:
        try:
            identity = Identity.from_uri(text)
        except AuthenticationError:
            return
        assert identity.uri == text

    @pytest.mark.parametrize(
        "uri",
        [
            "",
            "ztna://example.org/agent",
            "ztna://example.org/agent/a/b",
            "ztna://example.org/agent/a?x",
            "ztna://example.org/agent/",
            "ztna://example.org/agent/A",
            "ztna://example.org/agent/-a",
            "ztna://example.org/agent/a\n",
            "ztna://example.org/root/a",
            "ztna:///agent/a",
            "ztna://example..org/agent/a",
            "ztna://user@example.org/agent/a",
            "ztna://example.org:1/agent/a",
            "spiffe://example.org/agent/a",
            "ztna:example.org/agent/a",
            "ztna://example.org/agent/" + "a" * 64,
            "ztna://" + ".".join(["a" * 59] * 3) + "/agent/a",
        ],
    )
    def test_other_forms_are_malformed(self, uri: str) -> None:
        with pytest.raises(AuthenticationError) as caught:
            Identity.from_uri(uri)
        assert caught.value.reason == "malformed"

    def test_longest_names_fit_a_dns_name_and_one_more_character_does_not(self) -> None:
        domain = f"{'a' * 63}.{'b' * 63}.{'c' * 48}"
        assert len(domain) == subject.MAX_TRUST_DOMAIN_LENGTH
        longest = Identity(domain, Role.INTERMEDIATE, "n" * subject.MAX_LABEL_LENGTH)
        assert len(longest.dns_name) == 253
        with pytest.raises(AuthenticationError):
            Identity(domain + "c", Role.AGENT, "n")

    def test_reads_as_role_and_id(self) -> None:
        assert str(Identity("example.org", Role.AGENT, "laptop")) == "agent 'laptop'"


@pytest.mark.parametrize("key_type", KEY_TYPES)
class TestVerdictsForBothKeyTypes:
    @pytest.mark.parametrize("role", Role)
    def test_every_role_is_accepted_as_a_client(self, role: Role, key_type: str) -> None:
        issued = pki_fixtures.issue(role, "n1", key_type=key_type)
        peer = judge(issued, key_type=key_type, expect=role, expect_id="n1")
        assert peer.identity == Identity(TRUST_DOMAIN, role, "n1")
        assert peer.certificate == issued.certificate
        assert peer.fingerprint == fingerprint(issued.certificate)
        assert peer.not_after == issued.certificate.not_valid_after_utc.timestamp()

    @pytest.mark.parametrize("role", Role)
    def test_only_connector_and_intermediate_are_accepted_as_servers(self, role: Role, key_type: str) -> None:
        issued = pki_fixtures.issue(role, "n1", key_type=key_type, eku=[SERVER, CLIENT])
        if role in {Role.CONNECTOR, Role.INTERMEDIATE}:
            assert judge(issued, key_type=key_type, expect=role, as_server=True).identity.role is role
        else:
            reason, message = reason_of(issued, key_type=key_type, expect=role, as_server=True)
            assert reason == "wrong_role"
            assert "TLS server" in message

    def test_expired(self, key_type: str) -> None:
        issued = pki_fixtures.issue("agent", "laptop", key_type=key_type, expired=True)
        reason, message = reason_of(issued, key_type=key_type)
        assert reason == "expired"
        assert "agent 'laptop' expired on 2001-09-10" in message
        assert "ztna pki issue agent laptop --force" in message
        assert "clock" not in message

    def test_expired_no_more_than_a_day_ago_asks_for_the_clock(self, key_type: str) -> None:
        issued = pki_fixtures.issue("agent", "laptop", key_type=key_type, expired=True)
        ends = issued.certificate.not_valid_after_utc.timestamp()
        with pytest.raises(AuthenticationError) as caught:
            judge(issued, key_type=key_type, now_wall=ends + 180)
        assert str(caught.value) == (
            "expired: the certificate of agent 'laptop' expired on 2001-09-10 01:46:40 UTC; is the clock "
            "right? here it is 2001-09-10 01:49:40 UTC; if it is, issue a new one: "
            "ztna pki issue agent laptop --force"
        )
        for late_s, asks in ((subject.CLOCK_DOUBT_S, True), (subject.CLOCK_DOUBT_S + 1, False)):
            with pytest.raises(AuthenticationError) as caught:
                judge(issued, key_type=key_type, now_wall=ends + late_s)
            assert ("is the clock right?" in str(caught.value)) is asks

    def test_not_yet_valid(self, key_type: str) -> None:
        issued = pki_fixtures.issue("agent", "laptop", key_type=key_type, not_yet_valid=True)
        reason, message = reason_of(issued, key_type=key_type)
        assert reason == "not_yet_valid"
        assert "2096-10-01" in message
        assert "2027-01-15 08:00:00" in message
        assert "is the clock right? here it is 2027-01-15 08:00:00 UTC" in message

    def test_foreign_ca_of_the_same_name(self, key_type: str) -> None:
        issued = pki_fixtures.issue("agent", "laptop", key_type=key_type, foreign=True)
        reason, message = reason_of(issued, key_type=key_type)
        assert reason == "foreign_ca"
        assert "claims to be agent 'laptop'" in message

    def test_foreign_wins_over_expired_because_unsigned_dates_are_no_facts(self, key_type: str) -> None:
        issued = pki_fixtures.issue("agent", "laptop", key_type=key_type, foreign=True, expired=True)
        assert reason_of(issued, key_type=key_type)[0] == "foreign_ca"

    def test_self_signed(self, key_type: str) -> None:
        other = pki_fixtures.authority(key_type, foreign=True)
        assert reason_of(Issued(other.certificate, other.private_key), key_type=key_type)[0] == "malformed"

    def test_wrong_role(self, key_type: str) -> None:
        issued = pki_fixtures.issue("connector", "site", key_type=key_type)
        reason, message = reason_of(issued, key_type=key_type, expect=(Role.AGENT, Role.OPERATOR))
        assert reason == "wrong_role"
        assert "connector 'site' came where only agent or operator is served" in message

    @pytest.mark.parametrize(
        "eku",
        [[SERVER], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, CLIENT], [CLIENT]],
        ids=["server", "any", "client"],
    )
    def test_usages_short_of_the_role_are_refused(
        self, eku: list[x509.ObjectIdentifier], key_type: str
    ) -> None:
        issued = pki_fixtures.issue("connector", "site", key_type=key_type, eku=eku)
        reason, _ = reason_of(issued, key_type=key_type, expect=Role.CONNECTOR, as_server=True)
        assert reason in {"wrong_role", "malformed"}

    def test_wrong_name(self, key_type: str) -> None:
        issued = pki_fixtures.issue("connector", "site", key_type=key_type)
        reason, message = reason_of(issued, key_type=key_type, expect=Role.CONNECTOR, expect_id="other")
        assert reason == "wrong_name"
        assert "connector 'site' answered where 'other' was expected" in message

    def test_revoked(self, key_type: str) -> None:
        issued = pki_fixtures.issue("agent", "laptop", key_type=key_type)
        verifier = pki_fixtures.verifier(key_type=key_type, revoked=[issued])
        reason, message = reason_of(issued, judge_with=verifier)
        assert reason == "revoked"
        assert f"{issued.certificate.serial_number:x}" in message
        assert judge(pki_fixtures.issue("agent", "other", key_type=key_type), judge_with=verifier)

    def test_trust_domain_of_the_peer_must_be_ours(self, key_type: str) -> None:
        issued = pki_fixtures.issue("agent", "laptop", key_type=key_type, trust_domain="example.net")
        foreign = pki_fixtures.authority(key_type, trust_domain="example.net")
        verifier = Verifier([foreign.certificate], TRUST_DOMAIN)
        reason, message = reason_of(issued, judge_with=verifier)
        assert reason == "wrong_name"
        assert "'example.net', ours is 'example.org'" in message

    @pytest.mark.parametrize(
        "fault",
        [
            "no_san", "two_uris", "foreign_uri", "is_ca", "no_basic_constraints", "no_key_usage",
            "may_not_sign",
            "may_sign_certificates", "no_eku", "no_aki", "wrong_aki", "unknown_critical", "rsa_key",
            "p384_key",
        ],
    )  # fmt: skip
    def test_profile_faults_are_malformed_though_our_ca_signed(self, fault: str, key_type: str) -> None:
        ca = pki_fixtures.authority(key_type)
        assert reason_of(faulty(ca, fault), key_type=key_type)[0] == "malformed"

    def test_the_faultless_twin_of_the_faulty_ones_is_accepted(self, key_type: str) -> None:
        assert judge(faulty(pki_fixtures.authority(key_type), "none"), key_type=key_type)

    def test_dns_name_must_repeat_the_identity(self, key_type: str) -> None:
        issued = faulty(pki_fixtures.authority(key_type), "no_dns")
        assert reason_of(issued, key_type=key_type)[0] == "wrong_name"


def faulty(ca: Authority, fault: str) -> Issued:
    """A certificate that `ca` signs, with one deviation from the profile."""
    key = ec.generate_private_key(ec.SECP384R1() if fault == "p384_key" else ec.SECP256R1())
    public = rsa.generate_private_key(65537, 2048).public_key() if fault == "rsa_key" else key.public_key()
    name = Identity(TRUST_DOMAIN, Role.AGENT, "laptop")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name.uri)]
    if fault == "two_uris":
        names.append(x509.UniformResourceIdentifier(Identity(TRUST_DOMAIN, Role.AGENT, "other").uri))
    if fault == "foreign_uri":
        names = [x509.UniformResourceIdentifier("https://example.org/agent/laptop")]
    names.append(x509.DNSName("else.agent.example.org" if fault == "no_dns" else name.dns_name))
    aki_key = key.public_key() if fault == "wrong_aki" else ca.private_key.public_key()
    extensions: dict[str, tuple[x509.ExtensionType, bool]] = {
        "no_basic_constraints": (x509.BasicConstraints(fault == "is_ca", None), True),
        "no_key_usage": (
            x509.KeyUsage(
                fault != "may_not_sign", fault == "may_not_sign", False, False, False,
                fault == "may_sign_certificates", False, False, False,
            ),
            True,
        ),
        "no_eku": (x509.ExtendedKeyUsage([CLIENT]), False),
        "no_aki": (x509.AuthorityKeyIdentifier.from_issuer_public_key(aki_key), False),
        "no_san": (x509.SubjectAlternativeName(names), False),
    }  # fmt: skip
    if fault == "unknown_critical":
        extensions[""] = (
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\0"),
            True,
        )
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "laptop")]))
        .issuer_name(ca.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(ca.certificate.not_valid_before_utc)
        .not_valid_after(ca.certificate.not_valid_after_utc)
    )
    for omitted_by, (extension, critical) in extensions.items():
        if fault != omitted_by:
            builder = builder.add_extension(extension, critical)
    algorithm = hashes.SHA256() if isinstance(ca.private_key, ec.EllipticCurvePrivateKey) else None
    return Issued(builder.sign(ca.private_key, algorithm), key)


class TestVerifier:
    def test_no_certificate_is_missing(self) -> None:
        with pytest.raises(AuthenticationError) as caught:
            pki_fixtures.verifier().verify([], expect=Role.AGENT, now_wall=NOW, as_server=False)
        assert caught.value.reason == "missing"

    def test_chain_length_is_bounded(self) -> None:
        leaf, ca = pki_fixtures.issue("agent", "laptop").certificate, pki_fixtures.authority().certificate
        verifier = pki_fixtures.verifier()
        longest = [leaf] + [ca] * (subject.MAX_CHAIN_CERTIFICATES - 1)
        assert verifier.verify(longest, expect=Role.AGENT, now_wall=NOW, as_server=False)
        with pytest.raises(AuthenticationError) as caught:
            verifier.verify([*longest, ca], expect=Role.AGENT, now_wall=NOW, as_server=False)
        assert caught.value.reason == "malformed"

    def test_a_node_cannot_issue(self) -> None:
        node = pki_fixtures.issue("intermediate", "relay")
        posing = Authority(node.certificate, node.private_key, TRUST_DOMAIN)
        forged = faulty(posing, "none")
        with pytest.raises(AuthenticationError) as caught:
            pki_fixtures.verifier().verify(
                [forged.certificate, node.certificate], expect=Role.AGENT, now_wall=NOW, as_server=False
            )
        assert caught.value.reason == "foreign_ca"

    def test_either_ca_is_accepted_during_a_change_of_ca(self) -> None:
        cas = [pki_fixtures.authority().certificate, pki_fixtures.authority(foreign=True).certificate]
        verifier = Verifier(cas, TRUST_DOMAIN)
        for foreign in (False, True):
            issued = pki_fixtures.issue("agent", "laptop", foreign=foreign)
            assert judge(issued, judge_with=verifier)

    def test_expired_ca_is_named(self) -> None:
        issued = pki_fixtures.issue("agent", "laptop")
        reason, message = reason_of(issued, now_wall=4_000_000_001.0)
        assert reason == "expired"
        assert "the CA that issued" in message

    def test_recheck_follows_dates_and_revocation(self) -> None:
        issued = pki_fixtures.issue("agent", "laptop")
        verifier = pki_fixtures.verifier()
        peer = judge(issued, judge_with=verifier)
        verifier.recheck(peer, now_wall=peer.not_after)
        with pytest.raises(AuthenticationError, match="expired"):
            verifier.recheck(peer, now_wall=peer.not_after + 1)
        newer = verifier.with_revocation(pki_fixtures.revocation_list(issued))
        with pytest.raises(AuthenticationError, match="revoked"):
            newer.recheck(peer, now_wall=NOW)

    def test_without_a_ca_there_is_no_verifier(self) -> None:
        with pytest.raises(ConfigError, match="no CA certificate"):
            Verifier([], TRUST_DOMAIN)

    def test_trust_domain_must_be_a_dns_name(self) -> None:
        with pytest.raises(ConfigError, match="trust domain"):
            Verifier([pki_fixtures.authority().certificate], "Example Org")

    def test_a_node_certificate_is_no_ca(self) -> None:
        with pytest.raises(ConfigError, match="not marked as a CA"):
            Verifier([pki_fixtures.issue("agent", "laptop").certificate], TRUST_DOMAIN)

    def test_fingerprint_is_of_the_key_alone(self) -> None:
        issued = pki_fixtures.issue("agent", "laptop")
        digest = hashes.Hash(hashes.SHA256())
        digest.update(
            issued.private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
        assert fingerprint(issued.certificate) == digest.finalize()

    # The library announces that it will refuse such a serial number itself one day.
    @pytest.mark.filterwarnings("ignore:Parsed a serial number")
    @given(st.integers(0, 2000), st.integers(0, 255))
    @example(12, 1)  # another version
    @example(15, 128)  # a negative serial number
    def test_a_flipped_byte_raises_only_authentication_errors(self, position: int, value: int) -> None:
        good = pki_fixtures.issue("agent", "laptop").certificate.public_bytes(Encoding.DER)
        data = bytearray(good)
        data[position % len(data)] = value
        try:
            certificate = x509.load_der_x509_certificate(bytes(data))
        except UNREADABLE:
            return
        try:
            pki_fixtures.verifier().verify([certificate], expect=Role.AGENT, now_wall=NOW, as_server=False)
        except AuthenticationError:
            return
        assert bytes(data) == good
