"""Every metric there is: its name, kind and meaning, and their text form for Prometheus.

The catalogue is the contract; docs/metrics.md shows it to people, and a test holds the two equal. Values come
as `Sample`s from the status board, which is the only place that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

PREFIX: Final = "ztna_"

GAUGE: Final = "gauge"
COUNTER: Final = "counter"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one metric; `name` without the prefix, `labels` in the order of the catalogue."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `daemons` says who has it: one kind, `nodes` (agent and connector) or `all`."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()
    daemons: str = "all"


def _peer_metrics(daemon: str) -> tuple[MetricSpec, ...]:
    return (
        MetricSpec(
            f"{daemon}_forwarded_packets_total",
            COUNTER,
            "UDP payloads and chunks of TCP passed on for services, both directions",
            daemons=daemon,
        ),
        MetricSpec(
            f"{daemon}_forwarded_bytes_total",
            COUNTER,
            "Payload bytes passed on for services, both directions",
            daemons=daemon,
        ),
        MetricSpec(
            f"{daemon}_tcp_sessions_total",
            COUNTER,
            "TCP connections of services that came to be",
            daemons=daemon,
        ),
        MetricSpec(
            f"{daemon}_tcp_errors_total",
            COUNTER,
            "Of those, the ones that ended in an error; one whose backend cannot be reached is in "
            "`ztna_refusals_total`",
            daemons=daemon,
        ),
        MetricSpec(
            f"{daemon}_reconnections_total",
            COUNTER,
            "Attachments to an intermediate after the first one to it",
            daemons=daemon,
        ),
    )


CATALOGUE: Final[tuple[MetricSpec, ...]] = (
    MetricSpec("uptime_seconds", GAUGE, "Seconds since the daemon started"),
    MetricSpec("ready", GAUGE, "1 while the daemon is ready, else 0"),
    MetricSpec(
        "active_connections",
        GAUGE,
        "QUIC connections of nodes (intermediate), or TCP connections and UDP flows of services",
    ),
    MetricSpec("sessions", GAUGE, "Sessions that exist"),
    MetricSpec("attached_nodes", GAUGE, "Nodes that are attached", daemons="intermediate"),
    MetricSpec("loop_lag_seconds", GAUGE, "How late the event loop ran its last one-second timer"),
    MetricSpec(
        "certificate_expiry_timestamp_seconds",
        GAUGE,
        "When the daemon's own certificate expires, in unix seconds",
    ),
    MetricSpec(
        "ca_expiry_timestamp_seconds", GAUGE, "When the first of its CA certificates expires, in unix seconds"
    ),
    MetricSpec(
        "crl_next_update_timestamp_seconds",
        GAUGE,
        "When a newer revocation list is due, in unix seconds; 0 without a list",
    ),
    MetricSpec(
        "handshake_seconds_total",
        COUNTER,
        "Processor time that handshakes with those who dialled, and attachments, took on the event loop",
    ),
    MetricSpec(
        "stream_judgement_seconds_total",
        COUNTER,
        "Of it the judgement of signaling and relay streams, which does not wait",
    ),
    MetricSpec(
        "garbage_pauses_total",
        COUNTER,
        "How often everything that lives was searched for garbage, and nothing else done",
    ),
    MetricSpec("garbage_pause_seconds_total", COUNTER, "How long these searches took, in processor time"),
    MetricSpec("dropped_total", COUNTER, "Datagrams dropped or refused", ("reason", "place")),
    MetricSpec("refusals_total", COUNTER, "What peers asked for and were refused", ("reason", "place")),
    MetricSpec(
        "near_limit_seconds_total",
        COUNTER,
        "Seconds in which a limit of the system was nearly reached, looked at once a second",
        ("reason",),
    ),
    MetricSpec("udp_datagrams_received_total", COUNTER, "UDP datagrams received"),
    MetricSpec("udp_datagrams_sent_total", COUNTER, "UDP datagrams sent"),
    MetricSpec("udp_bytes_received_total", COUNTER, "UDP payload bytes received"),
    MetricSpec("udp_bytes_sent_total", COUNTER, "UDP payload bytes sent"),
    MetricSpec("actor_inbox_depth", GAUGE, "Messages that wait, by concern", ("actor",)),
    MetricSpec("actor_messages_total", COUNTER, "Messages handled, by concern", ("actor",)),
    MetricSpec("actor_handling_seconds_total", COUNTER, "Seconds spent in handlers, by concern", ("actor",)),
    MetricSpec("actor_restarts_total", COUNTER, "Restarts after a failure, by concern", ("actor",)),
    MetricSpec("relay_bytes_total", COUNTER, "Sealed bytes relayed between nodes", daemons="intermediate"),
    MetricSpec(
        "datagrams_relayed_total", COUNTER, "Sealed packets relayed between nodes", daemons="intermediate"
    ),
    MetricSpec("registrations_total", COUNTER, "Services registered by connectors", daemons="intermediate"),
    MetricSpec(
        "registration_rejections_total", COUNTER, "Registrations that were rejected", daemons="intermediate"
    ),
    MetricSpec(
        "superseded_total",
        COUNTER,
        "Attachments cut off because their identity attached again",
        daemons="intermediate",
    ),
    MetricSpec("signaling_sessions_total", COUNTER, "Sessions set up by signaling", daemons="intermediate"),
    MetricSpec(
        "retry_tokens_validated_total",
        COUNTER,
        "Clients that proved their address (QUIC Retry)",
        daemons="intermediate",
    ),
    MetricSpec(
        "retry_token_failures_total",
        COUNTER,
        "Retry tokens that were forged, foreign, expired or used before",
        daemons="intermediate",
    ),
    *_peer_metrics("connector"),
    *_peer_metrics("agent"),
    MetricSpec("direct_sessions", GAUGE, "Sessions that a direct path carries", daemons="nodes"),
    MetricSpec(
        "direct_bytes_total", COUNTER, "Sealed bytes on direct paths, both directions", daemons="nodes"
    ),
    MetricSpec(
        "hole_punch_attempts_total",
        COUNTER,
        "Attempts at a direct path that ended: `direct`, or why the relay is used (`other` beyond 64 words)",
        ("result",),
        daemons="nodes",
    ),
    MetricSpec("path_switches_total", COUNTER, "Changes of the path that carries a session", daemons="nodes"),
    MetricSpec(
        "path_fail_overs_total", COUNTER, "Direct paths that died and gave way to the relay", daemons="nodes"
    ),
    MetricSpec(
        "dual_sends_total",
        COUNTER,
        "How often packets of a session began to travel over two paths at once",
        daemons="nodes",
    ),
    MetricSpec("keepalives_sent_total", COUNTER, "Keepalives sent, on paths of both kinds", daemons="nodes"),
    MetricSpec("keepalives_missed_total", COUNTER, "Keepalives that had no answer in time", daemons="nodes"),
    MetricSpec(
        "path_rtt_seconds",
        GAUGE,
        "Round-trip time end to end over all sessions, by kind of path: `relay` or `direct`; "
        "`median` and `max`",
        ("path", "statistic"),
        daemons="nodes",
    ),
    MetricSpec(
        "connector_service_healthy",
        GAUGE,
        "1 while the backend of a service answers its probes, 0 while it is withdrawn; only with `health`",
        ("service",),
        daemons="connector",
    ),
)

_BY_NAME: Final = {spec.name: spec for spec in CATALOGUE}


def sample_key(sample: Sample) -> str:
    """The sample's name with its labels, as Prometheus writes it, without the prefix."""
    if not sample.labels:
        return sample.name
    pairs = sorted(zip(_BY_NAME[sample.name].labels, sample.labels, strict=True))
    return sample.name + "{" + ",".join(f'{label}="{value}"' for label, value in pairs) + "}"


class StatusCollector:
    """Turns the samples of this moment into metric families, in the order of the catalogue."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Promise nothing, so that registering does not ask for values before there are any."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the samples. Raises `KeyError` for one that is not in the catalogue."""
        families: dict[str, Metric] = {}
        for sample in self._read():
            spec = _BY_NAME[sample.name]
            family = families.get(spec.name)
            if family is None:
                family = families[spec.name] = _family(spec)
            family.add_sample(
                PREFIX + spec.name, dict(zip(spec.labels, sample.labels, strict=True)), sample.value
            )
        for spec in CATALOGUE:
            if spec.name in families:
                yield families[spec.name]


def exposition(read: Callable[[], Iterable[Sample]]) -> Callable[[], bytes]:
    """A function that renders the samples of the moment in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(read))
    return lambda: generate_latest(registry)


def _family(spec: MetricSpec) -> Metric:
    make = CounterMetricFamily if spec.kind == COUNTER else GaugeMetricFamily
    return make(PREFIX + spec.name, spec.meaning)
