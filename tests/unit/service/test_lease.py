"""How long a session is kept."""

from __future__ import annotations

from ztna.service.lease import LeaseWish, SessionLease


def test_session_in_use_is_asked_for_a_sign_of_life_three_times_per_timeout() -> None:
    lease = SessionLease(300.0)
    assert lease.look(0.0, is_used=True) is None
    wishes = []
    while lease.next_deadline < 1000:
        now = lease.next_deadline
        wishes.append((now, lease.look(now, is_used=True)))
    assert wishes == [(100.0 * number, LeaseWish.PING) for number in range(1, 10)]


def test_session_is_closed_before_the_timeout_of_its_last_use() -> None:
    lease = SessionLease(300.0)
    lease.look(0.0, is_used=True)
    assert lease.look(50.0, is_used=False) is None
    assert lease.next_deadline == 320.0
    assert lease.look(319.9, is_used=False) is None
    assert lease.look(320.0, is_used=False) is LeaseWish.CLOSE


def test_use_begins_the_wait_anew() -> None:
    lease = SessionLease(300.0)
    lease.look(0.0, is_used=False)
    assert lease.look(269.0, is_used=True) is None, "it comes with packets of its own"
    assert lease.next_deadline == 369.0
    lease.look(270.0, is_used=False)
    assert lease.next_deadline == 540.0
