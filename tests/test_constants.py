"""Every agreed constant that the code has, pinned: a change of one is a change of the contract.

The id of a case names where the value comes from.
"""

from __future__ import annotations

import importlib
from enum import Enum
from functools import cache
from typing import Any

import pytest

from ztna.ice.pair import PairState, pair_priority
from ztna.ice.timing import HolePunchState, PathState
from ztna.quic import adapter, options
from ztna.relay import frame
from ztna.service import flows
from ztna.settings import MODELS, DaemonKind
from ztna.settings.keys import describe_keys

# Source, module, name, value; lengths in bytes, times in seconds unless the name says otherwise.
CONSTANTS: list[tuple[str, str, str, Any]] = [
    # Connectivity checks and their exchange
    ("ours, 100 ms doubling to 1600 ms", "ztna.stun.transaction", "CONNECTIVITY_CHECK.sends_s",
     (0, 0.1, 0.3, 0.7, 1.5, 3.1)),
    ("ours, the last send and 1600 ms", "ztna.stun.transaction", "CONNECTIVITY_CHECK.failure_s", 4.7),
    ("RFC 8489 §5", "ztna.stun.message", "TRANSACTION_ID_BYTES", 12),
    ("RFC 8489 §5", "ztna.stun.attributes", "MAGIC_COOKIE", 0x2112A442),
    ("ours, signaling exchange limit", "ztna.signaling.exchange", "ANSWER_LIMIT_S", 5.0),
    ("ours, three direct path limits", "ztna.signaling.exchange", "PUNCHING_LIMIT_S", 15.0),
    ("ours, while an RTT is unknown", "ztna.signaling.exchange", "START_DELAY_MS", 100),
    ("ours, candidates per side", "ztna.signaling.exchange", "MAX_CANDIDATES", 32),
    ("RFC 8445 §5.1.2.2", "ztna.ice.candidate", "CandidateType.HOST.preference", 126),
    ("RFC 8445 §5.1.2.2", "ztna.ice.candidate", "CandidateType.PEER_REFLEXIVE.preference", 110),
    ("RFC 8445 §5.1.2.2", "ztna.ice.candidate", "CandidateType.SERVER_REFLEXIVE.preference", 100),
    ("RFC 8445 §5.1.2.2", "ztna.ice.candidate", "CandidateType.RELAY.preference", 0),
    ("RFC 8445 §6.1.2.5", "ztna.ice.pair", "MAX_PAIRS", 100),
    ("ours, ta", "ztna.ice.timing", "CHECK_PACING_S", 0.02),
    ("ours, better pairs after a nomination", "ztna.ice.timing", "NOMINATION_SETTLE_S", 5.0),
    ("RFC 9000 §14, proof of a path", "ztna.ice.checks", "PADDED_CHECK_BYTES", 1200),
    ("ours, candidates per side", "ztna.ice.pair_table", "MAX_CANDIDATES", 32),
    ("ours, direct path limit", "ztna.ice.timing", "DIRECT_PATH_LIMIT_S", 5.0),
    ("ours, relay reported", "ztna.ice.timing", "RELAY_REPORTED_LIMIT_S", 10.0),
    ("ours, nobody is farther away", "ztna.signaling.exchange", "MAX_ROUND_TRIP_S", 2.0),
    ("ours, candidates per side", "ztna.ice.signals", "MAX_CANDIDATES", 32),
    ("RFC 8445 §5.3", "ztna.ice.signals", "MIN_UFRAG_CHARACTERS", 4),
    ("RFC 8445 §5.3", "ztna.ice.signals", "MAX_UFRAG_CHARACTERS", 256),
    ("RFC 8445 §5.3", "ztna.ice.signals", "MIN_PWD_CHARACTERS", 22),
    ("RFC 8445 §5.3", "ztna.ice.signals", "MAX_PWD_CHARACTERS", 256),
    ("ours, signaling exchange limit", "ztna.ice.hole_punch", "SIGNALING_LIMIT_S", 5.0),
    ("ours, without StartPunching", "ztna.ice.hole_punch", "UNTOLD_START_DELAY_MS", 1000),
    ("ours, first candidates", "ztna.ice.hole_punch", "ANSWER_PATIENCE_S", 0.1),
    ("ours, in-session fallback", "ztna.ice.hole_punch", "REPEAT_AFTER_S", 1.5),
    ("ours, same path failure", "ztna.ice.hole_punch", "RESTART_INTERVAL_S", 30.0),
    # Strangers, and storms of nodes
    ("ours, docs/wire.md §1", "ztna.quic.endpoint", "MAX_STATELESS_REPLIES_PER_S", 2000.0),
    ("ours, docs/wire.md §1", "ztna.quic.endpoint", "MAX_WAITING", 128),
    ("ours, docs/wire.md §1", "ztna.quic.endpoint", "MAX_SILENCE_S", 4.0),
    ("ours, docs/wire.md §1", "ztna.quic.endpoint", "MAX_TOKEN_AGE_S", 8.0),
    ("ours, docs/wire.md §1", "ztna.quic.admission", "MAX_HANDSHAKING", 256),
    ("ours, a fifth of any second", "ztna.quic.budget", "MAX_HANDSHAKE_SHARE", 0.2),
    ("ours, docs/wire.md §1", "ztna.quic.budget", "MAX_HANDSHAKE_BURST_S", 0.02),
    ("ours, docs/wire.md §1", "ztna.quic.budget", "AT_ONCE_SHARE", 0.5),
    ("ours, docs/wire.md §4", "ztna.quic.budget", "MAX_AT_ONCE_BURST_S", 0.5),
    ("ours, docs/wire.md §4", "ztna.signaling.stream_admission", "NETWORK_STREAMS_PER_S", 20.0),
    ("ours, docs/wire.md §4", "ztna.signaling.stream_admission", "NETWORK_STREAM_BURST", 128.0),
    ("ours, docs/wire.md §4", "ztna.signaling.stream_admission", "MAX_STREAMS_PER_S", 1.0),
    ("ours, docs/wire.md §4", "ztna.signaling.stream_admission", "MAX_STREAM_BURST", 16.0),
    ("ours, docs/wire.md §4", "actors.grpc_signaling", "MAX_STREAMS_PER_CONNECTION", 8),
    # Keepalive, which is the consent check
    ("RFC 7675 §5.1", "ztna.ice.timing", "KEEPALIVE_ACTIVE_S", 5.0),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "KEEPALIVE_IDLE_S", 15.0),
    ("RFC 7675 §5.1", "ztna.ice.timing", "KEEPALIVE_JITTER", (0.8, 1.2)),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "KEEPALIVE_ACTIVITY_S", 30.0),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "KEEPALIVE_TIMEOUT_S", 5.0),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "DEGRADED_AFTER_MISSED", 1),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "DEGRADED_LOSS_SHARE", 0.05),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "DEGRADED_LOSS_WINDOW_S", 5.0),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "DEGRADED_RTT_FACTOR", 3.0),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "ADOPTED_AFTER_ANSWERS", 2),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "ADOPTED_AFTER_S", 3.0),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "RESTART_INTERVAL_S", 30.0),
    ("ours, docs/wire.md §7", "ztna.path.traffic", "TRUST_S", 6.5),
    ("ours, docs/wire.md §7", "ztna.path.traffic", "SUSPICION_MIN_S", 0.150),
    ("ours, docs/wire.md §7", "ztna.path.traffic", "SUSPICION_ROUND_TRIPS", 1.5),
    ("ours, docs/wire.md §7", "ztna.path.traffic", "SUSPICION_VARIATIONS", 4),
    ("ours, docs/wire.md §7", "ztna.path.traffic", "MIRROR_S", 1.0),
    ("RFC 9000 §14", "ztna.path.manager", "MIN_DIRECT_BYTES", 1200),
    ("ours, docs/wire.md §7", "ztna.ice.timing", "FAILED_AFTER_MISSED", 3),
    ("RFC 7675 §5.1", "ztna.ice.timing", "CONSENT_LIMIT_S", 30.0),
    # Paths
    ("ours, bound of fail-over", "ztna.ice.timing", "FAIL_OVER_MIN_S", 1.0),
    ("ours, bound of fail-over", "ztna.ice.timing", "FAIL_OVER_ROUND_TRIPS", 4),
    ("ours, cooldown", "ztna.ice.timing", "COOLDOWN_FIRST_S", 30.0),
    ("ours, cooldown", "ztna.ice.timing", "COOLDOWN_MAX_S", 600.0),
    ("ours, cooldown", "ztna.ice.timing", "COOLDOWN_JITTER", 0.2),
    ("ours, a pair that carried data", "ztna.ice.timing", "RECHECK_S", (1.0, 2.0, 4.0)),
    ("ours, lowest_rtt", "ztna.ice.timing", "LOWEST_RTT_SHARE", 0.5),
    ("ours, lowest_rtt", "ztna.ice.timing", "LOWEST_RTT_ANSWERED_SHARE", 0.8),
    ("ours, lowest_rtt", "ztna.ice.timing", "LOWEST_RTT_WINDOW_CHECKS", 10),
    ("ours, lowest_rtt", "ztna.ice.timing", "LOWEST_RTT_FIRST_SHARE", 0.7),
    ("ours, lowest_rtt", "ztna.ice.timing", "LOWEST_RTT_HELD_SAMPLES", 3),
    # Datagram sizes
    ("IPv6 minimum MTU, measured", "ztna.quic.options", "LEG_MAX_DATAGRAM_BYTES", 1232),
    ("RFC 9000 §14", "ztna.quic.options", "INNER_MAX_DATAGRAM_BYTES", 1200),
    ("ours, 16-bit channel", "ztna.relay.frame", "CHANNEL_BYTES", 2),
    ("RFC 9000 §14", "ztna.relay.frame", "DEFAULT_MAX_PACKET_BYTES", 1200),
    ("measured", "ztna.service.flows", "DEFAULT_FRAME_BYTES", 1170),
    ("RFC 9000 §14.1", "ztna.quic.endpoint", "MIN_INITIAL_BYTES", 1200),
    # Connections
    ("ours, docs/wire.md §1", "ztna.quic.options", "LEG_ALPN", "ztna-relay/1"),
    ("ours, docs/wire.md §1", "ztna.quic.options", "INNER_ALPN", "ztna/1"),
    ("ours, docs/wire.md §1", "ztna.quic.options", "LEG_IDLE_TIMEOUT_S", 30.0),
    ("ours, docs/wire.md §1", "ztna.quic.options", "INNER_IDLE_TIMEOUT_S", 300.0),
    ("ours, docs/wire.md §1", "ztna.quic.demux", "LOCAL_CID_BYTES", 8),
    ("ours, docs/wire.md §1", "ztna.quic.adapter", "CONNECTION_ID_BYTES", 8),
    ("ours, NATs with 30 s mappings", "ztna.relay.quic_carrier", "PING_INTERVAL_S", 10.0),
    ("ours, docs/wire.md §1", "ztna.relay.quic_carrier", "DEAD_AFTER_S", 3.0),
    ("RFC 9001 §6.6", "ztna.quic.options", "KEY_UPDATE_AFTER_PACKETS", 1 << 22),
    ("ours, docs/wire.md §1", "ztna.quic.adapter", "KEY_UPDATE_QUIET_S", 3.0),
    ("exact pin, docs/adr/0006", "ztna.quic.adapter", "SUPPORTED_VERSION", "1.7.2"),
    # Relay queues
    ("ours, docs/wire.md §5", "ztna.relay.queue", "MAX_QUEUED_PACKETS_PER_SESSION", 64),
    ("ours, docs/wire.md §5", "ztna.relay.queue", "MAX_SOJOURN_S", 0.1),
    ("ours, docs/wire.md §5", "ztna.relay.quic_carrier", "MAX_DATAGRAMS_PENDING", 16),
    ("ours, docs/wire.md §5", "ztna.relay.hub_legs", "MAX_DATAGRAMS_PENDING", 16),
    ("ours, docs/wire.md §5", "ztna.relay.frame", "RESERVED_CHANNEL", 0),
    # Identifiers and grants
    ("ours, docs/wire.md §2", "ztna.access.grant", "SESSION_ID_BYTES", 16),
    ("ours, docs/wire.md §2", "ztna.signaling.values", "ATTACH_ID_BYTES", 16),
    ("ours, docs/wire.md §3", "ztna.access.grant", "GRANT_VERSION", 1),
    ("ours, docs/wire.md §3", "ztna.access.grant", "GRANT_LIFETIME_S", 600),
    ("ours, docs/wire.md §3", "ztna.access.grant", "GRANT_TOLERANCE_S", 60.0),
    ("ours, docs/wire.md §4", "ztna.access.grant", "NONCE_BYTES", 32),
    # Signaling
    ("ours, signaling message", "ztna.signaling.framing", "MAX_FRAME_BYTES", 65_536),
    ("ours, signaling message", "actors.grpc_stream", "MAX_FRAME_BYTES", 65_536),
    ("ours, docs/wire.md §4", "ztna.signaling.client", "REGISTRATION_INTERVAL_S", 2.0),
    ("ours, docs/wire.md §4", "ztna.signaling.client", "REGISTRATION_TRIES", 3),
    ("ours, docs/wire.md §2", "ztna.signaling.client", "SUPERSEDED_HOLD_S", 30.0),
    ("ours, docs/wire.md §4", "ztna.signaling.backoff", "UNCLEAN_CEILING_S", 2.0),
    ("ours, docs/wire.md §4", "ztna.signaling.backoff", "UNCLEAN_WINDOW_S", 30.0),
    # Streams and flows
    ("ours, docs/wire.md §6", "ztna.service.tcp_connection", "MAX_EARLY_BYTES", 64 * 1024),
    ("RFC 768 over IPv4", "ztna.service.fragments", "MAX_PAYLOAD_BYTES", 65_507),
    ("ours, docs/wire.md §6", "ztna.service.fragments", "MAX_REASSEMBLY_S", 1.0),
    ("ours, docs/wire.md §6", "ztna.service.fragments", "MAX_PARTIAL_DATAGRAMS", 64),
    ("ours, docs/wire.md §6", "ztna.service.fragments", "MAX_PARTIAL_BYTES", 1 << 20),
    ("ours, docs/wire.md §6", "ztna.service.connector_flows", "MAX_WAITING_DATAGRAMS", 16),
    ("ours, docs/wire.md §6", "ztna.service.connector_flows", "MAX_WAITING_S", 1.0),
    ("RFC 4787 REQ-5", "ztna.service.flows", "FLOW_IDLE_S", 120.0),
    ("ours, docs/wire.md §6", "ztna.service.flows", "MAX_FLOWS", 256),
    ("ours, docs/wire.md §6", "ztna.quic.windows", "MAX_STREAMS", 1024),
]  # fmt: skip

# Source, daemon, key and its default.
DEFAULTS: list[tuple[str, DaemonKind, str, Any]] = [
    ("ours", DaemonKind.INTERMEDIATE, "quic.listen", ["0.0.0.0:4433", "[::]:4433"]),
    ("ours", DaemonKind.INTERMEDIATE, "grpc.listen", "[::]:4434"),
    ("ours", DaemonKind.INTERMEDIATE, "metrics.listen", "127.0.0.1:9090"),
    ("ours", DaemonKind.CONNECTOR, "metrics.listen", "127.0.0.1:9091"),
    ("ours", DaemonKind.AGENT, "metrics.listen", "127.0.0.1:9092"),
    ("docs/wire.md §3", DaemonKind.INTERMEDIATE, "access.grant_lifetime_s", 600),
    ("docs/wire.md §5", DaemonKind.INTERMEDIATE, "relay.queue_packets", 64),
    ("docs/wire.md §5", DaemonKind.INTERMEDIATE, "relay.queue_ms", 100),
    ("docs/wire.md §7", DaemonKind.AGENT, "access.max_offline_s", 3600),
    ("docs/wire.md §1", DaemonKind.AGENT, "session.idle_timeout_s", 300),
    ("docs/wire.md §4", DaemonKind.AGENT, "signaling.transport", "grpc"),
    ("docs/wire.md §6", DaemonKind.CONNECTOR, "limits.streams_per_agent", 1024),
    ("docs/wire.md §6", DaemonKind.CONNECTOR, "limits.flows_per_agent", 256),
    ("docs/wire.md §6", DaemonKind.CONNECTOR, "limits.connect_timeout_s", 5),
    ("RFC 4787 REQ-5", DaemonKind.CONNECTOR, "limits.flow_idle_s", 120),
    ("RFC 4787 REQ-5", DaemonKind.AGENT, "limits.flow_idle_s", 120),
    ("ours", DaemonKind.AGENT, "connect", "lazy"),
    ("ours", DaemonKind.AGENT, "ice.loopback", False),
    ("ours", DaemonKind.AGENT, "ice.advertise", []),
    ("ours, ta", DaemonKind.AGENT, "ice.pacing_ms", 20),
    ("ours, direct path limit", DaemonKind.CONNECTOR, "ice.check_limit_s", 5),
    ("RFC 7675 §5.1", DaemonKind.AGENT, "keepalive.interval_s", 5),
    ("docs/wire.md §7", DaemonKind.AGENT, "keepalive.timeout_s", 5),
    ("docs/wire.md §7", DaemonKind.CONNECTOR, "keepalive.max_missed", 3),
    ("docs/wire.md §7", DaemonKind.CONNECTOR, "path.policy", "prefer_direct"),
    ("ours, cooldown", DaemonKind.AGENT, "path.cooldown_s", 30),
]


STATES = [
    ("RFC 8445 §6.1.2.6", PairState, "frozen waiting in_progress succeeded failed"),
    (
        "ours, hole punching",
        HolePunchState,
        "idle gathering signaling waiting_to_start checking connected fallback_relay failed",
    ),
    ("ours, docs/wire.md §7", PathState, "active degraded failed recovering"),
]


@cache
def defaults(kind: DaemonKind) -> dict[str, Any]:
    return {key.path: key.default for key in describe_keys(MODELS[kind])}


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [row[1:] for row in CONSTANTS],
    ids=[f"{module}.{name} ({source})" for source, module, name, _ in CONSTANTS],
)
def test_constant_has_the_agreed_value(module: str, name: str, value: Any) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("states", "names"), [row[1:] for row in STATES], ids=[f"{row[1].__name__} ({row[0]})" for row in STATES]
)
def test_states_are_the_agreed_ones(states: type[Enum], names: str) -> None:
    assert [state.value for state in states] == names.split()


def test_priority_of_a_pair_follows_the_formula() -> None:
    # RFC 8445 §6.1.2.3: 2^32·min(G,D) + 2·max(G,D) + (G>D)
    assert pair_priority(7, 5) == 2**32 * 5 + 2 * 7 + 1
    assert pair_priority(5, 7) == 2**32 * 5 + 2 * 7


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [row[1:] for row in DEFAULTS],
    ids=[f"{kind.value} {key} ({source})" for source, kind, key, _ in DEFAULTS],
)
def test_default_has_the_agreed_value(kind: DaemonKind, key: str, value: Any) -> None:
    assert defaults(kind)[key] == value


def test_sealed_packets_fit_a_leg_exactly() -> None:
    overhead = adapter.DATAGRAM_OVERHEAD_BYTES + adapter.CONNECTION_ID_BYTES
    room = options.LEG_MAX_DATAGRAM_BYTES - overhead
    assert room == frame.CHANNEL_BYTES + options.INNER_MAX_DATAGRAM_BYTES == 1202
    assert options.INNER_MAX_DATAGRAM_BYTES - overhead == flows.DEFAULT_FRAME_BYTES


def test_every_case_names_a_constant_once() -> None:
    names = [(module, name) for _, module, name, _ in CONSTANTS]
    assert len(names) == len(set(names))
