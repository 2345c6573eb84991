"""House rules of the schema, read from what protoc itself makes of `proto/ztna/v1/*.proto`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from tools.generate_protos import PACKAGE, PROTO_ROOT

SOURCES = sorted((PROTO_ROOT / PACKAGE).glob("*.proto"))

LOWER_SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")

# Field numbers in descriptor.proto: a path into a descriptor is a row of (field number, index).
FILE_MESSAGE = 4
MESSAGE_FIELD = 2
MESSAGE_NESTED = 3

Location = tuple[int, ...]


def parse(root: Path, scratch: Path) -> list[FileDescriptorProto]:
    """Every file of the schema below `root`, with its comments."""
    output = scratch / "schema.binpb"
    sources = sorted(str(path) for path in root.rglob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={root}",
            "--include_source_info",
            f"--descriptor_set_out={output}",
            *sources,
        ]
    )
    assert status == 0, "protoc failed; its message is above"
    return list(FileDescriptorSet.FromString(output.read_bytes()).file)


def messages(file: FileDescriptorProto) -> Iterator[tuple[Location, str, DescriptorProto]]:
    """Every message with its path and name, nested ones included; not the entries that stand for a map."""

    def walk(
        path: Location, prefix: str, message: DescriptorProto
    ) -> Iterator[tuple[Location, str, DescriptorProto]]:
        if message.options.map_entry:
            return
        name = prefix + message.name
        yield path, name, message
        for index, nested in enumerate(message.nested_type):
            yield from walk((*path, MESSAGE_NESTED, index), f"{name}.", nested)

    for index, message in enumerate(file.message_type):
        yield from walk((FILE_MESSAGE, index), "", message)


def enums(file: FileDescriptorProto) -> Iterator[EnumDescriptorProto]:
    yield from file.enum_type
    for _, _, message in messages(file):
        yield from message.enum_type


def fields_without_comment(file: FileDescriptorProto) -> list[str]:
    """Fields that have no comment on their line, nor on the line before."""
    commented = {
        tuple(location.path)
        for location in file.source_code_info.location
        if (location.leading_comments + location.trailing_comments).strip()
    }
    return [
        f"{file.name}: {name}.{field.name}"
        for path, name, message in messages(file)
        for index, field in enumerate(message.field)
        if (*path, MESSAGE_FIELD, index) not in commented
    ]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    return parse(PROTO_ROOT, tmp_path_factory.mktemp("schema"))


def test_a_field_without_a_comment_is_found_wherever_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.proto").write_text(
        """syntax = "proto3";
message A {
  // Before it.
  string before = 1;
  string on_its_line = 2;  // metres
  string bare = 3;

  // Of nobody.

  message B {
    map<string, uint64> bare = 1;
    oneof body {
      string chosen = 2;
      string told = 3;  // words
    }
  }
}
""",
        encoding="utf-8",
    )
    (file,) = parse(tmp_path, tmp_path)
    assert fields_without_comment(file) == ["a.proto: A.bare", "a.proto: A.B.bare", "a.proto: A.B.chosen"]


def test_every_field_says_what_it_means(schema: list[FileDescriptorProto]) -> None:
    assert [found for file in schema for found in fields_without_comment(file)] == []


def test_every_file_is_of_the_package_that_its_folder_names(schema: list[FileDescriptorProto]) -> None:
    assert {file.package for file in schema} == {"ztna.v1"}
    assert [Path(file.name).parent for file in schema] == [PACKAGE] * len(SOURCES)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_file_name_is_lower_snake_case(source: Path) -> None:
    assert LOWER_SNAKE_CASE.match(source.stem)


def test_zero_of_every_enum_is_unspecified(schema: list[FileDescriptorProto]) -> None:
    zeros = [
        value.name for file in schema for enum in enums(file) for value in enum.value if value.number == 0
    ]
    assert [name for name in zeros if not name.endswith("_UNSPECIFIED")] == []


def test_enum_values_carry_the_name_of_their_enum(schema: list[FileDescriptorProto]) -> None:
    found = [
        value.name
        for file in schema
        for enum in enums(file)
        for value in enum.value
        if not value.name.startswith(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_")
    ]
    assert found == []


def test_names_of_fields_are_lower_snake_case(schema: list[FileDescriptorProto]) -> None:
    names = {field.name for file in schema for _, _, message in messages(file) for field in message.field}
    assert sorted(name for name in names if not LOWER_SNAKE_CASE.match(name)) == []


def test_services_end_in_service(schema: list[FileDescriptorProto]) -> None:
    services = [service.name for file in schema for service in file.service]
    assert [name for name in services if not name.endswith("Service")] == []
