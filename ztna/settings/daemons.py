"""The three root models: one per daemon, each the whole truth about that daemon's file."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ztna.address import TransportAddress
from ztna.settings.common import (
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    AccessSettings,
    AgentMetricsSettings,
    ConnectorMetricsSettings,
    ControlSettings,
    IceSettings,
    IntermediateAddress,
    IntermediateMetricsSettings,
    KeepaliveSettings,
    LimitsSettings,
    LogSettings,
    MetricsSettings,
    NodeRelaySettings,
    NodeSettings,
    NodeUdpSettings,
    PathSettings,
    RelaySettings,
    SessionSettings,
    SignalingSettings,
    UdpBufferSettings,
    repeated,
)
from ztna.settings.values import (
    Choice,
    ConnectMode,
    DaemonKind,
    DialAddress,
    HealthKind,
    Id,
    IdPattern,
    ListenAddress,
    Many,
    PublicAddress,
    RelayCarrier,
    Section,
    ServiceProtocol,
    SignalingTransport,
)

_KIND = "Which daemon this file configures; may be left out where the other keys tell."


class DaemonSettings(Section):
    """What every daemon has."""

    kind: DaemonKind
    node: NodeSettings
    metrics: MetricsSettings
    control: ControlSettings = ControlSettings()
    log: LogSettings = LogSettings()
    udp: UdpBufferSettings
    limits: LimitsSettings

    @property
    def bind_addresses(self) -> tuple[TransportAddress, ...]:
        """Where the UDP sockets are bound."""
        raise NotImplementedError


class IntermediateUdpSettings(UdpBufferSettings):
    """UDP sockets of an intermediate."""

    bind: Many[ListenAddress] = Field(
        default=(),
        description="Addresses of the UDP sockets where they differ from `quic.listen`; empty: they do not.",
    )


class QuicSettings(Section):
    """The QUIC endpoint of an intermediate."""

    listen: Many[ListenAddress] = Field(
        default=(TransportAddress(IPV4_WILDCARD, 4433), TransportAddress(IPV6_WILDCARD, 4433)),
        min_length=1,
        description="Addresses of the QUIC relay, which also answers STUN (UDP).",
    )
    external_address: PublicAddress | None = Field(
        default=None,
        description="Address at which nodes reach `quic.listen` when a NAT stands before it: what STUN "
        "answers name. `stun.alternate_port` has to be the same outside.",
    )

    @field_validator("listen")
    @classmethod
    def _distinct(cls, value: tuple[TransportAddress, ...]) -> tuple[TransportAddress, ...]:
        if twice := repeated(str(address) for address in value if address.port):
            raise ValueError(f"{twice[0]} is listed twice")
        return value


class StunSettings(Section):
    """The STUN responder of an intermediate."""

    alternate_port: int = Field(
        default=3479,
        ge=0,
        le=65_535,
        description="Second UDP port that answers STUN Binding, so that a node can tell its NAT's mapping "
        "behaviour; "
        "0 turns it off.",
    )


class GrpcSettings(Section):
    """The gRPC signaling listener of an intermediate."""

    listen: ListenAddress = Field(
        default=TransportAddress(IPV6_WILDCARD, 4434),
        description="Address of gRPC signaling (TCP); `[::]` serves IPv4 too.",
    )


class PolicyRule(Section):
    """Agents that may open services."""

    agents: Many[IdPattern] = Field(
        min_length=1, description='Agents that this rule allows; `"*"` is every agent.'
    )
    services: Many[IdPattern] = Field(
        min_length=1, description='Services that they may open; `"*"` is every service.'
    )


class OfferRule(Section):
    """Connectors that may provide services."""

    connectors: Many[IdPattern] = Field(
        min_length=1, description='Connectors that this rule allows; `"*"` is every connector.'
    )
    services: Many[IdPattern] = Field(
        min_length=1, description='Services that they may provide; `"*"` is every service.'
    )


class IntermediateAccessSettings(AccessSettings):
    """Grants and sessions at the intermediate."""

    grant_lifetime_s: float = Field(
        default=600,
        ge=60,
        le=600,
        allow_inf_nan=False,
        description="Seconds that a grant is valid; agents renew it at half of that. Connectors accept none "
        "that is older than 600.",
    )


class IntermediateLimits(LimitsSettings):
    """What all nodes together, or one of them, may take from an intermediate."""

    attached_nodes: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Nodes attached at a time; further ones are refused."
    )
    sessions: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="Sessions at a time, over all nodes; further ones are refused.",
    )
    services_per_connector: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="Services that one connector may have registered; further ones are rejected.",
    )
    frames_per_second: int = Field(
        default=200,
        ge=1,
        le=100_000,
        description="Signaling frames per second from one node; beyond it they are refused.",
    )
    signaling_queue: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="Signaling frames that wait for one node; a node that lets more pile up is detached.",
    )


class IntermediateSettings(DaemonSettings):
    """Configuration of `ztna intermediate`."""

    kind: Literal[DaemonKind.INTERMEDIATE] = Field(default=DaemonKind.INTERMEDIATE, description=_KIND)
    metrics: IntermediateMetricsSettings = IntermediateMetricsSettings()
    udp: IntermediateUdpSettings = IntermediateUdpSettings()
    quic: QuicSettings = QuicSettings()
    stun: StunSettings = StunSettings()
    grpc: GrpcSettings = GrpcSettings()
    policy: Many[PolicyRule] = Field(
        default=(), description="Who may open what; whatever no rule allows is refused."
    )
    offers: Many[OfferRule] = Field(
        default=(), description="Who may provide what; whatever no rule allows is rejected."
    )
    access: IntermediateAccessSettings = IntermediateAccessSettings()
    relay: RelaySettings = RelaySettings()
    limits: IntermediateLimits = IntermediateLimits()

    @property
    def bind_addresses(self) -> tuple[TransportAddress, ...]:
        """Where the UDP sockets are bound."""
        return self.udp.bind or self.quic.listen

    @model_validator(mode="after")
    def _alternate_port_is_another(self) -> Self:
        if any(self.stun.alternate_port == address.port != 0 for address in self.bind_addresses):
            raise ValueError(
                f"stun.alternate_port {self.stun.alternate_port} is a port of quic.listen already"
            )
        external = self.quic.external_address
        if external is not None and external.port == self.stun.alternate_port:
            raise ValueError(
                f"stun.alternate_port {external.port} is the port of quic.external_address already"
            )
        return self


class PeerDaemonSettings(DaemonSettings):
    """What agents and connectors have in common."""

    udp: NodeUdpSettings = NodeUdpSettings()
    intermediates: Many[IntermediateAddress] = Field(
        min_length=1,
        description="Intermediates: an agent attaches to the first that answers, a connector to all of them. "
        "Both ask all of them where their packets seem to come from.",
    )
    signaling: SignalingSettings = SignalingSettings()
    relay: NodeRelaySettings = NodeRelaySettings()
    access: AccessSettings = AccessSettings()
    session: SessionSettings = SessionSettings()
    ice: IceSettings = IceSettings()
    keepalive: KeepaliveSettings = KeepaliveSettings()
    path: PathSettings = PathSettings()

    @property
    def bind_addresses(self) -> tuple[TransportAddress, ...]:
        """Where the UDP sockets are bound."""
        return self.udp.bind

    @model_validator(mode="after")
    def _signaling_has_a_carrier(self) -> Self:
        if self.relay.carrier is RelayCarrier.GRPC and self.signaling.transport is SignalingTransport.QUIC:
            raise ValueError(
                "signaling.transport quic needs the QUIC connection that relay.carrier grpc leaves out"
            )
        return self

    @field_validator("intermediates")
    @classmethod
    def _distinct_intermediates(
        cls, value: tuple[IntermediateAddress, ...]
    ) -> tuple[IntermediateAddress, ...]:
        if twice := repeated(each.id for each in value):
            raise ValueError(f"intermediate {twice[0]!r} is listed twice")
        return value


class HealthCheck(Section):
    """How a connector finds out whether a backend answers."""

    kind: Choice[HealthKind] = Field(
        description="What a probe is: `tcp` a connection, `http` a GET request, `udp` a datagram that "
        "any datagram answers."
    )
    interval_s: float = Field(
        default=10, ge=0.1, le=3600, allow_inf_nan=False, description="Seconds between probes, ± 10 %."
    )
    timeout_s: float = Field(
        default=3, ge=0.1, le=60, allow_inf_nan=False, description="Seconds that an answer may take."
    )
    unhealthy_after: int = Field(
        default=3, ge=1, le=100, description="Probes in a row that fail before the service is withdrawn."
    )
    healthy_after: int = Field(
        default=2, ge=1, le=100, description="Probes in a row that succeed before it is offered again."
    )
    path: str = Field(
        default="/", pattern=r"^/[!-~]{0,1023}$", description="What `http` asks for, query included."
    )
    host: str = Field(
        default="",
        pattern=r"^[!-~]{0,255}$",
        description="Host header of `http`; empty: the backend's own address.",
    )
    expect_status: Many[int] = Field(
        default=(), description="Status codes of `http` that mean health; empty: 200 to 399."
    )
    send: str = Field(default="ping", max_length=1024, description="Text that `udp` sends.")


class ConnectorService(Section):
    """A service that a connector provides."""

    id: Id = Field(description="Name of the service, the same at agent, connector and in the policy.")
    protocol: Choice[ServiceProtocol] = Field(description="Transport protocol of the service.")
    backend: DialAddress = Field(description="Where the service itself is; resolved at each connect.")
    health: HealthCheck | None = Field(
        default=None,
        description="Probe the backend, and withdraw the service from the intermediates while it does not "
        "answer; left out: it is always offered.",
    )
    allow: Many[IdPattern] = Field(
        default=("*",),
        description='Agents that this connector lets in, whatever the intermediate granted; `"*"` is '
        "every agent.",
    )


class ConnectorLimits(LimitsSettings):
    """What one agent may take from a connector; beyond it an open is refused with the reason."""

    streams_per_agent: int = Field(
        default=1024, ge=1, le=65_536, description="TCP connections of one agent at a time."
    )
    flows_per_agent: int = Field(
        default=256, ge=1, le=65_536, description="UDP flows of one agent at a time."
    )
    opens_per_second: int = Field(
        default=200,
        ge=1,
        le=100_000,
        description="TCP connections, and UDP flows, that one agent may open per second in the long run; as "
        "many as it may have at a time may come at once.",
    )
    connect_timeout_s: float = Field(
        default=5,
        ge=0.1,
        le=120,
        allow_inf_nan=False,
        description="Seconds that a backend may take to accept a connection.",
    )
    flow_idle_s: float = Field(
        default=120,
        ge=1,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds without a datagram in either direction after which a UDP flow ends (RFC 4787 "
        "REQ-5: not below 120).",
    )


class ConnectorSettings(PeerDaemonSettings):
    """Configuration of `ztna connector`."""

    kind: Literal[DaemonKind.CONNECTOR] = Field(default=DaemonKind.CONNECTOR, description=_KIND)
    metrics: ConnectorMetricsSettings = ConnectorMetricsSettings()
    services: Many[ConnectorService] = Field(default=(), description="Services that this connector provides.")
    limits: ConnectorLimits = ConnectorLimits()

    @field_validator("services")
    @classmethod
    def _distinct_services(cls, value: tuple[ConnectorService, ...]) -> tuple[ConnectorService, ...]:
        if twice := repeated(service.id for service in value):
            raise ValueError(f"service {twice[0]!r} is listed twice")
        return value


class AgentService(Section):
    """A service that an agent makes reachable on this machine."""

    id: Id = Field(description="Name of the service, the same at agent, connector and in the policy.")
    protocol: Choice[ServiceProtocol] = Field(description="Transport protocol of the service.")
    listen: ListenAddress = Field(
        description="Where local applications reach the service; port 0 is chosen by the system and shown "
        "by `ztna status`."
    )
    connectors: Many[Id] | None = Field(
        default=None,
        min_length=1,
        description="The only connectors to accept for this service; left out: whichever is granted.",
    )


class AgentLimits(LimitsSettings):
    """What local applications may take from an agent."""

    connections: int = Field(
        default=4096,
        ge=1,
        le=65_536,
        description="Local TCP connections at a time, over all services; further ones are closed.",
    )
    flows: int = Field(
        default=1024,
        ge=1,
        le=65_536,
        description="Local UDP flows at a time, over all services; datagrams of further ones are dropped.",
    )
    flow_idle_s: float = Field(
        default=120,
        ge=1,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds without a datagram in either direction after which a UDP flow ends (RFC 4787 "
        "REQ-5: not below 120).",
    )


class AgentSettings(PeerDaemonSettings):
    """Configuration of `ztna agent`."""

    kind: Literal[DaemonKind.AGENT] = Field(default=DaemonKind.AGENT, description=_KIND)
    metrics: AgentMetricsSettings = AgentMetricsSettings()
    services: Many[AgentService] = Field(
        default=(), description="Services that this agent makes reachable locally."
    )
    connect: Choice[ConnectMode] = Field(
        default=ConnectMode.LAZY, description="When sessions are opened: on first use, or at start."
    )
    limits: AgentLimits = AgentLimits()

    @field_validator("services")
    @classmethod
    def _distinct_services(cls, value: tuple[AgentService, ...]) -> tuple[AgentService, ...]:
        if twice := repeated(service.id for service in value):
            raise ValueError(f"service {twice[0]!r} is listed twice")
        listeners = (f"{service.protocol} {service.listen}" for service in value if service.listen.port)
        if twice := repeated(listeners):
            raise ValueError(f"two services listen on {twice[0]}")
        return value


MODELS: dict[DaemonKind, type[DaemonSettings]] = {
    DaemonKind.INTERMEDIATE: IntermediateSettings,
    DaemonKind.CONNECTOR: ConnectorSettings,
    DaemonKind.AGENT: AgentSettings,
}
