from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from ztna.access.identity import Role
from ztna.session import book, connector_table
from ztna.signaling import lost_sessions, sessions
from ztna.signaling.lost_sessions import LOST_LIFETIME_S, LostSession, LostSessions
from ztna.signaling.values import Party


def party(role: Role, name: str) -> Party:
    return Party(role, name, name.encode().ljust(32))


A1, A2 = party(Role.AGENT, "a1"), party(Role.AGENT, "a2")
C1, C2 = party(Role.CONNECTOR, "c1"), party(Role.CONNECTOR, "c2")
ALLOWED = frozenset({"web"})


def lost(
    name: bytes, agent: Party = A1, connector: Party = C1, who: Role = Role.AGENT, until: float = 100.0
) -> LostSession:
    holder = agent if who is Role.AGENT else connector
    return LostSession(name * 16, (agent, connector), who, holder, b"left", ALLOWED, until)


def ids(table: LostSessions) -> list[bytes]:
    return [each.session_id[:1] for each in table.sessions]


def table_of(*sessions: LostSession) -> LostSessions:
    table = LostSessions()
    for each in sessions:
        assert table.add(each) == []
    return table


def test_lifetime_outlasts_what_a_node_gives_such_a_session() -> None:
    assert LOST_LIFETIME_S > book.MAX_UNCARRIED_S


def test_bounds_are_those_of_the_sessions_themselves() -> None:
    assert lost_sessions.MAX_LOST_SESSIONS == sessions.MAX_SESSIONS
    assert lost_sessions.MAX_LOST_PER_AGENT == sessions.MAX_SESSIONS_PER_AGENT
    assert lost_sessions.MAX_LOST_PER_CONNECTOR == connector_table.MAX_SESSIONS


@pytest.mark.parametrize(
    ("bound", "others"),
    [
        ("MAX_LOST_PER_AGENT", [lost(b"3", A1, C1), lost(b"4", A1, C2)]),
        ("MAX_LOST_PER_CONNECTOR", [lost(b"3", A1, C1), lost(b"4", A2, C1)]),
        ("max_sessions", [lost(b"3", A1, C1), lost(b"4", A2, C2)]),
    ],
)
def test_oldest_makes_room_and_is_named(
    monkeypatch: pytest.MonkeyPatch, bound: str, others: list[LostSession]
) -> None:
    if bound == "max_sessions":
        table = LostSessions(max_sessions=2)
    else:
        monkeypatch.setattr(lost_sessions, bound, 2)
        table = LostSessions()
    first, second = lost(b"1"), lost(b"2")
    crowded_out = [table.add(each) for each in (first, second, *others)]
    assert crowded_out == [[], [], [first], [second]]
    assert ids(table) == [b"3", b"4"]


def test_bound_of_one_node_costs_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_sessions, "MAX_LOST_PER_AGENT", 1)
    table = table_of(lost(b"1", A2, C1))
    mine = [lost(name, A1, C1) for name in (b"2", b"3", b"4")]
    assert [table.add(each) for each in mine] == [[], [mine[0]], [mine[1]]]
    assert ids(table) == [b"1", b"4"]


def test_session_that_is_lost_again_begins_a_new_life() -> None:
    table = table_of(lost(b"1", until=10.0), lost(b"2", until=11.0), lost(b"1", until=12.0))
    assert ids(table) == [b"2", b"1"]
    assert len(table) == 2


def test_session_is_forgotten_in_time() -> None:
    table = table_of(lost(b"1", until=10.0), lost(b"2", until=11.0))
    assert table.next_deadline() == 10.0
    table.handle_timeout(9.9)
    assert ids(table) == [b"1", b"2"]
    table.handle_timeout(10.0)
    assert ids(table) == [b"2"]
    table.handle_timeout(11.0)
    assert table.next_deadline() is None


def test_only_the_party_that_is_left_says_that_a_session_is_over() -> None:
    table = table_of(lost(b"1"))
    table.handle_closed(b"1" * 16, b"another")
    table.handle_closed(b"2" * 16, b"left")
    assert ids(table) == [b"1"]
    table.handle_closed(b"1" * 16, b"left")
    assert ids(table) == []


def test_party_that_goes_takes_along_the_sessions_that_it_has_left_and_no_other() -> None:
    table = table_of(
        lost(b"1", A1, C1), lost(b"2", A1, C2), lost(b"3", A1, C1, Role.CONNECTOR), lost(b"4", A2, C1)
    )
    table.handle_gone(C1)
    assert ids(table) == [b"2", b"3"]
    table.handle_gone(A1)
    assert ids(table) == [b"2"]


def test_sessions_of_a_lost_party_are_taken_and_no_other() -> None:
    table = table_of(
        lost(b"1", A1, C1), lost(b"2", A2, C1), lost(b"3", A1, C2), lost(b"4", A1, C2, Role.CONNECTOR)
    )
    assert [each.session_id[:1] for each in table.take_lost(A1)] == [b"1", b"3"]
    assert ids(table) == [b"2", b"4"]
    assert table.take_lost(A1) == []


def test_session_is_taken_with_the_key_that_opened_it_or_that_held_it_last_and_with_no_other() -> None:
    renewed, stranger = (replace(A1, fingerprint=bytes([key] * 32)) for key in (1, 2))
    for key, taken in ((A1, [b"1"]), (renewed, [b"1"]), (stranger, [])):
        table = table_of(replace(lost(b"1"), holder=renewed))
        assert [each.session_id[:1] for each in table.take_lost(key)] == taken


def test_new_session_of_a_pair_takes_the_place_of_those_that_its_connector_has_left() -> None:
    table = table_of(
        lost(b"1", A1, C1), lost(b"2", A1, C1), lost(b"3", A1, C1, Role.CONNECTOR), lost(b"4", A1, C2),
        lost(b"5", A2, C1),
    )  # fmt: skip
    table.handle_offered(A1, replace(C1, fingerprint=b"another key".ljust(32)))
    assert ids(table) == [b"3", b"4", b"5"]


def test_timer_at_which_nothing_is_due_copies_nothing() -> None:
    table = LostSessions()
    for number in range(5000):
        agent = party(Role.AGENT, str(number))
        connector = party(Role.CONNECTOR, str(number))
        session_id = number.to_bytes(16, "big")
        table.add(LostSession(session_id, (agent, connector), Role.AGENT, agent, b"left", ALLOWED, 10.0))
    tracemalloc.start()
    try:
        table.handle_timeout(9.0)
        assert tracemalloc.get_traced_memory()[1] < 5000
    finally:
        tracemalloc.stop()
    assert len(table) == 5000
