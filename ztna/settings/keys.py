"""The models seen as a list of dotted keys: for the reference, for suggestions and for `ztna config show`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from ztna.settings.document import KeyPath
from ztna.settings.values import TypeName

_PLAIN_TYPES: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a model; `default` is plain data, and absent (`is_required`) where the file must say.

    An element of a list of sections is written as `<n>` in `path`.
    """

    path: str
    type: str
    description: str
    bounds: str
    is_required: bool
    default: Any


def describe_keys(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[Key]:
    """Every key of `model`, in the order of its fields."""
    for name, info in model.model_fields.items():
        path = (*prefix, name)
        section, is_list = _section_of(info)
        if section is None or is_list or not isinstance(info.annotation, type):
            kind = "list of sections" if is_list else "section"
            yield Key(
                path=".".join(path),
                type=kind if section else _type_name(info),
                description=info.description or "",
                bounds=_bounds(info),
                is_required=info.is_required(),
                default=None if info.is_required() else plain_value(info.default),
            )
        if section is not None:
            yield from describe_keys(section, (*path, "<n>") if is_list else path)


def effective_values(section: BaseModel, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of loaded settings with its value as plain data, in the order of the models."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        path = (*prefix, name)
        if isinstance(value, BaseModel):
            yield from effective_values(value, path)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for index, element in enumerate(value):
                yield from effective_values(element, (*path, str(index)))
        else:
            yield path, plain_value(value)


def plain_value(value: Any) -> Any:
    """`value` as JSON and YAML know it; a `SecretStr` becomes asterisks."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, SecretStr):
        return str(value)
    if isinstance(value, tuple):
        return [plain_value(element) for element in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def nearest_key(model: type[BaseModel], path: KeyPath) -> str | None:
    """What `path` was probably meant to be: a sibling by spelling, else the same name elsewhere."""
    siblings = _names_at(model, path[:-1])
    if close := difflib.get_close_matches(path[-1], siblings, n=1):
        return ".".join((*path[:-1], close[0]))
    every = [key.path for key in describe_keys(model)]
    ending = [key for key in every if key.rpartition(".")[2] == path[-1]]
    close = ending or difflib.get_close_matches(".".join(path), every, n=1, cutoff=0.75)
    return close[0] if close else None


def is_valid_key(model: type[BaseModel], path: KeyPath) -> bool:
    """Whether `path` names a section or key of `model`; the numbers of list elements are not looked at."""
    return path[-1] in _names_at(model, path[:-1])


def is_section(model: type[BaseModel], path: KeyPath) -> bool:
    """Whether keys can stand below `path`."""
    return bool(_names_at(model, path))


def _names_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    current: type[BaseModel] | None = model
    is_list = False
    for name in path:
        if current is None:
            return []
        if is_list and name.isdigit():
            is_list = False
            continue
        info = current.model_fields.get(name)
        if info is None or is_list:
            return []
        current, is_list = _section_of(info)
    return [] if current is None or is_list else list(current.model_fields)


def _section_of(info: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """The section model within a field's type, and whether the field holds a list of them."""
    annotation = info.annotation
    is_list = get_origin(annotation) is tuple
    if is_list or type(None) in get_args(annotation):
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, is_list
    return None, False


def _type_name(info: FieldInfo) -> str:
    for item in info.metadata:
        if isinstance(item, TypeName):
            return item.text
    return _annotation_name(info.annotation)


def _annotation_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = [item.text for item in arguments[1:] if isinstance(item, TypeName)]
        return named[0] if named else _annotation_name(arguments[0])
    if origin is tuple:
        return f"list of {_annotation_name(arguments[0])}"
    if origin is Literal:
        return " or ".join(f"`{plain_value(choice)}`" for choice in arguments)
    if origin is Union or type(None) in arguments:
        return _annotation_name(next(choice for choice in arguments if choice is not type(None)))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{choice.value}`" for choice in annotation)
    return _PLAIN_TYPES[annotation]


def _bounds(info: FieldInfo) -> str:
    low = next((item.ge for item in info.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in info.metadata if hasattr(item, "le")), None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    least = next((item.min_length for item in info.metadata if hasattr(item, "min_length")), None)
    return f"at least {least}" if least else ""
