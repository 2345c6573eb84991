from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stun.strategies import addresses, messages
from ztna.address import TransportAddress
from ztna.stun.attributes import MAGIC_COOKIE, Attribute, ErrorCode, Priority, Software, Username
from ztna.stun.message import BINDING, Message, MessageClass, build
from ztna.stun.replays import COPIES_LIMIT_S, MAX_COPIES, MAX_REPLAYS_REMEMBERED
from ztna.stun.routing import (
    CHECK_BURST,
    CHECKS_PER_SECOND,
    FORMER_CREDENTIALS_S,
    MAX_TRANSACTIONS_PER_SESSION,
    MAX_UFRAGS_PER_SESSION,
    TRANSACTION_LIFETIME_S,
    Asker,
    Route,
    StunRouter,
)

SESSION = b"s" * 16
OTHER_SESSION = b"o" * 16
UFRAG = "ufrg"
PWD = "p" * 22
REMOTE_PWD = "q" * 24
PEER = TransportAddress("198.51.100.7", 5000)
STRANGER = TransportAddress("203.0.113.9", 5000)
NOW = 100.0


def check(
    transaction: int = 1, ufrag: str = UFRAG, pwd: str | None = PWD, *attributes: Attribute, colon: str = ":"
) -> bytes:
    message = Message(
        BINDING,
        MessageClass.REQUEST,
        transaction.to_bytes(12, "big"),
        (Username(f"{ufrag}{colon}peer"), Priority(7), *attributes),
    )
    return build(message, key=None if pwd is None else pwd.encode(), with_fingerprint=True)


def response(
    transaction: int = 1,
    pwd: str | None = REMOTE_PWD,
    message_class: MessageClass = MessageClass.SUCCESS_RESPONSE,
) -> bytes:
    attributes = (ErrorCode(487),) if message_class is MessageClass.ERROR_RESPONSE else ()
    message = Message(BINDING, message_class, transaction.to_bytes(12, "big"), attributes)
    return build(message, key=None if pwd is None else pwd.encode())


def router() -> StunRouter:
    made = StunRouter()
    assert made.accept(SESSION, UFRAG, PWD, NOW)
    return made


def expecting(asker: Asker, pwd: str = REMOTE_PWD) -> StunRouter:
    made = StunRouter()
    assert made.expect((1).to_bytes(12, "big"), asker, SESSION, PEER, pwd.encode(), NOW)
    return made


class TestRequests:
    def test_check_with_our_credentials_goes_to_the_checklist_of_their_session(self) -> None:
        assert router().route(check(), PEER, NOW) == Route(Asker.CHECKLIST, SESSION, UFRAG)

    @pytest.mark.parametrize(
        ("datagram", "reason"),
        [
            pytest.param(check(ufrag="none"), "stun_unknown_ufrag", id="unknown ufrag"),
            pytest.param(check(colon=""), "stun_unknown_ufrag", id="no colon"),
            pytest.param(check(pwd=REMOTE_PWD), "stun_wrong_integrity", id="wrong password"),
            pytest.param(check(pwd=None), "stun_wrong_integrity", id="no integrity"),
            pytest.param(
                build(Message(BINDING, MessageClass.REQUEST, bytes(12)), key=PWD.encode()),
                "stun_without_username",
                id="right key, no username",
            ),
            pytest.param(
                build(Message(BINDING, MessageClass.REQUEST, bytes(12), (Software("x"),))),
                "stun_without_username",
                id="plain binding",
            ),
            pytest.param(
                build(
                    Message(BINDING, MessageClass.INDICATION, bytes(12), (Username("ufrg:p"),)),
                    key=PWD.encode(),
                ),
                "stun_unexpected",
                id="indication",
            ),
            pytest.param(
                build(Message(0x003, MessageClass.REQUEST, bytes(12), (Username("ufrg:p"),))),
                "stun_unexpected",
                id="another method",
            ),
            pytest.param(b"\x00\x01", "stun_malformed", id="short"),
            pytest.param(b"\x00" * 40, "stun_malformed", id="no cookie"),
            pytest.param(check()[:-1], "stun_malformed", id="cut"),
            pytest.param(check()[:-1] + b"\xff", "stun_malformed", id="wrong fingerprint"),
        ],
    )
    def test_anything_else_is_for_nobody(self, datagram: bytes, reason: str) -> None:
        made = router()
        assert made.route(datagram, PEER, NOW) is None
        assert dict(made.dropped) == {reason: 1}

    def test_username_behind_the_integrity_is_vouched_for_by_nobody(self) -> None:
        sealed = build(Message(BINDING, MessageClass.REQUEST, bytes(12), (Priority(7),)), key=PWD.encode())
        name = b"ufrg:per"
        forged = sealed + struct.pack("!HH", Username.TYPE, len(name)) + name
        forged = forged[:2] + struct.pack("!H", len(forged) - 20) + forged[4:]
        made = router()
        assert made.route(forged, PEER, NOW) is None
        assert made.dropped["stun_wrong_integrity"] == 1

    def test_username_that_overruns_the_message_is_for_nobody(self) -> None:
        attribute = struct.pack("!HH", Username.TYPE, 200) + b"ufrg:abc"
        data = struct.pack("!HHI12s", 1, len(attribute), MAGIC_COOKIE, bytes(12)) + attribute
        made = router()
        assert made.route(data, PEER, NOW) is None
        assert made.dropped["stun_malformed"] == 1

    def test_former_credentials_live_a_little_longer(self) -> None:
        made = router()
        made.refuse(SESSION, UFRAG, NOW)
        just_before = NOW + FORMER_CREDENTIALS_S - 0.001
        assert made.route(check(1), PEER, just_before) is not None
        assert made.route(check(2), PEER, NOW + FORMER_CREDENTIALS_S) is None
        made.handle_timeout(NOW + FORMER_CREDENTIALS_S)
        assert made.ufrags == 0

    def test_refusing_twice_does_not_prolong_them(self) -> None:
        made = router()
        made.refuse(SESSION, UFRAG, NOW)
        made.refuse(SESSION, "", NOW + 4)
        assert made.route(check(), PEER, NOW + FORMER_CREDENTIALS_S) is None

    def test_refusing_without_a_ufrag_ends_all_of_that_session_alone(self) -> None:
        made = router()
        made.accept(SESSION, "new1", PWD, NOW)
        made.accept(OTHER_SESSION, "othr", PWD, NOW)
        made.refuse(SESSION, "", NOW)
        made.handle_timeout(NOW + FORMER_CREDENTIALS_S)
        assert made.ufrags == 1
        assert made.route(check(ufrag="othr"), PEER, NOW + 6) == Route(Asker.CHECKLIST, OTHER_SESSION, "othr")

    def test_only_its_session_can_refuse_a_ufrag(self) -> None:
        made = router()
        made.refuse(OTHER_SESSION, UFRAG, NOW)
        assert made.route(check(), PEER, NOW + 60) is not None

    def test_accepting_former_credentials_again_keeps_them(self) -> None:
        made = router()
        made.refuse(SESSION, UFRAG, NOW)
        made.accept(SESSION, UFRAG, REMOTE_PWD, NOW + 1)
        assert made.route(check(pwd=REMOTE_PWD), PEER, NOW + 60) is not None


class TestReplays:
    def test_retransmission_from_the_same_source_passes(self) -> None:
        made = router()
        assert made.route(check(), PEER, NOW) is not None
        assert made.route(check(), PEER, NOW + 3) is not None

    def test_same_check_from_another_source_is_for_nobody(self) -> None:
        made = router()
        made.route(check(), PEER, NOW)
        assert made.route(check(), STRANGER, NOW + COPIES_LIMIT_S - 1) is None
        assert made.route(check(), TransportAddress(PEER.host, 1), NOW + 1) is None
        assert made.dropped["stun_replayed"] == 2

    def test_check_that_did_not_verify_is_not_remembered(self) -> None:
        made = router()
        made.route(check(pwd=REMOTE_PWD), STRANGER, NOW)
        assert made.route(check(), PEER, NOW) is not None

    def test_check_is_for_nobody_however_late_it_comes_again(self) -> None:
        made = router()
        made.route(check(), PEER, NOW)
        for later in (COPIES_LIMIT_S, 3600.0):
            made.handle_timeout(NOW + later)
            assert made.route(check(), STRANGER, NOW + later) is None
            assert made.route(check(), PEER, NOW + later) is None
        assert made.dropped["stun_replayed"] == 4

    def test_memory_ends_with_the_credentials(self) -> None:
        made = router()
        made.route(check(), PEER, NOW)
        made.refuse(SESSION, UFRAG, NOW)
        made.handle_timeout(NOW + FORMER_CREDENTIALS_S)
        assert made.ufrags == 0

    def test_memory_is_bounded_and_forgets_the_oldest(self) -> None:
        made = router()
        for number in range(MAX_REPLAYS_REMEMBERED + 1):
            made.route(check(number), PEER, NOW + number / CHECKS_PER_SECOND)
        later = NOW + (MAX_REPLAYS_REMEMBERED + 1) / CHECKS_PER_SECOND
        assert made.route(check(1), STRANGER, later) is None
        assert made.route(check(0), STRANGER, later) is not None

    def test_check_that_comes_again_and_again_is_passed_on_a_few_times(self) -> None:
        """Each copy would earn an answer as long as itself, at an address that whoever repeats it chose."""
        made = router()
        passed = [made.route(check(), PEER, NOW + number / 1000) for number in range(1000)]
        assert sum(each is not None for each in passed) == MAX_COPIES
        assert made.dropped["stun_repeated"] == 1000 - MAX_COPIES

    def test_peer_that_checks_beyond_reason_is_heard_at_a_bounded_rate(self) -> None:
        made = router()
        passed = [made.route(check(number), PEER, NOW + number / 2000) for number in range(2000)]
        assert sum(each is not None for each in passed) <= CHECK_BURST + CHECKS_PER_SECOND
        assert made.dropped["stun_too_many_checks"] == 2000 - sum(each is not None for each in passed)

    def test_repeated_checks_do_not_use_up_what_the_peer_may_say(self) -> None:
        made = router()
        for number in range(2000):
            made.route(check(), PEER, NOW)
            made.route(check(), STRANGER, NOW + number / 2000)
        assert made.route(check(2), PEER, NOW + 1) is not None


class TestResponses:
    @pytest.mark.parametrize("asker", Asker)
    @pytest.mark.parametrize("kind", [MessageClass.SUCCESS_RESPONSE, MessageClass.ERROR_RESPONSE])
    def test_response_goes_to_its_asker_once(self, asker: Asker, kind: MessageClass) -> None:
        made = expecting(asker)
        assert made.route(response(message_class=kind), PEER, NOW) == Route(asker, SESSION)
        assert made.route(response(message_class=kind), PEER, NOW) is None
        assert dict(made.dropped) == {"stun_unknown_transaction": 1}
        assert made.transactions == 0

    def test_response_of_a_request_without_key_needs_no_integrity(self) -> None:
        made = expecting(Asker.CANDIDATE_GATHERER, pwd="")
        assert made.route(response(pwd=None), PEER, NOW) is not None

    @pytest.mark.parametrize("pwd", [None, PWD])
    def test_forged_response_leaves_the_transaction_open(self, pwd: str | None) -> None:
        made = expecting(Asker.CHECKLIST)
        assert made.route(response(pwd=pwd), PEER, NOW) is None
        assert made.route(response(), PEER, NOW) is not None
        assert dict(made.dropped) == {"stun_wrong_integrity": 1}

    def test_malformed_response_leaves_the_transaction_open(self) -> None:
        made = expecting(Asker.CHECKLIST)
        assert made.route(response() + b"x", PEER, NOW) is None
        assert made.transactions == 1

    @pytest.mark.parametrize("asker", [Asker.KEEPALIVE, Asker.CANDIDATE_GATHERER])
    def test_response_from_elsewhere_is_for_nobody(self, asker: Asker) -> None:
        made = expecting(asker)
        assert made.route(response(), STRANGER, NOW) is None
        assert made.dropped["stun_foreign_response"] == 1
        assert made.route(response(), PEER, NOW) == Route(asker, SESSION)

    def test_checklist_hears_once_of_a_response_from_elsewhere(self) -> None:
        made = expecting(Asker.CHECKLIST)
        assert made.route(response(), STRANGER, NOW) == Route(Asker.CHECKLIST, SESSION)
        assert made.route(response(), STRANGER, NOW) is None
        assert made.route(response(), PEER, NOW) == Route(Asker.CHECKLIST, SESSION)

    def test_late_response_counts_until_the_transaction_expires(self) -> None:
        made = expecting(Asker.CHECKLIST)
        assert made.route(response(), PEER, NOW + TRANSACTION_LIFETIME_S) is None
        assert made.route(response(), PEER, NOW + TRANSACTION_LIFETIME_S - 1) is not None

    def test_expired_transactions_are_let_go_of(self) -> None:
        made = expecting(Asker.CHECKLIST)
        made.handle_timeout(NOW + TRANSACTION_LIFETIME_S - 1)
        assert made.transactions == 1
        made.handle_timeout(NOW + TRANSACTION_LIFETIME_S)
        assert made.transactions == 0

    def test_sending_again_renews_the_transaction(self) -> None:
        made = expecting(Asker.CHECKLIST)
        made.expect((1).to_bytes(12, "big"), Asker.CHECKLIST, SESSION, PEER, REMOTE_PWD.encode(), NOW + 50)
        assert made.transactions == 1
        assert made.route(response(), PEER, NOW + 100) is not None

    def test_transaction_id_of_another_length_is_refused(self) -> None:
        made = StunRouter()
        assert not made.expect(b"short", Asker.CHECKLIST, SESSION, PEER, b"", NOW)


class TestBounds:
    @pytest.mark.parametrize(
        ("ufrag", "pwd"),
        [("", PWD), ("abc", PWD), ("a" * 257, PWD), ("a:bc", PWD), (UFRAG, ""), (UFRAG, "p" * 21)],
    )
    def test_what_are_no_ice_credentials_is_refused(self, ufrag: str, pwd: str) -> None:
        made = StunRouter()
        assert not made.accept(SESSION, ufrag, pwd, NOW)
        assert made.ufrags == 0

    def test_ufrag_of_another_session_is_refused(self) -> None:
        made = router()
        assert not made.accept(OTHER_SESSION, UFRAG, REMOTE_PWD, NOW)
        assert made.route(check(), PEER, NOW) == Route(Asker.CHECKLIST, SESSION, UFRAG)

    def test_session_with_too_many_ufrags_loses_its_oldest(self) -> None:
        made = router()
        for number in range(MAX_UFRAGS_PER_SESSION):
            assert made.accept(SESSION, f"more{number}", PWD, NOW)
        assert made.ufrags == MAX_UFRAGS_PER_SESSION
        assert made.route(check(), PEER, NOW) is None

    def test_ufrags_beyond_the_bound_are_refused_until_room_is_made(self) -> None:
        made = StunRouter(max_ufrags=1)
        assert made.accept(SESSION, UFRAG, PWD, NOW)
        assert not made.accept(OTHER_SESSION, "othr", PWD, NOW)
        made.refuse(SESSION, "", NOW)
        assert made.accept(OTHER_SESSION, "othr", PWD, NOW + FORMER_CREDENTIALS_S)

    def test_session_with_too_many_transactions_loses_its_oldest(self) -> None:
        made = StunRouter()
        for number in range(MAX_TRANSACTIONS_PER_SESSION + 1):
            assert made.expect(number.to_bytes(12, "big"), Asker.CHECKLIST, SESSION, PEER, b"", NOW)
        assert made.transactions == MAX_TRANSACTIONS_PER_SESSION
        assert made.route(response(0), PEER, NOW) is None
        assert made.route(response(1), PEER, NOW) is not None

    def test_transactions_beyond_the_bound_are_refused_until_some_expire(self) -> None:
        made = StunRouter(max_transactions=1)
        assert made.expect(bytes(12), Asker.CHECKLIST, SESSION, PEER, b"", NOW)
        assert not made.expect(b"x" * 12, Asker.CHECKLIST, OTHER_SESSION, PEER, b"", NOW)
        assert made.dropped["stun_transaction_refused"] == 1
        later = NOW + TRANSACTION_LIFETIME_S
        assert made.expect(b"x" * 12, Asker.CHECKLIST, OTHER_SESSION, PEER, b"", later)


stun_like = st.builds(
    lambda kind, rest: kind + struct.pack("!HI", len(rest), MAGIC_COOKIE) + bytes(12) + rest,
    st.sampled_from([b"\x00\x01", b"\x01\x01", b"\x01\x11", b"\x00\x11"]),
    st.binary(max_size=80),
)


@given(st.one_of(st.binary(max_size=120), stun_like, messages.map(build)), addresses)
def test_arbitrary_bytes_raise_nothing_and_reach_nobody(data: bytes, source: TransportAddress) -> None:
    made = router()
    made.expect(b"\x07" * 12, Asker.CHECKLIST, SESSION, PEER, REMOTE_PWD.encode(), NOW)
    assert made.route(data, source, NOW) is None
    assert made.dropped.total() == 1


# FINGERPRINT excepted: behind a valid integrity it adds nothing, and is skipped when its type is another.
@given(st.integers(0, len(check()) - 9), st.integers(1, 255))
def test_check_with_a_flipped_byte_reaches_nobody(position: int, flip: int) -> None:
    data = bytearray(check())
    data[position] ^= flip
    assert router().route(bytes(data), PEER, NOW) is None
