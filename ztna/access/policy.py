"""Who may reach what, and who may provide what: lists of rules in which anything not allowed is refused.

Both policies are computed once into tables, so that a question costs two look-ups however long the rules are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ztna.access.identity import is_label
from ztna.errors import ConfigError

ANY = "*"
"""Stands for every node, or every service; never for a part of a name."""


@dataclass(frozen=True, slots=True)
class AccessRule:
    """These agents may open these services."""

    agents: tuple[str, ...]
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OfferRule:
    """These connectors may provide these services."""

    connectors: tuple[str, ...]
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy's answer, true in a condition if it allows.

    Attributes:
        reason: `allowed`, `no_rule_for_node` (no rule names the node) or `service_not_allowed`; fit to be a
            metric label.
    """

    allowed: bool
    reason: str

    def __bool__(self) -> bool:
        return self.allowed


ALLOWED = Decision(allowed=True, reason="allowed")
NO_RULE_FOR_NODE = Decision(allowed=False, reason="no_rule_for_node")
SERVICE_NOT_ALLOWED = Decision(allowed=False, reason="service_not_allowed")


class AccessPolicy:
    """Which agent may open which service. Raises `ConfigError` naming a rule that cannot be meant."""

    def __init__(self, rules: Iterable[AccessRule]) -> None:
        self._table = _tabulate("policy", "agents", ((rule.agents, rule.services) for rule in rules))

    def may_open(self, agent: str, service: str) -> Decision:
        """Whether the agent with this id may open the service."""
        return _decide(self._table, agent, service)

    def services_of(self, agent: str) -> frozenset[str]:
        """Every service that the agent may open, perhaps with `ANY` among them."""
        return _services(self._table, agent)


class OfferPolicy:
    """Which connector may provide which service. Raises `ConfigError` naming a rule that cannot be meant."""

    def __init__(self, rules: Iterable[OfferRule]) -> None:
        self._table = _tabulate("offers", "connectors", ((rule.connectors, rule.services) for rule in rules))

    def may_offer(self, connector: str, service: str) -> Decision:
        """Whether the connector with this id may provide the service."""
        return _decide(self._table, connector, service)

    def services_of(self, connector: str) -> frozenset[str]:
        """Every service that the connector may provide, perhaps with `ANY` among them."""
        return _services(self._table, connector)

    def is_offerable(self, service: str) -> bool:
        """Whether any connector at all may provide the service."""
        return any(service in services or ANY in services for services in self._table.values())


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Both policies of an intermediate, which decide together what a session may carry."""

    access: AccessPolicy
    offers: OfferPolicy

    def services_between(self, agent: str, connector: str) -> frozenset[str]:
        """Every service that a session of the two may carry; `ANY` in it stands for all."""
        opened, offered = self.access.services_of(agent), self.offers.services_of(connector)
        if ANY in opened:
            return offered
        return opened if ANY in offered else opened & offered


def _tabulate(
    key: str, nodes_key: str, rules: Iterable[tuple[tuple[str, ...], tuple[str, ...]]]
) -> Mapping[str, frozenset[str]]:
    table: dict[str, frozenset[str]] = {}
    for index, (nodes, services) in enumerate(rules):
        where = f"{key}[{index}]"
        if not nodes or not services:
            raise ConfigError(
                f"{where}: {nodes_key} and services must each name something, or {ANY!r} for all"
            )
        for node in nodes:
            if node != ANY and not is_label(node):
                raise ConfigError(f"{where}.{nodes_key}: {node!r} is neither a node id nor {ANY!r}")
        for service in services:
            # A pattern would match nothing: say so rather than refuse what was meant to be allowed.
            if not service or (ANY in service and service != ANY):
                raise ConfigError(f"{where}.services: {service!r} is neither a service id nor {ANY!r}")
        for node in nodes:
            table[node] = table.get(node, frozenset()) | frozenset(services)
    everyone = table.get(ANY, frozenset())
    return {node: services | everyone for node, services in table.items()}


def _services(table: Mapping[str, frozenset[str]], node: str) -> frozenset[str]:
    # An id is never "*" on the wire (it is a label), and must not stand for everyone if it were.
    own = table.get(node) if node != ANY else None
    return own if own is not None else table.get(ANY, frozenset())


def _decide(table: Mapping[str, frozenset[str]], node: str, service: str) -> Decision:
    services = _services(table, node)
    if not services:
        return NO_RULE_FOR_NODE
    if ANY in services or (service in services and service != ANY):
        return ALLOWED
    return SERVICE_NOT_ALLOWED
