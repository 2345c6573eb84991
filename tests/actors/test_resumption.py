"""Opening grants with a memory for issuers, and verifying those of attaching nodes at a limited rate."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from actors import translate
from actors.credentials import Credentials, parse_credentials
from actors.grant_opener import MAX_ISSUERS, VERDICT_LIFETIME_S, GrantOpener
from actors.resumption import (
    GRANTS_PER_SECOND,
    GRANTS_PER_SLICE,
    ISSUER_COST,
    MAX_FORGED_PER_NODE,
    MAX_ISSUERS_PER_NODE,
    Resumptions,
    Verified,
)
from tests.pki_fixtures import NOW, crl_pem, issue, pem
from ztna.access.grant import GrantClaims
from ztna.access.identity import Role
from ztna.errors import AccessDenied, AuthenticationError, RemoteProtocolError
from ztna.signaling.values import Party
from ztna.v1 import grant_pb2, signaling_pb2


@cache
def credentials(name: str = "i1", *, revokes: str = "") -> Credentials:
    own = issue(Role.INTERMEDIATE, name)
    crl = crl_pem(issue(Role.INTERMEDIATE, revokes)) if revokes else None
    return parse_credentials(own.certificate_pem, own.key_pem, pem(own).ca, crl, Role.INTERMEDIATE, NOW)


def session(number: int) -> bytes:
    return number.to_bytes(16, "big")


def grant(number: int = 0, issuer: str = "i1", **changes: Any) -> grant_pb2.SealedGrant:
    claims = GrantClaims(
        1, session(number), "a1", b"a" * 32, "c1", b"c" * 32, "web", int(NOW), int(NOW) + 600, issuer
    )
    return translate.seal_grant(replace(claims, **changes), credentials(issuer))


def shown(count: int, first: int = 0, issuer: str = "i1") -> list[signaling_pb2.ResumeSession]:
    return [
        signaling_pb2.ResumeSession(session_id=session(number), grant=grant(number, issuer))
        for number in range(first, first + count)
    ]


def party(name: str) -> Party:
    return Party(Role.CONNECTOR, name, b"c" * 32)


# Opening


def test_issuer_of_many_grants_is_judged_once() -> None:
    opener = GrantOpener(credentials())
    for number in range(20):
        assert opener.open(grant(number), NOW).session_id == session(number)
    assert opener.verifications == 1


def test_verdict_is_looked_at_again_after_a_while_and_when_the_clock_is_set_back() -> None:
    opener = GrantOpener(credentials())
    for now_wall in (NOW, NOW + VERDICT_LIFETIME_S, NOW + VERDICT_LIFETIME_S + 1, NOW):
        opener.open(grant(), now_wall)
    assert opener.verifications == 3


def test_revocation_of_an_issuer_counts_from_the_reload_on() -> None:
    own = credentials("i9")
    opener = GrantOpener(own)
    opener.open(grant(), NOW)
    own.adopt(credentials("i9", revokes="i1"))
    with pytest.raises(AuthenticationError, match="revoked"):
        opener.open(grant(), NOW)


@pytest.mark.parametrize("fault", ["signature", "claims", "foreign", "issuer", "chain", "garbage", "none"])
def test_faulty_grant_is_refused_as_often_as_it_is_shown(fault: str) -> None:
    opener = GrantOpener(credentials())
    sealed = grant()
    expected: type[Exception] = AuthenticationError
    match fault:
        case "signature":
            sealed.signature = bytes(len(sealed.signature))
            expected = AccessDenied
        case "claims":
            sealed.claims += b"\x3a\x03ssh"
            expected = AccessDenied
        case "foreign":
            stranger = issue(Role.INTERMEDIATE, "i1", foreign=True).certificate
            sealed.issuer_chain[0] = stranger.public_bytes(Encoding.DER)
        case "issuer":
            sealed = grant(issuer="i2")
            sealed.issuer_chain[0] = credentials().chain_der[0]
        case "chain":
            sealed.issuer_chain[0] = b"nonsense"
        case "garbage":
            sealed.claims = b"\xff"
            expected = RemoteProtocolError
        case _:
            del sealed.issuer_chain[:]
    for _ in range(3):
        with pytest.raises(expected):
            opener.open(sealed, NOW)
    assert opener.verifications <= 1


def test_remembered_issuers_are_bounded() -> None:
    opener = GrantOpener(credentials())
    for number in range(MAX_ISSUERS + 5):
        sealed = grant()
        sealed.issuer_chain.append(session(number))
        with pytest.raises(AuthenticationError):
            opener.open(sealed, NOW)
    assert len(opener._verdicts) == MAX_ISSUERS


# The rate


class World:
    def __init__(self, max_waiting: int = 10_000) -> None:
        self.now = 100.0
        self.opener = GrantOpener(credentials())
        self.queue = Resumptions(self.opener, max_waiting, self.now)
        self.opener.open(grant(), NOW)  # the issuer is known

    def add(self, name: str, entries: list[signaling_pb2.ResumeSession]) -> tuple[list[bytes], list[bytes]]:
        return self.queue.add(name.encode(), party(name), entries)

    def slices(self) -> list[list[Verified]]:
        """What is verified in each turn, until nothing waits."""
        done = [self.queue.proceed(self.now, NOW)]
        while (deadline := self.queue.next_deadline()) is not None:
            assert deadline > self.now
            self.now = deadline
            done.append(self.queue.proceed(self.now, NOW))
        return done


def test_few_sessions_come_back_at_once() -> None:
    world = World()
    waiting, refused = world.add("c1", shown(GRANTS_PER_SLICE))
    assert (len(waiting), refused) == (GRANTS_PER_SLICE, [])
    ((verified,),) = world.slices()
    assert [claims.session_id for claims in verified.resumed] == waiting
    assert verified.rejected == []
    assert not world.queue.is_waiting(b"c1")


def test_many_sessions_come_back_in_slices_at_a_limited_rate() -> None:
    world = World()
    count = 5 * GRANTS_PER_SLICE
    world.add("c1", shown(count))
    started = world.now
    slices = world.slices()
    sizes = [sum(len(verified.resumed) for verified in turn) for turn in slices]
    assert sum(sizes) == count
    assert max(sizes) <= GRANTS_PER_SLICE
    assert world.now - started >= (count - GRANTS_PER_SLICE) / GRANTS_PER_SECOND * 0.99
    assert world.now - started <= (count / GRANTS_PER_SECOND) * 1.1 + 0.01


def test_nodes_take_turns() -> None:
    world = World()
    world.add("c1", shown(10 * GRANTS_PER_SLICE))
    world.queue.proceed(world.now, NOW)
    world.add("c2", shown(5, first=5000))
    assert world.queue.is_waiting(b"c2")
    slices = world.slices()
    turn = next(index for index, turn in enumerate(slices) if any(v.attach_id == b"c2" for v in turn))
    assert turn <= 2


def test_node_that_attaches_again_or_leaves_is_verified_no_further() -> None:
    world = World()
    world.add("c1", shown(3 * GRANTS_PER_SLICE))
    world.queue.proceed(world.now, NOW)
    world.queue.add(b"anew", party("c1"), shown(2))
    assert [v.attach_id for turn in world.slices() for v in turn] == [b"anew"]
    world.add("c1", shown(3 * GRANTS_PER_SLICE))
    world.queue.drop(b"c1")
    world.queue.drop(b"c1")
    assert world.slices() == [[]]


def test_session_that_is_listed_twice_is_verified_once() -> None:
    world = World()
    waiting, refused = world.add("c1", shown(2) + shown(2))
    assert (waiting, refused) == ([session(0), session(1)], [])


def test_waiting_grants_of_all_nodes_are_bounded() -> None:
    world = World(max_waiting=5)
    assert world.add("c1", shown(3))[1] == []
    assert world.add("c2", shown(4, first=10))[1] == [session(12), session(13)]
    world.slices()
    assert world.add("c3", shown(5, first=20))[1] == []


def test_grant_of_another_session_brings_nothing_back() -> None:
    world = World()
    world.add("c1", [signaling_pb2.ResumeSession(session_id=session(9), grant=grant(1))])
    ((verified,),) = world.slices()
    assert (verified.resumed, [each for each, _ in verified.rejected]) == ([], [session(9)])


def test_node_with_forged_signatures_is_looked_at_no_further() -> None:
    world = World()
    entries = shown(3 * GRANTS_PER_SLICE)
    for each in entries[:-1]:
        each.grant.signature = bytes(70)
    opened = []
    world.opener.open = lambda *args: opened.append(args) or GrantOpener.open(world.opener, *args)  # type: ignore[method-assign,func-returns-value]
    world.add("c1", entries)
    rejected = [each for turn in world.slices() for verified in turn for each in verified.rejected]
    assert len(rejected) == len(entries)
    assert len(opened) == MAX_FORGED_PER_NODE + 1


def test_node_that_shows_ever_more_issuers_is_looked_at_no_further() -> None:
    world = World()
    entries = shown(2 * MAX_ISSUERS_PER_NODE)
    for number, each in enumerate(entries):
        each.grant.issuer_chain.append(session(number))
    world.add("c1", entries)
    before = world.opener.verifications
    started = world.now
    slices = world.slices()
    assert len([each for turn in slices for verified in turn for each in verified.rejected]) == len(entries)
    assert world.opener.verifications - before == MAX_ISSUERS_PER_NODE + 1
    # Each costs the rate as much as it costs the processor.
    assert world.now - started >= (ISSUER_COST * MAX_ISSUERS_PER_NODE - GRANTS_PER_SLICE) / GRANTS_PER_SECOND
