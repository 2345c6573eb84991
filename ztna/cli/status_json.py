"""A daemon's status as plain data: the stable form that scripts read, described in docs/status.md.

Keys are those of control.proto, all of them, always. 64-bit integers are numbers, session ids hex strings,
enums short lower-case words, and what is not known is null.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import Message

DECIMALS: Final = 6
"""Microseconds, and nanoseconds in a key that ends in `_ms`: beyond it is the noise of floating point."""


def as_plain(message: Message) -> dict[str, Any]:
    """Every field of `message` by its name, set or not."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def enum_word(message: Message, name: str) -> str | None:
    """The short word of an enum field; None when it is not set, or of a newer daemon."""
    return _word(message.DESCRIPTOR.fields_by_name[name], getattr(message, name))


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, element) for element in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return as_plain(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return round(value, DECIMALS)
    if field.enum_type is not None:
        return _word(field, value)
    return value


def _word(field: Any, number: int) -> str | None:
    """`SERVICE_PROTOCOL_TCP` is `tcp`; the unspecified value, or one of a newer daemon, is None."""
    known = field.enum_type.values_by_number.get(number)
    if known is None or number == 0:
        return None
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    word: str = known.name.removeprefix(prefix).lower()
    return word
