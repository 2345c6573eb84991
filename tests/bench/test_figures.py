"""Results as people read them."""

from __future__ import annotations

import pytest

from tools.bench._figures import lines, percentiles_ms, ratios


def test_mapping_of_flat_mappings_is_a_table() -> None:
    rows = {"bare": {"p50_ms": 0.5}, "relay": {"p50_ms": 11, "lost": 2}}
    assert lines({"echoes": 20, "round_trip": rows}) == [
        "echoes      20",
        "round_trip",
        "         p50_ms  lost",
        "  bare      0.5",
        "  relay      11     2",
    ]


def test_deeper_mappings_are_indented_and_lists_joined() -> None:
    results = {"a": {"b": {"c": {"d": 1}}}, "violations": ["one", "two"], "none": []}
    assert lines(results) == [
        "a",
        "  b",
        "       d",
        "    c  1",
        "violations  one; two",
        "none        none",
    ]


def test_percentiles_are_those_of_the_samples() -> None:
    assert percentiles_ms(range(101)) == {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99}


def test_percentiles_of_one_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        percentiles_ms([1.0])


def test_ratios_are_those_of_figures_that_both_have() -> None:
    row = {"p50_ms": 3.0, "p95_ms": 8.0, "p99_ms": 9.0, "lost": 2}
    baseline = {"p50_ms": 2.0, "p95_ms": 0.0, "lost": 1}
    assert ratios(row, baseline, "bare") == {"p50_to_bare": 1.5}
