"""Who offers what: the services that attached connectors registered, and the choice of one for an agent.

Registrations are soft state of an attachment. The choice is deterministic: the connector that this agent
already uses for the service, else one that it uses for another (both share one session), else the one with
the fewest users, else the first by name. So a renewed grant never moves an agent to another connector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from ztna.access.identity import Role, is_label
from ztna.access.policy import AccessRules
from ztna.settings.values import ServiceProtocol
from ztna.signaling.values import Code, Party

MAX_SERVICES_PER_CONNECTOR = 256
"""Unless configured: a connector fronts one site; each registration costs about 0.3 KB."""

MAX_REMEMBERED_CHOICES = 1024
"""Services per agent whose connector is remembered, the oldest forgotten first; that costs a second session
at worst."""


@dataclass(frozen=True, slots=True)
class Refused:
    """No, and why; `message` is for people."""

    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """The connector for a request."""

    attach_id: bytes
    connector: Party


@dataclass(frozen=True, slots=True)
class RegisteredService:
    """One line of the registry; `connectors` are ids, sorted."""

    service: str
    protocol: ServiceProtocol
    connectors: tuple[str, ...]


@dataclass(slots=True)
class _Connector:
    attach_id: bytes
    party: Party
    services: dict[str, ServiceProtocol] = field(default_factory=dict)
    denied: dict[str, ServiceProtocol] = field(default_factory=dict)
    """Asked for and not allowed; other rules may allow them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What other rules say of a service that a connector registered, or tried to."""

    attach_id: bytes
    service: str
    refused: Refused | None


@dataclass(slots=True)
class _Agent:
    attach_id: bytes
    choices: dict[str, str] = field(default_factory=dict)  # service -> connector id


class Registry:
    """`rules` say which agent may open what, and which connector may provide what."""

    def __init__(
        self, rules: AccessRules, *, max_services_per_connector: int = MAX_SERVICES_PER_CONNECTOR
    ) -> None:
        self._rules = rules
        self._max_services = max_services_per_connector
        self._connectors: dict[str, _Connector] = {}
        self._attachments: dict[bytes, str] = {}  # attachments of connectors -> connector id
        self._agents: dict[str, _Agent] = {}
        self._offers: dict[str, dict[str, _Connector]] = {}  # service -> connector id -> connector
        self._loads: Counter[str] = Counter()  # connector id -> remembered choices of it

    def handle_attached(self, attach_id: bytes, party: Party) -> None:
        """Make room for a node; what a former attachment of a connector offered is void."""
        if party.role is Role.CONNECTOR:
            self._drop_connector(party.id)
            self._connectors[party.id] = _Connector(attach_id, party)
            self._attachments[attach_id] = party.id
        elif party.role is Role.AGENT:
            former = self._agents.get(party.id)
            self._agents[party.id] = _Agent(attach_id, former.choices if former else {})

    def handle_detached(self, attach_id: bytes, party: Party) -> None:
        """Forget a node; harmless when another attachment took its place."""
        if party.role is Role.CONNECTOR:
            if self._attachments.get(attach_id) == party.id:
                self._drop_connector(party.id)
        elif (agent := self._agents.get(party.id)) is not None and agent.attach_id == attach_id:
            del self._agents[party.id]
            for connector_id in agent.choices.values():
                self._release(connector_id)

    def handle_rules(self, rules: AccessRules) -> list[Verdict]:
        """Judge by other rules; returns the services whose registration is another one now."""
        self._rules = rules
        verdicts = []
        for connector in self._connectors.values():
            denied = dict(connector.denied)
            for service in list(connector.services):
                if (refused := self._judge_offer(connector, service)) is not None:
                    connector.denied[service] = connector.services[service]
                    self._remove_offer(connector, service)
                    verdicts.append(Verdict(connector.attach_id, service, refused))
            for service, protocol in denied.items():
                if self._judge_offer(connector, service) is None:
                    refused = self.offer(connector.attach_id, service, protocol)
                    verdicts.append(Verdict(connector.attach_id, service, refused))
        return verdicts

    def prefer(self, agent: Party, service: str, connector_id: str) -> None:
        """Remember that an attached agent already uses a connector (a session that it resumes)."""
        state = self._agents.get(agent.id)
        if state is None:
            return
        choices = state.choices
        if (former := choices.pop(service, None)) is not None:
            self._release(former)
        choices[service] = connector_id
        self._loads[connector_id] += 1
        if len(choices) > MAX_REMEMBERED_CHOICES:
            self._release(choices.pop(next(iter(choices))))

    def offer(self, attach_id: bytes, service: str, protocol: ServiceProtocol) -> Refused | None:
        """Register a service of an attached connector; None means accepted. Repeating an offer is fine."""
        connector = self._find(attach_id)
        if connector is None:
            return Refused(Code.ACCESS_DENIED, "only an attached connector offers services")
        if not is_label(service):
            return Refused(Code.INVALID_MESSAGE, "a service id is 1 to 63 of a-z, 0-9 and inner hyphens")
        connector.denied.pop(service, None)
        if (denied := self._judge_offer(connector, service)) is not None:
            if len(connector.denied) < self._max_services:
                connector.denied[service] = protocol
            return denied
        if service not in connector.services and len(connector.services) >= self._max_services:
            return Refused(Code.RATE_LIMITED, f"a connector offers at most {self._max_services} services")
        connector.services[service] = protocol
        self._offers.setdefault(service, {})[connector.party.id] = connector
        return None

    def withdraw(self, attach_id: bytes, service: str) -> bool:
        """Take a service back; False when it was not offered."""
        connector = self._find(attach_id)
        if connector is None:
            return False
        connector.denied.pop(service, None)
        if service not in connector.services:
            return False
        self._remove_offer(connector, service)
        return True

    def choose(
        self,
        agent: Party,
        service: str,
        protocol: ServiceProtocol | None,
        pins: Collection[str] = (),
        excluded: Collection[str] = (),
    ) -> Chosen | Refused:
        """Choose a connector: one of `pins` if any are given, none of `excluded` if there is another."""
        if agent.role is not Role.AGENT or not self._rules.access.may_open(agent.id, service):
            return Refused(Code.ACCESS_DENIED, f"no rule of 'policy' lets {agent} open {service[:64]!r}")
        offering = self._offers.get(service, {})
        if not offering:
            return self._absent(service)
        candidates = [
            each for each in offering.values() if protocol is None or each.services[service] is protocol
        ]
        if not candidates:
            return Refused(Code.SERVICE_NOT_FOUND, f"{service!r} is not offered over {protocol}")
        if pins:
            candidates = [each for each in candidates if each.party.id in pins]
            if not candidates:
                return Refused(
                    Code.NO_CONNECTOR_AVAILABLE,
                    f"none of the connectors that the agent accepts for {service!r} is attached",
                )
        # A connector that just failed for this agent is still better than none.
        candidates = [each for each in candidates if each.party.id not in excluded] or candidates
        chosen = self._rank(agent.id, service, candidates)
        self.prefer(agent, service, chosen.party.id)
        return Chosen(chosen.attach_id, chosen.party)

    def connector_id(self, attach_id: bytes) -> str:
        """Which connector an attachment is of; empty when it is of none."""
        return self._attachments.get(attach_id, "")

    def services(self) -> list[RegisteredService]:
        """The registered services, sorted."""
        lines: dict[tuple[str, ServiceProtocol], list[str]] = {}
        for service, offering in self._offers.items():
            for connector_id, connector in offering.items():
                lines.setdefault((service, connector.services[service]), []).append(connector_id)
        return [
            RegisteredService(service, protocol, tuple(sorted(ids)))
            for (service, protocol), ids in sorted(lines.items())
        ]

    def _judge_offer(self, connector: _Connector, service: str) -> Refused | None:
        if self._rules.offers.may_offer(connector.party.id, service):
            return None
        return Refused(Code.ACCESS_DENIED, f"no rule of 'offers' lets {connector.party} provide {service!r}")

    def _find(self, attach_id: bytes) -> _Connector | None:
        connector_id = self._attachments.get(attach_id)
        return None if connector_id is None else self._connectors[connector_id]

    def _absent(self, service: str) -> Refused:
        # The difference matters to an agent: what no rule names will not come, what no connector offers may.
        if self._rules.offers.is_offerable(service):
            return Refused(Code.NO_CONNECTOR_AVAILABLE, f"no attached connector offers {service[:64]!r}")
        return Refused(
            Code.SERVICE_NOT_FOUND, f"no rule of 'offers' lets any connector provide {service[:64]!r}"
        )

    def _rank(self, agent_id: str, service: str, candidates: list[_Connector]) -> _Connector:
        agent = self._agents.get(agent_id)
        used = {} if agent is None else agent.choices
        return min(
            candidates,
            key=lambda each: (
                used.get(service) != each.party.id,
                each.party.id not in used.values(),
                self._loads[each.party.id],
                each.party.id,
            ),
        )

    def _release(self, connector_id: str) -> None:
        self._loads[connector_id] -= 1
        if not self._loads[connector_id]:
            del self._loads[connector_id]

    def _drop_connector(self, connector_id: str) -> None:
        connector = self._connectors.pop(connector_id, None)
        if connector is not None:
            del self._attachments[connector.attach_id]
            for service in list(connector.services):
                self._remove_offer(connector, service)

    def _remove_offer(self, connector: _Connector, service: str) -> None:
        del connector.services[service]
        offering = self._offers[service]
        del offering[connector.party.id]
        if not offering:
            del self._offers[service]
