"""Configuration from its four layers: defaults, file, environment, flags; the later wins.

`ZTNA_<SECTION>__<KEY>` names a key in the environment (two underscores between levels, numbers for list
elements), `key.path=value` in a flag; both values are YAML. A relative path is relative to the directory of
the file, wherever it was written. Every fault is found before any is reported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ztna.errors import ConfigError
from ztna.settings.common import default_control_socket
from ztna.settings.daemons import MODELS, DaemonSettings
from ztna.settings.document import MAX_FILE_BYTES, Document, KeyPath, parse_document, parse_value
from ztna.settings.keys import effective_values, is_section, is_valid_key, nearest_key
from ztna.settings.values import DaemonKind

ENVIRONMENT_PREFIX = "ZTNA_"
DEFAULT_ORIGIN = "default"
FLAG_ORIGIN = "flag"
# Enough to recognise the value; a whole file pasted into a key must not fill the terminal.
MAX_SHOWN_CHARACTERS = 60

S = TypeVar("S", bound=DaemonSettings)

_MESSAGES = {
    "missing": "is required",
    "model_type": "must be a section of keys",
    "dict_type": "must be a section of keys",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "finite_number": "must be a finite number",
}


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """Settings, and where each effective key came from: `default`, `FILE:LINE`, `env NAME` or `flag`.

    The keys of `origins` are dotted, with numbers for list elements: `services.0.listen`.
    """

    settings: S
    origins: dict[str, str]


def load(
    model: type[S], path: Path, environ: Mapping[str, str], overrides: Mapping[str, str] | None = None
) -> Loaded[S]:
    """Load the configuration of one daemon from `path`, `environ` and the flags in `overrides`.

    Raises `ConfigError` with one line per fault: where, key path, what is wrong, the offending value, and the
    nearest valid key for an unknown one.
    """
    return _validate(model, path, _layers(path, environ, overrides or {}, model), environ)


def load_any(
    path: Path,
    environ: Mapping[str, str],
    overrides: Mapping[str, str] | None = None,
    kind: DaemonKind | None = None,
) -> Loaded[DaemonSettings]:
    """Like `load`, for the daemon that the file is for: `kind`, else what `deduce_kind` finds in it."""
    document = _read(path)
    if kind is None:
        try:
            kind = deduce_kind(document.data)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return load(MODELS[kind], path, environ, overrides)


def deduce_kind(data: Mapping[str, Any]) -> DaemonKind:
    """Which daemon a file is for: its `kind`, else the keys that only one daemon has.

    Raises `ConfigError` when neither tells, or keys of several daemons are mixed.
    """
    if data.get("kind") is not None:
        try:
            return DaemonKind(data["kind"])
        except ValueError:
            raise ConfigError(
                f"kind: must be one of {', '.join(DaemonKind)} (got {_shown(data['kind'])})"
            ) from None
    listed = data.get("services")
    services = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    names = {name for service in services for name in service}
    found = [
        kind
        for kind, tells in (
            (DaemonKind.INTERMEDIATE, data.keys() & {"quic", "grpc", "stun", "policy", "offers"}),
            (DaemonKind.CONNECTOR, names & {"backend", "allow"}),
            (DaemonKind.AGENT, (data.keys() & {"connect"}) | (names & {"listen", "connectors"})),
        )
        if tells
    ]
    if len(found) != 1:
        raise ConfigError(
            f"cannot tell which daemon this is for; add `kind:` with one of {', '.join(DaemonKind)}"
        )
    return found[0]


@dataclass(slots=True)
class _Layers:
    """The merged data, the origin of every key that some layer set, and the faults so far."""

    data: dict[str, Any]
    origins: dict[KeyPath, str]
    problems: list[str] = field(default_factory=list)

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Set one key; a section is merged key by key, anything else replaces what was there."""
        if isinstance(value, dict):
            for name, inner in value.items():
                self.put((*path, name), inner, origin)
            return
        container: Any = self.data
        for index, name in enumerate(path[:-1]):
            container = self._enter(container, name, path[: index + 1], origin)
            if container is None:
                return
        self._assign(container, path, value, origin)

    def _enter(self, container: Any, name: str, path: KeyPath, origin: str) -> Any:
        if isinstance(container, list):
            inner = container[int(name)] if name.isdigit() and int(name) < len(container) else None
        else:
            if container.get(name) is None:
                container[name] = {}
                self.origins[path] = origin
            inner = container[name]
        if not isinstance(inner, (dict, list)):
            self.problems.append(f"{origin}: {'.'.join(path)}: there is nothing to set a key in")
            return None
        return inner

    def _assign(self, container: Any, path: KeyPath, value: Any, origin: str) -> None:
        name = path[-1]
        if isinstance(container, dict):
            container[name] = value
        elif name.isdigit() and int(name) < len(container):
            container[int(name)] = value
        else:
            self.problems.append(f"{origin}: {'.'.join(path)}: the list has {len(container)} elements")
            return
        for inner in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[inner]
        self.origins[path] = origin

    def has(self, path: KeyPath) -> bool:
        """Whether some layer set the key."""
        inner: Any = self.data
        for name in path:
            if isinstance(inner, list) and name.isdigit() and int(name) < len(inner):
                inner = inner[int(name)]
            elif isinstance(inner, dict) and name in inner:
                inner = inner[name]
            else:
                return False
        return True

    def origin(self, path: KeyPath, otherwise: str) -> str:
        """Where the key, or the nearest thing around it, was set."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return otherwise


def _read(path: Path) -> Document:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from error
    try:
        document = parse_document(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if document.data is None:
        raise ConfigError(f"{path}: is empty")
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}: must hold keys and values at the top, such as `node:`")
    return document


def _layers(
    path: Path, environ: Mapping[str, str], overrides: Mapping[str, str], model: type[DaemonSettings]
) -> _Layers:
    document = _read(path)
    layers = _Layers(document.data, {key: f"{path}:{line}" for key, line in document.lines.items()})
    layers.problems += [f"{path}:{line}: {problem}" for line, problem in document.problems]
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        key = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        # Kubernetes sets ZTNA_PORT and the like for a service called ztna: a name of one level counts only
        # when it is a key.
        if len(key) > 1 or is_valid_key(model, key):
            layers.put(key, parse_value(environ[name]), f"env {name}")
    for dotted, text in overrides.items():
        layers.put(tuple(dotted.split(".")), parse_value(text), FLAG_ORIGIN)
    return layers


def _validate(model: type[S], path: Path, layers: _Layers, environ: Mapping[str, str]) -> Loaded[S]:
    context = {"directory": path.parent}
    try:
        settings = model.model_validate(layers.data, context=context)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # In the file of another daemon every other fault follows from this one.
        of_kind = [details for details in faults if details["loc"] == ("kind",)]
        layers.problems += [
            _problem(model, path, layers, details)
            for details in of_kind or faults
            # A list whose elements are all wrong is not a short list.
            if not (details["type"] == "too_short" and details["input"])
        ]
    if layers.problems:
        raise ConfigError("\n".join(layers.problems))
    if not layers.has(("control", "socket")):
        is_root = os.geteuid() == 0
        socket = default_control_socket(settings.kind, settings.node.id, environ, is_root=is_root)
        layers.put(("control", "socket"), str(socket), DEFAULT_ORIGIN)
        return _validate(model, path, layers, environ)
    origins = {
        ".".join(key): layers.origin(key, DEFAULT_ORIGIN) if layers.has(key) else DEFAULT_ORIGIN
        for key, _ in effective_values(settings)
    }
    return Loaded(settings, origins)


def _problem(model: type[DaemonSettings], path: Path, layers: _Layers, details: ErrorDetails) -> str:
    key = tuple(str(part) for part in details["loc"])
    where = layers.origin(key, str(path))
    if details["type"] == "extra_forbidden":
        nearest = nearest_key(model, key)
        hint = f"; did you mean {nearest}?" if nearest else ""
        return f"{where}: {'.'.join(key)}: unknown key{hint} (value {_shown(details['input'])})"
    if details["type"] == "value_error":
        message = str(details["ctx"]["error"])
    elif details["type"] == "literal_error":
        kind = model.__name__.removesuffix("Settings").lower()
        message = f"must be {kind} for `ztna {kind}`"
    else:
        message = _MESSAGES.get(details["type"]) or details["msg"].replace("Input should", "must", 1)
        if details["type"] == "tuple_type" and not is_section(model, (*key, "0")):
            message += _list_hint(where, ".".join(key), details["input"])
    is_told = details["type"] == "missing" or not key or repr(details["input"]) in message
    got = "" if is_told else f" (got {_shown(details['input'])})"
    return ": ".join(filter(None, (where, ".".join(key), message))) + got


def _list_hint(where: str, key: str, value: Any) -> str:
    """How the value is written as a list, where it is text with the elements in it."""
    if not isinstance(value, str) or not value.strip():
        return ""
    text = _shown([element.strip() for element in value.split(",")])
    if not text.endswith("]"):  # too long to be shown, or not to be shown
        return ""
    return f": --set '{key}={text}'" if where == FLAG_ORIGIN else f", such as {text}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if "PRIVATE KEY" in text:
        return "a private key, not shown"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[: MAX_SHOWN_CHARACTERS - 1]}…"
