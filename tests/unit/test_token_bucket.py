from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.errors import LocalProtocolError
from ztna.token_bucket import TokenBucket, TokenBuckets


def test_new_bucket_grants_its_burst_and_then_refuses() -> None:
    bucket = TokenBucket(rate=1.0, burst=3.0, now=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]


def test_tokens_accrue_at_the_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=1.0, now=0.0)
    assert bucket.take(0.0)
    assert not bucket.take(0.25)
    assert bucket.take(0.5)


def test_idle_time_saves_no_more_than_the_burst() -> None:
    bucket = TokenBucket(rate=100.0, burst=2.0, now=0.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]


def test_refused_take_costs_nothing() -> None:
    bucket = TokenBucket(rate=1.0, burst=2.0, now=0.0)
    assert not bucket.take(0.0, 3.0)
    assert bucket.take(0.0, 2.0)


def test_clock_that_steps_back_neither_adds_nor_removes() -> None:
    bucket = TokenBucket(rate=1.0, burst=1.0, now=100.0)
    assert bucket.take(100.0)
    assert not bucket.take(50.0)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        pytest.param(1.0, 0.5, id="one"),
        pytest.param(2.0, 1.0, id="all"),
        pytest.param(2.1, math.inf, id="never"),
    ],
)
def test_seconds_until_tells_when_a_take_succeeds(amount: float, expected: float) -> None:
    bucket = TokenBucket(rate=2.0, burst=2.0, now=0.0)
    assert bucket.take(0.0, 2.0)
    assert bucket.seconds_until(0.0, amount) == expected


def test_seconds_until_is_zero_while_tokens_are_there() -> None:
    assert TokenBucket(rate=2.0, burst=2.0, now=0.0).seconds_until(0.0) == 0.0


@pytest.mark.parametrize(
    ("rate", "burst"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.inf, 1.0), (1.0, math.nan)]
)
def test_senseless_figures_are_refused(rate: float, burst: float) -> None:
    with pytest.raises(LocalProtocolError):
        TokenBucket(rate, burst, 0.0)


@given(st.floats(0.1, 1e4), st.floats(1.0, 1e3), st.lists(st.floats(0.0, 2.0), max_size=200))
def test_grants_never_exceed_burst_plus_rate_times_time(rate: float, burst: float, gaps: list[float]) -> None:
    bucket, now, granted = TokenBucket(rate, burst, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        granted += bucket.take(now)
    assert granted <= burst + rate * now + 1e-6


def test_charge_may_go_into_debt_which_is_paid_off_at_the_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=1.0, now=0.0)
    bucket.charge(0.0, 4.0)
    assert bucket.level(0.0) == -3.0
    assert bucket.seconds_until(0.0, 0.0) == 1.5
    assert not bucket.take(1.5)
    assert bucket.level(1.5) == 0.0
    assert bucket.take(2.0)


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets: TokenBuckets[str] = TokenBuckets(rate=1.0, burst=1.0, max_keys=10)
    assert buckets.use("a", 0.0).take(0.0)
    assert not buckets.use("a", 0.0).take(0.0)
    assert buckets.use("b", 0.0).take(0.0)


def test_key_that_was_used_longest_ago_is_forgotten() -> None:
    buckets: TokenBuckets[str] = TokenBuckets(rate=1.0, burst=1.0, max_keys=2)
    for key in ("a", "b", "a", "c"):
        buckets.use(key, 0.0).take(0.0)
    assert len(buckets) == 2
    assert not buckets.use("a", 0.0).take(0.0)
    assert buckets.use("b", 0.0).take(0.0), "it begins with a full one"


def test_bucket_that_was_only_looked_at_is_not_remembered() -> None:
    buckets: TokenBuckets[str] = TokenBuckets(rate=1.0, burst=1.0, max_keys=2)
    assert buckets.look("a", 0.0).take(0.0)
    assert len(buckets) == 0
    assert buckets.look("a", 0.0).take(0.0)
