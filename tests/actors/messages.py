"""Protobuf messages that exist only in the tests of the actor runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

if TYPE_CHECKING:
    from google.protobuf.message import Message

_FIELD = descriptor_pb2.FieldDescriptorProto


def _build(*names: str) -> list[type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="runtime_tests.proto", package="test", syntax="proto3")
    for name in names:
        message = file.message_type.add(name=name)
        fields = (
            ("number", _FIELD.TYPE_INT64),
            ("text", _FIELD.TYPE_STRING),
            ("session_id", _FIELD.TYPE_BYTES),
            ("intermediate_id", _FIELD.TYPE_STRING),
        )
        for number, (field_name, field_type) in enumerate(fields, start=1):
            message.field.add(name=field_name, number=number, type=field_type, label=_FIELD.LABEL_OPTIONAL)
    keyless = file.message_type.add(name="Keyless")
    keyless.field.add(name="number", number=1, type=_FIELD.TYPE_INT64, label=_FIELD.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test.{name}"))
        for name in (*names, "Keyless")
    ]


Poke: Any
Poked: Any
Fail: Any
Keyless: Any
Poke, Poked, Fail, Keyless = _build("Poke", "Poked", "Fail")
