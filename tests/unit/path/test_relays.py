from __future__ import annotations

from ztna.path.relays import FOLLOW_AFTER_S, RelayTrail

START = 100.0


def trail() -> RelayTrail:
    """At an end that has moved to i2 just now."""
    core = RelayTrail()
    core.handle_selected("i1", START - 10.0)
    core.handle_selected("i2", START)
    return core


def test_packets_that_were_under_way_through_the_former_relay_are_not_followed() -> None:
    assert not trail().handle_new_packet("i1", START + FOLLOW_AFTER_S - 0.01)


def test_peer_that_stays_with_another_relay_is_followed_and_that_is_told_once_in_a_while() -> None:
    core = trail()
    assert core.handle_new_packet("i1", START + FOLLOW_AFTER_S)
    assert not core.handle_new_packet("i1", START + FOLLOW_AFTER_S + 0.01)
    core.handle_selected("i1", START + FOLLOW_AFTER_S + 0.02)
    assert not core.handle_new_packet("i1", START + 10.0)


def test_peer_that_is_heard_through_the_selected_relay_is_not_looked_for_elsewhere() -> None:
    core = trail()
    assert not core.handle_new_packet("i2", START + 5.0)
    assert not core.handle_new_packet("i1", START + 5.5)
    assert core.handle_new_packet("i1", START + 5.0 + FOLLOW_AFTER_S)


def test_selection_that_is_told_again_puts_nothing_off() -> None:
    core = trail()
    core.handle_selected("i2", START + 0.9)
    assert core.handle_new_packet("i1", START + FOLLOW_AFTER_S)


def test_without_a_relay_there_is_nothing_to_leave() -> None:
    core = RelayTrail()
    assert not core.handle_new_packet("i1", START)
    core.handle_selected("i1", START)
    core.handle_selected("", START + 1.0)
    assert not core.handle_new_packet("i1", START + 10.0)
