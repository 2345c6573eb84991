from __future__ import annotations

from ztna.ice.lookups import Lookups

SPACING_S = 30.0


def test_first_round_is_due_at_once_and_takes_one_name_after_the_other() -> None:
    lookups = Lookups(["a", "b", "a"], 1.0)
    assert lookups.next_deadline() == 1.0
    assert lookups.take(1.0) == "a"
    assert lookups.take(2.0) is None
    lookups.end("b")
    assert lookups.take(2.0) is None
    lookups.end("a")
    assert lookups.take(2.0) == "b"
    lookups.end("b")
    assert lookups.take(3.0) is None
    assert lookups.next_deadline() is None


def test_further_round_keeps_its_distance_from_the_former_one() -> None:
    lookups = Lookups(["a"], 0.0)
    lookups.take(0.0)
    lookups.end("a")
    lookups.want(1.0, SPACING_S)
    assert lookups.next_deadline() == SPACING_S
    lookups.want(2.0, 5.0)
    lookups.want(3.0, SPACING_S)
    assert lookups.next_deadline() == 5.0
    assert lookups.take(4.9) is None
    assert lookups.take(5.0) == "a"


def test_round_that_is_due_waits_for_a_lookup_that_takes_long() -> None:
    lookups = Lookups(["a"], 0.0)
    lookups.take(0.0)
    lookups.want(10.0, 5.0)
    assert lookups.next_deadline() is None
    assert lookups.take(20.0) is None
    lookups.end("a")
    assert lookups.take(20.0) == "a"


def test_without_names_there_is_nothing_to_do() -> None:
    lookups = Lookups([], 0.0)
    lookups.want(1.0, 0.0)
    assert lookups.next_deadline() is None
    assert lookups.take(2.0) is None
