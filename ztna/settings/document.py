"""One YAML document as plain data, with the line of every key.

The dialect is YAML 1.2's core schema in YAML's safe subset: only `true` and `false` are booleans, `22:30`
and `no` are text, tags are refused. Size, depth and the number of elements are bounded, duplicate keys are
errors.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from ztna.errors import ConfigError

# A policy of some 10,000 rules; real files have a few kilobytes.
MAX_FILE_BYTES = 2**20
# The deepest key there is has a depth of 5.
MAX_DEPTH = 16
# Aliases may repeat a list, but not multiply it into a memory bomb; 1 MiB holds about this many elements.
MAX_ELEMENTS = 200_000

KeyPath = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
# Any 64-bit number; longer ones become floats, as `int` refuses thousands of digits with an error of its own.
_INTEGER = re.compile(r"[-+]?[0-9]{1,19}")


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by the core schema of YAML 1.2, and refuses to descend without end."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {MAX_DEPTH} levels",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass(slots=True)
class Document:
    """`data` as written, `lines` (from 1) of every key and list element, and what was wrong with it."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    elements: int = 0


def parse_document(text: str) -> Document:
    """Read one YAML document.

    Raises `ConfigError` (`line N: what`) for a text that is not one document of the safe subset, or exceeds a
    bound. Faults that leave the rest readable, such as a duplicate key, are collected in `problems`.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{where}not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # The latter two of numbers beyond what the library's own calls take: a character's code, a version.
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from error
    document = Document()
    if root is not None:
        document.data = _construct(document, root, ())
    return document


def parse_value(text: str) -> Any:
    """The value of an environment variable or flag: YAML where it is YAML, else the text itself.

    So `[::]:4434` needs no quotes, and an empty value stays empty instead of becoming null.
    """
    if not text.strip():
        return ""
    try:
        document = parse_document(text)
    except ConfigError:
        return text
    return text if document.problems else document.data


def _construct(document: Document, node: yaml.Node, path: KeyPath) -> Any:
    document.elements += 1
    if document.elements > MAX_ELEMENTS or len(path) > MAX_DEPTH:
        raise ConfigError(f"{_line(node)}more than {MAX_ELEMENTS} elements, or an alias within itself")
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _construct_mapping(document, node, path)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        elements = []
        for index, child in enumerate(node.value):
            document.lines[*path, str(index)] = child.start_mark.line + 1
            elements.append(_construct(document, child, (*path, str(index))))
        return elements
    if isinstance(node, yaml.ScalarNode):
        return _construct_scalar(node)
    raise ConfigError(f"{_line(node)}the tag {node.tag} is not allowed")


def _construct_mapping(document: Document, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, child in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{_line(key_node)}a key must be plain text")
        key: str = key_node.value
        line = key_node.start_mark.line + 1
        if key in mapping:
            first = document.lines[*path, key]
            document.problems.append(
                (line, f"{'.'.join((*path, key))}: duplicate key, first set in line {first}")
            )
            continue
        document.lines[*path, key] = line
        mapping[key] = _construct(document, child, (*path, key))
    return mapping


def _construct_scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if _INTEGER.fullmatch(text):
            return int(text)
        case "float" | "int":
            with suppress(ValueError):
                return float(text)
            raise ConfigError(f"{_line(node)}{text!r} is not a number")
    raise ConfigError(f"{_line(node)}the tag {node.tag} is not allowed")


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}: "
