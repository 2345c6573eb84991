from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztna.deadlines import Deadlines


def test_nothing_is_due_when_nothing_is_set() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert (deadlines.next(), deadlines.take_due(1e9), len(deadlines)) == (None, [], 0)


def test_due_keys_come_earliest_first_and_once() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, when in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 4.0)):
        deadlines.set(key, when)
    assert deadlines.take_due(3.0) == ["a", "b", "c"]
    assert deadlines.take_due(3.0) == []
    assert deadlines.next() == 4.0


def test_replaced_deadline_does_not_fire_at_its_former_time() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("a", 5.0)
    assert deadlines.take_due(2.0) == []
    deadlines.set("a", None)
    assert deadlines.next() is None


def test_memory_stays_bounded_however_often_deadlines_move() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for step in range(10_000):
        deadlines.set(step % 10, float(step))
    assert len(deadlines) == 10
    assert len(deadlines._heap) <= 2 * 10 + 64


@given(
    st.lists(st.tuples(st.integers(0, 5), st.none() | st.floats(0, 100)) | st.floats(0, 100), max_size=200)
)
def test_it_behaves_like_a_dict_of_deadlines(steps: list[tuple[int, float | None] | float]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, float] = {}
    for step in steps:
        if isinstance(step, tuple):
            key, when = step
            deadlines.set(key, when)
            model.pop(key, None)
            if when is not None:
                model[key] = when
        else:
            expected = {key for key, when in model.items() if when <= step}
            assert set(deadlines.take_due(step)) == expected
            model = {key: when for key, when in model.items() if key not in expected}
        assert deadlines.next() == min(model.values(), default=None)
        assert len(deadlines) == len(model)
