"""The value types of settings: what a key may hold, parsed once, with an error that says what is expected."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    Strict,
    ValidationInfo,
    model_validator,
)

from ztna.address import TransportAddress, split_host_port
from ztna.errors import ConfigError

# The kernel's `sun_path` holds 108 bytes, the last of them zero.
MAX_SOCKET_PATH_BYTES = 107

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?"
)


class DaemonKind(StrEnum):
    """Which of the three daemons a file configures."""

    INTERMEDIATE = "intermediate"
    CONNECTOR = "connector"
    AGENT = "agent"


class LogLevel(StrEnum):
    """Least severity that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """Shape of a log line; `auto` is `console` on a terminal and `json` elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class SignalingTransport(StrEnum):
    """What carries the signaling frames to the intermediate."""

    GRPC = "grpc"
    QUIC = "quic"


class RelayCarrier(StrEnum):
    """How packets reach the relay."""

    AUTO = "auto"
    QUIC = "quic"
    GRPC = "grpc"


class ServiceProtocol(StrEnum):
    """Transport protocol of a service."""

    TCP = "tcp"
    UDP = "udp"


class HealthKind(StrEnum):
    """How the backend of a service is probed."""

    TCP = "tcp"
    HTTP = "http"
    UDP = "udp"


class PathPolicy(StrEnum):
    """What decides between a direct path and the relay."""

    PREFER_DIRECT = "prefer_direct"
    LOWEST_RTT = "lowest_rtt"
    RELAY_ONLY = "relay_only"


class ConnectMode(StrEnum):
    """When the agent opens its sessions: on first use, or at start."""

    LAZY = "lazy"
    EAGER = "eager"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host to be dialled, by name or IP literal, and a port; nothing is resolved here."""

    host: str
    port: int

    @property
    def literal(self) -> TransportAddress | None:
        """The transport address, or None when `host` is a name."""
        try:
            return TransportAddress.of(self.host, self.port)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TypeName:
    """How a type is called in the documentation."""

    text: str


class Section(BaseModel):
    """Base of every model: immutable, unknown keys are errors, no silent conversions.

    A section whose keys are all commented out is YAML's null: it means the defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value


def _text(value: object, expected: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, {expected} (in quotes where YAML reads something else)")  # noqa: TRY004 - pydantic collects ValueError
    return value


def _split(value: object) -> tuple[str, int]:
    try:
        return split_host_port(_text(value, "host:port"))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _parse_id(value: object) -> str:
    text = _text(value, "a DNS label")
    if not _LABEL.fullmatch(text):
        raise ValueError("must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens")
    return text


def _parse_pattern(value: object) -> str:
    return "*" if value == "*" else _parse_id(value)


def _parse_listen(value: object) -> TransportAddress:
    if isinstance(value, TransportAddress):
        return value
    host, port = _split(value)
    try:
        return TransportAddress.of(host, port)
    except ValueError:
        raise ValueError("must be an IP address and a port: names are not resolved here") from None


def _parse_listen_or_off(value: object) -> TransportAddress | None:
    return None if value is None or value == "" else _parse_listen(value)


def _parse_public(value: object) -> TransportAddress:
    address = _parse_listen(value)
    if address.port == 0:
        raise ValueError("port 0 cannot be reached")
    return address


def _parse_dial(value: object) -> HostPort:
    if isinstance(value, HostPort):
        return value
    target = HostPort(*_split(value))
    if target.port == 0:
        raise ValueError("port 0 cannot be dialled")
    if target.literal is not None:
        return target
    if not _HOST_NAME.fullmatch(target.host.lower()):
        raise ValueError("the host is neither an IP address nor a host name")
    return target


def _parse_advertised(value: object) -> TransportAddress:
    """An address literal with or without a port; port 0 stands for the port of our own socket."""
    if isinstance(value, TransportAddress):
        return value
    text = _text(value, "an IP address, with or without a port")
    try:
        return TransportAddress.of(text.removeprefix("[").removesuffix("]"), 0)
    except ValueError:
        return _parse_public(text)


def _parse_path(value: object, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    text = _text(value, "a path")
    if not text or "\n" in text or "\0" in text:
        raise ValueError("must be the path of a file, not empty and not the file's content")
    directory = (info.context or {}).get("directory", Path())
    return Path(directory, Path(text).expanduser())


def _parse_socket(value: object, info: ValidationInfo) -> Path | None:
    if value is None or value == "":
        return None
    path = _parse_path(value, info)
    if len(bytes(path)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"the path of a unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes, this is {path}"
        )
    return path


def _null_is_no_element(value: object) -> object:
    return () if value is None else value


T = TypeVar("T")
# Tuples, because settings are immutable; lax, because YAML has only lists.
Many = Annotated[tuple[T, ...], Strict(strict=False), BeforeValidator(_null_is_no_element)]
Choice = Annotated[T, Strict(strict=False)]

Id = Annotated[str, PlainValidator(_parse_id), TypeName("id")]
IdPattern = Annotated[str, PlainValidator(_parse_pattern), TypeName('id or "*"')]
ListenAddress = Annotated[TransportAddress, PlainValidator(_parse_listen), TypeName("address:port")]
PublicAddress = Annotated[TransportAddress, PlainValidator(_parse_public), TypeName("address:port")]
AdvertisedAddress = Annotated[
    TransportAddress, PlainValidator(_parse_advertised), TypeName("address or address:port")
]
OptionalListenAddress = Annotated[
    TransportAddress | None, PlainValidator(_parse_listen_or_off), TypeName("address:port or empty")
]
DialAddress = Annotated[HostPort, PlainValidator(_parse_dial), TypeName("host:port")]
FilePath = Annotated[Path, PlainValidator(_parse_path), TypeName("path")]
OptionalSocketPath = Annotated[Path | None, PlainValidator(_parse_socket), TypeName("path or empty")]
