"""What each kind of daemon consists of: which actors, with which slice of the settings, in which order.

The order is that of dependence (rest_for_one): what follows a failed actor is started anew with it. What
knows the sessions comes before what carries signaling, so that a crash there never costs a session.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from cryptography import x509

from actors import topology
from actors.base import Context
from actors.candidate_gatherer import CandidateGatherer
from actors.checklist import Checklist
from actors.child_group import ChildSpec, Restart
from actors.credentials import Credentials, load_credentials
from actors.daemon import Node, Plan
from actors.daemon_hooks import Validity
from actors.grpc_carrier import CarrierOwner, GrpcCarrier
from actors.grpc_relay_stream import GrpcRelayStream, RelayStreamOwner
from actors.grpc_signaling import GrpcSignalingServer, ListenerOwner
from actors.handshake_gate import HandshakeGate
from actors.hole_punch import HolePunch
from actors.intermediate_selector import IntermediateSelector
from actors.keepalive import Keepalive
from actors.path_manager import PathManager
from actors.quic_relay import QuicRelay
from actors.quic_session import QuicSession
from actors.registry import Registry
from actors.relay_leg import OpenStream, RelayLeg
from actors.resources import connection_room
from actors.service_backend import ServiceBackend
from actors.service_health import ServiceHealth
from actors.service_port import ServicePort
from actors.session_manager import SessionManager
from actors.session_table import AgentSessionTable, ConnectorSessionTable, SessionTable, WantedService
from actors.signaling_client import (
    AgentSignalingClient,
    ConnectorSignalingClient,
    OpenGrpc,
    SignalingClient,
)
from actors.signaling_service import SignalingService
from actors.status_board import (
    AgentStatusBoard,
    BoardSettings,
    ConnectorStatusBoard,
    IntermediateStatusBoard,
    NodeStatusBoard,
)
from actors.udp_socket import IntermediateUdpSocket, UdpSocket
from actors.wiring import Wiring
from ztna.access.identity import Role, VerifiedPeer
from ztna.access.policy import AccessPolicy, AccessRule, AccessRules, OfferPolicy, OfferRule
from ztna.address import TransportAddress
from ztna.errors import AuthenticationError, LocalProtocolError
from ztna.ice.hole_punch import HolePunchLimits
from ztna.path.manager import Policy
from ztna.quic.connection import Connection
from ztna.quic.options import ConnectionOptions
from ztna.relay.carrier import CarrierMode
from ztna.session.effects import Peer
from ztna.settings import (
    AgentSettings,
    ConnectMode,
    ConnectorSettings,
    DaemonKind,
    DaemonSettings,
    IntermediateAddress,
    IntermediateSettings,
    PeerDaemonSettings,
    ServiceProtocol,
    SignalingTransport,
)
from ztna.settings.live import Change, take_over
from ztna.settings.loader import load
from ztna.settings.values import PathPolicy, RelayCarrier
from ztna.v1 import types_pb2

SettingsT = TypeVar("SettingsT", bound=DaemonSettings)
PeerSettingsT = TypeVar("PeerSettingsT", bound=PeerDaemonSettings)

# A connector that does not answer the handshake within this time has lost its turn to another one.
INNER_HANDSHAKE_LIMIT_S = 4.0

PROTOCOLS = {
    ServiceProtocol.TCP: types_pb2.SERVICE_PROTOCOL_TCP,
    ServiceProtocol.UDP: types_pb2.SERVICE_PROTOCOL_UDP,
}

_ROLES = {
    DaemonKind.AGENT: Role.AGENT,
    DaemonKind.CONNECTOR: Role.CONNECTOR,
    DaemonKind.INTERMEDIATE: Role.INTERMEDIATE,
}


def load_plan(
    kind: DaemonKind, path: Path, environ: Mapping[str, str], overrides: Mapping[str, str]
) -> tuple[DaemonSettings, Plan]:
    """Load settings and credentials. Raises `ConfigError` or `AuthenticationError`, naming what is wrong."""

    def configured(
        model: type[SettingsT], plan: Callable[[SettingsT, Credentials, Callable[[], SettingsT]], Plan]
    ) -> tuple[DaemonSettings, Plan]:
        def read() -> SettingsT:
            return load(model, path, environ, overrides).settings

        settings = read()
        return settings, plan(settings, _credentials(settings), read)

    match kind:
        case DaemonKind.AGENT:
            return configured(AgentSettings, AgentPlan)
        case DaemonKind.CONNECTOR:
            return configured(ConnectorSettings, ConnectorPlan)
        case DaemonKind.INTERMEDIATE:
            return configured(IntermediateSettings, IntermediatePlan)


def _access_rules(settings: IntermediateSettings) -> AccessRules:
    """Who may do what. Raises `ConfigError` naming a rule that cannot be meant."""
    return AccessRules(
        AccessPolicy([AccessRule(rule.agents, rule.services) for rule in settings.policy]),
        OfferPolicy([OfferRule(rule.connectors, rule.services) for rule in settings.offers]),
    )


def _credentials(settings: DaemonSettings) -> Credentials:
    return load_credentials(settings.node, _ROLES[settings.kind], time.time())


class _Configured(Generic[SettingsT]):
    """What every plan does with its files: the configuration, and those of the node's identity.

    Actors ask for the present settings when they start, and again when they hear `ConfigurationReloaded`.
    """

    def __init__(
        self, settings: SettingsT, credentials: Credentials, reread: Callable[[], SettingsT] | None = None
    ) -> None:
        """`reread` reads the configuration anew; without it only the files of the identity are."""
        self._settings = settings
        self._credentials = credentials
        self._reread = reread

    def reload(self) -> Change[SettingsT]:
        """Read the configuration and the node's files again; what is judged from now on is judged by them.

        Raises `ConfigError` or `AuthenticationError`, naming the file at fault; then nothing has changed.
        """
        change = take_over(self._settings, self._reread() if self._reread else self._settings)
        self._check(change.settings)
        self._credentials.adopt(_credentials(change.settings))
        self._settings = change.settings
        return change

    def _check(self, settings: SettingsT) -> None:
        """Raise `ConfigError` for what the settings' own models cannot see."""

    def validity(self) -> Validity:
        """Until when the node's files hold."""
        credentials = self._credentials
        revocation = credentials.verifier.revocation
        return Validity(
            credentials.certificate_ends_at,
            min(each.not_valid_after_utc.timestamp() for each in credentials.ca_certificates),
            (revocation.next_update or 0.0) if revocation is not None else 0.0,
        )


@dataclass(frozen=True, slots=True)
class _Scopes:
    """Starts and stops the actors of one session."""

    node: Node
    make_specs: Callable[[Peer], Sequence[ChildSpec]]

    def start(self, session_id: bytes, peer: Peer) -> bool:
        try:
            self.node.supervisor.start_scope(session_id.hex(), self.make_specs(peer))
        except LocalProtocolError:
            # An offer or a grant crossed the drain, or names a session whose actors are still stopping.
            return False
        return True

    def stop(self, session_id: bytes) -> None:
        self.node.supervisor.stop_scope(session_id.hex())


class NodePlan(_Configured[PeerSettingsT]):
    """What agent and connector have in common."""

    wiring: Wiring
    is_client: bool

    def specs(self, node: Node) -> list[ChildSpec]:
        """The children of the node, in dependency order."""
        settings = self._settings
        # Of all sessions together, by agent: none of them has the others wait for its handshakes.
        gate = None if self.is_client else HandshakeGate(node.handshakes)
        scopes = _Scopes(node, partial(self._session_specs, node, gate))
        return [
            # First, so that it hears everything from the start; nothing depends on it.
            ChildSpec("status_board", partial(self._board, node), is_alone=True),
            ChildSpec("udp_socket", lambda context: UdpSocket(context, settings.bind_addresses)),
            *(
                ChildSpec(f"relay_leg/{each.id}", partial(self._relay_leg, node, each))
                for each in settings.intermediates
            ),
            self._service_spec(),
            ChildSpec("session_table", lambda context: self._session_table(context, scopes)),
            *(
                ChildSpec(f"signaling_client/{each.id}", partial(self._signaling_client, each))
                for each in settings.intermediates
            ),
            *self._health_specs(),
            ChildSpec(
                "candidate_gatherer",
                lambda context: CandidateGatherer(
                    context,
                    [each.id for each in settings.intermediates],
                    relays=self._udp_relays(),
                    loopback=settings.ice.loopback,
                    advertise=settings.ice.advertise,
                ),
                is_alone=True,  # it asks for what it has not heard
            ),
            ChildSpec(
                "intermediate_selector",
                lambda context: IntermediateSelector(
                    context,
                    [each.id for each in settings.intermediates],
                    lambda: self._credentials.certificate_chain,
                    use_all=not self.is_client,
                ),
            ),
        ]

    def _service_spec(self) -> ChildSpec:
        raise NotImplementedError

    def _health_specs(self) -> Sequence[ChildSpec]:
        return ()

    def _session_table(self, context: Context, scopes: _Scopes) -> SessionTable:
        raise NotImplementedError

    def _board(self, node: Node, context: Context) -> NodeStatusBoard:
        raise NotImplementedError

    def _relay_leg(self, node: Node, each: IntermediateAddress, context: Context) -> RelayLeg:
        def verify(chain: Sequence[x509.Certificate]) -> VerifiedPeer:
            return self._credentials.verifier.verify(
                chain,
                expect=Role.INTERMEDIATE,
                expect_id=each.id,
                now_wall=node.io.wall_time(),
                as_server=True,
            )

        def open_connection() -> Connection:
            own = self._credentials
            return Connection.client(
                ConnectionOptions.leg(
                    certificate=own.certificate_chain[0],
                    private_key=own.private_key,
                    verify_peer=verify,
                    certificate_chain=own.certificate_chain[1:],
                )
            )

        relay = self._settings.relay
        return RelayLeg(
            context,
            each.quic.host,
            each.quic.port,
            open_connection,
            max_queued_packets=relay.queue_packets,
            max_sojourn_s=relay.queue_ms / 1e3,
            open_stream=self._relay_opener(each),
            mode=CarrierMode(relay.carrier.value),
        )

    def _relay_opener(self, each: IntermediateAddress) -> OpenStream | None:
        # An attachment that came over QUIC goes with it, so there would be nothing to say over gRPC.
        if self._settings.signaling.transport is SignalingTransport.QUIC:
            return None

        def open_stream(owner: RelayStreamOwner) -> GrpcRelayStream:
            return GrpcRelayStream(str(each.grpc), each.id, self._credentials, owner)

        return open_stream

    def _signaling_client(self, each: IntermediateAddress, context: Context) -> SignalingClient:
        raise NotImplementedError

    def _grpc_opener(self, each: IntermediateAddress) -> OpenGrpc | None:
        if self._settings.signaling.transport is SignalingTransport.QUIC:
            return None

        def open_grpc(owner: CarrierOwner) -> GrpcCarrier:
            return GrpcCarrier(str(each.grpc), each.id, self._credentials, owner)

        return open_grpc

    def _session_specs(self, node: Node, gate: HandshakeGate | None, peer: Peer) -> Sequence[ChildSpec]:
        settings = self._settings
        return (
            ChildSpec(
                "quic_session",
                lambda context: QuicSession(
                    context,
                    partial(self._open_session, node, peer),
                    lambda verified: self._credentials.verifier.recheck(
                        verified, now_wall=node.io.wall_time()
                    ),
                    is_client=self.is_client,
                    gate=None if gate is None else gate.of(peer.id),
                ),
                restart=Restart.TEMPORARY,
                ends_scope=True,
                # It follows the sockets and legs, so its restart tells of theirs too. Whichever it was: the
                # table that freed this session, and the service sockets that it carries, have forgotten it.
                after="session_table",
            ),
            # A crash among these costs the direct path for a while, never the session. They begin again
            # together: generations and the pair in use are known to all of them.
            ChildSpec(
                "path_manager",
                lambda context: PathManager(
                    context, Policy(settings.path.policy.value), max_missed=settings.keepalive.max_missed
                ),
            ),
            ChildSpec(
                "keepalive",
                lambda context: Keepalive(
                    context,
                    interval_s=settings.keepalive.interval_s,
                    timeout_s=settings.keepalive.timeout_s,
                    max_missed=settings.keepalive.max_missed,
                ),
                restart_from="path_manager",
            ),
            ChildSpec(
                "checklist",
                lambda context: Checklist(context, settings.ice.pacing_ms / 1e3),
                restart_from="path_manager",
            ),
            ChildSpec(
                "hole_punch",
                lambda context: HolePunch(
                    context,
                    HolePunchLimits(
                        check_limit_s=settings.ice.check_limit_s,
                        cooldown_s=settings.path.cooldown_s,
                        is_relay_only=settings.path.policy is PathPolicy.RELAY_ONLY,
                    ),
                    self._intermediate_addresses,
                    is_controlling=self.is_client,
                ),
                restart_from="path_manager",
            ),
        )

    def _udp_relays(self) -> dict[str, tuple[str, int]]:
        """Whom to ask for our address: nobody, where UDP is not to be used."""
        if self._settings.relay.carrier is RelayCarrier.GRPC:
            return {}
        return {each.id: (each.quic.host, each.quic.port) for each in self._settings.intermediates}

    def _intermediate_addresses(self) -> frozenset[TransportAddress]:
        """Those written as addresses: no peer may have us check them."""
        found = set()
        for each in self._settings.intermediates:
            with contextlib.suppress(ValueError):
                found.add(TransportAddress.of(each.quic.host, each.quic.port))
        return frozenset(found)

    def _open_session(self, node: Node, peer: Peer, destination_cid: bytes) -> Connection:
        def verify(chain: Sequence[x509.Certificate]) -> VerifiedPeer:
            verified = self._credentials.verifier.verify(
                chain,
                expect=Role.CONNECTOR if self.is_client else Role.AGENT,
                expect_id=peer.id,
                now_wall=node.io.wall_time(),
                as_server=self.is_client,
            )
            if verified.fingerprint != peer.fingerprint:
                raise AuthenticationError("wrong_name", f"{peer.id} shows another key than signaling named")
            return verified

        own = self._credentials
        options = replace(
            ConnectionOptions.inner(
                certificate=own.certificate_chain[0],
                private_key=own.private_key,
                verify_peer=verify,
                certificate_chain=own.certificate_chain[1:],
            ),
            idle_timeout_s=self._settings.session.idle_timeout_s,
            handshake_timeout_s=INNER_HANDSHAKE_LIMIT_S,
        )
        if self.is_client:
            return Connection.client(options)
        return Connection.server(options, destination_cid=destination_cid)


class AgentPlan(NodePlan[AgentSettings]):
    """An agent: listens locally, opens sessions."""

    wiring = topology.AGENT
    is_client = True

    def _signaling_client(self, each: IntermediateAddress, context: Context) -> SignalingClient:
        return AgentSignalingClient(context, self._credentials, self._grpc_opener(each))

    def _service_spec(self) -> ChildSpec:
        return ChildSpec(
            "service_port",
            lambda context: ServicePort(context, lambda: self._settings.services, self._settings.limits),
        )

    def _session_table(self, context: Context, scopes: _Scopes) -> SessionTable:
        agent = self._settings
        return AgentSessionTable(
            context,
            scopes,
            [each.id for each in agent.intermediates],
            self._wanted_services,
            max_offline_s=agent.access.max_offline_s,
            is_eager=agent.connect is ConnectMode.EAGER,
        )

    def _wanted_services(self) -> dict[str, WantedService]:
        return {
            service.id: WantedService(PROTOCOLS[service.protocol], tuple(service.connectors or ()))
            for service in self._settings.services
        }

    def _board(self, node: Node, context: Context) -> NodeStatusBoard:
        return AgentStatusBoard(context, lambda: BoardSettings.of(self._settings), node.hooks)


class ConnectorPlan(NodePlan[ConnectorSettings]):
    """A connector: offers services, accepts sessions."""

    wiring = topology.CONNECTOR
    is_client = False

    def _signaling_client(self, each: IntermediateAddress, context: Context) -> SignalingClient:
        services = {service.id: PROTOCOLS[service.protocol] for service in self._settings.services}
        return ConnectorSignalingClient(context, self._credentials, services, self._grpc_opener(each))

    def _service_spec(self) -> ChildSpec:
        return ChildSpec(
            "service_backend",
            lambda context: ServiceBackend(
                context,
                lambda: self._settings.services,
                self._settings.limits,
                self._credentials,
            ),
        )

    def _session_table(self, context: Context, scopes: _Scopes) -> SessionTable:
        connector = self._settings
        return ConnectorSessionTable(
            context,
            scopes,
            [each.id for each in connector.intermediates],
            max_offline_s=connector.access.max_offline_s,
        )

    def _board(self, node: Node, context: Context) -> NodeStatusBoard:
        return ConnectorStatusBoard(context, lambda: BoardSettings.of(self._settings), node.hooks)

    def _health_specs(self) -> Sequence[ChildSpec]:
        intermediates = [each.id for each in self._settings.intermediates]
        return (
            ChildSpec(
                "service_health",
                lambda context: ServiceHealth(context, lambda: self._settings.services, intermediates),
            ),
        )


class IntermediatePlan(_Configured[IntermediateSettings]):
    """An intermediate: signaling, relay, address discovery."""

    wiring = topology.INTERMEDIATE

    def __init__(
        self,
        settings: IntermediateSettings,
        credentials: Credentials,
        reread: Callable[[], IntermediateSettings] | None = None,
        *,
        has_grpc: bool = True,
    ) -> None:
        """`has_grpc=False` leaves signaling to the QUIC legs alone, as in simulation."""
        super().__init__(settings, credentials, reread)
        self._has_grpc = has_grpc

    def _check(self, settings: IntermediateSettings) -> None:
        _access_rules(settings)

    def specs(self, node: Node) -> list[ChildSpec]:
        """The children of the node, in dependency order."""
        settings = self._settings
        return [
            # First, so that it hears everything from the start; nothing depends on it.
            ChildSpec(
                "status_board",
                lambda context: IntermediateStatusBoard(
                    context, lambda: BoardSettings.of(self._settings), node.hooks
                ),
                is_alone=True,
            ),
            ChildSpec("udp_socket", self._udp_socket),
            ChildSpec("quic_relay", partial(self._quic_relay, node)),
            # These share the attachments that the last of them tells of, and so does the relay: what one has
            # forgotten the others must not keep. Nodes come back at once, with their sessions.
            ChildSpec(
                "registry",
                lambda context: Registry(
                    context, lambda: _access_rules(self._settings), settings.limits.services_per_connector
                ),
                restart_from="quic_relay",
            ),
            ChildSpec(
                "session_manager",
                lambda context: SessionManager(
                    context,
                    self._credentials,
                    lambda: _access_rules(self._settings),
                    settings.access.grant_lifetime_s,
                    settings.access.max_offline_s,
                    settings.limits.sessions,
                ),
                restart_from="quic_relay",
            ),
            ChildSpec("signaling_service", partial(self._signaling_service, node), restart_from="quic_relay"),
        ]

    def _udp_socket(self, context: Context) -> IntermediateUdpSocket:
        settings = self._settings
        return IntermediateUdpSocket(
            context,
            settings.bind_addresses,
            alternate_port=settings.stun.alternate_port or None,
            external_address=settings.quic.external_address,
        )

    def _quic_relay(self, node: Node, context: Context) -> QuicRelay:
        relay = self._settings.relay
        return QuicRelay(
            context,
            self._credentials,
            node.handshakes,
            queue_packets=relay.queue_packets,
            queue_s=relay.queue_ms / 1e3,
        )

    def _signaling_service(self, node: Node, context: Context) -> SignalingService:
        limits = self._settings.limits

        def open_server(owner: ListenerOwner) -> GrpcSignalingServer:
            return GrpcSignalingServer(
                self._settings.grpc.listen,
                lambda: self._credentials,
                owner,
                limits.signaling_queue,
                connection_room(),
            )

        return SignalingService(
            context,
            self._credentials,
            node.handshakes,
            open_server if self._has_grpc else None,
            limits.attached_nodes,
            limits.frames_per_second,
        )
