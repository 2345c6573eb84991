"""A peer with a valid identity that plays foul with its checks, its credentials and its addresses."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.unit.ice.simulation import credentials, host_candidate
from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.errors import RemoteProtocolError
from ztna.ice import checks, nomination
from ztna.ice.candidate import Candidate
from ztna.ice.checklist import Checklist
from ztna.ice.checklist_effects import PairNominated, SendCheck
from ztna.ice.credentials import IceCredentials
from ztna.ice.timing import CONSENT_LIMIT_S
from ztna.stun.message import parse

OURS, THEIRS = credentials("ours"), credentials("them")
HOST = host_candidate("192.0.2.1")
FIRST, SECOND = host_candidate("192.0.2.9"), host_candidate("192.0.2.8", preference=9)
RTT_S = 0.02


class Peer:
    """A peer that answers checks at the addresses in `lives_at`, and counts what is sent to others."""

    def __init__(self, *, is_controlling: bool = False) -> None:
        self.core = Checklist(random.Random(1))
        self.now = 0.0
        self.lives_at = {FIRST.address, SECOND.address}
        self.sent: list[SendCheck] = []
        self.nominated: list[PairNominated] = []
        self._chance = random.Random(2)
        self.core.handle_prepare(1, OURS, [HOST], is_controlling=is_controlling)
        self._act()

    def start(self, remote: IceCredentials, *candidates: Candidate) -> None:
        self.core.handle_start(1, remote, candidates, 0.0, self.now)
        self._act()

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.core.handle_timeout(self.now)
            self._act()
        self.now = until

    def nominate(self, source: TransportAddress, transaction_id: bytes = b"") -> None:
        """Send a check that nominates, from whatever address."""
        data = checks.build_check(
            transaction_id or self._chance.randbytes(12),
            THEIRS,
            OURS,
            priority=7,
            is_controlling=True,
            tie_breaker=1,
            uses_candidate=True,
        )
        self.core.handle_message(data, source, "192.0.2.1", self.now)
        self._act()

    def _act(self) -> None:
        for effect in self.core.drain():
            match effect:
                case SendCheck():
                    self.sent.append(effect)
                    self._answer(effect.request)
                case PairNominated():
                    self.nominated.append(effect)
                case _:
                    pass

    def _answer(self, request: Transmit) -> None:
        if request.remote in self.lives_at:
            data = checks.build_answer(parse(request.data), HOST.address, THEIRS.key)
            self.core.handle_message(data, request.remote, "192.0.2.1", self.now + RTT_S)
            self._act()


def proven() -> Peer:
    """A controlled end that has two proven pairs and uses the first."""
    peer = Peer()
    peer.start(THEIRS, FIRST, SECOND)
    for candidate in (SECOND, FIRST):
        peer.nominate(candidate.address)
        peer.wait(0.1)
    assert [each.pair.destination for each in peer.nominated] == [SECOND.address, FIRST.address]
    return peer


def selected(peer: Peer) -> list[TransportAddress]:
    return [view.destination for view in peer.core.view() if view.is_nominated]


@pytest.mark.parametrize("is_controlling", [True, False])
def test_peer_with_our_own_credentials_is_refused(is_controlling: bool) -> None:
    """Or checks that come back to us would be the peer's, and their answers its answers."""
    core = Checklist(random.Random(1))
    core.handle_prepare(1, OURS, [HOST], is_controlling=is_controlling)
    with pytest.raises(RemoteProtocolError, match="bad_credentials"):
        core.handle_start(1, replace(THEIRS, ufrag=OURS.ufrag), [FIRST], 0.0, 0.0)


def test_pair_that_was_proven_long_ago_is_proven_again_before_it_is_followed() -> None:
    """Its address may be a victim's by now: a spoofed check must not direct payload there (RFC 7675)."""
    peer = proven()
    peer.wait(CONSENT_LIMIT_S)
    peer.lives_at.remove(SECOND.address)
    del peer.nominated[:], peer.sent[:]
    for _ in range(50):
        peer.nominate(SECOND.address)
        peer.wait(0.5)
    assert not peer.nominated
    assert selected(peer) == [FIRST.address]
    assert len(peer.sent) <= nomination.MAX_PROOFS * 5


def test_old_pair_that_still_answers_is_followed() -> None:
    peer = proven()
    peer.wait(CONSENT_LIMIT_S)
    peer.nominate(SECOND.address)
    peer.wait(0.1)
    assert selected(peer) == [SECOND.address]


def test_peer_that_changes_its_mind_without_end_is_not_followed_for_ever() -> None:
    peer = proven()
    for count in range(500):
        peer.nominate((FIRST, SECOND)[count % 2].address)
    assert len(peer.nominated) <= nomination.MAX_NOMINATIONS


def test_nomination_that_somebody_recorded_moves_nothing() -> None:
    """Each but the last of several nominations of a pair is remembered as well."""
    peer = Peer()
    peer.start(THEIRS, FIRST, SECOND)
    recorded = b"recorded id "
    peer.nominate(SECOND.address, recorded)
    peer.nominate(SECOND.address)
    peer.nominate(FIRST.address)
    peer.wait(0.2)
    assert selected(peer) == [FIRST.address]
    peer.nominate(SECOND.address, recorded)
    peer.wait(0.2)
    assert selected(peer) == [FIRST.address]
