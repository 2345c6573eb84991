"""Quantities as people read them, in a few characters."""

from __future__ import annotations

from typing import Final

_SIZES: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")
_STEP: Final = 1024
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_SHORT: Final = 10


def show_bytes(count: float) -> str:
    """`812 B`, `1.5 KiB`, `64 MiB`."""
    if count < _STEP:
        return f"{count:.0f} B"
    value = float(count)
    unit = ""
    for unit in _SIZES:  # noqa: B007 - the last unit takes whatever is left
        value /= _STEP
        if round(value) < _STEP:
            break
    return f"{value:.1f} {unit}" if value < _SHORT else f"{value:.0f} {unit}"


def show_rate(bytes_per_s: float) -> str:
    """`1.5 KiB/s`; a dash for nothing, so that what moves stands out."""
    return f"{show_bytes(bytes_per_s)}/s" if bytes_per_s >= 1 else "-"


def show_duration(seconds: float) -> str:
    """`0.4s`, `42s`, `3m05s`, `1h02m`, `3d04h`."""
    if seconds < _SHORT:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def show_rtt(milliseconds: float) -> str:
    """`0.42 ms`, `21.3 ms`, `250 ms`; a dash when it was not measured."""
    if milliseconds <= 0:
        return "-"
    if milliseconds < 1:
        return f"{milliseconds:.2f} ms"
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"  # noqa: PLR2004


def show_count(count: int, noun: str) -> str:
    """`0 packets`, `1 packet`, `2 packets`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
