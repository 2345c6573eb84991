from __future__ import annotations

import pytest

from ztna.access.policy import AccessPolicy, AccessRule, AccessRules, Decision, OfferPolicy, OfferRule
from ztna.errors import ConfigError

RULES = [
    AccessRule(("laptop", "phone"), ("web",)),
    AccessRule(("laptop",), ("dns",)),
    AccessRule(("admin",), ("*",)),
]


@pytest.mark.parametrize(
    ("rules", "agent", "service", "reason"),
    [
        ([], "laptop", "web", "no_rule_for_node"),
        (RULES, "laptop", "web", "allowed"),
        (RULES, "laptop", "dns", "allowed"),
        (RULES, "phone", "web", "allowed"),
        (RULES, "phone", "dns", "service_not_allowed"),
        (RULES, "stranger", "web", "no_rule_for_node"),
        (RULES, "admin", "anything", "allowed"),
        ([*RULES, AccessRule(("*",), ("news",))], "stranger", "news", "allowed"),
        ([*RULES, AccessRule(("*",), ("news",))], "phone", "news", "allowed"),
        ([*RULES, AccessRule(("*",), ("news",))], "stranger", "web", "service_not_allowed"),
        ([AccessRule(("*",), ("*",))], "stranger", "web", "allowed"),
        (RULES, "*", "web", "no_rule_for_node"),
        ([AccessRule(("*",), ("news",))], "*", "*", "service_not_allowed"),
    ],
)
def test_access_is_what_some_rule_allows(
    rules: list[AccessRule], agent: str, service: str, reason: str
) -> None:
    decision = AccessPolicy(rules).may_open(agent, service)
    assert decision == Decision(reason == "allowed", reason)
    assert bool(decision) is (reason == "allowed")


def test_offers_are_what_some_rule_allows() -> None:
    policy = OfferPolicy([OfferRule(("site-1",), ("web",)), OfferRule(("*",), ("ping",))])
    assert policy.may_offer("site-1", "web")
    assert policy.may_offer("site-2", "ping")
    assert policy.may_offer("site-2", "web").reason == "service_not_allowed"
    assert OfferPolicy([]).may_offer("site-1", "web").reason == "no_rule_for_node"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (AccessRule((), ("web",)), r"policy\[1\]: agents and services must each name something"),
        (AccessRule(("laptop",), ()), r"policy\[1\]: agents and services must each name something"),
        (AccessRule(("lap*",), ("web",)), r"policy\[1\]\.agents: 'lap\*' is neither a node id nor '\*'"),
        (AccessRule(("Laptop",), ("web",)), r"policy\[1\]\.agents: 'Laptop'"),
        (AccessRule(("laptop",), ("web*",)), r"policy\[1\]\.services: 'web\*' is neither a service id nor"),
        (AccessRule(("laptop",), ("",)), r"policy\[1\]\.services: ''"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_named(rule: AccessRule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AccessPolicy([RULES[0], rule])


def test_offer_rule_errors_name_their_own_keys() -> None:
    with pytest.raises(ConfigError, match=r"offers\[0\]\.connectors: 'Site'"):
        OfferPolicy([OfferRule(("Site",), ("web",))])


@pytest.mark.parametrize(
    ("opened", "offered", "between"),
    [
        (("*",), ("*",), {"*"}),
        (("*",), ("web",), {"web"}),
        (("web",), ("*",), {"web"}),
        (("web", "ssh"), ("ssh", "dns"), {"ssh"}),
        (("web",), ("dns",), set()),
    ],
)
def test_a_session_carries_what_both_policies_allow(
    opened: tuple[str, ...], offered: tuple[str, ...], between: set[str]
) -> None:
    rules = AccessRules(
        AccessPolicy([AccessRule(("laptop",), opened)]), OfferPolicy([OfferRule(("*",), offered)])
    )
    assert rules.services_between("laptop", "site") == between
    assert rules.services_between("stranger", "site") == set()
