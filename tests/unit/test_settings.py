from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from tools import render_configuration
from ztna.address import TransportAddress
from ztna.errors import ConfigError
from ztna.settings import (
    MODELS,
    AgentSettings,
    ConnectMode,
    ConnectorSettings,
    DaemonKind,
    DaemonSettings,
    HostPort,
    IntermediateSettings,
    LogLevel,
    ServiceProtocol,
    default_control_socket,
)
from ztna.settings.document import MAX_DEPTH, MAX_ELEMENTS, MAX_FILE_BYTES, parse_document, parse_value
from ztna.settings.keys import describe_keys, effective_values
from ztna.settings.loader import MAX_SHOWN_CHARACTERS, deduce_kind, load, load_any
from ztna.settings.values import MAX_SOCKET_PATH_BYTES

CONFIG = Path(__file__).resolve().parents[2] / "config"

NODE = "node: {id: node-1, cert: node.crt, key: node.key, ca: ca.crt}\n"
INTERMEDIATES = 'intermediates: [{id: intermediate-1, quic: "relay.example:4433", grpc: "192.0.2.1:4434"}]\n'
PEER = NODE + INTERMEDIATES


def write(directory: Path, text: str | bytes, name: str = "ztna.yaml") -> Path:
    path = directory / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def faults(
    directory: Path,
    text: str | bytes,
    model: type[DaemonSettings] = AgentSettings,
    environ: dict[str, str] | None = None,
    overrides: dict[str, str] | None = None,
) -> list[str]:
    path = write(directory, text)
    with pytest.raises(ConfigError) as caught:
        load(model, path, environ or {}, overrides)
    return str(caught.value).replace(str(path), "FILE").split("\n")


class TestModels:
    @pytest.mark.parametrize("kind", list(DaemonKind))
    def test_sample_loads_and_tells_its_kind(self, kind: DaemonKind) -> None:
        loaded = load_any(CONFIG / f"{kind}.yaml", {"HOME": "/home/x"})
        assert type(loaded.settings) is MODELS[kind]
        assert loaded.settings.node.id == f"{kind}-1"
        assert loaded.settings.node.ca == CONFIG / "pki" / "ca.crt"

    def test_samples_work_together_on_one_machine(self) -> None:
        intermediate = load(IntermediateSettings, CONFIG / "intermediate.yaml", {}).settings
        connector = load(ConnectorSettings, CONFIG / "connector.yaml", {}).settings
        agent = load(AgentSettings, CONFIG / "agent.yaml", {}).settings
        for peer in (connector, agent):
            assert [each.id for each in peer.intermediates] == [intermediate.node.id]
            assert peer.intermediates[0].quic.port == intermediate.quic.listen[0].port
            assert peer.intermediates[0].grpc.port == intermediate.grpc.listen.port
        provided = {(service.id, service.protocol) for service in connector.services}
        assert {(service.id, service.protocol) for service in agent.services} == provided
        assert intermediate.policy[0].agents == (agent.node.id,)
        assert intermediate.offers[0].connectors == (connector.node.id,)
        assert set(intermediate.policy[0].services) == {name for name, _ in provided}
        assert len({each.metrics.listen for each in (intermediate, connector, agent)}) == 3

    @pytest.mark.parametrize("kind", list(DaemonKind))
    def test_comments_of_a_sample_show_real_keys(self, kind: DaemonKind) -> None:
        text = (CONFIG / f"{kind}.yaml").read_text(encoding="utf-8")
        shown = re.sub(r"(?m)^( *)# (?=( {2})?[a-z_]+:( |$))", r"\1", text)
        assert shown != text
        document = parse_document(shown)
        assert document.problems == []
        MODELS[kind].model_validate(document.data)

    def test_defaults_of_the_contract(self) -> None:
        node = {"id": "n", "cert": "c", "key": "k", "ca": "a"}
        via = [{"id": "i", "quic": "h:1", "grpc": "h:2"}]
        intermediate = IntermediateSettings.model_validate({"node": node})
        connector = ConnectorSettings.model_validate({"node": node, "intermediates": via})
        agent = AgentSettings.model_validate({"node": node, "intermediates": via})
        assert [str(a) for a in intermediate.quic.listen] == ["0.0.0.0:4433", "[::]:4433"]
        assert intermediate.bind_addresses == intermediate.quic.listen
        assert str(intermediate.grpc.listen) == "[::]:4434"
        assert [str(each.metrics.listen) for each in (intermediate, connector, agent)] == [
            "127.0.0.1:9090",
            "127.0.0.1:9091",
            "127.0.0.1:9092",
        ]
        assert [str(a) for a in agent.bind_addresses] == ["0.0.0.0:0", "[::]:0"]
        assert (intermediate.policy, intermediate.offers) == ((), ())
        assert intermediate.stun.alternate_port == 3479
        assert intermediate.access.grant_lifetime_s == 600
        assert (connector.relay.queue_packets, connector.relay.queue_ms) == (64, 100)
        assert connector.access.max_offline_s == 3600
        assert connector.session.idle_timeout_s == 300
        limits = connector.limits
        assert (limits.streams_per_agent, limits.flows_per_agent, limits.opens_per_second) == (1024, 256, 200)
        assert (limits.connect_timeout_s, limits.flow_idle_s) == (5, 120)
        assert agent.connect is ConnectMode.LAZY

    def test_settings_are_immutable(self) -> None:
        settings = load(AgentSettings, CONFIG / "agent.yaml", {}).settings
        with pytest.raises(ValidationError, match="frozen"):
            settings.log.level = LogLevel.DEBUG

    @pytest.mark.parametrize("kind", list(DaemonKind))
    def test_every_key_is_explained_in_one_sentence(self, kind: DaemonKind) -> None:
        for key in describe_keys(MODELS[kind]):
            assert key.description.endswith("."), key.path
            assert key.description[0].isupper(), key.path

    @pytest.mark.parametrize("kind", list(DaemonKind))
    def test_every_default_is_valid(self, kind: DaemonKind) -> None:
        for key in describe_keys(MODELS[kind]):
            if key.is_required or key.default is None or "<n>" in key.path:
                continue
            data: dict[str, Any] = {"node": {"id": "n", "cert": "c", "key": "k", "ca": "a"}}
            if kind is not DaemonKind.INTERMEDIATE:
                data["intermediates"] = [{"id": "i", "quic": "h:1", "grpc": "h:2"}]
            inner = data
            *sections, name = key.path.split(".")
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = key.default
            values = dict(effective_values(MODELS[kind].model_validate(data)))
            assert values[tuple(key.path.split("."))] == key.default

    def test_udp_bind_of_an_intermediate_replaces_its_listen_addresses(self, tmp_path: Path) -> None:
        path = write(tmp_path, NODE + 'quic: {listen: ["192.0.2.1:443"]}\nudp: {bind: ["127.0.0.1:4433"]}\n')
        settings = load(IntermediateSettings, path, {}).settings
        assert settings.bind_addresses == (TransportAddress("127.0.0.1", 4433),)

    def test_reference_is_current(self) -> None:
        assert render_configuration.TARGET.read_text(encoding="utf-8") == render_configuration.render()

    def test_secret_is_masked_where_values_are_shown(self) -> None:
        class Login(BaseModel):
            password: SecretStr

        shown = dict(effective_values(Login(password=SecretStr("hunter2"))))
        assert shown == {("password",): "**********"}


class TestValues:
    @pytest.mark.parametrize(
        ("text", "expected", "literal"),
        [
            pytest.param("relay.example:443", HostPort("relay.example", 443), None, id="name"),
            pytest.param(
                "192.0.2.1:1", HostPort("192.0.2.1", 1), TransportAddress("192.0.2.1", 1), id="ipv4"
            ),
            pytest.param(
                "[2001:DB8::1]:2", HostPort("2001:DB8::1", 2), TransportAddress("2001:db8::1", 2), id="ipv6"
            ),
        ],
    )
    def test_dial_address(self, text: str, expected: HostPort, literal: TransportAddress | None) -> None:
        service = {"id": "s", "protocol": "tcp", "backend": text}
        data = {
            "node": {"id": "n", "cert": "c", "key": "k", "ca": "a"},
            "intermediates": [{"id": "i", "quic": "h:1", "grpc": "h:2"}],
            "services": [service],
        }
        backend = ConnectorSettings.model_validate(data).services[0].backend
        assert backend == expected
        assert backend.literal == literal
        assert str(backend) == text

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            pytest.param(
                "services: [{id: UP, protocol: tcp, listen: '127.0.0.1:1'}]",
                "services.0.id: must be a DNS label",
                id="id-upper-case",
            ),
            pytest.param(
                f"services: [{{id: {'a' * 64}, protocol: tcp, listen: '127.0.0.1:1'}}]",
                "services.0.id: must be a DNS label",
                id="id-too-long",
            ),
            pytest.param(
                "services: [{id: -a, protocol: tcp, listen: '127.0.0.1:1'}]",
                "services.0.id: must be a DNS label",
                id="id-hyphen-first",
            ),
            pytest.param(
                "services: [{id: 7, protocol: tcp, listen: '127.0.0.1:1'}]",
                "services.0.id: must be text",
                id="id-number",
            ),
            pytest.param(
                "services: [{id: a, protocol: sctp, listen: '127.0.0.1:1'}]",
                "services.0.protocol: must be 'tcp' or 'udp'",
                id="protocol",
            ),
            pytest.param(
                "services: [{id: a, protocol: tcp, listen: 'localhost:1'}]",
                "services.0.listen: must be an IP address",
                id="listen-name",
            ),
            pytest.param(
                "services: [{id: a, protocol: tcp, listen: '::1:1'}]",
                "write an IPv6 address in brackets",
                id="listen-bare-ipv6",
            ),
            pytest.param(
                "services: [{id: a, protocol: tcp, listen: 8080}]",
                "services.0.listen: must be text, host:port",
                id="listen-port-alone",
            ),
            pytest.param(
                "services: [{id: a, protocol: tcp, listen: '127.0.0.1:1', connectors: []}]",
                "services.0.connectors: must not be empty",
                id="pins-nobody",
            ),
            pytest.param("services: {id: a}", "services: must be a list", id="mapping-for-list"),
            pytest.param(
                "udp: {bind: '127.0.0.1:0'}",
                'udp.bind: must be a list, such as ["127.0.0.1:0"] (got "127.0.0.1:0")',
                id="text-for-list",
            ),
            pytest.param(
                "udp: {bind: " + "a" * 70 + "}", 'udp.bind: must be a list (got "aaa', id="long-text-for-list"
            ),
            pytest.param("services: [a]", "services.0: must be a section of keys", id="text-for-section"),
            pytest.param(
                "log: {redact: 1}", "log.redact: must be true or false (got 1)", id="number-for-boolean"
            ),
            pytest.param(
                "log: {redact: yes}", 'log.redact: must be true or false (got "yes")', id="yes-for-boolean"
            ),
            pytest.param(
                "relay: {queue_ms: 1.5}",
                "relay.queue_ms: must be a whole number (got 1.5)",
                id="fraction-for-integer",
            ),
            pytest.param(
                "relay: {queue_ms: true}",
                "relay.queue_ms: must be a whole number (got true)",
                id="boolean-for-integer",
            ),
            pytest.param(
                "relay: {queue_ms: 0}",
                "relay.queue_ms: must be greater than or equal to 1 (got 0)",
                id="below-bound",
            ),
            pytest.param(
                "session: {idle_timeout_s: 1e9}",
                "session.idle_timeout_s: must be less than or equal to 86400",
                id="above-bound",
            ),
            pytest.param("udp: {bind: []}", "udp.bind: must not be empty", id="no-socket"),
            pytest.param(
                "udp: {bind: ['127.0.0.1:0', '127.0.0.2:0']}",
                "udp.bind: one address per IP version",
                id="two-ipv4-sockets",
            ),
            pytest.param(
                "control: {socket: /" + "s" * MAX_SOCKET_PATH_BYTES + "}",
                f"control.socket: the path of a unix socket has at most {MAX_SOCKET_PATH_BYTES}",
                id="socket-path-too-long",
            ),
            pytest.param(
                "kind: connector\nlisten: here",
                'kind: must be agent for `ztna agent` (got "connector")',
                id="file-of-another-daemon-whatever-else-is-in-it",
            ),
        ],
    )
    def test_wrong_value_is_named(self, tmp_path: Path, settings: str, complaint: str) -> None:
        found = faults(tmp_path, PEER + settings)
        assert len(found) == 1
        assert found[0].startswith("FILE:3: ")
        assert complaint in found[0]

    @pytest.mark.parametrize(
        ("quic", "complaint"),
        [
            pytest.param("relay.example:0", "port 0 cannot be dialled", id="port-zero"),
            pytest.param("relay example:1", "neither an IP address nor a host name", id="space"),
            pytest.param("relay.example", "is not of the form host:port", id="no-port"),
            pytest.param("relay.example:70000", "not a number within 0-65535", id="port-too-large"),
        ],
    )
    def test_wrong_dial_address_is_named(self, tmp_path: Path, quic: str, complaint: str) -> None:
        found = faults(tmp_path, NODE + f'intermediates: [{{id: i, quic: "{quic}", grpc: "h:1"}}]')
        assert len(found) == 1
        assert found[0].startswith("FILE:2: intermediates.0.quic: ")
        assert complaint in found[0]

    @pytest.mark.parametrize(
        ("text", "model", "complaint"),
        [
            pytest.param(
                PEER + "services: [&a {id: a, protocol: tcp, backend: 'h:1'}, *a]",
                ConnectorSettings,
                "FILE:3: services: service 'a' is listed twice",
                id="connector-service",
            ),
            pytest.param(
                PEER + "services: [&a {id: a, protocol: tcp, listen: '127.0.0.1:1'}, *a]",
                AgentSettings,
                "FILE:3: services: service 'a' is listed twice",
                id="agent-service",
            ),
            pytest.param(
                PEER
                + "services: [{id: a, protocol: tcp, listen: '127.0.0.1:1'},\n"
                + "  {id: b, protocol: tcp, listen: '127.0.0.1:1'}]",
                AgentSettings,
                "FILE:3: services: two services listen on tcp 127.0.0.1:1",
                id="listen-address",
            ),
            pytest.param(
                NODE + "intermediates: [&a {id: i, quic: 'h:1', grpc: 'h:2'}, *a]",
                AgentSettings,
                "FILE:2: intermediates: intermediate 'i' is listed twice",
                id="intermediate",
            ),
            pytest.param(
                NODE + "quic: {listen: ['[::1]:1', '[::1]:1']}",
                IntermediateSettings,
                "FILE:2: quic.listen: [::1]:1 is listed twice",
                id="quic-listen",
            ),
            pytest.param(
                NODE + "stun: {alternate_port: 4433}",
                IntermediateSettings,
                "FILE: stun.alternate_port 4433 is a port of quic.listen already",
                id="stun-port",
            ),
            pytest.param(
                NODE + "quic: {external_address: '192.0.2.1:3479'}",
                IntermediateSettings,
                "FILE: stun.alternate_port 3479 is the port of quic.external_address already",
                id="external-port",
            ),
            pytest.param(
                NODE + INTERMEDIATES + "signaling: {transport: quic}\nrelay: {carrier: grpc}",
                AgentSettings,
                "FILE: signaling.transport quic needs the QUIC connection that relay.carrier grpc leaves out",
                id="carriers",
            ),
        ],
    )
    def test_duplicates_are_errors(
        self, tmp_path: Path, text: str, model: type[DaemonSettings], complaint: str
    ) -> None:
        found = faults(tmp_path, text, model)
        assert len(found) == 1
        assert found[0].startswith(complaint)

    def test_one_port_may_serve_tcp_and_udp_and_port_zero_any_number(self, tmp_path: Path) -> None:
        services = [
            {"id": f"s{index}", "protocol": protocol, "listen": f"127.0.0.1:{port}"}
            for index, (protocol, port) in enumerate([("tcp", 53), ("udp", 53), ("tcp", 0), ("tcp", 0)])
        ]
        path = write(tmp_path, PEER + yaml.safe_dump({"services": services}))
        loaded = load(AgentSettings, path, {}).settings.services
        assert [service.protocol for service in loaded[:2]] == [ServiceProtocol.TCP, ServiceProtocol.UDP]

    @pytest.mark.parametrize("off", ['""', "", "null"])
    def test_empty_listen_address_turns_metrics_off(self, tmp_path: Path, off: str) -> None:
        path = write(tmp_path, PEER + f"metrics:\n  listen: {off}\ncontrol:\n  socket: {off}\n")
        settings = load(AgentSettings, path, {}).settings
        assert settings.metrics.listen is None
        assert settings.control.socket is None

    @pytest.mark.parametrize(
        ("environ", "is_root", "expected"),
        [
            ({"XDG_RUNTIME_DIR": "/run/user/1000", "HOME": "/h"}, True, "/run/ztna/agent-a.sock"),
            ({"XDG_RUNTIME_DIR": "/run/user/1000", "HOME": "/h"}, False, "/run/user/1000/ztna/agent-a.sock"),
            ({"HOME": "/h"}, False, "/h/.local/state/ztna/agent-a.sock"),
        ],
        ids=["root", "login-session", "no-session"],
    )
    def test_default_control_socket(self, environ: dict[str, str], is_root: bool, expected: str) -> None:
        socket = default_control_socket(DaemonKind.AGENT, "a", environ, is_root=is_root)
        assert str(socket) == expected


class TestLayers:
    def test_later_layer_wins_and_origin_tells_which(self, tmp_path: Path) -> None:
        path = write(tmp_path, PEER + "log:\n  level: error\n  format: json\nrelay: {queue_ms: 50}\n")
        environ = {
            "ZTNA_LOG__LEVEL": "warning",
            "ZTNA_RELAY__QUEUE_MS": "60",
            "ZTNA_CONNECT": "eager",
            "HOME": "/h",
        }
        loaded = load(AgentSettings, path, environ, {"log.level": "debug"})
        assert loaded.settings.log.level is LogLevel.DEBUG
        assert loaded.settings.relay.queue_ms == 60
        assert loaded.settings.connect is ConnectMode.EAGER
        assert loaded.origins["log.level"] == "flag"
        assert loaded.origins["log.format"] == f"{path}:5"
        assert loaded.origins["relay.queue_ms"] == "env ZTNA_RELAY__QUEUE_MS"
        assert loaded.origins["relay.queue_packets"] == "default"
        assert loaded.origins["connect"] == "env ZTNA_CONNECT"
        assert loaded.origins["node.id"] == f"{path}:1"
        assert loaded.origins["control.socket"] == "default"

    def test_every_effective_key_has_an_origin(self) -> None:
        loaded = load(AgentSettings, CONFIG / "agent.yaml", {})
        assert list(loaded.origins) == [".".join(key) for key, _ in effective_values(loaded.settings)]

    def test_environment_reaches_list_elements_and_replaces_lists(self, tmp_path: Path) -> None:
        environ = {
            "ZTNA_INTERMEDIATES__0__QUIC": "[2001:db8::1]:443",
            "ZTNA_UDP__BIND": '["127.0.0.1:0"]',
            "ZTNA_SERVICES": "[{id: a, protocol: tcp, listen: '127.0.0.1:0'}]",
            "ZTNA_SERVICES__0__ID": "b",
            "ZTNA_METRICS__LISTEN": "",
            "ZTNA_SIGNALING": "{transport: quic}",
        }
        loaded = load(AgentSettings, write(tmp_path, PEER), environ)
        assert loaded.settings.intermediates[0].quic == HostPort("2001:db8::1", 443)
        assert loaded.settings.bind_addresses == (TransportAddress("127.0.0.1", 0),)
        assert loaded.settings.services[0].id == "b"
        assert loaded.settings.metrics.listen is None
        assert loaded.settings.signaling.transport == "quic"
        assert loaded.origins["services.0.id"] == "env ZTNA_SERVICES__0__ID"
        assert loaded.origins["services.0.listen"] == "env ZTNA_SERVICES"
        assert loaded.origins["signaling.transport"] == "env ZTNA_SIGNALING"

    def test_whole_list_element_can_be_replaced_and_scalar_in_list_set(self, tmp_path: Path) -> None:
        path = write(tmp_path, PEER + 'udp: {bind: ["127.0.0.1:0"]}\n')
        loaded = load(AgentSettings, path, {}, {"udp.bind.0": "127.0.0.2:0"})
        assert loaded.settings.bind_addresses == (TransportAddress("127.0.0.2", 0),)

    @pytest.mark.parametrize(
        ("overrides", "complaint"),
        [
            ({"services.7.id": "x"}, "flag: services.7: there is nothing to set a key in"),
            ({"udp.bind.5": "127.0.0.1:0"}, "flag: udp.bind.5: the list has 1 elements"),
            ({"node.id.x": "y"}, "flag: node.id: there is nothing to set a key in"),
            ({"relay.queue_ms": "many"}, 'flag: relay.queue_ms: must be a whole number (got "many")'),
            ({"services": "web"}, 'flag: services: must be a list (got "web")'),
            (
                {"udp.bind": "127.0.0.1:0"},
                """flag: udp.bind: must be a list: --set 'udp.bind=["127.0.0.1:0"]' (got "127.0.0.1:0")""",
            ),
            (
                {"udp.bind": "127.0.0.1:0, [::1]:0"},
                (
                    """flag: udp.bind: must be a list: --set 'udp.bind=["127.0.0.1:0", "[::1]:0"]' """
                    '(got "127.0.0.1:0, [::1]:0")'
                ),
            ),
        ],
        ids=[
            "no-such-section",
            "no-such-element",
            "below-a-value",
            "wrong-type",
            "text-for-a-list-of-sections",
            "text-for-a-list",
            "text-with-commas-for-a-list",
        ],
    )
    def test_flag_that_fits_nowhere_is_an_error(
        self, tmp_path: Path, overrides: dict[str, str], complaint: str
    ) -> None:
        text = PEER + 'udp: {bind: ["127.0.0.1:0"]}\nservices: []\n'
        assert faults(tmp_path, text, overrides=overrides) == [complaint]

    def test_variables_that_an_orchestrator_sets_are_ignored(self, tmp_path: Path) -> None:
        environ = {"ZTNA_PORT": "tcp://192.0.2.1:80", "ZTNA_SERVICE_HOST": "192.0.2.1", "OTHER__KEY": "1"}
        load(AgentSettings, write(tmp_path, PEER), environ)

    def test_relative_paths_start_at_the_file_and_tilde_at_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        overrides = {"node.key": "~/node.key", "node.crl": "other/crl.pem", "node.ca": "/etc/ca.crt"}
        node = load(AgentSettings, write(tmp_path, PEER), {}, overrides).settings.node
        assert node.cert == tmp_path / "node.crt"
        assert node.key == Path("/home/someone/node.key")
        assert node.crl == tmp_path / "other" / "crl.pem"
        assert node.ca == Path("/etc/ca.crt")

    def test_section_without_keys_means_its_defaults(self, tmp_path: Path) -> None:
        path = write(tmp_path, PEER + "metrics:\nlog:\nservices:\n")
        settings = load(AgentSettings, path, {"ZTNA_LOG__LEVEL": "debug"}).settings
        assert settings.log.level is LogLevel.DEBUG
        assert settings.services == ()


class TestFaults:
    def test_every_fault_is_reported_with_its_place(self, tmp_path: Path) -> None:
        text = "node:\n  id: a\n  cret: x\n  ca: a\n  ca: b\n  key: k\nqueue_ms: 5\nlog: {level: loud}\n"
        found = faults(tmp_path, text + INTERMEDIATES, environ={"ZTNA_LOG__LEVL": "info"})
        assert sorted(found) == [
            "FILE:1: node.cert: is required",
            'FILE:3: node.cret: unknown key; did you mean node.cert? (value "x")',
            "FILE:5: node.ca: duplicate key, first set in line 4",
            "FILE:7: queue_ms: unknown key; did you mean relay.queue_ms? (value 5)",
            "FILE:8: log.level: must be 'debug', 'info', 'warning' or 'error' (got \"loud\")",
            'env ZTNA_LOG__LEVL: log.levl: unknown key; did you mean log.level? (value "info")',
        ]

    def test_faults_within_a_list_do_not_make_it_empty(self, tmp_path: Path) -> None:
        found = faults(tmp_path, NODE + 'intermediates: [{id: i, quic: x, grpc: "h:1"}]')
        assert len(found) == 1

    def test_unlike_key_gets_no_suggestion(self, tmp_path: Path) -> None:
        assert faults(tmp_path, PEER + "zzzz: 1\n") == ["FILE:3: zzzz: unknown key (value 1)"]

    @pytest.mark.parametrize("key", ["services.x.id", "intermediates.0.0.id", "connect.a.b"])
    def test_unknown_key_at_any_depth_is_an_error_not_a_crash(self, tmp_path: Path, key: str) -> None:
        text = PEER + "services: [{id: a, protocol: tcp, listen: '127.0.0.1:1', x: {y: {z: 1}}}]\n"
        assert len(faults(tmp_path, text, overrides={key: "1"})) >= 2

    def test_long_value_is_cut(self, tmp_path: Path) -> None:
        (found,) = faults(tmp_path, PEER + f"log: {{level: {'x' * 500}}}")
        assert found.endswith("…)")
        assert "x" * MAX_SHOWN_CHARACTERS not in found

    @pytest.mark.parametrize("key", ["key", "keey"])
    def test_private_key_pasted_into_the_file_is_never_shown(self, tmp_path: Path, key: str) -> None:
        pem = '"-----BEGIN PRIVATE KEY-----\\nMIGHAgEA\\n-----END PRIVATE KEY-----"'
        text = f"node: {{id: a, cert: c, ca: a, {key}: {pem}}}\n{INTERMEDIATES}"
        found = "\n".join(faults(tmp_path, text))
        assert "MIGHAgEA" not in found
        assert "a private key, not shown" in found

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            pytest.param(b"", "FILE: is empty", id="empty"),
            pytest.param(b"# nothing\n", "FILE: is empty", id="comment-only"),
            pytest.param(b"- a\n", "FILE: must hold keys and values at the top, such as `node:`", id="list"),
            pytest.param(b"a: 1\nb: \xff\n", "FILE:2: not UTF-8 text", id="latin-1"),
            pytest.param(b"a: [1\nb: 2\n", "FILE: line 2: not valid YAML: ", id="open-bracket"),
            pytest.param(b"a: 1\n---\nb: 1\n", "FILE: line 2: not valid YAML: ", id="two-documents"),
            pytest.param(b"a: \x07\n", "FILE: not valid YAML: ", id="control-character"),
            pytest.param(b'a: "\\U00110000"\n', "FILE: not valid YAML: ", id="no-character"),
            pytest.param(b'a: "\\UFFFFFFFF"\n', "FILE: not valid YAML: ", id="no-character-at-all"),
            pytest.param(b"%YAML 1." + b"9" * 5000 + b"\n---\n", "FILE: not valid YAML: ", id="huge-version"),
            pytest.param(b"a: !!python/object:os.system x\n", "FILE: line 1: the tag ", id="scalar-tag"),
            pytest.param(b"a: !!set {x}\n", "FILE: line 1: the tag ", id="mapping-tag"),
            pytest.param(b"a: !!binary aGk=\n", "FILE: line 1: the tag ", id="binary"),
            pytest.param(b"? [a]\n: 1\n", "FILE: line 1: a key must be plain text", id="list-as-key"),
            pytest.param(b"a: &x [*x]\n", "FILE: line 1: ", id="alias-within-itself"),
            pytest.param(b"a: *x\n", "FILE: line 1: not valid YAML: ", id="unknown-alias"),
            pytest.param(
                b"#" * (MAX_FILE_BYTES + 1), f"FILE: larger than {MAX_FILE_BYTES} bytes", id="too-large"
            ),
            pytest.param(
                b"a: " + b"[" * MAX_DEPTH, "FILE: line 1: not valid YAML: nested deeper", id="too-deep"
            ),
        ],
    )
    def test_unusable_file_is_one_clear_line(self, tmp_path: Path, content: bytes, complaint: str) -> None:
        (found,) = faults(tmp_path, content)
        assert found.startswith(complaint)

    def test_alias_bomb_is_refused(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
        lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
        (found,) = faults(tmp_path, "\n".join(lines))
        assert f"more than {MAX_ELEMENTS} elements" in found

    def test_missing_file_and_directory_are_clear(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
            load(AgentSettings, tmp_path / "absent.yaml", {})
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            load(AgentSettings, tmp_path, {})

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable_file_is_clear(self, tmp_path: Path) -> None:
        path = write(tmp_path, PEER)
        path.chmod(0)
        with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
            load(AgentSettings, path, {})


# PyYAML writes YAML 1.1, in which `0E0` is text and stands unquoted; we read it as the number it looks like.
TEXTS = st.text(max_size=20).filter(lambda text: not re.fullmatch(r"[-+.0-9eE_]+", text))


class TestDocument:
    def test_byte_order_mark_is_skipped(self, tmp_path: Path) -> None:
        load(AgentSettings, write(tmp_path, b"\xef\xbb\xbf" + PEER.encode()), {})

    def test_lists_may_be_shared_by_an_alias(self) -> None:
        assert parse_document("a: &x [1]\nb: *x\n").data == {"a": [1], "b": [1]}

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("no", "no"),
            ("on", "on"),
            ("22:30", "22:30"),
            ("2024-01-01", "2024-01-01"),
            ("true", True),
            ("False", False),
            ("~", None),
            ("null", None),
            ("-12", -12),
            ("010", 10),
            ("1.5", 1.5),
            ("1e3", 1000.0),
            ("9" * 21, float("9" * 21)),
            ("'7'", "7"),
            ("[::]:4434", "[::]:4434"),
            ("a: b: c", "a: b: c"),
            ("{a: 1, a: 2}", "{a: 1, a: 2}"),
            ("", ""),
            ("  ", ""),
            ("[a, 1]", ["a", 1]),
            ("{a: }", {"a": None}),
        ],
    )
    def test_value_of_a_variable_or_flag(self, text: str, value: object) -> None:
        assert parse_value(text) == value
        assert type(parse_value(text)) is type(value)

    def test_tagged_number_that_is_none_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="is not a number"):
            parse_document("a: !!int x\n")

    @given(st.text(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"#,? \n0", max_size=60))
    def test_any_text_parses_or_is_a_config_error(self, text: str) -> None:
        with suppress(ConfigError):
            parse_document(text)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXTS,
            lambda inner: (
                st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
            ),
            max_leaves=10,
        )
    )
    def test_what_yaml_writes_is_read_back(self, data: object) -> None:
        document = parse_document(yaml.safe_dump({"x": data}))
        assert document.data == {"x": data}
        assert document.problems == []


class TestKind:
    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            ({"kind": "agent", "policy": []}, DaemonKind.AGENT),
            ({"policy": []}, DaemonKind.INTERMEDIATE),
            ({"quic": {}}, DaemonKind.INTERMEDIATE),
            ({"services": [{"backend": "h:1"}]}, DaemonKind.CONNECTOR),
            ({"services": [{"listen": "h:1"}]}, DaemonKind.AGENT),
            ({"connect": "lazy"}, DaemonKind.AGENT),
        ],
    )
    def test_kind_is_told_or_deduced(self, data: dict[str, Any], kind: DaemonKind) -> None:
        assert deduce_kind(data) is kind

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"kind": "router"},
            {"kind": 1},
            {"policy": [], "connect": "lazy"},
            {"services": ["x"]},
            {"services": 1},
        ],
    )
    def test_unclear_kind_is_an_error(self, data: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="kind"):
            deduce_kind(data)

    def test_load_any_names_the_file_when_the_kind_is_unclear(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"ztna\.yaml: cannot tell which daemon"):
            load_any(write(tmp_path, PEER), {})
        assert isinstance(load_any(write(tmp_path, PEER), {}, kind=DaemonKind.AGENT).settings, AgentSettings)
