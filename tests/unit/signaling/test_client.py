from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ztna.signaling.client import (
    ATTACH_LIMIT_S,
    LEFT,
    MAX_ATTACH_LIMIT_S,
    MAX_REQUESTS,
    PING_INTERVAL_S,
    PONG_LIMIT_S,
    REATTACHING,
    REGISTRATION_INTERVAL_S,
    REGISTRATION_TRIES,
    REQUEST_LIMIT_S,
    SUPERSEDED_HOLD_S,
    AttachmentClient,
    ClientEffect,
    ClientState,
    CloseCarrier,
    Lost,
    OpenCarrier,
    RequestTimedOut,
    SendAttachRequest,
    SendPing,
    SendRegistration,
    SendWithdrawal,
)


def attached(*services: str, now: float = 0.0) -> AttachmentClient:
    client = AttachmentClient(services, Random(1))
    client.attach(now)
    client.handle_carrier_open(now)
    assert client.handle_accepted(now)
    client.drain()
    return client


def lost(effects: list[ClientEffect]) -> Lost:
    assert CloseCarrier() in effects
    (found,) = [effect for effect in effects if isinstance(effect, Lost)]
    return found


def run_until(client: AttachmentClient, end: float) -> list[ClientEffect]:
    effects: list[ClientEffect] = []
    while (deadline := client.next_deadline()) is not None and deadline <= end:
        client.handle_timeout(deadline)
        effects += client.drain()
    return effects


def test_attachment_dials_introduces_itself_and_registers() -> None:
    client = AttachmentClient(["web"], Random(1))
    client.attach(0.0)
    assert client.drain() == [OpenCarrier()]
    client.handle_carrier_open(0.1)
    assert client.drain() == [SendAttachRequest(client.nonce)]
    assert len(client.nonce) == 32
    assert client.handle_accepted(0.2)
    assert client.drain() == [SendRegistration("web")]
    assert client.state is ClientState.ATTACHED
    client.attach(0.3)
    assert not client.handle_accepted(0.3)
    assert client.drain() == []


def test_patience_with_a_busy_intermediate_doubles_until_it_answers() -> None:
    client = AttachmentClient([], Random(1))
    client.attach(0.0)
    client.drain()
    waited: list[float] = []
    dialled_at = 0.0
    while len(waited) < 6:
        deadline = client.next_deadline()
        assert deadline is not None
        client.handle_timeout(deadline)
        for effect in client.drain():
            if isinstance(effect, Lost):
                assert effect.reason == "attach_timeout"
                waited.append(deadline - dialled_at)
            elif isinstance(effect, OpenCarrier):
                dialled_at = deadline
    assert waited == pytest.approx([5, 10, 20, 40, MAX_ATTACH_LIMIT_S, MAX_ATTACH_LIMIT_S])
    deadline = client.next_deadline()
    assert deadline is not None
    client.handle_timeout(deadline)
    client.handle_carrier_open(deadline)
    assert client.handle_accepted(deadline)
    client.reattach(deadline)
    assert client.next_deadline() == deadline + ATTACH_LIMIT_S


def test_each_attempt_has_its_own_nonce() -> None:
    client = AttachmentClient([], Random(1))
    client.attach(0.0)
    client.handle_carrier_open(0.0)
    first = client.nonce
    client.handle_carrier_closed("unavailable", "", 0.0)
    run_until(client, 1.0)
    client.handle_carrier_open(1.0)
    assert client.nonce != first


@pytest.mark.parametrize("opens", [False, True], ids=["no-carrier", "no-answer"])
def test_attempt_that_comes_to_nothing_is_given_up(opens: bool) -> None:
    client = AttachmentClient([], Random(1))
    client.attach(0.0)
    if opens:
        client.handle_carrier_open(0.0)
    client.drain()
    client.handle_timeout(ATTACH_LIMIT_S)
    assert lost(client.drain()).reason == "attach_timeout"
    assert client.state is ClientState.WAITING


END = [
    pytest.param(lambda c, now: c.handle_untrusted("x", now), "untrusted_intermediate", True, id="untrusted"),
    pytest.param(lambda c, now: c.handle_protocol_error("x", now), "protocol_error", False, id="protocol"),
    pytest.param(lambda c, now: c.handle_superseded("x", now), "superseded", False, id="superseded"),
    pytest.param(lambda c, now: c.handle_goodbye("x", now), "intermediate_left", False, id="goodbye"),
    pytest.param(lambda c, now: c.handle_carrier_closed("gone", "x", now), "gone", False, id="carrier"),
]


@pytest.mark.parametrize(("end", "reason", "is_authentication"), END)
def test_every_loss_is_told_with_its_reason_and_followed_by_another_attempt(
    end: Callable[[AttachmentClient, float], None], reason: str, is_authentication: bool
) -> None:
    client = attached()
    end(client, 1.0)
    found = lost(client.drain())
    assert (found.reason, found.is_authentication_failure) == (reason, is_authentication)
    assert found.retry_in_s is not None
    run_until(client, 1.0 + found.retry_in_s)
    assert client.state is ClientState.CONNECTING


@pytest.mark.parametrize("end", [each.values[0] for each in END])
@pytest.mark.parametrize("state", [ClientState.IDLE, ClientState.WAITING])
def test_late_news_of_a_carrier_that_is_gone_changes_nothing(
    state: ClientState, end: Callable[[AttachmentClient, float], None]
) -> None:
    client = attached()
    if state is ClientState.IDLE:
        client.detach(0.5)
    else:
        client.handle_goodbye("", 0.5)
    client.drain()
    deadline = client.next_deadline()
    end(client, 1.0)
    assert client.drain() == []
    assert (client.state, client.next_deadline()) == (state, deadline)


def test_superseded_attachment_stays_away_whatever_it_hears() -> None:
    client = attached()
    client.handle_superseded("twice", 100.0)
    told = lost(client.drain())
    assert (told.retry_in_s, told.detail) == (SUPERSEDED_HOLD_S, "twice; this one stays away for 30 s")
    client.handle_reachable(101.0)
    client.attach(101.0)
    assert client.state is ClientState.WAITING
    client.handle_timeout(100.0 + SUPERSEDED_HOLD_S)
    assert client.drain() == [OpenCarrier()]


def test_detached_attachment_stays_away() -> None:
    client = attached("web")
    client.request(1, 1.0)
    client.detach(1.0)
    assert client.drain() == [
        CloseCarrier(),
        RequestTimedOut(1, LEFT),
        Lost(LEFT, "", is_authentication_failure=False, retry_in_s=None),
    ]
    assert client.next_deadline() is None
    client.handle_reachable(2.0)
    client.detach(2.0)
    assert client.drain() == []


def test_sign_of_life_from_elsewhere_cuts_the_backoff_short() -> None:
    client = attached()
    client.handle_carrier_closed("gone", "", 1.0)
    client.drain()
    client.handle_reachable(1.0)
    assert client.drain() == [OpenCarrier()]
    client.handle_reachable(1.0)
    assert client.drain() == []


def test_unanswered_registration_is_repeated_then_costs_the_connection() -> None:
    client = attached("web", "db")
    client.handle_registration_answered("db", is_accepted=True)
    effects = run_until(client, REGISTRATION_INTERVAL_S * REGISTRATION_TRIES)
    assert effects.count(SendRegistration("web")) == REGISTRATION_TRIES - 1
    assert SendRegistration("db") not in effects
    assert lost(effects).reason == "registration_timeout"


def test_answered_ping_keeps_the_attachment_and_silence_ends_it() -> None:
    client = attached()
    assert run_until(client, PING_INTERVAL_S) == [SendPing(1)]
    client.handle_pong(1)
    assert run_until(client, 2 * PING_INTERVAL_S) == [SendPing(2)]
    client.handle_pong(1)  # an old answer is no sign of life now
    effects = run_until(client, 2 * PING_INTERVAL_S + PONG_LIMIT_S)
    assert lost(effects).reason == "silent"


def test_doubt_asks_at_once_and_once() -> None:
    client = attached()
    client.handle_doubt(1.0)
    client.handle_doubt(1.1)
    assert client.drain() == [SendPing(1)]
    assert lost(run_until(client, 1.0 + PONG_LIMIT_S)).reason == "silent"
    client.handle_doubt(7.0)
    assert client.drain() == []


def test_unanswered_request_is_reported_within_its_limit() -> None:
    client = attached()
    assert client.request(1, 0.0)
    assert client.request(2, 0.0)
    assert client.handle_answered(2)
    assert not client.handle_answered(2)
    assert run_until(client, REQUEST_LIMIT_S) == [RequestTimedOut(1, "session_timeout")]


def test_request_without_an_attachment_is_reported_at_once() -> None:
    client = AttachmentClient([], Random(1))
    assert not client.request(1, 0.0)
    assert client.drain() == [RequestTimedOut(1, "not_attached")]


def test_requests_are_bounded() -> None:
    client = attached()
    for number in range(MAX_REQUESTS):
        assert client.request(number, 0.0)
    assert not client.request(MAX_REQUESTS, 0.0)
    assert client.drain() == [RequestTimedOut(MAX_REQUESTS, "rate_limited")]


class AttachmentMachine(RuleBasedStateMachine):
    """Whatever happens: no past deadline, each request answered once in time, carriers opened and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.client = AttachmentClient(["web", "db"], Random(1))
        self.waiting: dict[int, float] = {}
        self.requests = 0
        self.is_dialled = False

    def take(self) -> None:
        for effect in self.client.drain():
            match effect:
                case OpenCarrier():
                    assert not self.is_dialled
                    self.is_dialled = True
                case CloseCarrier():
                    self.is_dialled = False
                case RequestTimedOut():
                    del self.waiting[effect.request_id]
                case SendAttachRequest() | SendRegistration() | SendPing():
                    assert self.is_dialled
                case Lost():
                    assert not self.is_dialled

    @rule(seconds=st.floats(0.0, 12.0))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(1000):
            deadline = self.client.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.client.handle_timeout(self.now)
            self.take()
            following = self.client.next_deadline()
            assert following is None or following >= self.now
        else:
            raise AssertionError("the timer spins")
        self.now = end

    @rule()
    def attach(self) -> None:
        self.client.attach(self.now)

    @rule()
    def detach(self) -> None:
        self.client.detach(self.now)

    @rule()
    def open(self) -> None:
        self.client.handle_carrier_open(self.now)

    @rule()
    def accept(self) -> None:
        self.client.handle_accepted(self.now)

    @rule(service=st.sampled_from(["web", "db", "other"]))
    def answer_registration(self, service: str) -> None:
        self.client.handle_registration_answered(service, is_accepted=True)

    @rule(ping_id=st.integers(0, 5))
    def pong(self, ping_id: int) -> None:
        self.client.handle_pong(ping_id)

    @rule(end=st.sampled_from([each.values[0] for each in END]))
    def lose(self, end: Callable[[AttachmentClient, float], None]) -> None:
        end(self.client, self.now)

    @rule()
    def hint(self) -> None:
        self.client.handle_reachable(self.now)
        self.client.handle_doubt(self.now)

    @rule()
    def request(self) -> None:
        self.requests += 1
        self.waiting[self.requests] = self.now
        self.client.request(self.requests, self.now)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.waiting)))
        if self.client.handle_answered(request_id):
            del self.waiting[request_id]

    @invariant()
    def holds(self) -> None:
        self.take()
        assert all(self.now <= asked + REQUEST_LIMIT_S for asked in self.waiting.values())
        is_dialled = self.client.state in {ClientState.CONNECTING, ClientState.ATTACHED}
        assert self.is_dialled == is_dialled
        assert (self.client.next_deadline() is None) == (self.client.state is ClientState.IDLE)


TestAttachmentMachine = AttachmentMachine.TestCase
TestAttachmentMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_reattaching_asks_at_once_for_another_carrier_and_says_no_goodbye() -> None:
    client = attached("web")
    client.reattach(100.0)
    effects = client.drain()
    assert lost(effects).reason == REATTACHING
    assert effects[-1] == OpenCarrier()
    assert client.state is ClientState.CONNECTING
    client.handle_carrier_open(100.1)
    assert client.handle_accepted(100.1)
    assert SendRegistration("web") in client.drain()


def test_attachment_that_is_not_wanted_is_not_made_by_reattaching() -> None:
    client = AttachmentClient((), Random(1))
    client.reattach(0.0)
    assert client.drain() == []
    assert client.state is ClientState.IDLE


def test_attachment_that_was_refused_does_not_sit_out_its_wait_when_reattaching() -> None:
    client = attached()
    client.handle_carrier_closed("unauthenticated", "", 50.0, is_authentication_failure=True)
    assert lost(client.drain()).retry_in_s is not None
    client.reattach(50.0)
    assert client.drain() == [OpenCarrier()]
    assert client.state is ClientState.CONNECTING


def test_superseded_attachment_keeps_away_in_spite_of_reattaching() -> None:
    client = attached()
    client.handle_superseded("another process", 50.0)
    client.drain()
    client.reattach(50.0)
    assert client.drain() == []
    assert client.state is ClientState.WAITING


def test_other_services_are_registered_and_withdrawn_at_once() -> None:
    client = attached("web", "ssh", "dns")
    for service in ("web", "ssh"):
        client.handle_registration_answered(service, is_accepted=True)
    client.handle_registration_answered("dns", is_accepted=False)
    client.offer(("ssh", "dns", "late"), {"ssh"}, 1.0)
    assert client.drain() == [
        SendWithdrawal("web"),
        SendRegistration("ssh"),
        SendRegistration("dns"),
        SendRegistration("late"),
    ]


def test_services_that_change_while_detached_are_registered_on_the_next_attachment() -> None:
    client = AttachmentClient(("web",), Random(1))
    client.attach(0.0)
    client.offer(("late",), (), 0.0)
    client.handle_carrier_open(0.0)
    assert client.handle_accepted(0.0)
    assert [each for each in client.drain() if isinstance(each, SendRegistration)] == [
        SendRegistration("late")
    ]
