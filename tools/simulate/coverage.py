"""Counts which states and transitions of the product's machines a run passes.

Nothing of this is in the product: tables are replaced by ones that count what is looked up in them, and
classes that keep their state in an attribute are watched while they set it. `TABLES` is what there is, and
`shortcomings` says of the counts of many runs what of it they have not shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import wraps
from typing import Any, Final

from actors import child_group
from tools.simulate import resuming
from ztna.ice import consent, hole_punch, hole_punch_table, pair
from ztna.path import manager, path, rules, traffic
from ztna.relay import quic_carrier, stream_carrier
from ztna.relay.carrier import LegState
from ztna.service import connector_flows, flows, tcp_connection
from ztna.session import book
from ztna.signaling import attachments, client, exchange, selection, session
from ztna.stun import transaction

COUNTS: Final[Counter[str]] = Counter()
"""What the run that goes on has passed."""


_INSTALLED: Final[list[bool]] = []


class _CountingTable(dict[Any, Any]):
    """A table that counts what is looked up in it; planted bugs change the original."""

    def __init__(self, name: str, table: Mapping[Any, Any]) -> None:
        super().__init__(table)
        self._table = table
        self._names = {key: f"{name}: {_named(key)}" for key in table}

    def __getitem__(self, key: Any) -> Any:
        value = self._table[key]
        COUNTS[self._names[key]] += 1
        return value


def _named(key: object) -> str:
    if isinstance(key, tuple):
        return " ".join(map(_named, key))
    return key.name.lower() if isinstance(key, Enum) else str(key)


# Machines that keep their state in an attribute, and what may follow what: read off their code.
_LEG: Final = LegState
_LEG_STEPS: Final = (
    (_LEG.IDLE, _LEG.CONNECTING),
    (_LEG.CONNECTING, _LEG.CONNECTED),
    (_LEG.CONNECTING, _LEG.WAITING),
    (_LEG.CONNECTING, _LEG.IDLE),
    (_LEG.CONNECTED, _LEG.UP),
    (_LEG.CONNECTED, _LEG.WAITING),
    (_LEG.CONNECTED, _LEG.IDLE),
    (_LEG.UP, _LEG.CONNECTED),
    (_LEG.UP, _LEG.WAITING),
    (_LEG.UP, _LEG.IDLE),
    (_LEG.WAITING, _LEG.CONNECTING),
    (_LEG.WAITING, _LEG.IDLE),
)
_CLIENT: Final = client.ClientState
_CLIENT_STEPS: Final = (
    (_CLIENT.IDLE, _CLIENT.CONNECTING),
    (_CLIENT.CONNECTING, _CLIENT.ATTACHED),
    (_CLIENT.CONNECTING, _CLIENT.WAITING),
    (_CLIENT.CONNECTING, _CLIENT.IDLE),
    (_CLIENT.ATTACHED, _CLIENT.WAITING),
    (_CLIENT.ATTACHED, _CLIENT.IDLE),
    (_CLIENT.WAITING, _CLIENT.CONNECTING),
    (_CLIENT.WAITING, _CLIENT.IDLE),
)
_SELECTION: Final = selection.SelectionState
_SELECTION_STEPS: Final = (
    (_SELECTION.TRYING, _SELECTION.ATTACHED),
    (_SELECTION.TRYING, _SELECTION.PAUSING),
    (_SELECTION.ATTACHED, _SELECTION.TRYING),
    (_SELECTION.ATTACHED, _SELECTION.PAUSING),
    (_SELECTION.PAUSING, _SELECTION.TRYING),
    (_SELECTION.PAUSING, _SELECTION.ATTACHED),
)
_ATTACHMENT: Final = attachments.AttachmentState
_MANAGED: Final = session.SessionState
_MANAGED_STEPS: Final = (
    (_MANAGED.WAITING, _MANAGED.BINDING),
    (_MANAGED.BINDING, _MANAGED.RELAYED),
    (_MANAGED.BINDING, _MANAGED.WAITING),
    (_MANAGED.RELAYED, _MANAGED.BINDING),
)
_BOOK: Final = book.SessionState
_CONSENT: Final = consent._Mode  # noqa: SLF001 - nobody but an instrument looks
_CONSENT_STEPS: Final = (
    (_CONSENT.STEADY, _CONSENT.FAILED),
    (_CONSENT.FAILED, _CONSENT.RECOVERING),
    (_CONSENT.RECOVERING, _CONSENT.STEADY),
    (_CONSENT.RECOVERING, _CONSENT.FAILED),
)
_EXCHANGE: Final = exchange.ExchangeState
_EXCHANGE_STEPS: Final = (
    (_EXCHANGE.IDLE, _EXCHANGE.AWAITING_ANSWER),
    (_EXCHANGE.AWAITING_ANSWER, _EXCHANGE.PUNCHING),
    (_EXCHANGE.AWAITING_ANSWER, _EXCHANGE.IDLE),
    (_EXCHANGE.PUNCHING, _EXCHANGE.DONE),
    (_EXCHANGE.PUNCHING, _EXCHANGE.AWAITING_ANSWER),
    (_EXCHANGE.DONE, _EXCHANGE.AWAITING_ANSWER),
)
_TCP: Final = tcp_connection.Phase
_TCP_STEPS: Final = (
    (_TCP.AWAITING_HEADER, _TCP.DECIDING),
    (_TCP.DECIDING, _TCP.CONNECTING),
    (_TCP.CONNECTING, _TCP.ESTABLISHED),
    (_TCP.AWAITING_ANSWER, _TCP.ESTABLISHED),
    *((phase, _TCP.FINISHED) for phase in _TCP if phase is not _TCP.FINISHED),
)
_FLOW: Final = connector_flows.FlowState
_FLOW_STEPS: Final = (
    (_FLOW.UNKNOWN, _FLOW.DECIDING),
    (_FLOW.DECIDING, _FLOW.OPENING),
    (_FLOW.OPENING, _FLOW.OPEN),
)
_FLOW_ENDS: Final = (_FLOW.DECIDING, _FLOW.OPENING, _FLOW.OPEN)
"""States in which a flow may be closed; one that is closed has none, as it is forgotten."""
_ASKED: Final = transaction._State  # noqa: SLF001
_ASKED_STEPS: Final = (
    (_ASKED.IDLE, _ASKED.PENDING),
    (_ASKED.PENDING, _ASKED.DONE),
    (_ASKED.PENDING, _ASKED.TIMED_OUT),
    (_ASKED.TIMED_OUT, _ASKED.DONE),
)
_CHILD: Final = child_group.ChildState
_CHILD_STEPS: Final = (
    (_CHILD.WAITING, _CHILD.STARTING),
    (_CHILD.STARTING, _CHILD.RUNNING),
    (_CHILD.STARTING, _CHILD.STOPPING),
    (_CHILD.STARTING, _CHILD.STOPPED),
    (_CHILD.STARTING, _CHILD.FAILED),
    (_CHILD.RUNNING, _CHILD.STOPPING),
    (_CHILD.RUNNING, _CHILD.STOPPED),
    (_CHILD.RUNNING, _CHILD.FAILED),
    (_CHILD.STOPPING, _CHILD.STOPPED),
    (_CHILD.STOPPING, _CHILD.FAILED),
    (_CHILD.STOPPING, _CHILD.ABANDONED),
    (_CHILD.STOPPED, _CHILD.STARTING),
    (_CHILD.FAILED, _CHILD.STARTING),
    (_CHILD.ABANDONED, _CHILD.STARTING),
)

Steps = Iterable[tuple[Enum, Enum]]
_MACHINES: Final[tuple[tuple[str, type, str, Steps], ...]] = (
    (
        "pair",
        pair.CheckedPair,
        "state",
        [(one, other) for one, others in pair.TRANSITIONS.items() for other in others],
    ),
    ("consent", consent._Watch, "mode", _CONSENT_STEPS),  # noqa: SLF001
    ("leg", quic_carrier.QuicCarrier, "state", _LEG_STEPS),
    ("grpc leg", stream_carrier.StreamCarrier, "state", _LEG_STEPS),
    ("attaching", client.AttachmentClient, "_state", _CLIENT_STEPS),
    ("selection", selection.IntermediateSelector, "_state", _SELECTION_STEPS),
    ("attachment", attachments.Attachment, "state", [(_ATTACHMENT.ATTACHED, _ATTACHMENT.LINGERING)]),
    ("session", session.Session, "state", _MANAGED_STEPS),
    (
        "record",
        book.SessionRecord,
        "state",
        [
            (_BOOK.OPENING, _BOOK.ESTABLISHED),
            (_BOOK.OPENING, _BOOK.CLOSING),
            (_BOOK.ESTABLISHED, _BOOK.CLOSING),
        ],
    ),
    ("exchange", exchange.Exchange, "state", _EXCHANGE_STEPS),
    ("tcp", tcp_connection.TcpConnection, "_phase", _TCP_STEPS),
    ("flow", connector_flows._ConnectorFlow, "state", _FLOW_STEPS),  # noqa: SLF001
    ("transaction", transaction.Transaction, "_state", _ASKED_STEPS),
    ("child", child_group.Child, "state", _CHILD_STEPS),
)
_LOOK_UPS: Final[tuple[tuple[str, Mapping[Any, Any], tuple[tuple[Any, str], ...]], ...]] = (
    ("hole punch", hole_punch_table.TRANSITIONS, ((hole_punch, "TRANSITIONS"),)),
    ("path", path.TRANSITIONS, ((manager, "TRANSITIONS"),)),
    ("rule", rules.RULES, ((manager, "RULES"), (traffic, "RULES"))),
)


def _tables() -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, table, _ in _LOOK_UPS:
        yield name, tuple(f"{name}: {_named(key)}" for key in table)
    for name, _, _, steps in _MACHINES:
        yield name, tuple(f"{name}: {_named(step)}" for step in steps)
    yield "flow end", tuple(f"flow end: {_named(state)}" for state in _FLOW_ENDS)
    yield "resume", tuple(f"resume: {step}" for step in resuming.STEPS)


TABLES: Final[dict[str, tuple[str, ...]]] = dict(_tables())
"""By machine, every transition that it offers."""


UNREACHABLE: Final[Mapping[str, str]] = {
    "hole punch: gathering gave_up": "the first candidates come at the instant they are asked for",
    "hole punch: gathering fail": "the same",
    "session: binding waiting": "takes more grants at once than are verified in one slice",
    "tcp: awaiting_header finished": "the header is in the first bytes of its stream, whole",
    "flow end: opening": "a socket is there at the instant it is asked for",
    "resume: announced refused_not_a_party": "no node of ours shows a grant of others",
    "resume: announced refused_invalid_message": "no intermediate of ours signs a grant without a session",
    "resume: announced refused_rate_limited": "takes thousands of sessions",
    **dict.fromkeys(
        ("child: starting stopping", "child: starting stopped", "child: starting failed"),
        "actors on the loop have started when the call returns that starts them, and none fails at that",
    ),
    "child: running stopped": "no actor stops of its own accord",
    "child: stopping failed": "no actor fails at its end",
    "child: stopping abandoned": "no actor is deaf to its stop for seconds: only one with a thread can be",
    "child: abandoned starting": "the same",
}
"""What no run can pass, and why not; passing it all the same makes the argument wrong."""


RARE: Final[Mapping[str, str]] = {
    "resume: announced refused_session_not_found": "takes a party that brings a session along after its peer "
    "opened a newer one at the same intermediate, of which it has not heard",
    "resume: told_over lives_on": "takes a direct path that works while the intermediate has lost one party",
}
"""What may be passed, and no seed is known to; no shortcoming either way."""


def install() -> None:
    """Count from now on, in this process; once is enough."""
    if _INSTALLED:
        return
    _INSTALLED.append(True)
    for name, table, places in _LOOK_UPS:
        for module, attribute in places:
            setattr(module, attribute, _CountingTable(name, table))
    for name, owner, attribute, _ in _MACHINES:
        _watch(name, owner, attribute)
    _watch_trust()
    _watch_flow_ends()
    resuming.watch(_count_resuming)


def _count_resuming(step: str) -> None:
    COUNTS[f"resume: {step}"] += 1


def _watch(name: str, owner: type, attribute: str) -> None:
    set_attribute: Any = owner.__setattr__

    def watch(self: object, key: str, value: object) -> None:
        if key == attribute:
            former = getattr(self, key, None)
            if isinstance(former, Enum) and former is not value:
                COUNTS[f"{name}: {_named((former, value))}"] += 1
        set_attribute(self, key, value)

    setattr(owner, "__setattr__", watch)  # noqa: B010 - no plain assignment is of the declared type


def _watch_trust() -> None:
    """The one rule that is no look-up: it is asked for each batch."""
    routes = traffic.Traffic.routes

    @wraps(routes)
    def watched(self: traffic.Traffic, now: float) -> traffic.Routes:
        ways = routes(self, now)
        if ways == traffic.BOTH and not self.is_suspicious and now >= self._mirror_until:
            COUNTS["rule: trust_stale"] += 1
        return ways

    setattr(traffic.Traffic, "routes", watched)  # noqa: B010 - no plain assignment is of the declared type


def _watch_flow_ends() -> None:
    close = flows.FlowTable._close  # noqa: SLF001

    @wraps(close)
    def watched(self: flows.FlowTable[Any], flow: Any, *rest: Any) -> None:
        if isinstance(flow, connector_flows._ConnectorFlow):  # noqa: SLF001
            COUNTS[f"flow end: {_named(flow.state)}"] += 1
        close(self, flow, *rest)

    setattr(flows.FlowTable, "_close", watched)  # noqa: B010


def take() -> Counter[str]:
    """What was counted since the last call."""
    found = Counter(COUNTS)
    COUNTS.clear()
    return found


def shortcomings(counts: Mapping[str, int]) -> list[str]:
    """What the counts of many runs, added up, should show and do not; empty when all is well."""
    found = [
        f"{each}: never passed"
        for offered in TABLES.values()
        for each in offered
        if not counts.get(each) and each not in UNREACHABLE and each not in RARE
    ]
    found += [f"{each}: passed, although {why}" for each, why in UNREACHABLE.items() if counts.get(each)]
    known = {each for offered in TABLES.values() for each in offered}
    found += [
        f"{each}: passed, and in no table" for each, count in counts.items() if count and each not in known
    ]
    return found


def lines(counts: Mapping[str, int]) -> Iterator[str]:
    """For people: by machine, how much of it was passed, and what was not."""
    for name, offered in TABLES.items():
        reachable = [each for each in offered if each not in UNREACHABLE and each not in RARE]
        missing = [each.removeprefix(f"{name}: ") for each in reachable if not counts.get(each)]
        others = [each for each in counts if each.startswith(f"{name}: ") and each not in (*reachable, *RARE)]
        line = f"{name:<11} {len(reachable) - len(missing):>2} of {len(reachable)}"
        if len(offered) > len(reachable):
            line += f", and {len(offered) - len(reachable)} that cannot be reached"
        if missing:
            line += f"; never {', '.join(missing)}"
        if others:
            line += f"; unexpectedly {', '.join(each.removeprefix(f'{name}: ') for each in others)}"
        yield line
