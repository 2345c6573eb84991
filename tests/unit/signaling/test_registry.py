from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztna.access.identity import Role
from ztna.access.policy import AccessPolicy, AccessRule, AccessRules, OfferPolicy, OfferRule
from ztna.errors import ConfigError
from ztna.settings.values import ServiceProtocol
from ztna.signaling import registry
from ztna.signaling.registry import Chosen, Refused, RegisteredService, Registry
from ztna.signaling.values import Code, Party

TCP, UDP = ServiceProtocol.TCP, ServiceProtocol.UDP
ANYTHING = (("*",), ("*",))


def agent(name: str = "a1") -> Party:
    return Party(Role.AGENT, name, name.encode().ljust(32))


def connector(name: str = "c1") -> Party:
    return Party(Role.CONNECTOR, name, name.encode().ljust(32))


def attach_id(party: Party, turn: int = 0) -> bytes:
    return f"{party.role.value}-{party.id}-{turn}".encode()


def rules(
    policy: tuple[tuple[str, ...], tuple[str, ...]] = ANYTHING,
    offers: tuple[tuple[str, ...], tuple[str, ...]] = ANYTHING,
) -> AccessRules:
    return AccessRules(AccessPolicy([AccessRule(*policy)]), OfferPolicy([OfferRule(*offers)]))


def make(
    policy: tuple[tuple[str, ...], tuple[str, ...]] = ANYTHING,
    offers: tuple[tuple[str, ...], tuple[str, ...]] = ANYTHING,
    **limits: int,
) -> Registry:
    return Registry(rules(policy, offers), **limits)


def with_connectors(*names: str, service: str = "web", core: Registry | None = None) -> Registry:
    core = core or make()
    for name in names:
        party = connector(name)
        core.handle_attached(attach_id(party), party)
        assert core.offer(attach_id(party), service, TCP) is None
    return core


def choose(core: Registry, who: Party | None = None, service: str = "web", **rest: list[str]) -> str:
    """The id of the chosen connector, or the word of the refusal."""
    answer = core.choose(who or agent(), service, TCP, **rest)
    return answer.connector.id if isinstance(answer, Chosen) else answer.code.value


def test_offered_service_is_found() -> None:
    core = with_connectors("c1")
    answer = core.choose(agent(), "web", TCP)
    assert answer == Chosen(attach_id(connector()), connector())
    assert core.services() == [RegisteredService("web", TCP, ("c1",))]


def test_repeated_offer_is_accepted_and_may_change_the_protocol() -> None:
    core = with_connectors("c1")
    assert core.offer(attach_id(connector()), "web", UDP) is None
    assert core.services() == [RegisteredService("web", UDP, ("c1",))]


@pytest.mark.parametrize(
    ("offers", "service", "code"),
    [
        ((("c2",), ("*",)), "web", Code.ACCESS_DENIED),
        ((("c1",), ("ssh",)), "web", Code.ACCESS_DENIED),
        (ANYTHING, "", Code.INVALID_MESSAGE),
        (ANYTHING, "*", Code.INVALID_MESSAGE),
        (ANYTHING, "Web Server", Code.INVALID_MESSAGE),
        (ANYTHING, "x" * 64, Code.INVALID_MESSAGE),
    ],
)
def test_offer_that_is_not_allowed_is_rejected_with_the_reason(
    offers: tuple[tuple[str, ...], tuple[str, ...]], service: str, code: Code
) -> None:
    core = make(offers=offers)
    core.handle_attached(b"c", connector())
    refused = core.offer(b"c", service, TCP)
    assert isinstance(refused, Refused)
    assert refused.code is code
    assert core.services() == []


def test_only_attached_connectors_offer() -> None:
    core = make()
    core.handle_attached(b"a", agent())
    for who in (b"a", b"?"):
        refused = core.offer(who, "web", TCP)
        assert refused is not None
        assert refused.code is Code.ACCESS_DENIED


def test_connector_offers_a_bounded_number_of_services() -> None:
    core = make(max_services_per_connector=2)
    core.handle_attached(b"c", connector())
    assert core.offer(b"c", "s1", TCP) is None
    assert core.offer(b"c", "s2", TCP) is None
    refused = core.offer(b"c", "s3", TCP)
    assert refused is not None
    assert refused.code is Code.RATE_LIMITED
    assert core.offer(b"c", "s2", TCP) is None
    assert core.withdraw(b"c", "s1")
    assert core.offer(b"c", "s3", TCP) is None


def test_withdrawn_service_is_gone() -> None:
    core = with_connectors("c1")
    assert core.withdraw(attach_id(connector()), "web")
    assert not core.withdraw(attach_id(connector()), "web")
    assert not core.withdraw(b"?", "web")
    assert choose(core) == "no_connector_available"


def test_agent_without_a_rule_learns_nothing_about_the_service() -> None:
    core = with_connectors("c1", core=make(policy=(("a2",), ("web",))))
    assert choose(core, agent("a1")) == choose(core, agent("a1"), service="nothing") == "access_denied"
    assert choose(core, agent("a2")) == "c1"
    assert choose(core, agent("a2"), service="ssh") == "access_denied"


def test_connector_cannot_open_a_service() -> None:
    core = with_connectors("c1")
    assert choose(core, connector("c1")) == "access_denied"


def test_service_that_nobody_may_offer_is_not_found_and_one_that_may_come_is_awaited() -> None:
    core = make(offers=(("*",), ("web",)))
    assert choose(core, service="ssh") == "service_not_found"
    assert choose(core, service="web") == "no_connector_available"
    assert choose(make(), service="anything") == "no_connector_available"


def test_service_offered_over_another_protocol_is_not_found() -> None:
    core = with_connectors("c1")
    answer = core.choose(agent(), "web", UDP)
    assert isinstance(answer, Refused)
    assert answer.code is Code.SERVICE_NOT_FOUND
    assert isinstance(core.choose(agent(), "web", None), Chosen)


def test_pins_are_kept() -> None:
    core = with_connectors("c1", "c2")
    assert choose(core, pins=["c2"]) == "c2"
    assert choose(core, pins=["c3"]) == "no_connector_available"


def test_excluded_connector_is_avoided_while_there_is_another() -> None:
    core = with_connectors("c1", "c2")
    assert choose(core) == "c1"
    assert choose(core, excluded=["c1"]) == "c2"
    assert choose(core, excluded=["c1", "c2"]) == "c1"
    assert choose(core, pins=["c1"], excluded=["c1"]) == "c1"


def test_agents_spread_over_connectors() -> None:
    core = with_connectors("c1", "c2", "c3")
    chosen = []
    for n in range(6):
        core.handle_attached(attach_id(agent(f"a{n}")), agent(f"a{n}"))
        chosen.append(choose(core, agent(f"a{n}")))
    assert chosen == ["c1", "c2", "c3", "c1", "c2", "c3"]


def test_agent_stays_with_its_connector() -> None:
    core = with_connectors("c1", "c2")
    for name in ("a1", "a2"):
        core.handle_attached(attach_id(agent(name)), agent(name))
    assert [choose(core, agent("a1")), choose(core, agent("a2"))] == ["c1", "c2"]
    assert [choose(core, agent("a2")) for _ in range(3)] == ["c2"] * 3


def test_agent_prefers_a_connector_that_it_already_has_a_session_with() -> None:
    core = with_connectors("c1", "c2")
    with_connectors_party = connector("c2")
    core.offer(attach_id(with_connectors_party), "ssh", TCP)
    core.offer(attach_id(connector("c1")), "ssh", TCP)
    core.handle_attached(b"a", agent())
    assert choose(core, excluded=["c1"]) == "c2"
    assert choose(core, service="ssh") == "c2"


def test_agent_that_resumes_keeps_its_connector() -> None:
    core = with_connectors("c1", "c2")
    core.handle_attached(b"a", agent())
    core.prefer(agent(), "web", "c2")
    assert choose(core) == "c2"


def test_agent_that_left_no_longer_counts() -> None:
    core = with_connectors("c1", "c2")
    core.handle_attached(b"a", agent())
    assert choose(core) == "c1"
    core.handle_detached(b"a", agent())
    core.handle_detached(b"a", agent())
    core.handle_attached(b"b", agent("a2"))
    assert choose(core, agent("a2")) == "c1"


def test_late_detachment_of_a_superseded_node_changes_nothing() -> None:
    core = with_connectors("c1")
    core.handle_attached(attach_id(connector(), 1), connector())
    assert core.services() == [], "offers belong to the attachment"
    assert core.offer(attach_id(connector(), 1), "web", TCP) is None
    core.handle_detached(attach_id(connector(), 0), connector())
    assert choose(core) == "c1"
    core.handle_detached(attach_id(connector(), 1), connector())
    assert choose(core) == "no_connector_available"


def test_choices_remembered_per_agent_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_REMEMBERED_CHOICES", 2)
    core = with_connectors("c1")
    for service in ("s1", "s2", "s3"):
        core.offer(attach_id(connector()), service, TCP)
    core.handle_attached(b"a", agent())
    for service in ("s1", "s2", "s3", "s3"):
        assert choose(core, service=service) == "c1"
    assert list(core._agents["a1"].choices) == ["s2", "s3"]
    assert core._loads == {"c1": 2}


def test_default_bound_is_that_of_the_settings() -> None:
    from ztna.settings import IntermediateSettings

    limits = IntermediateSettings.model_fields["limits"].default
    assert limits.services_per_connector == registry.MAX_SERVICES_PER_CONNECTOR


def test_rule_that_cannot_be_meant_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"offers\[0\]"):
        make(offers=(("c1",), ("web*",)))


@given(st.lists(st.tuples(st.sampled_from("aowdc"), st.integers(0, 3), st.integers(0, 2)), max_size=60))
def test_what_is_registered_is_exactly_what_attached_connectors_offered(
    steps: list[tuple[str, int, int]],
) -> None:
    core = make()
    model: dict[str, set[str]] = {}
    turns: dict[str, int] = {}
    for kind, who, what in steps:
        name, service = f"c{who}", f"s{what}"
        party = connector(name)
        here = attach_id(party, turns.get(name, 0))
        match kind:
            case "a":
                turns[name] = turns.get(name, 0) + 1
                core.handle_attached(attach_id(party, turns[name]), party)
                model[name] = set()
            case "o":
                assert (core.offer(here, service, TCP) is None) == (name in model)
                if name in model:
                    model[name].add(service)
            case "w":
                assert core.withdraw(here, service) == (service in model.get(name, set()))
                model.get(name, set()).discard(service)
            case "d":
                core.handle_detached(here, party)
                model.pop(name, None)
            case _:
                offering = {each for each, services in model.items() if service in services}
                assert (choose(core, service=service) in offering) == bool(offering)
    found = {each.service: set(each.connectors) for each in core.services()}
    expected: dict[str, set[str]] = {}
    for name, services in model.items():
        for service in services:
            expected.setdefault(service, set()).add(name)
    assert found == expected


def test_other_rules_take_registrations_back_and_let_denied_ones_in() -> None:
    core = make(offers=(("*",), ("web",)))
    core.handle_attached(b"C", Party(Role.CONNECTOR, "c1", b"c" * 32))
    assert core.offer(b"C", "web", TCP) is None
    assert core.offer(b"C", "ssh", TCP) is not None
    verdicts = {v.service: v.refused for v in core.handle_rules(rules(offers=(("*",), ("ssh",))))}
    assert verdicts["ssh"] is None
    assert verdicts["web"] is not None
    assert verdicts["web"].code is Code.ACCESS_DENIED
    assert [line.service for line in core.services()] == ["ssh"]
    assert core.handle_rules(rules(offers=(("*",), ("ssh",)))) == []


def test_service_that_was_withdrawn_does_not_come_back_with_other_rules() -> None:
    core = make(offers=(("*",), ("web",)))
    core.handle_attached(b"C", Party(Role.CONNECTOR, "c1", b"c" * 32))
    assert core.offer(b"C", "ssh", TCP) is not None
    core.withdraw(b"C", "ssh")
    assert core.handle_rules(rules()) == []
