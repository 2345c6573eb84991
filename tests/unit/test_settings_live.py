from __future__ import annotations

from pathlib import Path

import pytest

from ztna.settings import MODELS, AgentSettings, DaemonKind, IntermediateSettings
from ztna.settings.keys import describe_keys
from ztna.settings.live import LIVE_KEYS, is_live, take_over
from ztna.settings.loader import load

AGENT = """
node: {id: agent-1, cert: agent-1.crt, key: agent-1.key, ca: ca.crt}
intermediates: [{id: intermediate-1, quic: "127.0.0.1:4433", grpc: "127.0.0.1:4434"}]
services:
  - {id: web, protocol: tcp, listen: "127.0.0.1:8080"}
"""


def agent(tmp_path: Path, text: str = AGENT) -> AgentSettings:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return load(AgentSettings, path, {}).settings


def test_same_configuration_changes_nothing(tmp_path: Path) -> None:
    settings = agent(tmp_path)
    change = take_over(settings, agent(tmp_path))
    assert change.settings == settings
    assert change.applied == ()
    assert change.needs_restart == ()


def test_live_keys_are_taken_over_and_the_others_are_named(tmp_path: Path) -> None:
    former = agent(tmp_path)
    fresh = agent(
        tmp_path,
        AGENT.replace("8080", "8081").replace("agent-1.crt", "new.crt")
        + '  - {id: ssh, protocol: tcp, listen: "127.0.0.1:2222"}\n'
        + "log: {level: debug, redact: true}\nlimits: {flows: 7}\n",
    )
    change = take_over(former, fresh)
    assert change.applied == ("log.level", "node.cert", "services")
    assert change.needs_restart == ("limits.flows", "log.redact")
    settings = change.settings
    assert settings.services == fresh.services
    assert settings.node.cert == fresh.node.cert
    assert settings.log.level is fresh.log.level
    assert settings.log.redact is former.log.redact
    assert settings.limits == former.limits


def test_last_service_may_be_removed(tmp_path: Path) -> None:
    fresh = agent(tmp_path, AGENT.partition("services:")[0])
    change = take_over(agent(tmp_path), fresh)
    assert change.applied == ("services",)
    assert change.settings.services == ()


def test_policy_is_one_key_however_many_rules_change(tmp_path: Path) -> None:
    path = tmp_path / "intermediate.yaml"

    def read(policy: str) -> IntermediateSettings:
        path.write_text(f"node: {{id: i, cert: i.crt, key: i.key, ca: ca.crt}}\n{policy}")
        return load(IntermediateSettings, path, {}).settings

    former = read("policy: [{agents: [a], services: [x]}]")
    change = take_over(former, read("policy: [{agents: [b], services: [x]}, {agents: [a], services: [y]}]"))
    assert change.applied == ("policy",)
    assert [rule.agents for rule in change.settings.policy] == [("b",), ("a",)]


@pytest.mark.parametrize("kind", DaemonKind)
def test_every_live_key_is_a_key(kind: DaemonKind) -> None:
    keys = {key.path for key in describe_keys(MODELS[kind])}
    assert set(LIVE_KEYS[kind]) <= keys


def test_key_of_an_element_is_as_live_as_its_list() -> None:
    assert is_live(DaemonKind.AGENT, "services.<n>.listen")
    assert not is_live(DaemonKind.AGENT, "session.idle_timeout_s")
