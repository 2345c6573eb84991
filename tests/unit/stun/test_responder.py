from __future__ import annotations

import struct
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stun.strategies import addresses, messages
from tests.unit.stun.vectors import REQUEST as CONNECTIVITY_CHECK
from ztna.address import TransportAddress
from ztna.stun import responder as module
from ztna.stun.attributes import (
    Attribute,
    ChangedAddress,
    ChangeRequest,
    ErrorCode,
    Fingerprint,
    MappedAddress,
    OtherAddress,
    Priority,
    ResponseOrigin,
    Software,
    SourceAddress,
    UnknownAttributes,
    Username,
    XorMappedAddress,
)
from ztna.stun.integrity import Integrity
from ztna.stun.message import BINDING, MAX_ATTRIBUTES, Message, MessageClass, build, parse
from ztna.stun.responder import (
    AMPLIFICATION_LIMIT,
    GLOBAL_BURST,
    GLOBAL_RATE_PER_S,
    MAX_SOURCE_PREFIXES,
    SOURCE_BURST,
    SOURCE_RATE_PER_S,
    BindingResponder,
    Response,
)

ID = b"transaction1"
CLIENT = TransportAddress("198.51.100.7", 40000)
CLIENT6 = TransportAddress("2001:db8:1:2::7", 40000)
PRIMARY = TransportAddress("192.0.2.1", 3478)
ALTERNATE = TransportAddress("192.0.2.1", 3479)
PRIMARY6 = TransportAddress("2001:db8::1", 3478)
ALTERNATE6 = TransportAddress("2001:db8::1", 3479)
ROOMY = Software("long enough for every attribute of the answer")
NOW = 50.0


def request(*attributes: Attribute, with_fingerprint: bool = False) -> bytes:
    message = Message(BINDING, MessageClass.REQUEST, ID, attributes)
    return build(message, with_fingerprint=with_fingerprint)


def unknown_request(*types: int) -> bytes:
    body = b"".join(struct.pack("!HH", item, 0) for item in types)
    return struct.pack("!HHI12s", 0x0001, len(body), 0x2112A442, ID) + body


def answer(
    data: bytes,
    *,
    source: TransportAddress = CLIENT,
    local: TransportAddress = PRIMARY,
    alternate_port: int | None = ALTERNATE.port,
) -> tuple[Message, bool]:
    response = BindingResponder(alternate_port).respond(data, source, local, NOW)
    assert response is not None
    message = parse(response.data)
    assert (message.method, message.transaction_id) == (BINDING, ID)
    return message, response.from_alternate


def counted(responder: BindingResponder) -> dict[str, int]:
    """The counters that are not zero."""
    return {name: value for name, value in asdict(responder.stats).items() if value}


class TestPlainRequest:
    @pytest.mark.parametrize(
        ("source", "local", "alternate_port", "expected"),
        [
            pytest.param(
                CLIENT,
                PRIMARY,
                None,
                (XorMappedAddress(CLIENT), ResponseOrigin(PRIMARY), Software("ztna")),
                id="ipv4-one-port",
            ),
            pytest.param(
                CLIENT,
                PRIMARY,
                3479,
                (
                    XorMappedAddress(CLIENT),
                    OtherAddress(ALTERNATE),
                    ResponseOrigin(PRIMARY),
                    Software("ztna"),
                ),
                id="ipv4-two-ports",
            ),
            pytest.param(
                CLIENT6,
                PRIMARY6,
                3479,
                (
                    XorMappedAddress(CLIENT6),
                    OtherAddress(ALTERNATE6),
                    ResponseOrigin(PRIMARY6),
                    Software("ztna"),
                ),
                id="ipv6-two-ports",
            ),
            pytest.param(
                CLIENT,
                TransportAddress("0.0.0.0", 3478),
                3479,
                (XorMappedAddress(CLIENT), Software("ztna")),
                id="unspecified-ipv4",
            ),
            pytest.param(
                CLIENT6,
                TransportAddress("::", 3478),
                3479,
                (XorMappedAddress(CLIENT6), Software("ztna")),
                id="unspecified-ipv6",
            ),
        ],
    )
    def test_is_answered_with_what_the_client_can_use(
        self,
        source: TransportAddress,
        local: TransportAddress,
        alternate_port: int | None,
        expected: tuple[Attribute, ...],
    ) -> None:
        message, from_alternate = answer(
            request(ROOMY), source=source, local=local, alternate_port=alternate_port
        )
        assert message.message_class is MessageClass.SUCCESS_RESPONSE
        assert message.attributes == expected
        assert not from_alternate

    def test_at_the_alternate_port_is_answered_from_there(self) -> None:
        message, from_alternate = answer(request(ROOMY), local=ALTERNATE)
        assert from_alternate
        assert message.attributes == (XorMappedAddress(CLIENT), ResponseOrigin(ALTERNATE), Software("ztna"))

    @pytest.mark.parametrize("asked", [False, True])
    def test_fingerprint_answers_fingerprint(self, asked: bool) -> None:
        message, _ = answer(request(with_fingerprint=asked))
        assert (message.find(Fingerprint) is not None) == asked

    def test_ice_attributes_without_credentials_do_not_matter(self) -> None:
        message, _ = answer(request(Priority(1)))
        assert message.find(XorMappedAddress) == XorMappedAddress(CLIENT)


class TestShortRequest:
    def test_ipv4_answer_leaves_out_software_first(self) -> None:
        message, _ = answer(request())
        assert message.attributes == (
            XorMappedAddress(CLIENT),
            OtherAddress(ALTERNATE),
            ResponseOrigin(PRIMARY),
        )

    def test_ipv6_answer_is_cut_to_the_mapped_address(self) -> None:
        message, _ = answer(request(), source=CLIENT6, local=PRIMARY6)
        assert message.attributes == (XorMappedAddress(CLIENT6),)

    @given(messages, addresses, addresses, st.none() | st.integers(1, 65535), st.booleans())
    def test_no_answer_exceeds_the_amplification_limit(
        self,
        message: Message,
        source: TransportAddress,
        local: TransportAddress,
        alternate_port: int | None,
        has_fingerprint: bool,
    ) -> None:
        probe = Message(BINDING, MessageClass.REQUEST, message.transaction_id, message.attributes)
        data = build(probe, with_fingerprint=has_fingerprint)
        response = BindingResponder(alternate_port).respond(data, source, local, NOW)
        assert response is None or len(response.data) <= AMPLIFICATION_LIMIT * len(data)


class TestChangeRequest:
    def test_without_flags_changes_nothing(self) -> None:
        message, from_alternate = answer(request(ChangeRequest(), ROOMY))
        assert message.find(ResponseOrigin) == ResponseOrigin(PRIMARY)
        assert not from_alternate

    def test_change_port_is_answered_from_the_alternate_port(self) -> None:
        message, from_alternate = answer(request(ChangeRequest(change_port=True), ROOMY))
        assert from_alternate
        assert message.find(ResponseOrigin) == ResponseOrigin(ALTERNATE)
        assert message.find(OtherAddress) == OtherAddress(ALTERNATE)

    @pytest.mark.parametrize(
        ("change", "local", "alternate_port"),
        [
            pytest.param(ChangeRequest(change_ip=True), PRIMARY, 3479, id="ip"),
            pytest.param(ChangeRequest(change_ip=True, change_port=True), PRIMARY, 3479, id="ip-and-port"),
            pytest.param(ChangeRequest(change_port=True), PRIMARY, None, id="no-other-port"),
            pytest.param(ChangeRequest(change_port=True), ALTERNATE, 3479, id="at-the-alternate"),
        ],
    )
    def test_what_cannot_be_honoured_is_refused_from_where_it_arrived(
        self, change: ChangeRequest, local: TransportAddress, alternate_port: int | None
    ) -> None:
        message, from_alternate = answer(request(change), local=local, alternate_port=alternate_port)
        assert message.message_class is MessageClass.ERROR_RESPONSE
        assert message.attributes == (
            ErrorCode(420, "Unknown Attribute"),
            UnknownAttributes((ChangeRequest.TYPE,)),
        )
        assert from_alternate == (local == ALTERNATE)


class TestUnknownAttributes:
    def test_are_listed_in_the_refusal(self) -> None:
        message, _ = answer(unknown_request(0x7FFF, 0x0013))
        assert message.attributes == (
            ErrorCode(420, "Unknown Attribute"),
            UnknownAttributes((0x7FFF, 0x0013)),
        )

    @pytest.mark.parametrize("count", [1, MAX_ATTRIBUTES])
    def test_refusal_stays_below_the_amplification_limit(self, count: int) -> None:
        data = unknown_request(*range(0x7000, 0x7000 + count))
        response = BindingResponder().respond(data, CLIENT, PRIMARY, NOW)
        assert response is not None
        assert len(response.data) <= AMPLIFICATION_LIMIT * len(data)


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        pytest.param(b"", "refused_malformed", id="empty"),
        pytest.param(b"\x40" * 100, "refused_malformed", id="quic"),
        pytest.param(request()[:-1], "refused_malformed", id="cut"),
        pytest.param(request(with_fingerprint=True)[:-1] + b"\0", "refused_malformed", id="bad-fingerprint"),
        pytest.param(
            build(Message(BINDING, MessageClass.INDICATION, ID)), "refused_not_request", id="indication"
        ),
        pytest.param(
            build(Message(BINDING, MessageClass.SUCCESS_RESPONSE, ID)), "refused_not_request", id="success"
        ),
        pytest.param(
            build(Message(BINDING, MessageClass.ERROR_RESPONSE, ID)), "refused_not_request", id="error"
        ),
        pytest.param(build(Message(0x003, MessageClass.REQUEST, ID)), "refused_not_request", id="allocate"),
        pytest.param(CONNECTIVITY_CHECK, "refused_credentials", id="connectivity-check"),
        pytest.param(request(Username("a:b")), "refused_credentials", id="username"),
        pytest.param(
            build(Message(BINDING, MessageClass.REQUEST, ID), key=b"k", algorithms=Integrity.SHA256),
            "refused_credentials",
            id="sha256",
        ),
    ],
)
def test_anything_but_a_plain_request_gets_silence_and_is_counted(data: bytes, counter: str) -> None:
    responder = BindingResponder(3479)
    assert responder.respond(data, CLIENT, PRIMARY, NOW) is None
    assert counted(responder) == {counter: 1}
    assert responder.stats.refused[counter.removeprefix("refused_")] == 1
    assert responder.tracked_prefixes == 0


def test_our_own_answers_get_no_answer() -> None:
    responder = BindingResponder()
    for data in (request(), unknown_request(0x7FFF)):
        response = responder.respond(data, CLIENT, PRIMARY, NOW)
        assert response is not None
        assert responder.respond(response.data, PRIMARY, CLIENT, NOW) is None
    assert counted(responder) == {"answered": 1, "answered_unknown_attribute": 1, "refused_not_request": 2}


@given(st.binary(max_size=120), addresses, addresses)
def test_arbitrary_bytes_never_raise(data: bytes, source: TransportAddress, local: TransportAddress) -> None:
    assert BindingResponder().respond(data, source, local, NOW) is None


class TestRate:
    @staticmethod
    def ask(responder: BindingResponder, host: str, now: float = NOW) -> Response | None:
        return responder.respond(request(), TransportAddress(host, 1), PRIMARY, now)

    @pytest.mark.parametrize(
        ("hosts", "stranger"),
        [
            pytest.param(("198.51.100.1", "198.51.100.254"), "198.51.101.1", id="ipv4-24"),
            pytest.param(("2001:db8:1::1", "2001:db8:1:ffff::2"), "2001:db8:2::1", id="ipv6-48"),
            pytest.param(("fe80::1%eth0", "fe80::2%eth1"), "fe81::1%eth0", id="link-local"),
        ],
    )
    def test_prefix_shares_one_burst_and_leaves_the_next_one_alone(
        self, hosts: tuple[str, str], stranger: str
    ) -> None:
        responder = BindingResponder()
        for index in range(int(SOURCE_BURST)):
            assert self.ask(responder, hosts[index % 2])
        assert not self.ask(responder, hosts[0])
        assert not self.ask(responder, hosts[1])
        assert self.ask(responder, stranger)
        assert counted(responder) == {"answered": SOURCE_BURST + 1, "refused_source_rate": 2}
        assert responder.tracked_prefixes == 2

    def test_prefix_is_answered_again_at_its_rate(self) -> None:
        responder = BindingResponder()
        answered = sum(
            self.ask(responder, "198.51.100.1", NOW + step / 1000) is not None for step in range(3000)
        )
        assert answered == SOURCE_BURST + SOURCE_RATE_PER_S * 3 - 1

    def test_error_answers_use_up_the_burst_too(self) -> None:
        responder = BindingResponder()
        for _ in range(int(SOURCE_BURST)):
            assert responder.respond(unknown_request(0x7FFF), CLIENT, PRIMARY, NOW)
        assert not self.ask(responder, CLIENT.host)

    def test_forged_sources_share_the_global_burst(self) -> None:
        responder = BindingResponder()
        answered = sum(
            self.ask(responder, f"10.{index >> 8}.{index & 0xFF}.1") is not None
            for index in range(int(GLOBAL_BURST) + 100)
        )
        assert answered == GLOBAL_BURST
        assert responder.stats.refused_global_rate == 100
        assert responder.tracked_prefixes == GLOBAL_BURST

    def test_globally_refused_request_costs_its_prefix_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "GLOBAL_BURST", 1.0)
        responder = BindingResponder()
        assert self.ask(responder, "198.51.100.1")
        for _ in range(int(SOURCE_BURST) * 2):
            assert not self.ask(responder, "198.51.100.1")
        assert counted(responder) == {"answered": 1, "refused_global_rate": SOURCE_BURST * 2}

    def test_table_is_bounded_and_forgets_the_longest_silent_prefix(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "GLOBAL_BURST", 1e6)
        responder = BindingResponder()
        for index in range(MAX_SOURCE_PREFIXES):
            self.ask(responder, f"10.{index >> 8}.{index & 0xFF}.1")
        for _ in range(int(SOURCE_BURST)):
            self.ask(responder, "10.0.0.1")
        self.ask(responder, "192.0.2.1")
        assert responder.tracked_prefixes == MAX_SOURCE_PREFIXES
        assert not self.ask(responder, "10.0.0.1"), "it spoke last but one, so it is remembered"

    def test_eviction_never_hands_out_a_fresh_burst(self) -> None:
        refill_s = SOURCE_BURST / SOURCE_RATE_PER_S
        assert GLOBAL_BURST + GLOBAL_RATE_PER_S * refill_s <= MAX_SOURCE_PREFIXES


class TestClientOfRfc3489:
    """Its transaction id fills 16 bytes, where later ones have the magic cookie."""

    ID16 = bytes(range(16))

    def request(self, flags: int | None = 0) -> bytes:
        body = b"" if flags is None else struct.pack("!HHI", 0x0003, 4, flags)
        return struct.pack("!HH", 0x0001, len(body)) + self.ID16 + body

    def ask(
        self, data: bytes, local: TransportAddress = PRIMARY, alternate_port: int | None = 3479
    ) -> tuple[Message, bool] | None:
        response = BindingResponder(alternate_port).respond(data, CLIENT, local, NOW)
        if response is None:
            return None
        assert response.data[4:20] == self.ID16
        assert len(response.data) <= AMPLIFICATION_LIMIT * len(data)
        cookie = struct.pack("!I", 0x2112A442)
        return parse(response.data[:4] + cookie + response.data[8:]), response.from_alternate

    def test_is_told_in_the_words_it_knows(self) -> None:
        answered = self.ask(self.request())
        assert answered is not None
        assert answered[0].attributes == (
            MappedAddress(CLIENT),
            ChangedAddress(ALTERNATE),
            SourceAddress(PRIMARY),
        )
        assert not answered[1]

    def test_is_answered_from_the_other_port_where_it_asks_so(self) -> None:
        answered = self.ask(self.request(0x2))
        assert answered is not None
        assert answered[1]
        assert answered[0].find(SourceAddress) == SourceAddress(ALTERNATE)

    def test_shortest_request_is_answered_within_the_limit(self) -> None:
        answered = self.ask(self.request(None))
        assert answered is not None
        assert answered[0].find(MappedAddress) == MappedAddress(CLIENT)

    @pytest.mark.parametrize(
        ("flags", "local", "alternate_port"),
        [
            pytest.param(0x4, PRIMARY, 3479, id="other address"),
            pytest.param(0x6, PRIMARY, 3479, id="other address and port"),
            pytest.param(0x2, ALTERNATE, 3479, id="other port of the other port"),
            pytest.param(0x2, PRIMARY, None, id="other port where there is none"),
        ],
    )
    def test_hears_nothing_of_what_is_not_served(
        self, flags: int, local: TransportAddress, alternate_port: int | None
    ) -> None:
        assert self.ask(self.request(flags), local, alternate_port) is None

    def test_refusals_are_counted(self) -> None:
        responder = BindingResponder(ALTERNATE.port)
        responder.respond(self.request(0x4), CLIENT, PRIMARY, NOW)
        assert counted(responder) == {"refused_not_served": 1}
