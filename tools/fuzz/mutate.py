"""Inputs from valid examples: what bytes alone allow, and what protobuf's and our own framing allow.

Every choice comes from one `random.Random`, so a seed is an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

MAX_INPUT_BYTES: Final = 70_000
"""A little beyond the largest thing anything of ours accepts: a signaling frame of 65 536 bytes."""

GARBAGE_SHARE: Final = 0.05
UNCHANGED_SHARE: Final = 0.05
STRUCTURED_SHARE: Final = 0.5
MAX_OPERATIONS: Final = 6
MAX_DEPTH: Final = 4

_BOUNDARIES: Final = tuple(
    sorted({
        value
        for bits in (7, 8, 14, 15, 16, 30, 31, 32, 62, 63, 64)
        for value in ((1 << bits) - 1, 1 << bits, (1 << bits) + 1)
    } | {0, 1, 2, 3, 4, 16, 20, 1199, 1200, 1201, 65_507, 65_508})
)  # fmt: skip
_U64 = (1 << 64) - 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Field = tuple[int, int, "int | bytes"]
"""Field number, wire type, value."""


def boundary(random: Random) -> int:
    """A number at which something may break."""
    return random.choice(_BOUNDARIES)


def garbage(random: Random) -> bytes:
    """Bytes without any sense, mostly few."""
    return random.randbytes(random.choice((0, 1, 2, 3, 4, 8, 20, 64, 300, 1200, 1500, 5000)))


def mutate(random: Random, data: bytes, corpus: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """Change `data` in one to six places; `tokens` are words that the parser knows."""
    buffer = bytearray(data)
    for _ in range(random.randint(1, MAX_OPERATIONS)):
        if tokens and random.random() < 0.2:
            _insert(random, buffer, random.choice(tokens))
        else:
            random.choice(_OPERATIONS)(random, buffer, corpus)
    del buffer[MAX_INPUT_BYTES:]
    return bytes(buffer)


def _place(random: Random, buffer: bytearray) -> int:
    return random.randrange(len(buffer) + 1)


def _slice(random: Random, buffer: bytes | bytearray) -> tuple[int, int]:
    start = random.randrange(len(buffer) + 1)
    return start, min(len(buffer), start + random.choice((1, 2, 4, 8, 16, 64, 256)))


def _flip(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    if buffer:
        buffer[random.randrange(len(buffer))] ^= 1 << random.randrange(8)


def _overwrite(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    if buffer:
        buffer[random.randrange(len(buffer))] = random.choice((0, 1, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFF))


def _truncate(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    del buffer[_place(random, buffer) :]


def _delete(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    start, end = _slice(random, buffer)
    del buffer[start:end]


def _duplicate(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    start, end = _slice(random, buffer)
    piece = bytes(buffer[start:end]) * random.choice((1, 1, 1, 2, 40))
    _insert(random, buffer, piece)


def _insert_garbage(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    _insert(random, buffer, random.randbytes(random.choice((1, 1, 2, 4, 8, 40))))


def _insert(random: Random, buffer: bytearray, piece: bytes) -> None:
    place = _place(random, buffer)
    buffer[place:place] = piece


def _insert_run(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    run = bytes([random.choice((0, 0x20, 0x41, 0xFF))])
    _insert(random, buffer, run * random.choice((16, 256, 1024, 1500, 9000)))


def _splice(random: Random, buffer: bytearray, corpus: Sequence[bytes]) -> None:
    other = random.choice(corpus) if corpus else b""
    cut = random.randrange(len(other) + 1)
    place = _place(random, buffer)
    if random.random() < 0.5:
        buffer[place:] = other[cut:]
    else:
        start, end = _slice(random, other)
        buffer[place:place] = other[start:end]


def _integer(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    """Write a boundary, or a number that nearly fits the rest, where a length may stand."""
    size = random.choice((1, 2, 2, 4, 4, 8))
    place = _place(random, buffer)
    value = boundary(random)
    if random.random() < 0.5:
        value = max(0, len(buffer) - place - size + random.choice((-1, 0, 1)))
    buffer[place : place + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "big")


def _add(random: Random, buffer: bytearray, _corpus: Sequence[bytes]) -> None:
    if buffer:
        place = random.randrange(len(buffer))
        buffer[place] = (buffer[place] + random.choice((-2, -1, 1, 2))) & 0xFF


_OPERATIONS: Final[tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...]] = (
    _flip, _flip, _overwrite, _truncate, _delete, _duplicate, _insert_garbage, _insert_run, _splice, _integer,
    _integer, _add,
)  # fmt: skip


# Protobuf


def mutate_protobuf(random: Random, data: bytes, corpus: Sequence[bytes], depth: int = 0) -> bytes:
    """Change fields of a serialised message, however deep, and write correct lengths around them."""
    fields = parse_fields(data)
    if not fields:
        return mutate(random, data, corpus)
    for _ in range(random.randint(1, 3)):
        _change_field(random, fields, corpus, depth)
    return b"".join(map(encode_field, fields))[:MAX_INPUT_BYTES]


def _change_field(random: Random, fields: list[Field], corpus: Sequence[bytes], depth: int) -> None:
    if not fields:
        return
    index = random.randrange(len(fields))
    number, kind, value = fields[index]
    choice = random.random()
    if choice < 0.1:
        del fields[index]
    elif choice < 0.2:
        fields[index:index] = [fields[index]] * random.choice((1, 2, 40))
    elif choice < 0.3:
        fields[index] = (
            random.choice((number + 1, max(1, number - 1), boundary(random) >> 35 or 1)),
            kind,
            value,
        )
    elif choice < 0.35:
        others = parse_fields(random.choice(corpus)) if corpus else None
        if others:
            fields.insert(index, random.choice(others))
    elif isinstance(value, bytes):
        fields[index] = (number, kind, _change_bytes(random, value, corpus, depth))
    else:
        fields[index] = (number, kind, boundary(random) & _U64 if random.random() < 0.7 else value ^ 1)


def _change_bytes(random: Random, value: bytes, corpus: Sequence[bytes], depth: int) -> bytes:
    if depth < MAX_DEPTH and parse_fields(value) and random.random() < 0.7:
        return mutate_protobuf(random, value, corpus, depth + 1)
    choice = random.random()
    if choice < 0.1:
        return b""
    if choice < 0.25:
        # A text that stays a text.
        return value[:1] * random.choice((1, 2, 63, 64, 65, 300, 5000))
    return mutate(random, value, corpus)


def parse_fields(data: bytes) -> list[Field] | None:
    """Fields of a serialised message, or None if it is none."""
    fields: list[Field] = []
    position = 0
    while position < len(data):
        tag, position = _pull_varint(data, position)
        if position < 0 or tag < 8:
            return None
        kind = tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, position = _pull_varint(data, position)
        elif kind in {_FIXED64, _FIXED32}:
            size = 8 if kind == _FIXED64 else 4
            value, position = int.from_bytes(data[position : position + size], "little"), position + size
        elif kind == _BYTES:
            size, position = _pull_varint(data, position)
            if position < 0 or position + size > len(data):
                return None
            value, position = data[position : position + size], position + size
        else:
            return None
        if not 0 <= position <= len(data):
            return None
        fields.append((tag >> 3, kind, value))
    return fields


def encode_field(field: Field) -> bytes:
    """One field as the wire has it."""
    number, kind, value = field
    tag = varint(number << 3 | kind)
    if isinstance(value, bytes):
        return tag + varint(len(value)) + value
    if kind == _VARINT:
        return tag + varint(value)
    size = 8 if kind == _FIXED64 else 4
    return tag + (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _pull_varint(data: bytes, position: int) -> tuple[int, int]:
    """Value and end; the end is negative when there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _U64, position
    return 0, -1
