"""Who hears whom: the wiring tables of the three daemons.

Read a row as "messages of this type go to that concern, found by this scope". docs/actors.md is drawn from
these tables, and a test holds every dispatch table against them.
"""

from __future__ import annotations

from actors.candidate_gatherer import CandidateGatherer
from actors.checklist import Checklist
from actors.hole_punch import HolePunch
from actors.intermediate_selector import IntermediateSelector
from actors.keepalive import Keepalive
from actors.path_manager import PathManager
from actors.quic_relay import QuicRelay
from actors.quic_session import QuicSession
from actors.registry import Registry
from actors.relay_leg import RelayLeg
from actors.service_backend import ServiceBackend
from actors.service_health import ServiceHealth
from actors.service_port import ServicePort
from actors.session_manager import SessionManager
from actors.session_table import AgentSessionTable, ConnectorSessionTable
from actors.signaling_client import AgentSignalingClient, ConnectorSignalingClient
from actors.signaling_service import SignalingService
from actors.status_board import AgentStatusBoard, ConnectorStatusBoard, IntermediateStatusBoard
from actors.udp_socket import IntermediateUdpSocket, UdpSocket
from actors.wiring import Row, Scope, Wiring
from ztna.v1 import (
    candidate_gatherer_pb2,
    checklist_pb2,
    hole_punch_pb2,
    keepalive_pb2,
    path_manager_pb2,
    quic_relay_pb2,
    quic_session_pb2,
    registry_pb2,
    relay_leg_pb2,
    reload_pb2,
    service_port_pb2,
    session_manager_pb2,
    session_table_pb2,
    signaling_client_pb2,
    signaling_service_pb2,
    udp_socket_pb2,
)

_NODE = Scope.NODE
_INTERMEDIATE = Scope.INTERMEDIATE
_SESSION = Scope.SESSION

# What agent and connector have in common, except for the receivers that exist in two variants.
_COMMON_ROWS = (
    Row(udp_socket_pb2.SendDatagrams, UdpSocket, _NODE),
    Row(udp_socket_pb2.UpdateConnectionIds, UdpSocket, _NODE),
    Row(udp_socket_pb2.DatagramsReceived, RelayLeg, _INTERMEDIATE),
    Row(udp_socket_pb2.DatagramsReceived, QuicSession, _SESSION),
    Row(relay_leg_pb2.ConnectLeg, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.DisconnectLeg, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.RedialLeg, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.PresentAttachment, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.BindChannel, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.ReleaseChannel, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.SendSealed, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.SendLegSignaling, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.SealedReceived, QuicSession, _SESSION),
    Row(relay_leg_pb2.RelayPathChanged, PathManager, _SESSION),
    Row(path_manager_pb2.PathSelected, QuicSession, _SESSION),
    Row(quic_session_pb2.SendPayload, QuicSession, _SESSION),
    Row(quic_session_pb2.PayloadConsumed, QuicSession, _SESSION),
    Row(quic_session_pb2.AbortStream, QuicSession, _SESSION),
    Row(quic_session_pb2.SendDatagramPayloads, QuicSession, _SESSION),
    Row(quic_session_pb2.CloseQuicSession, QuicSession, _SESSION),
    Row(quic_session_pb2.RecheckPeer, QuicSession, _SESSION),
    Row(udp_socket_pb2.AcceptChecks, UdpSocket, _NODE),
    Row(udp_socket_pb2.ReportSockets, UdpSocket, _NODE),
    Row(relay_leg_pb2.ReportLeg, RelayLeg, _INTERMEDIATE),
    Row(relay_leg_pb2.LegReported, CandidateGatherer, _NODE),
    Row(quic_session_pb2.ReportSession, QuicSession, _SESSION),
    Row(quic_session_pb2.SessionReported, HolePunch, _SESSION),
    Row(quic_session_pb2.SessionReported, Keepalive, _SESSION),
    Row(quic_session_pb2.SessionReported, PathManager, _SESSION),
    Row(udp_socket_pb2.RefuseChecks, UdpSocket, _NODE),
    Row(udp_socket_pb2.SendStunRequest, UdpSocket, _NODE),
    Row(udp_socket_pb2.SocketsBound, CandidateGatherer, _NODE),
    Row(udp_socket_pb2.StunResponseReceived, CandidateGatherer, _NODE),
    Row(relay_leg_pb2.LegConnected, CandidateGatherer, _NODE),
    Row(relay_leg_pb2.RelayLegUp, CandidateGatherer, _NODE),
    Row(relay_leg_pb2.RelayLegDown, CandidateGatherer, _NODE),
    Row(relay_leg_pb2.AddressObserved, CandidateGatherer, _NODE),
    Row(relay_leg_pb2.ProbeLeg, RelayLeg, _INTERMEDIATE),
    Row(candidate_gatherer_pb2.GatherCandidates, CandidateGatherer, _NODE),
    Row(candidate_gatherer_pb2.StopGathering, CandidateGatherer, _NODE),
    Row(candidate_gatherer_pb2.NetworkChanged, IntermediateSelector, _NODE),
    Row(candidate_gatherer_pb2.CandidatesGathered, HolePunch, _SESSION),
    Row(candidate_gatherer_pb2.CandidatesGathered, PathManager, _SESSION),
    Row(udp_socket_pb2.CheckReceived, Checklist, _SESSION),
    Row(checklist_pb2.PrepareChecks, Checklist, _SESSION),
    Row(checklist_pb2.StartChecks, Checklist, _SESSION),
    Row(checklist_pb2.BeginChecks, Checklist, _SESSION),
    Row(checklist_pb2.AddCandidates, Checklist, _SESSION),
    Row(checklist_pb2.StopChecks, Checklist, _SESSION),
    Row(relay_leg_pb2.RelayPathChanged, HolePunch, _SESSION),
    Row(quic_session_pb2.SessionEstablished, HolePunch, _SESSION),
    Row(quic_session_pb2.SessionStatistics, HolePunch, _SESSION),
    Row(path_manager_pb2.PathSelected, HolePunch, _SESSION),
    Row(signaling_client_pb2.IceSignalReceived, HolePunch, _SESSION),
    Row(checklist_pb2.ChecksBegan, HolePunch, _SESSION),
    Row(checklist_pb2.PairNominated, HolePunch, _SESSION),
    Row(checklist_pb2.ChecklistFailed, HolePunch, _SESSION),
    Row(hole_punch_pb2.RestartIce, HolePunch, _SESSION),
    Row(checklist_pb2.PrepareChecks, Keepalive, _SESSION),
    Row(checklist_pb2.StartChecks, Keepalive, _SESSION),
    Row(checklist_pb2.PairNominated, Keepalive, _SESSION),
    Row(relay_leg_pb2.RelayPathChanged, Keepalive, _SESSION),
    Row(path_manager_pb2.PathStateChanged, Keepalive, _SESSION),
    Row(quic_session_pb2.SessionStatistics, Keepalive, _SESSION),
    Row(quic_session_pb2.PathSuspected, Keepalive, _SESSION),
    Row(quic_session_pb2.FlowStopped, Keepalive, _SESSION),
    Row(quic_session_pb2.PeerOnPath, Keepalive, _SESSION),
    Row(quic_session_pb2.PeerOnRelay, Keepalive, _SESSION),
    Row(quic_session_pb2.PeerOnRelay, PathManager, _SESSION),
    Row(udp_socket_pb2.KeepaliveResponseReceived, Keepalive, _SESSION),
    Row(keepalive_pb2.RelayedStunReceived, Keepalive, _SESSION),
    Row(keepalive_pb2.ConfirmPeer, Keepalive, _SESSION),
    Row(checklist_pb2.PairNominated, PathManager, _SESSION),
    Row(keepalive_pb2.PathConfirmed, PathManager, _SESSION),
    Row(keepalive_pb2.KeepaliveMissed, PathManager, _SESSION),
    Row(keepalive_pb2.ConsentExpired, PathManager, _SESSION),
    Row(quic_session_pb2.PathSilent, PathManager, _SESSION),
    Row(quic_session_pb2.SessionStatistics, PathManager, _SESSION),
    Row(checklist_pb2.PairNominated, QuicSession, _SESSION),
    Row(keepalive_pb2.PathConfirmed, QuicSession, _SESSION),
    Row(signaling_client_pb2.Attached, IntermediateSelector, _NODE),
    Row(signaling_client_pb2.Detached, IntermediateSelector, _NODE),
    Row(reload_pb2.ConfigurationReloaded, IntermediateSelector, _NODE, is_external=True),
)


def _session_table_rows(table: type[AgentSessionTable | ConnectorSessionTable]) -> tuple[Row, ...]:
    return (
        Row(signaling_client_pb2.Attached, table, _NODE),
        Row(signaling_client_pb2.Detached, table, _NODE),
        Row(signaling_client_pb2.SessionReboundReceived, table, _NODE),
        Row(signaling_client_pb2.SessionRevoked, table, _NODE),
        Row(signaling_client_pb2.SessionAccessReceived, table, _NODE),
        Row(quic_session_pb2.HandshakeDeferred, table, _NODE),
        Row(quic_session_pb2.SessionEstablished, table, _NODE),
        Row(quic_session_pb2.SessionClosed, table, _NODE),
        Row(keepalive_pb2.PathConfirmed, table, _NODE),
        # `ztna.v1.ControlService`, and the daemon when it drains.
        Row(session_table_pb2.CloseSessionRequested, table, _NODE),
    )


def _client_rows(
    client: type[AgentSignalingClient | ConnectorSignalingClient],
) -> tuple[Row, ...]:
    return (
        Row(relay_leg_pb2.LegConnected, client, _INTERMEDIATE),
        Row(relay_leg_pb2.RelayLegDown, client, _INTERMEDIATE),
        Row(relay_leg_pb2.LegSignalingReceived, client, _INTERMEDIATE),
        Row(signaling_client_pb2.Attach, client, _INTERMEDIATE),
        Row(signaling_client_pb2.Detach, client, _INTERMEDIATE),
        Row(signaling_client_pb2.Reattach, client, _INTERMEDIATE),
        Row(signaling_client_pb2.RecheckIntermediate, client, _INTERMEDIATE),
        Row(signaling_client_pb2.ReportSessionClosed, client, _INTERMEDIATE),
        Row(signaling_client_pb2.KeepResumable, client, _INTERMEDIATE),
        Row(signaling_client_pb2.SendIceSignal, client, _INTERMEDIATE),
    )


def _payload_rows(port: type[ServicePort | ServiceBackend]) -> tuple[Row, ...]:
    return (
        Row(quic_session_pb2.SessionEstablished, port, _NODE),
        Row(quic_session_pb2.SessionClosed, port, _NODE),
        Row(quic_session_pb2.PayloadReceived, port, _NODE),
        Row(quic_session_pb2.PayloadAcknowledged, port, _NODE),
        Row(quic_session_pb2.StreamAborted, port, _NODE),
        Row(quic_session_pb2.DatagramPayloadsReceived, port, _NODE),
        Row(session_table_pb2.SessionAccessLimited, port, _NODE),
        Row(service_port_pb2.SendInSessionSignal, port, _NODE),
        Row(reload_pb2.ConfigurationReloaded, port, _NODE, is_external=True),
    )


def _board_rows(
    board: type[AgentStatusBoard | ConnectorStatusBoard | IntermediateStatusBoard],
) -> tuple[Row, ...]:
    # The board hears of everything that people ask about: its dispatch table is the list.
    messages = sorted(board.wired_messages(), key=lambda message: message.DESCRIPTOR.full_name)
    external = {reload_pb2.ConfigurationReloaded}
    return tuple(Row(message, board, _NODE, is_external=message in external) for message in messages)


AGENT = Wiring(
    "agent",
    (
        *_COMMON_ROWS,
        *_client_rows(AgentSignalingClient),
        *_session_table_rows(AgentSessionTable),
        *_payload_rows(ServicePort),
        Row(session_table_pb2.RequestService, AgentSessionTable, _NODE),
        Row(quic_session_pb2.SessionStatistics, AgentSessionTable, _NODE),
        Row(service_port_pb2.GrantRefused, AgentSessionTable, _NODE),
        Row(session_table_pb2.ServiceReady, ServicePort, _NODE),
        Row(session_table_pb2.ServiceUnavailable, ServicePort, _NODE),
        Row(session_table_pb2.GrantRenewed, ServicePort, _NODE),
        Row(quic_session_pb2.PingSession, QuicSession, _SESSION),
        Row(signaling_client_pb2.RequestSession, AgentSignalingClient, _INTERMEDIATE),
        Row(signaling_client_pb2.SessionGranted, AgentSessionTable, _NODE),
        Row(signaling_client_pb2.SessionRequestFailed, AgentSessionTable, _NODE),
        Row(reload_pb2.ConfigurationReloaded, AgentSessionTable, _NODE, is_external=True),
        *_board_rows(AgentStatusBoard),
    ),
)

CONNECTOR = Wiring(
    "connector",
    (
        *_COMMON_ROWS,
        *_client_rows(ConnectorSignalingClient),
        *_session_table_rows(ConnectorSessionTable),
        *_payload_rows(ServiceBackend),
        Row(reload_pb2.ConfigurationReloaded, ServiceHealth, _NODE, is_external=True),
        Row(signaling_client_pb2.Attached, ServiceHealth, _NODE),
        Row(signaling_client_pb2.OfferServices, ConnectorSignalingClient, _INTERMEDIATE),
        Row(signaling_client_pb2.SessionOffered, ConnectorSessionTable, _NODE),
        Row(service_port_pb2.GrantPresented, ConnectorSessionTable, _NODE),
        *_board_rows(ConnectorStatusBoard),
    ),
)

INTERMEDIATE = Wiring(
    "intermediate",
    (
        Row(udp_socket_pb2.SendDatagrams, IntermediateUdpSocket, _NODE),
        Row(udp_socket_pb2.UpdateConnectionIds, IntermediateUdpSocket, _NODE),
        Row(udp_socket_pb2.DatagramsReceived, QuicRelay, _NODE),
        Row(udp_socket_pb2.UnknownDatagramsReceived, QuicRelay, _NODE),
        Row(quic_relay_pb2.SendLegSignalingBytes, QuicRelay, _NODE),
        Row(quic_relay_pb2.RelayStreamOpened, QuicRelay, _NODE),
        Row(quic_relay_pb2.RelayStreamReceived, QuicRelay, _NODE),
        Row(quic_relay_pb2.RelayStreamWritten, QuicRelay, _NODE),
        Row(quic_relay_pb2.RelayStreamEnded, QuicRelay, _NODE),
        Row(quic_relay_pb2.SendRelayStream, SignalingService, _NODE),
        Row(quic_relay_pb2.LegJudged, SignalingService, _NODE),
        Row(quic_relay_pb2.LegSignalingChanged, SignalingService, _NODE),
        Row(quic_relay_pb2.LegSignalingBytesReceived, SignalingService, _NODE),
        Row(quic_relay_pb2.ChannelsBound, SessionManager, _NODE),
        Row(signaling_service_pb2.JudgeLeg, QuicRelay, _NODE),
        Row(signaling_service_pb2.NodeAttached, QuicRelay, _NODE),
        Row(signaling_service_pb2.NodeAttached, Registry, _NODE),
        Row(signaling_service_pb2.NodeAttached, SessionManager, _NODE),
        Row(signaling_service_pb2.NodeDetached, QuicRelay, _NODE),
        Row(signaling_service_pb2.NodeDetached, Registry, _NODE),
        Row(signaling_service_pb2.NodeDetached, SessionManager, _NODE),
        Row(signaling_service_pb2.LostNodeExpelled, SessionManager, _NODE),
        Row(signaling_service_pb2.RoundTripMeasured, SessionManager, _NODE),
        Row(signaling_service_pb2.ServiceOffered, Registry, _NODE),
        Row(signaling_service_pb2.ServiceWithdrawn, Registry, _NODE),
        Row(signaling_service_pb2.SessionWanted, Registry, _NODE),
        Row(signaling_service_pb2.SessionFrameReceived, SessionManager, _NODE),
        Row(signaling_service_pb2.SendFrame, SignalingService, _NODE),
        Row(registry_pb2.ConnectorChosen, SessionManager, _NODE),
        Row(reload_pb2.ConfigurationReloaded, SignalingService, _NODE, is_external=True),
        Row(reload_pb2.ConfigurationReloaded, QuicRelay, _NODE, is_external=True),
        Row(reload_pb2.ConfigurationReloaded, Registry, _NODE, is_external=True),
        Row(reload_pb2.ConfigurationReloaded, SessionManager, _NODE, is_external=True),
        Row(session_manager_pb2.BindChannels, QuicRelay, _NODE),
        Row(session_manager_pb2.ReleaseChannels, QuicRelay, _NODE),
        *_board_rows(IntermediateStatusBoard),
    ),
)

WIRINGS = (AGENT, CONNECTOR, INTERMEDIATE)
