"""What nodes find out of the NATs before them: the NAT's own tables say the same, and so does coturn.

Most agents know one intermediate, of one address, as all nodes do by default; a few nodes know two.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import pytest

from tests.netns.nodes import AGENT, LIMIT_S, POLL_INTERVAL_S, Nodes, running, short_path
from tests.netns.probes import udp
from tests.netns.verdicts import BY_ONE_ADDRESS, BY_TWO_ADDRESSES, wait_for_nat
from tools.natlab.cell import DIRECT
from tools.natlab.kinds import Access, Kind
from tools.natlab.lab import Lab
from tools.natlab.plan import Direction, Link, Plan, Site
from tools.natlab.topology import INTERMEDIATE_ADDRESS, INTERMEDIATE_SECOND_ADDRESS
from ztna.stun.message import BINDING, Message, MessageClass, build
from ztna.v1 import control_pb2, types_pb2

LINK = Link.both(Direction(delay_ms=5))
TRANSLATING = [kind.value for kind in Kind if kind.translates and kind.behaviour.passes_udp]
ACCESSES = [*TRANSLATING, "eim-apdf/eim-eif", "eim-eif/apdm-random"]
SITES = {access: "a" if not number else f"s{number}" for number, access in enumerate(ACCESSES)}
# Without a NAT, or without UDP.
OTHER_SITES = {"open": "open", "firewall": "fw", "udp-blocked": "blocked"}
UNTRANSLATED = ["open", "firewall"]
COTURN_PORT, COTURN_OTHER_PORT = 3478, 3481
# One of each mapping: sites with nodes that know two intermediates, and so two addresses.
WITNESSES = ["eim-apdf", "adm-apdf", "apdm-random"]


def agent_of(access: str) -> str:
    site = (SITES | OTHER_SITES)[access]
    return AGENT if site == "a" else f"agent-{site}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A site of each kind with an agent, and a connector that everybody reaches."""
    sites = [Site(name, Access.parse(access), LINK) for access, name in (SITES | OTHER_SITES).items()]
    plan = Plan((*sites, Site("b", Access(Kind.OPEN), LINK)), second_intermediate=LINK)
    others = [name for name in (*SITES.values(), *OTHER_SITES.values()) if name != "a"]
    witnesses = [SITES[access] for access in WITNESSES]
    with (
        short_path() as directory,
        running(plan, directory, agent={"connect": "eager"}, others=others, witnesses=witnesses) as made,
    ):
        yield made


def translations(lab: Lab, site: str, inside: str, remote_host: str) -> set[str]:
    """As whom a NAT, or both, have this endpoint known to a host, by their own tables."""
    found = {inside}
    layers: tuple[Literal["inner", "outer"], ...] = (
        ("inner", "outer") if lab.plan.site(site).access.outer else ("outer",)
    )
    for layer in layers:
        found = {
            str(mapping.external)
            for mapping in lab.mappings(site, layer)
            if mapping.protocol == "udp"
            and str(mapping.inside) in found
            and mapping.remote.host == remote_host
        }
    return found


def text(address: types_pb2.TransportAddress) -> str:
    return f"{address.host}:{address.port}"


@pytest.mark.parametrize("access", ACCESSES)
def test_reflexive_candidates_are_the_nats_own_translations(nodes: Nodes, access: str) -> None:
    def has_reflexive(session: control_pb2.SessionStatus) -> bool:
        return session.path == DIRECT and any(
            each.type == types_pb2.Candidate.TYPE_SERVER_REFLEXIVE
            for each in session.direct_path.local_candidates
        )

    site = SITES[access]
    (session,) = nodes.wait_until(has_reflexive, "reflexive candidates", agent_of(access))
    bases = set()
    for candidate in session.direct_path.local_candidates:
        if candidate.type == types_pb2.Candidate.TYPE_SERVER_REFLEXIVE:
            base = text(candidate.related_address)
            bases.add(base)
            assert text(candidate.address) in translations(nodes.lab, site, base, INTERMEDIATE_ADDRESS)
    # And whom the connector found by itself, where mappings vary.
    (base,) = bases
    deadline = time.monotonic() + LIMIT_S
    while (theirs := nodes.session_at_connector(agent_of(access))).path != DIRECT:
        assert time.monotonic() < deadline, f"the connector does not follow\n{nodes.logs()}"
        time.sleep(POLL_INTERVAL_S)
    seen = text(theirs.direct_path.selected_pair.remote.address)
    assert {seen} == translations(nodes.lab, site, base, nodes.lab.address("b"))


@pytest.mark.parametrize("access", UNTRANSLATED)
def test_node_that_nobody_translates_has_no_reflexive_candidate(nodes: Nodes, access: str) -> None:
    # Behaviour is known once both ports of the intermediate have said where our packets come from.
    wait_for_nat(nodes, agent_of(access), access)
    types = {each.type for each in nodes.session(agent_of(access)).direct_path.local_candidates}
    assert types_pb2.Candidate.TYPE_HOST in types
    assert types_pb2.Candidate.TYPE_SERVER_REFLEXIVE not in types


@pytest.mark.parametrize("access", [*ACCESSES, *OTHER_SITES])
def test_behaviour_is_told_as_far_as_one_address_can(nodes: Nodes, access: str) -> None:
    wait_for_nat(nodes, agent_of(access), access)


@pytest.mark.parametrize("access", WITNESSES)
def test_mapping_is_told_in_full_by_two_addresses(nodes: Nodes, access: str) -> None:
    wait_for_nat(nodes, f"connector-{SITES[access]}", access, addresses=2)
    # An agent is attached to the first of its intermediates, and asks the other one all the same.
    status = wait_for_nat(nodes, f"witness-{SITES[access]}", access, addresses=2)
    assert [each["state"] for each in status["intermediates"]] == ["attached", "idle"]


# Coturn's words, as numbers of `MappingBehaviour` and `FilteringBehaviour`.
WORDS = {"Endpoint Independent": 1, "Address Dependent": 2, "Address and Port Dependent": 3}
DISCOVERY_LIMIT_S = 60.0
needs_coturn = pytest.mark.skipif(
    os.geteuid() != 0 and shutil.which("turnutils_natdiscovery") is None,
    reason="turnutils_natdiscovery is not installed (make lab-tools)",
)


@contextmanager
def coturn(lab: Lab, directory: Path) -> Iterator[None]:
    """A STUN server with two addresses (RFC 5780) beside the intermediate, once it answers."""
    command = ["turnserver", "-n", "-L", INTERMEDIATE_ADDRESS, "-L", INTERMEDIATE_SECOND_ADDRESS]
    command += ["--listening-port", str(COTURN_PORT), "--alt-listening-port", str(COTURN_OTHER_PORT)]
    command += ["--stun-only", "--no-auth", "--no-tls", "--no-dtls", "--no-tcp", "--no-cli"]
    command += ["--log-file", "stdout", "--pidfile", str(directory / "turnserver.pid")]
    process = lab.popen("mid", command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with udp(lab, "mid") as client:
            client.settimeout(0.5)
            for _ in range(60):
                client.sendto(
                    build(Message(BINDING, MessageClass.REQUEST, os.urandom(12), ())),
                    (INTERMEDIATE_SECOND_ADDRESS, COTURN_OTHER_PORT),
                )
                try:
                    client.recv(1000)
                    break
                except TimeoutError:
                    continue
            else:
                pytest.fail(f"turnserver does not answer; exit status {process.poll()}")
        yield
    finally:
        process.kill()
        process.wait()


def number_of(printed: str, aspect: str) -> int:
    """Which of its three words coturn's client used for mapping or filtering."""
    (found,) = [number for word, number in WORDS.items() if f"NAT with {word} {aspect}" in printed]
    return found


@pytest.fixture(scope="module")
def coturn_said(nodes: Nodes) -> dict[str, str]:
    """What coturn's client prints at each site that lets UDP out, of coturn with its two addresses."""
    sites = {**SITES, **{access: OTHER_SITES[access] for access in UNTRANSLATED}}
    command = ["turnutils_natdiscovery", "-m", "-f", "-p", str(COTURN_PORT), INTERMEDIATE_ADDRESS]
    printed: dict[str, str] = {}
    with short_path() as directory, coturn(nodes.lab, directory), ExitStack() as files:
        # Silence takes it seconds, so all ask at once; each in a file of its own.
        outputs = {site: files.enter_context((directory / site).open("w+b")) for site in sites.values()}
        clients = {
            access: nodes.lab.popen(site, command, stdout=outputs[site], stderr=subprocess.DEVNULL)
            for access, site in sites.items()
        }
        for access, client in clients.items():
            assert client.wait(DISCOVERY_LIMIT_S) == 0
            output = outputs[sites[access]]
            output.seek(0)
            printed[access] = output.read().decode()
    return printed


@needs_coturn
@pytest.mark.parametrize("access", [*ACCESSES, *UNTRANSLATED])
def test_discovery_agrees_with_coturn(nodes: Nodes, coturn_said: dict[str, str], access: str) -> None:
    nat = wait_for_nat(nodes, agent_of(access), access)["nat"]
    mapping, filtering = (number_of(coturn_said[access], aspect) for aspect in ("Mapping", "Filtering"))
    # Our intermediate has one address, coturn two; without a NAT one is enough.
    assert nat["mapping"] == (BY_ONE_ADDRESS if nat["has_nat"] else BY_TWO_ADDRESSES)[mapping]
    assert nat["filtering"] == BY_ONE_ADDRESS[filtering]


@needs_coturn
@pytest.mark.parametrize("access", WITNESSES)
def test_two_addresses_and_coturn_have_the_same_word_for_a_mapping(
    nodes: Nodes, coturn_said: dict[str, str], access: str
) -> None:
    mapping = BY_TWO_ADDRESSES[number_of(coturn_said[access], "Mapping")]
    for role in ("connector", "witness"):
        nodes.deployment.wait_for(
            f"{role}-{SITES[access]}",
            lambda status: (status["nat"] or {}).get("mapping") == mapping,
            f"the mapping of {access} is known to be {mapping}",
        )
