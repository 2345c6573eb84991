"""Figures: percentiles, and nested results as tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def percentiles_ms(samples_ms: Iterable[float]) -> dict[str, float]:
    """`p50_ms`, `p95_ms` and `p99_ms` of at least two samples."""
    cuts = statistics.quantiles(samples_ms, n=100, method="inclusive")
    return {f"p{percent}_ms": round(cuts[percent - 1], 3) for percent in (50, 95, 99)}


def ratios(row: Mapping[str, float], baseline: Mapping[str, float], name: str) -> dict[str, float]:
    """`p50_to_<name>` and so on: each figure in `_ms` of a row to the same figure of its baseline.

    A figure that either lacks, or that the baseline has as zero, has no ratio.
    """
    return {
        f"{key.removesuffix('_ms')}_to_{name}": round(value / baseline[key], 2)
        for key, value in row.items()
        if key.endswith("_ms") and baseline.get(key)
    }


def lines(results: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested results for people: a mapping of flat mappings becomes a table, its keys the rows."""
    rendered: list[str] = []
    width = max((len(key) for key in results), default=0) + 2
    for key, value in results.items():
        if not isinstance(value, dict):
            rendered.append(f"{indent}{key:<{width}}{_text(value)}")
        elif _is_table(value):
            rendered += [f"{indent}{key}", *_table(value, indent + "  ")]
        else:
            rendered += [f"{indent}{key}", *lines(value, indent + "  ")]
    return rendered


def _is_table(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(
        isinstance(row, dict) and row and not any(isinstance(cell, dict) for cell in row.values())
        for row in value.values()
    )


def _table(rows: Mapping[str, Mapping[str, Any]], indent: str) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["", *columns]]
    cells += [[name, *(_text(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[number]) for line in cells) for number in range(len(columns) + 1)]
    return [indent + _aligned(line, widths) for line in cells]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    rest = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([f"{cells[0]:<{widths[0]}}", *rest]).rstrip()


def _text(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value)
