# ruff: noqa: SLF001 - nobody but an instrument looks inside
"""The named bound of every container that the product keeps, and the few that need none, with the reason.

A key is a class, which speaks for those derived from it as well; its entries are attributes, and
`attribute[]` what is an item of one. A bound is a figure, or is read off the owner of the container.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from aioquic import tls
from aioquic.quic import configuration, packet, packet_builder, recovery
from aioquic.quic import connection as aioquic_connection
from aioquic.quic import stream as aioquic_stream
from aioquic.quic.congestion import base as congestion_base

from actors import (
    burst_log,
    candidate_gatherer,
    child_group,
    connector_session,
    directory,
    drop_log,
    grant_gate,
    grant_opener,
    intermediate_status,
    local_service,
    node_status,
    outage_log,
    quic_session,
    relay_calls,
    relay_leg,
    resumption,
    runtime,
    service_backend,
    service_concern,
    service_health,
    service_port,
    service_session,
    session_list,
    session_manager,
    session_table,
    signaling_client,
    signaling_service,
    status_board,
    status_book,
    supervisor,
    udp_socket,
)
from ztna import deadlines, token_bucket
from ztna.access import policy
from ztna.address import Family
from ztna.ice import (
    checklist,
    consent,
    gatherer,
    generation,
    lookups,
    nomination,
    open_checks,
    pair,
    pair_table,
    signals,
)
from ztna.ice import hole_punch as hole_punch_core
from ztna.nat import discovery
from ztna.path import manager, traffic
from ztna.path.path import PathKind
from ztna.quic import adapter, admission, connection, demux, endpoint, gaps, options, service_queue, windows
from ztna.relay import bindings, channels, frame, hub, hub_legs, leg, queue
from ztna.relay.quic_carrier import QuicCarrier
from ztna.relay.stream_carrier import StreamCarrier
from ztna.service import agent_flows, connector_flows, flows, fragments, tcp_connection
from ztna.session import agent_table, book, connector_table, grants
from ztna.signaling import attachments, client, exchange, framing, lost_nodes, lost_sessions, resume, sessions
from ztna.signaling import registry as registry_core
from ztna.signaling import session as managed
from ztna.stun import binding, replays, routing

Bound = int | Callable[[Any], int]

MAX_INBOX: Final = 4096
"""Messages that wait for one actor: payload runs on credit, and a burst of a whole window is far less."""
MAX_REASONS: Final = status_book.MAX_DROP_REASONS
"""Kinds of what is counted: words of our own code."""
DRAINED: Final = "_effects"
"""What a core has to tell; whoever drives it takes all of it at once, and none is left between two calls."""

_FAMILIES: Final = len(Family)
_PARTIES: Final = 2
_SESSIONS: Final = connector_table.MAX_SESSIONS
"""Of any node: a connector may have more of them than an agent."""
_LINKS: Final = gatherer.MAX_INTERMEDIATES
"""Intermediates of one node."""
_PORTS_PER_INTERMEDIATE: Final = 3 * 3
"""Where its leg is and an address of each family, each with another port and another address (RFC 5780)."""
_CHILDREN: Final = 32
"""Actors of a node, or of one session."""
_LEGS: Final = hub.MAX_LEGS_PER_NODE * attachments.MAX_ATTACHMENTS + admission.MAX_HANDSHAKING
"""Of an intermediate. Who has a certificate has so many at most, those without one are handshaking."""
_IN_FLIGHT: Final = (
    max(options.INNER_WINDOW_CAP_BYTES, options.LEG_WINDOW_BYTES) // options.INNER_MAX_DATAGRAM_BYTES
    + adapter.MAX_BARE_ACKS
)
"""Packets of one connection that nobody has acknowledged: a window of full ones. It counts bytes, so of small
ones there might be more; no run sends as many within a round trip."""


BOUNDS: Final[dict[type, Mapping[str, Bound]]] = {
    # Of the runtime
    runtime.LoopInbox: {"_envelopes": MAX_INBOX},
    runtime.LoopRuntime: {"_ready": _CHILDREN * (_SESSIONS + 1)},
    directory.Directory: {"_refs": _CHILDREN * (_SESSIONS + 1), "_dropped": _CHILDREN},
    child_group.ChildGroup: {"children": _CHILDREN, "_restart_times": lambda group: group.limit.count},
    supervisor.Supervisor: {
        "_scopes": _SESSIONS,
        "_scope_waiters": lambda owner: len(owner._scopes),
        "_scope_waiters[]": 1,
        "_stop_waiters": 1,
    },
    deadlines.Deadlines: {
        "_current": max(_LEGS, sessions.MAX_SESSIONS),
        "_heap": lambda owner: 2 * len(owner._current) + deadlines._MIN_STALE_ENTRIES,
    },
    token_bucket.TokenBuckets: {"_buckets": lambda owner: owner._max_keys},
    # What is told
    burst_log.BurstLog: {"_bursts": burst_log.MAX_BURSTS},
    drop_log.DropLog: {"_told": MAX_REASONS, "_waiting": MAX_REASONS},
    outage_log.OutageLog: {"_reasons": outage_log.MAX_REASONS},
    status_book.ProblemLog: {"_problems": status_book.MAX_PROBLEMS},
    status_book.ActorTotals: {
        "_seen": _CHILDREN * (_SESSIONS + 1),
        "_gone": 2 * _CHILDREN,
        "_inbox": 2 * _CHILDREN,
    },
    status_book.StatusBook: {
        "_drops": status_book.MAX_DROP_REASONS,
        "_drops[]": max(_LINKS, registry_core.MAX_SERVICES_PER_CONNECTOR),
        "_refusals": status_book.MAX_DROP_REASONS,
    },
    node_status.NodeStatusBook: {"_attempts": node_status.MAX_ATTEMPT_RESULTS},
    node_status.IntermediateState: {"answers": registry_core.MAX_SERVICES_PER_CONNECTOR},
    intermediate_status.IntermediateStatusBook: {
        "_nodes": attachments.MAX_ATTACHMENTS,
        "_counts": status_book.MAX_DROP_REASONS,
    },
    session_list.SessionList: {"_sessions": session_list.MAX_SESSIONS},
    session_list._Session: {"services": session_list.MAX_SERVICES_PER_SESSION},
    service_concern.ServiceConcern: {"_sessions": _SESSIONS},
    # Sockets
    udp_socket.BoundSockets: {"_failing": udp_socket.MAX_FAILURES_REPORTED},
    demux.ConnectionIdTable: {
        "_owners": demux.MAX_CONNECTION_IDS,
        "_ids": demux.MAX_CONNECTION_IDS,
        "_ids[]": demux.MAX_CIDS_PER_OWNER,
    },
    routing.StunRouter: {
        "_credentials": routing.MAX_UFRAGS,
        "_ufrags": routing.MAX_UFRAGS,
        "_ufrags[]": routing.MAX_UFRAGS_PER_SESSION,
        "_transactions": routing.MAX_TRANSACTIONS,
        "_pending": routing.MAX_TRANSACTIONS,
        "_pending[]": routing.MAX_TRANSACTIONS_PER_SESSION,
    },
    replays.ReplayMemory: dict.fromkeys(("_recent", "_old", "_old_order"), replays.MAX_REPLAYS_REMEMBERED),
    binding.BindingClient: {"_questions": binding.MAX_QUESTIONS, "_keys": binding.MAX_QUESTIONS},
    discovery.BehaviourTests: {
        "_local_ports": discovery.PROBE_SOCKETS,
        "_samples": discovery.PROBE_SOCKETS,
        "_awaited": discovery.PROBE_SOCKETS,
    },
    # ICE and paths
    candidate_gatherer.CandidateGatherer: {"_bound": _FAMILIES, "_probes": discovery.PROBE_SOCKETS},
    gatherer.CandidateGatherer: {
        "_intermediates": gatherer.MAX_INTERMEDIATES,
        "_mappings": _PORTS_PER_INTERMEDIATE * gatherer.MAX_INTERMEDIATES,
        "_others": 3 * gatherer.MAX_INTERMEDIATES,
        "_sessions": _SESSIONS,
        **dict.fromkeys(("_sources", "_dependences", "_discovered"), _FAMILIES),
    },
    lookups.Lookups: {"_waiting": lambda owner: len(owner._names)},
    hole_punch_core.HolePunch: {
        "_relays": _LINKS,
        "_lost_relays": _LINKS,
        "_timers": len(hole_punch_core._Timer),
    },
    generation.Generation: {
        "local_told": signals.MAX_CANDIDATES,
        "remote": signals.MAX_CANDIDATES,
        # The session itself is a way as well.
        "ways": _LINKS + 1,
    },
    checklist.Checklist: {
        "_early": checklist.MAX_EARLY_CHECKS,
        "_former": checklist.MAX_FORMER_CREDENTIALS,
        "_ended": _PARTIES,
    },
    nomination.Nomination: {"_nominations": nomination.MAX_NOMINATIONS},
    open_checks.OpenChecks: {
        "_all": open_checks.MAX_OPEN_CHECKS,
        "_pending": open_checks.MAX_OPEN_CHECKS,
    },
    pair_table.PairTable: {
        "_pairs": pair.MAX_PAIRS,
        "_ordered": pair.MAX_PAIRS,
        "triggered": pair.MAX_PAIRS,
        "_local": pair_table.MAX_CANDIDATES,
        "_remote": pair_table.MAX_CANDIDATES + pair_table.MAX_PEER_REFLEXIVE,
    },
    consent.Consent: {"_locals": consent.MAX_LOCAL_CREDENTIALS, "_relays": consent.MAX_RELAYS},
    manager.PathManager: {"_relays": manager.MAX_RELAY_PATHS, "_traffic": manager.MAX_LOSS_SAMPLES},
    traffic.Traffic: {"_rtts": len(PathKind)},
    # QUIC
    quic_session.QuicSession: {"_held": quic_session.MAX_HELD_BATCHES},
    connection.Connection: {
        "_events": 0,
        "_announced_ids": demux.MAX_CIDS_PER_OWNER,
        "_last_words": 1,
    },
    adapter.Engine: {
        "_streams": windows.MAX_STREAMS + hub.MAX_LEGS_PER_NODE,
        "_due_limits": windows.MAX_STREAMS,
        "credits": windows.MAX_STREAMS,
        "_datagrams_pending": connection.MAX_DATAGRAMS_PENDING,
        "_peer_cid_sequence_numbers": adapter.MAX_PEER_IDS_REMEMBERED,
        "_peer_cid_available": demux.MAX_CIDS_PER_OWNER,
        "_host_cids": demux.MAX_CIDS_PER_OWNER,
        # One that is lost comes back after the limit was judged.
        "_retire_connection_ids": 2 * aioquic_connection.MAX_PENDING_RETIRES,
        "_network_paths": aioquic_connection.MAX_NETWORK_PATHS,
        "_streams_blocked_bidi": windows.MAX_STREAMS,
        "_streams_blocked_uni": 0,
        "_events": 0,
        # Who asks looks at the answer of the one before.
        "_ping_pending": 16,
    },
    adapter._PatientRecovery: {"bare_acks": adapter.MAX_BARE_ACKS},
    adapter._ReportingSender: {"_buffer": connection.MAX_SEND_BACKLOG_BYTES},
    adapter._ReportingReceiver: {"_buffer": windows.MAX_STREAM_WINDOW_BYTES},
    recovery.QuicPacketSpace: {"ack_queue": recovery.MAX_ACK_RANGES, "sent_packets": _IN_FLIGHT},
    recovery.QuicPacketNumberWindow: {"_received": lambda owner: 2 * owner._size + 1},
    aioquic_stream.QuicStreamSender: {
        # Of a handshake; those of our streams have a figure of their own.
        "_buffer": adapter.MAX_HANDSHAKE_MESSAGE_BYTES,
        "_acked": _IN_FLIGHT,
        "_pending": _IN_FLIGHT,
    },
    aioquic_stream.QuicStreamReceiver: {
        "_buffer": aioquic_connection.MAX_PENDING_CRYPTO,
        "_ranges": gaps.MAX_GAPS + 1,
    },
    aioquic_connection.QuicNetworkPath: {"remote_challenges": aioquic_connection.MAX_REMOTE_CHALLENGES},
    packet_builder.QuicSentPacket: {"delivery_handlers": options.LEG_MAX_DATAGRAM_BYTES},
    congestion_base.QuicRttMonitor: {"_samples": lambda owner: owner._size},
    gaps.ReceivedRanges: {"_starts": gaps.MAX_GAPS + 1, "_stops": gaps.MAX_GAPS + 1},
    service_queue.ServiceQueue: {"_waiting": windows.MAX_STREAMS, "_visited": 0, "_idle": 0},
    windows.ReceiveWindows: {"_streams": windows.MAX_STREAMS},
    admission.Admission: {"_handshaking": admission.MAX_HANDSHAKING},
    endpoint.Endpoint: {"_used_tokens": endpoint.MAX_USED_TOKENS, "_waiting": endpoint.MAX_WAITING},
    # The relay
    relay_leg.RelayLeg: {"_resolved_addresses": _FAMILIES, "_outages": _PARTIES},
    leg.Leg: {"_channels": _SESSIONS, "_sessions": _SESSIONS},
    queue.FairScheduler: {
        "_queues": channels.MAX_CHANNELS_PER_ATTACHMENT,
        "_turns": lambda owner: len(owner._queues),
    },
    queue.RelayQueue: {"_packets": lambda owner: owner._max_packets},
    QuicCarrier: {"unanswered_hellos": leg.MAX_UNANSWERED_HELLOS},
    StreamCarrier: {"unanswered_hellos": leg.MAX_UNANSWERED_HELLOS},
    hub_legs.HubLeg: {"judging": 1},
    hub.RelayHub: {
        "_legs": _LEGS,
        "_streams": _LEGS,
        "_stream_legs": _LEGS,
        "_nodes": lambda owner: len(owner._legs) + len(owner._stream_legs),
        "_nodes[]": hub.MAX_LEGS_PER_NODE,
        "_attachments": attachments.MAX_ATTACHMENTS,
        "_bound": attachments.MAX_ATTACHMENTS,
        "_held": admission.MAX_HANDSHAKING,
        "_held[]": hub.MAX_HELD_DATAGRAMS,
        "_touched": 0,
    },
    bindings.SessionBindings: {"_ends": sessions.MAX_SESSIONS},
    channels.ChannelTable: {
        "_attachments": 2 * attachments.MAX_ATTACHMENTS,
        "_sessions": sessions.MAX_SESSIONS,
    },
    channels._Attachment: {"routes": channels.MAX_CHANNELS_PER_ATTACHMENT, "resting": frame.MAX_CHANNEL},
    relay_calls.RelayCalls: {
        "_calls": hub.MAX_LEGS_PER_NODE * attachments.MAX_ATTACHMENTS,
        "_numbers": hub.MAX_LEGS_PER_NODE * attachments.MAX_ATTACHMENTS,
    },
    # Signaling
    framing.FrameDecoder: {"_buffer": framing.MAX_FRAME_BYTES + framing._LENGTH.size},
    signaling_client.SignalingClient: {"_resumable": _SESSIONS},
    client.AttachmentClient: {
        "_requests": client.MAX_REQUESTS,
        "_registrations": lambda owner: len(owner._services),
        "_rejected": lambda owner: len(owner._services),
    },
    signaling_service.SignalingService: {
        "_pending": signaling_service.MAX_PENDING_STREAMS,
        "_waiting": signaling_service.MAX_WAITING_STREAMS,
        "_attached": attachments.MAX_ATTACHMENTS,
        "_lingering": attachments.MAX_ATTACHMENTS,
        # One of those above, or one that is refused and has yet to hear of it.
        "_grpc_streams": attachments.MAX_ATTACHMENTS + 2 * signaling_service.MAX_PENDING_STREAMS,
        "_leg_streams": _LEGS,
    },
    attachments.AttachmentTable: {
        "_by_id": attachments.MAX_ATTACHMENTS,
        "_by_name": attachments.MAX_ATTACHMENTS,
    },
    attachments.Attachment: {"services": attachments.MAX_SERVICES_NOTED},
    registry_core.Registry: {
        "_agents": attachments.MAX_ATTACHMENTS,
        "_attachments": attachments.MAX_ATTACHMENTS,
        "_connectors": attachments.MAX_ATTACHMENTS,
        "_offers": lambda owner: registry_core.MAX_SERVICES_PER_CONNECTOR * len(owner._connectors),
        "_offers[]": attachments.MAX_ATTACHMENTS,
        "_loads": attachments.MAX_ATTACHMENTS * registry_core.MAX_REMEMBERED_CHOICES,
    },
    registry_core._Agent: {"choices": registry_core.MAX_REMEMBERED_CHOICES},
    registry_core._Connector: {
        "services": registry_core.MAX_SERVICES_PER_CONNECTOR,
        "denied": registry_core.MAX_SERVICES_PER_CONNECTOR,
    },
    resumption.Resumptions: {"_nodes": attachments.MAX_ATTACHMENTS},
    resumption._Node: {"waiting": resume.MAX_RESUMED_SESSIONS, "seen": resume.MAX_RESUMED_SESSIONS},
    session_manager.SessionManager: {"_deferred": session_manager.MAX_DEFERRED_REQUESTS},
    sessions.SessionManager: {
        "_nodes": attachments.MAX_ATTACHMENTS,
        "_attached": attachments.MAX_ATTACHMENTS,
        "_sessions": sessions.MAX_SESSIONS,
        "_pairs": sessions.MAX_SESSIONS,
        "_held": lambda owner: 2 * len(owner._sessions),
        "_held[]": sessions.MAX_SESSIONS_PER_CONNECTOR,
        "_ended": sessions.MAX_ENDED_REMEMBERED,
    },
    lost_sessions.LostSessions: {
        "_sessions": lost_sessions.MAX_LOST_SESSIONS,
        "_held": lambda owner: 2 * len(owner._sessions),
        "_held[]": lost_sessions.MAX_LOST_PER_CONNECTOR,
    },
    lost_nodes.LostNodes: {"_nodes": lost_nodes.MAX_LOST_NODES},
    managed.Session: {
        **dict.fromkeys(("parties", "attachments", "asked_for", "holders", "channels"), _PARTIES),
        "pending": sessions.MAX_PENDING_REQUESTS,
        "services": sessions.MAX_SERVICES_SHOWN,
    },
    exchange.Exchange: {"_candidates": _PARTIES},
    grant_opener.GrantOpener: {"_verdicts": grant_opener.MAX_ISSUERS},
    grant_gate.GrantGate: {"_verified": grant_gate.MAX_GRANTS},
    # Sessions of a node
    book.SessionBook: {"_sessions": _SESSIONS, "_attached": _LINKS},
    book.SessionRecord: {"channels": _LINKS},
    agent_table.AgentSessions: {
        "_sessions": agent_table.MAX_SESSIONS,
        "_ended": agent_table.MAX_ENDED_REMEMBERED,
        # Each for a connector that was given up within `EXCLUSION_S`, and so had a session.
        "_excluded": agent_table.MAX_SESSIONS,
        **dict.fromkeys(("_wishes", "_not_before"), lambda owner: len(owner._services)),
    },
    agent_table._Requests: {"renewals": client.MAX_REQUESTS},
    grants.GrantBook: {
        "_held": agent_table.MAX_SESSIONS * sessions.MAX_SERVICES_SHOWN,
        "_current": lambda owner: len(owner._held),
    },
    # Services
    service_session.ServiceSession: {"pumps": windows.MAX_STREAMS, "_leftovers": windows.MAX_STREAMS},
    connector_session.ConnectorSession: {
        "backends": flows.MAX_FLOWS,
        "early_signals": service_backend.MAX_EARLY_SIGNALS,
        "_unseen": connector_session.MAX_UNSEEN_STREAMS,
    },
    local_service.AgentSession: {"local_flows": flows.MAX_FLOWS},
    local_service.LocalService: {
        "_datagrams": local_service.MAX_WAITING_DATAGRAMS,
        "flows": lambda owner: owner._owner._limits.flows,
        "clients": lambda owner: owner._owner._limits.connections,
    },
    service_port.ServicePort: {"_clients": lambda owner: owner._limits.connections},
    service_backend.ServiceBackend: {"_usage": lambda owner: len(owner._sessions)},
    flows.FlowTable: {
        "_flows": lambda owner: owner._max_flows,
        # Those that wait to be known are no flows yet.
        "_assembling": lambda owner: owner._max_flows + connector_flows.MAX_UNKNOWN_FLOWS,
    },
    agent_flows.AgentFlows: {"_by_source": lambda owner: owner._max_flows},
    connector_flows.ConnectorFlows: {"_unknown": connector_flows.MAX_UNKNOWN_FLOWS},
    connector_flows._ConnectorFlow: {"waiting": connector_flows.MAX_WAITING_DATAGRAMS},
    fragments.Reassembler: {"_partials": fragments.MAX_PARTIAL_DATAGRAMS},
    fragments._Partial: {"pieces": fragments.MAX_FRAGMENTS},
    tcp_connection.TcpConnection: {
        "_pending": tcp_connection.MAX_IN_FLIGHT_BYTES,
        "_opening": tcp_connection.MAX_EARLY_BYTES,
    },
}
"""By class and attribute."""

_CONFIGURED: Final = "as many as the configuration names"
_ALWAYS: Final = "made once, and only its items change"
_OF_HANDSHAKE: Final = "filled once in a handshake, whose messages are bounded (MAX_HANDSHAKE_MESSAGE_BYTES)"
_OF_A_BATCH: Final = "filled while one batch is written, and given away with it"
_COUNTERS: Final = "one for each configured service"

EXEMPT: Final[dict[type, Mapping[str, str]]] = {
    child_group.ChildGroup: {"specs": _ALWAYS},
    status_book.StatusBook: {"_addresses": "those of the sockets that are configured"},
    node_status.NodeStatusBook: {
        "_intermediates": _CONFIGURED,
        "_services": _CONFIGURED,
        "_removed": "grows when the operator configures other services, and by nobody else",
    },
    status_board.AgentStatusBoard: {"_wishes": "of whoever has access to the control socket"},
    udp_socket.BoundSockets: dict.fromkeys(("_sockets", "_by_family", "_received", "_sent"), _ALWAYS),
    udp_socket.IntermediateUdpSocket: {"_alternates": _ALWAYS},
    candidate_gatherer.CandidateGatherer: {"_relays": _CONFIGURED},
    service_health.ServiceHealth: {"_services": _CONFIGURED, "_checked": _CONFIGURED},
    signaling_client.SignalingClient: {"_services": _CONFIGURED},
    session_table.AgentSessionTable: {"_services": _CONFIGURED},
    agent_table.AgentSessions: {"_services": _CONFIGURED},
    local_service.AgentSession: {"grants": _COUNTERS},
    service_port.ServicePort: {"_services": _CONFIGURED, "_counters": _COUNTERS},
    service_backend.ServiceBackend: {"_services": _CONFIGURED, "_counters": _COUNTERS},
    agent_flows.AgentFlows: {"_refused_until": _COUNTERS},
    policy.AccessPolicy: {"_table": _CONFIGURED},
    policy.OfferPolicy: {"_table": _CONFIGURED},
    queue.DropCounts: {"_by_reason": _ALWAYS},
    adapter.Engine: {
        "_QuicConnection__frame_handlers": _ALWAYS,
        **dict.fromkeys(("_cryptos", "_cryptos_initial", "_spaces", "_crypto_streams"), _ALWAYS),
        "_crypto_buffers": _OF_HANDSHAKE,
    },
    adapter._MutualTls: {"": _OF_HANDSHAKE},
    adapter._PatientRecovery: {"spaces": _ALWAYS},
    configuration.QuicConfiguration: {"": _ALWAYS},
    aioquic_connection.QuicConnectionAdapter: {"extra": _ALWAYS},
    packet.QuicVersionInformation: {"": _OF_HANDSHAKE},
    tls.CertificateRequest: {"": _OF_HANDSHAKE},
    tls.KeyScheduleProxy: {"": _OF_HANDSHAKE},
    packet_builder.QuicPacketBuilder: {"_datagrams": _OF_A_BATCH, "_packets": _OF_A_BATCH},
    packet_builder.QuicSentPacket: {"quic_logger_frames": "nobody logs frames"},
}
"""What needs no figure, and why; the empty attribute stands for all of a class."""
