"""Sections that more than one daemon has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import Field, field_validator

from ztna.address import TransportAddress
from ztna.settings.values import (
    AdvertisedAddress,
    Choice,
    DaemonKind,
    DialAddress,
    FilePath,
    Id,
    ListenAddress,
    LogFormat,
    LogLevel,
    Many,
    OptionalListenAddress,
    OptionalSocketPath,
    PathPolicy,
    RelayCarrier,
    Section,
    SignalingTransport,
)

IPV4_WILDCARD = "0.0.0.0"  # noqa: S104 - one socket serves every interface, and survives a change of uplink
IPV6_WILDCARD = "::"


def repeated(values: Iterable[str]) -> list[str]:
    """The values that occur more than once, in order of first occurrence."""
    return [value for value, count in Counter(values).items() if count > 1]


def default_control_socket(
    kind: DaemonKind, node_id: str, environ: Mapping[str, str], *, is_root: bool
) -> Path:
    """Where a daemon's control socket is when `control.socket` does not say."""
    return runtime_directory(environ, is_root=is_root) / f"{kind}-{node_id}.sock"


def runtime_directory(environ: Mapping[str, str], *, is_root: bool) -> Path:
    """The directory of the control sockets of all daemons of this user."""
    if is_root:
        return Path("/run/ztna")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "ztna")
    return Path(environ.get("HOME") or Path.home(), ".local", "state", "ztna")


class NodeSettings(Section):
    """Who this daemon is."""

    id: Id = Field(description="Name of this node, as in its certificate.")
    cert: FilePath = Field(description="Certificate chain of this node (PEM), the leaf first.")
    key: FilePath = Field(
        description="Private key of the certificate (PEM), readable by the daemon's user alone."
    )
    ca: FilePath = Field(description="CA certificates of the deployment (PEM); nothing else is trusted.")
    crl: FilePath | None = Field(
        default=None,
        description="Certificate revocation list of the CA (PEM); without it no certificate counts as "
        "revoked.",
    )


class MetricsSettings(Section):
    """The HTTP listener of `/metrics`, `/healthz` and `/readyz`."""

    listen: OptionalListenAddress


_METRICS = "Where `/metrics`, `/healthz` and `/readyz` are served over plain HTTP; empty turns them off."


class IntermediateMetricsSettings(MetricsSettings):
    """Metrics of an intermediate."""

    listen: OptionalListenAddress = Field(default=TransportAddress("127.0.0.1", 9090), description=_METRICS)


class ConnectorMetricsSettings(MetricsSettings):
    """Metrics of a connector."""

    listen: OptionalListenAddress = Field(default=TransportAddress("127.0.0.1", 9091), description=_METRICS)


class AgentMetricsSettings(MetricsSettings):
    """Metrics of an agent."""

    listen: OptionalListenAddress = Field(default=TransportAddress("127.0.0.1", 9092), description=_METRICS)


class ControlSettings(Section):
    """The local control socket."""

    socket: OptionalSocketPath = Field(
        default=None,
        description="Unix socket that `ztna status` and the like talk to; empty turns it off. Left out, "
        "it is "
        "`<kind>-<node.id>.sock` in `/run/ztna` for root, else in `$XDG_RUNTIME_DIR/ztna`, else in "
        "`~/.local/state/ztna`.",
    )


class LimitsSettings(Section):
    """What a daemon may take from its machine."""

    memory_bytes: int = Field(
        default=0,
        ge=0,
        le=2**44,
        description="Resident memory, in bytes, from which on new connections, flows and attachments are "
        "refused (`memory_limit`); 0: nine tenths of the limit of the control group, if it has one.",
    )


class LogSettings(Section):
    """What is logged, and how."""

    level: Choice[LogLevel] = Field(default=LogLevel.INFO, description="Least severity that is logged.")
    format: Choice[LogFormat] = Field(
        default=LogFormat.AUTO,
        description="Shape of a line; `auto` is `console` on a terminal and `json` elsewhere.",
    )
    redact: bool = Field(
        default=False,
        description="Cut IP addresses down to their network (/24, /48) in every line above debug.",
    )


class UdpBufferSettings(Section):
    """Kernel buffers of the UDP sockets."""

    # 4 MiB is some 3,400 full datagrams: about 0.2 s at the rate one core can seal.
    receive_buffer_bytes: int = Field(
        default=4 * 2**20,
        ge=2**16,
        le=2**28,
        description="Receive buffer asked of the kernel per UDP socket, in bytes (it grants "
        "`net.core.rmem_max` at most).",
    )
    send_buffer_bytes: int = Field(
        default=4 * 2**20,
        ge=2**16,
        le=2**28,
        description="Send buffer asked of the kernel per UDP socket, in bytes (it grants "
        "`net.core.wmem_max` at most).",
    )


class NodeUdpSettings(UdpBufferSettings):
    """UDP sockets of an agent or connector."""

    bind: Many[ListenAddress] = Field(
        default=(TransportAddress(IPV4_WILDCARD, 0), TransportAddress(IPV6_WILDCARD, 0)),
        min_length=1,
        description="Addresses of the UDP sockets, at most one per IP version; port 0 is chosen by the "
        "system.",
    )

    @field_validator("bind")
    @classmethod
    def _one_socket_per_family(cls, value: tuple[TransportAddress, ...]) -> tuple[TransportAddress, ...]:
        if repeated(address.family.name for address in value):
            raise ValueError("one address per IP version: a NAT mapping belongs to one socket")
        return value


class RelaySettings(Section):
    """The queue before the relay leg, or at the intermediate before each leg."""

    # About 64 · 1200 bytes: what a 6 Mbit/s leg carries in the 100 ms below.
    queue_packets: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Packets that wait per session and direction; the oldest is dropped beyond it.",
    )
    queue_ms: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Longest stay of a packet in that queue, in milliseconds; then it is dropped.",
    )


class NodeRelaySettings(RelaySettings):
    """The relay leg of an agent or connector."""

    carrier: Choice[RelayCarrier] = Field(
        default=RelayCarrier.AUTO,
        description="How the relay is reached: `auto` over QUIC (UDP), and over gRPC (TCP) while QUIC has no "
        "answer; `quic` or `grpc`: over that alone. `grpc` takes UDP for blocked, and asks no intermediate "
        "for the address that peers would see.",
    )


class AccessSettings(Section):
    """How long access outlives the authority that granted it."""

    max_offline_s: float = Field(
        default=3600,
        ge=0,
        le=7 * 86_400,
        allow_inf_nan=False,
        description="Seconds that a session lives on while no intermediate can be reached.",
    )


class SessionSettings(Section):
    """The end-to-end session of agent and connector."""

    idle_timeout_s: float = Field(
        default=300,
        ge=5,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds without a packet from the peer after which a session is given up (the smaller "
        "of both ends holds). While a connection or flow runs over it, the agent asks for one three times as "
        "often; a session without any it closes itself, a tenth earlier.",
    )


class IceSettings(Section):
    """The search for a direct path."""

    loopback: bool = Field(
        default=False,
        description="Offer loopback addresses as candidates, too: for a trial on one machine.",
    )
    advertise: Many[AdvertisedAddress] = Field(
        default=(),
        description="Addresses at which this node can be reached besides those that it finds, say behind a "
        "port forwarding; without a port, that of its own socket.",
    )
    pacing_ms: int = Field(
        default=20,
        ge=5,
        le=500,
        description="Milliseconds between two new checks (RFC 8445 §14.2: not below 5).",
    )
    check_limit_s: float = Field(
        default=5,
        ge=0.5,
        le=60,
        allow_inf_nan=False,
        description="Seconds of checks after which the session is reported as relayed for now; attempts go "
        "on. It is reported 10 s after the offer in any case, so larger values are no different from 10.",
    )

    @field_validator("advertise")
    @classmethod
    def _distinct(cls, value: tuple[TransportAddress, ...]) -> tuple[TransportAddress, ...]:
        if twice := repeated(str(address) for address in value):
            raise ValueError(f"{twice[0]} is listed twice")
        return value


class KeepaliveSettings(Section):
    """Whether a direct path still answers (RFC 7675)."""

    # Below 4 s a check would cost more than it tells; above 15 s a NAT with 30 s mappings forgets the path.
    interval_s: float = Field(
        default=5,
        ge=1,
        le=15,
        allow_inf_nan=False,
        description="Seconds between two checks while payload flows, ± 20 %; an idle path is checked every "
        "15 s.",
    )
    timeout_s: float = Field(
        default=5,
        ge=0.5,
        le=10,
        allow_inf_nan=False,
        description="Seconds after which an unanswered check counts as missed; the next one follows at once.",
    )
    max_missed: int = Field(
        default=3,
        ge=1,
        le=10,
        description="Checks missed in a row after which a path has failed; 30 s without an answer end it in "
        "any case.",
    )


class PathSettings(Section):
    """Which path carries a session."""

    policy: Choice[PathPolicy] = Field(
        default=PathPolicy.PREFER_DIRECT,
        description="What carries a session: `prefer_direct` a direct path whenever one works, `lowest_rtt` "
        "the faster of both (with a margin; where nothing is sent a change is noticed after minutes), "
        "`relay_only` never a direct one. Set the same at both ends.",
    )
    cooldown_s: float = Field(
        default=30,
        ge=1,
        le=600,
        allow_inf_nan=False,
        description="Seconds until a direct path that never worked is tried again, doubling up to 600; a "
        "change of address starts over.",
    )


class SignalingSettings(Section):
    """How signaling reaches the intermediate."""

    transport: Choice[SignalingTransport] = Field(
        default=SignalingTransport.GRPC,
        description="Carrier of signaling: a gRPC stream (TCP), or a stream of the QUIC connection (UDP).",
    )


class IntermediateAddress(Section):
    """One intermediate, as agents and connectors reach it."""

    id: Id = Field(description="Name of the intermediate, as in its certificate.")
    quic: DialAddress = Field(description="Where its QUIC relay is reached (UDP).")
    grpc: DialAddress = Field(description="Where its gRPC signaling is reached (TCP).")
