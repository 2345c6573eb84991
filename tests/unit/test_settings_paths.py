"""Keys of the direct path: their bounds, and what their values become."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ztna.address import TransportAddress
from ztna.path.manager import Policy
from ztna.settings import AgentSettings, ConnectorSettings, DaemonKind
from ztna.settings.live import is_live
from ztna.settings.values import PathPolicy

BASE = {
    "node": {"id": "n", "cert": "c", "key": "k", "ca": "a"},
    "intermediates": [{"id": "i", "quic": "h:1", "grpc": "h:2"}],
}

BOUNDS = [
    ("ice", "pacing_ms", 5, 500, 1),
    ("ice", "check_limit_s", 0.5, 60, 0.01),
    ("keepalive", "interval_s", 1, 15, 0.01),
    ("keepalive", "timeout_s", 0.5, 10, 0.01),
    ("keepalive", "max_missed", 1, 10, 1),
    ("path", "cooldown_s", 1, 600, 0.01),
]


def settings(section: str, **values: Any) -> AgentSettings:
    return AgentSettings.model_validate({**BASE, section: values})


@pytest.mark.parametrize(("section", "key", "low", "high", "step"), BOUNDS)
def test_bounds_are_allowed_and_nothing_beyond_them(
    section: str, key: str, low: float, high: float, step: float
) -> None:
    for value in (low, high):
        assert getattr(getattr(settings(section, **{key: value}), section), key) == value
    for value in (low - step, high + step):
        with pytest.raises(ValidationError, match=key):
            settings(section, **{key: value})


@pytest.mark.parametrize("policy", PathPolicy)
def test_every_policy_of_the_configuration_is_one_of_the_path_manager(policy: PathPolicy) -> None:
    assert settings("path", policy=policy.value).path.policy is policy
    assert Policy(policy) in Policy
    assert {each.value for each in Policy} == {each.value for each in PathPolicy}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.5", TransportAddress("203.0.113.5", 0)),
        ("203.0.113.5:4500", TransportAddress("203.0.113.5", 4500)),
        ("2001:db8::1", TransportAddress("2001:db8::1", 0)),
        ("[2001:db8::1]", TransportAddress("2001:db8::1", 0)),
        ("[2001:db8::1]:4500", TransportAddress("2001:db8::1", 4500)),
    ],
)
def test_advertised_address_may_leave_out_its_port(text: str, address: TransportAddress) -> None:
    (found,) = settings("ice", advertise=[text]).ice.advertise
    assert found == address
    assert settings("ice", advertise=[found]).ice.advertise == (found,)


@pytest.mark.parametrize("text", ["relay.example.org", "203.0.113.5:0", "203.0.113.5:70000", "", 7])
def test_advertised_address_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(ValidationError, match="advertise"):
        settings("ice", advertise=[text])


def test_address_advertised_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="listed twice"):
        settings("ice", advertise=["203.0.113.5", "203.0.113.5"])


def test_defaults_are_the_same_at_both_ends() -> None:
    agent, connector = AgentSettings.model_validate(BASE), ConnectorSettings.model_validate(BASE)
    assert (agent.ice, agent.keepalive, agent.path) == (connector.ice, connector.keepalive, connector.path)
    assert (agent.ice.loopback, agent.ice.advertise) == (False, ())


@pytest.mark.parametrize("key", ["ice.pacing_ms", "keepalive.interval_s", "path.policy"])
def test_paths_of_running_sessions_change_with_a_restart_only(key: str) -> None:
    assert not is_live(DaemonKind.AGENT, key)
    assert not is_live(DaemonKind.CONNECTOR, key)
