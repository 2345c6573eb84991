"""What of the NAT lab is plain values: kinds, plans, layouts, rules, parsing, delays, the scorecard."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tools.natlab import __main__ as natlab
from tools.natlab import conntrack, matrix, options, rules
from tools.natlab.__main__ import main
from tools.natlab.delayd import VERDICT, Queue, packets, verdict
from tools.natlab.kinds import (
    Access,
    FilteringBehaviour,
    Kind,
    MappingBehaviour,
    Rule,
    deciding_rule,
    direct_path_possible,
    obstacle,
)
from tools.natlab.matrix import KINDS, Cell, as_json, scorecard
from tools.natlab.namespaces import search_path
from tools.natlab.plan import Direction, Link, Plan, Provider, Site, Uplink, pair
from tools.natlab.scorecard import ACCESSES, BEGIN, END, Scorecard, is_derived, write
from tools.natlab.topology import lay_out
from ztna.address import TransportAddress
from ztna.ice import reasons

# Measured in a lab with a bare UDP punch of both sides: pairs of which no direct path came about.
IMPOSSIBLE = {
    ("apdm-random", "apdm-random"),
    ("apdm-random", "apdm-sequential"),
    ("apdm-random", "eim-apdf"),
    ("apdm-random", "eim-apdf/eim-eif"),
    ("apdm-random", "firewall"),
    ("apdm-sequential", "apdm-sequential"),
    ("apdm-sequential", "eim-apdf"),
    ("apdm-sequential", "eim-apdf/eim-eif"),
    ("apdm-sequential", "firewall"),
}


@pytest.mark.parametrize(
    ("a", "b"), list(itertools.combinations_with_replacement(sorted(set(KINDS) - {"udp-blocked"}), 2))
)
def test_direct_path_is_possible_where_a_punch_worked(a: str, b: str) -> None:
    one, other = Access.parse(a), Access.parse(b)
    assert direct_path_possible(one, other) == ((a, b) not in IMPOSSIBLE)
    assert obstacle(one, other) == obstacle(other, one)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("open", "udp-blocked", "udp_blocked"),
        ("open", "open-v6", "no_common_family"),
        ("firewall-v6", "firewall-v6", ""),
        ("apdm-random", "adm-apdf", "both_mappings_vary"),
        ("eim-eif/apdm-random", "firewall", "mapping_varies_and_peer_filters_ports"),
        ("eim-eif/apdm-random", "eim-adf", ""),
    ],
)
def test_obstacle_is_named(a: str, b: str, reason: str) -> None:
    assert obstacle(Access.parse(a), Access.parse(b)) == reason


def test_every_rule_decides_about_some_pair_and_each_obstacle_is_a_word_of_the_search() -> None:
    accesses = [*map(Access, Kind), Access.parse("eim-apdf/eim-eif")]
    decided = {deciding_rule(a, b) for a, b in itertools.product(accesses, repeat=2)}
    assert decided == set(Rule)
    assert {rule.value for rule in Rule if not rule.is_direct} <= reasons.WORDS


def test_two_layers_are_as_strict_as_the_stricter_of_each() -> None:
    behaviour = Access.parse("eim-adf/apdm-sequential").behaviour
    assert behaviour.mapping is MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT
    assert Access.parse("eim-adf/eim-eif").behaviour.filtering is FilteringBehaviour.ADDRESS_DEPENDENT
    assert str(Access.parse("eim-adf/eim-eif")) == "eim-adf/eim-eif"


class Arguments(argparse.ArgumentParser):
    """Remembers what is said of each argument."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        super().__init__(add_help=False)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        self.said[names[0]] = options.get("help", "")
        return super().add_argument(*names, **options)


@pytest.mark.parametrize("name", options.COMMANDS)
def test_help_of_a_command_tells_what_it_does_its_defaults_and_examples_that_parse(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    text = capsys.readouterr().out
    command = options.COMMANDS[name]
    assert command.summary[1:] in " ".join(text.split())
    parser = options.parser(dict.fromkeys(options.COMMANDS, len))
    assert command.examples
    for example in command.examples:
        line = f"  {options.PROGRAM} {name} {example}".rstrip()
        assert f"{line}\n" in text
        assert parser.parse_args([name, *shlex.split(example)]).run is len
    arguments = Arguments()
    command.add_arguments(arguments)
    for argument, said in arguments.said.items():
        assert said
        has_default = argument.startswith("--") and argument not in {"--name", "--protocol", "--write"}
        assert "default:" in said or not has_default


def test_plan_of_the_command_line_has_a_second_intermediate_where_it_is_wanted() -> None:
    parser = options.parser(dict.fromkeys(options.COMMANDS, len))
    assert options.plan_of(parser.parse_args(["up"])).second_intermediate is None
    wanted = parser.parse_args(["up", "--mid2", "--link", "mid2:delay=7"])
    assert options.plan_of(wanted).second_intermediate == Link.both(Direction(delay_ms=7))
    with pytest.raises(ValueError, match="there is no mid2 in this lab"):
        options.plan_of(parser.parse_args(["up", "--link", "mid2:delay=7"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cone", "cone: no such kind; there are open, firewall, eim-eif"),
        ("open/open/open", "at most two layers"),
        ("firewall/eim-eif", "only a NAT can stand behind a second NAT"),
    ],
)
def test_access_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Access.parse(text)


def test_link_is_changed_by_what_is_named() -> None:
    link = Link.parse("delay=20,jitter=3,down.loss=0.5,up.rate=10,mtu=1400")
    assert link.up == Direction(20, 3, 0, 10)
    assert link.down == Direction(20, 3, 0.5, None)
    assert Link.parse("up.rate=none,up.delay=1", link) == Link(Direction(1, 3, 0, None), link.down, 1400)
    assert Link.parse("") == Link()


@pytest.mark.parametrize(
    "text",
    ["delay", "dealy=3", "side.delay=3", "loss=2", "delay=-1", "rate=0", "mtu=100", "delay=x", "mtu=x"],
)
def test_link_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Link.parse(text)


NAT = Access(Kind.EIM_APDF)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Site("A", NAT), "a site's name"),
        (lambda: Site("core", NAT), "not reserved"),
        (lambda: Site("a", NAT, ipv6=Kind.OPEN), "ipv6 is one of"),
        (lambda: Site("a", Access(Kind.OPEN), provider="isp"), "one NAT of its own"),
        (lambda: Site("a", NAT, ipv6=Kind.OPEN_V6, second=Uplink(NAT)), "one uplink and one layer"),
        (lambda: Provider("isp", Kind.OPEN), "is no NAT"),
        (lambda: Provider("ISP"), "a provider's name"),
        (lambda: Plan(()), "a lab has sites"),
        (lambda: Plan((Site("a", NAT, second=Uplink(NAT)), Site("a2", NAT))), "a name of its own"),
        (lambda: Plan((Site("a", NAT, provider="isp"),)), "no provider isp"),
        (lambda: Plan(tuple(Site(f"s{n}", NAT) for n in range(15))), "at most 14 uplinks"),
        (lambda: pair("open", "open").site("c"), "no site c; there are a, b"),
    ],
)
def test_plan_that_cannot_be_is_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()


def test_layout_gives_every_interface_an_address_of_its_own() -> None:
    isp = (Provider("isp"),)
    sites = (
        Site("a", Access.parse("eim-apdf/eim-eif"), second=Uplink(NAT)),
        Site("b", NAT, provider="isp"),
        Site("c", Access(Kind.FIREWALL), ipv6=Kind.FIREWALL_V6),
        Site("d", Access(Kind.FIREWALL_V6)),
    )
    topology = lay_out(Plan(sites, providers=isp, second_intermediate=Link()))
    addresses = [address for cable in topology.cables for end in cable for address in end.addresses]
    assert len(set(addresses)) == len(addresses)
    names = [(end.host, end.name) for cable in topology.cables for end in cable]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 15 for _, name in names)
    assert list(topology.links) == ["mid", "mid2", "a", "a2", "c", "d", "isp"]
    assert [way.routers for way in topology.ways["a"]] == [("nat-a", "cgnat-a"), ("nat-a2",)]
    assert topology.ways["b"][0].routers == ("nat-b", "cgnat-isp")
    assert topology.routers["cgnat-isp"].lans[0][0] == "lan-b"


def test_rebind_changes_seed_and_ports_of_the_rules() -> None:
    router = lay_out(pair("eim-apdf", "open")).routers["nat-a"]
    first = rules.ruleset(router, rules.Incarnation())
    assert "jhash" not in first
    second = rules.ruleset(router, rules.Incarnation(1, 0x1234))
    assert "seed 0x1234" in second
    port = rules.FIRST_PORT + rules.POOL
    assert f"0 : {router.external} . {port}-{port + rules.PORTS_OF_A_HASH - 1}," in second


CONNTRACK = """\
udp      17 27 src=10.1.0.2 dst=203.0.113.10 sport=5000 dport=4433 [UNREPLIED] src=203.0.113.10 \
dst=198.51.100.18 sport=4433 dport=20000 mark=0 use=1
udp      17 118 src=192.0.2.34 dst=198.51.100.18 sport=7000 dport=20000 src=10.1.0.2 dst=192.0.2.34 \
sport=5000 dport=7000 [ASSURED] mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.1.0.2 dst=203.0.113.10 sport=40000 dport=443 src=203.0.113.10 \
dst=198.51.100.18 sport=443 dport=40000 [ASSURED] mark=0 use=1
icmp     1 29 src=10.1.0.2 dst=203.0.113.10 type=8 code=0 id=1 src=203.0.113.10 dst=198.51.100.18 type=0 \
code=0 id=1 mark=0 use=1
udp      17 27 src=203.0.113.10 dst=203.0.113.11 sport=1 dport=2 src=203.0.113.11 dst=203.0.113.10 \
sport=2 dport=1
conntrack v1.4.7 (conntrack-tools): 5 flow entries have been shown.
"""


def test_conntrack_is_read_from_both_directions() -> None:
    inside, external = TransportAddress("10.1.0.2", 5000), TransportAddress("198.51.100.18", 20000)
    peer, server = TransportAddress("192.0.2.34", 7000), TransportAddress("203.0.113.10", 4433)
    web = TransportAddress("203.0.113.10", 443)
    tcp = TransportAddress("10.1.0.2", 40000), TransportAddress("198.51.100.18", 40000)
    assert conntrack.parse(CONNTRACK, ["10.1.0.0/24"]) == [
        conntrack.Mapping(inside, external, peer, "udp", True),
        conntrack.Mapping(inside, external, server, "udp", False),
        conntrack.Mapping(*tcp, web, "tcp", True),
    ]


def test_queue_releases_in_order_what_is_due() -> None:
    chance = random.Random(1)
    queue = Queue(delay_s=0.1)
    assert queue.hold(1, 0.0, chance)
    assert queue.hold(2, 0.05, chance)
    assert queue.release(0.09) is None
    assert queue.release(0.1) == 1
    assert queue.hold(3, 0.1, chance)
    assert queue.release(0.3) == 3
    # A shorter delay does not overtake.
    queue.hold(4, 1.0, chance)
    queue.delay_s = 0.0
    queue.hold(5, 1.01, chance)
    assert queue.release(1.05) is None
    assert queue.release(1.1) == 5
    queue.loss = 1.0
    assert not queue.hold(6, 2.0, chance)


def test_netlink_messages_are_read_and_garbage_is_not() -> None:
    assert packets(verdict(VERDICT, 7, 9, 1)) == []
    # A packet message: queue 7, id 9.
    body = bytes.fromhex("02000007") + bytes.fromhex("0b0001000000000908000200")
    header = (16 + len(body)).to_bytes(4, "little") + bytes.fromhex("00030000") + bytes(8)
    assert packets(header + body) == [(7, 9)]
    assert packets((header + body) * 2) == [(7, 9), (7, 9)]
    assert packets(bytes(64)) == []


def test_commands_of_an_administrator_are_found_without_being_in_the_path() -> None:
    assert search_path({"PATH": "/usr/bin:/sbin"}) == "/usr/bin:/sbin:/usr/sbin"


def cell(
    a: str,
    b: str,
    path: str,
    expected: str,
    *,
    sha256_ok: bool = True,
    reason: str = "why",
    slow_ms: float = 82.4,
    answered_ms: float = 50.1,
) -> Cell:
    found_ms, succeeded_ms = (82.4, answered_ms) if path == "direct" else (None, None)
    return Cell(
        a, b, path, expected, reason, "why", found_ms, succeeded_ms, sha256_ok, (82.4, slow_ms), 260.0
    )


CELLS = [
    cell("open", "open", "direct", "direct"),
    cell("open", "eim-apdf", "relay", "direct"),
    cell("eim-apdf", "eim-apdf", "relay", "relay", sha256_ok=False),
]


def test_scorecard_marks_what_is_not_as_expected() -> None:
    assert scorecard(["open", "eim-apdf"], CELLS).render().splitlines() == [
        "| agent \\ connector | open | eim-apdf |",
        "|---|---|---|",
        "| open | direct 82 / 50 ms | **relay, expected direct** |",
        "| eim-apdf |  | **relay, data wrong, expected relay** |",
        "",
        (
            "1 of 3 cells are as RFC 4787 logic says. Direct paths came 82 to 82 ms after the offer; "
            "the first pair succeeded 50 to 50 ms after the answer."
        ),
    ]


@pytest.mark.parametrize(
    ("kind", "is_needed"), [("adm-apdf", True), ("eim-apdf/adm-apdf", True), ("apdm-random", False)]
)
def test_second_intermediate_is_there_where_it_takes_two_addresses(kind: str, is_needed: bool) -> None:
    plan = matrix.plan_of((Access.parse("open"), Access.parse(kind)), matrix.Options())
    assert (plan.second_intermediate is not None) == is_needed


def test_relay_for_another_reason_shows_both() -> None:
    cells = [
        cell("open", "open", "relay", "relay", reason="no_answer"),
        cell("open", "eim-apdf", "relay", "relay", reason=""),
    ]
    assert scorecard(["open", "eim-apdf"], cells).render().splitlines()[2] == (
        "| open | **relay for no_answer, expected relay for why** "
        "| **relay for no reason, expected relay for why** |"
    )


def test_direct_path_that_took_too_long_and_relay_for_another_reason_are_not_as_expected() -> None:
    assert cell("open", "open", "direct", "direct", slow_ms=5000.0).is_as_expected
    assert not cell("open", "open", "direct", "direct", slow_ms=5000.1).is_as_expected
    assert cell("open", "open", "direct", "direct", answered_ms=260.0).is_as_expected
    assert not cell("open", "open", "direct", "direct", answered_ms=260.1).is_as_expected
    assert cell("open", "open", "relay", "relay").is_as_expected
    assert not cell("open", "open", "relay", "relay", reason="").is_as_expected
    assert not cell("open", "open", "relay", "relay", reason="no_answer").is_as_expected


@pytest.mark.parametrize(("cells", "status"), [(CELLS, 1), (CELLS[:1], 0)])
def test_matrix_ends_with_1_when_a_cell_is_not_as_expected(
    cells: list[Cell], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(natlab, "unavailable_reason", lambda: None)
    monkeypatch.setattr(matrix, "run", lambda *_arguments, **_options: cells)
    assert natlab.main(["matrix", "--kinds", "open,eim-apdf", "--json"]) == status
    assert len(json.loads(capsys.readouterr().out)["cells"]) == len(cells)


@pytest.mark.parametrize(("kinds", "wanted"), [([], KINDS), (["--kinds", "all"], map(str, ACCESSES))])
def test_matrix_has_nine_kinds_or_all(
    kinds: list[str], wanted: Iterable[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(names: Sequence[str], *_arguments: Any, **_options: Any) -> list[Cell]:
        asked.extend(names)
        return CELLS[:1]

    monkeypatch.setattr(natlab, "unavailable_reason", lambda: None)
    monkeypatch.setattr(matrix, "run", run)
    assert natlab.main(["matrix", *kinds]) == 0
    assert asked == list(wanted)


def test_matrix_as_json_has_the_promised_keys() -> None:
    shown = as_json(CELLS)
    assert not shown["is_as_expected"]
    assert {"a", "b", "path", "expected", "reason", "time_to_direct_ms", "sha256_ok"} <= set(
        shown["cells"][0]
    )
    assert as_json(CELLS[:1])["is_as_expected"]


def test_scorecard_is_made_of_results_that_were_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, document = tmp_path / "matrix.json", tmp_path / "README.md"
    results.write_text(json.dumps(as_json(CELLS)), encoding="utf-8")
    document.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    assert natlab.main(["matrix", "--from", str(results), "--write", str(document)]) == 1
    card = scorecard(["open", "eim-apdf"], CELLS)
    assert capsys.readouterr().out == f"{card.render()}\n"
    assert document.read_text(encoding="utf-8") == f"{BEGIN}\n{card.render_all()}{END}\n"
    results.write_text('{"cells": [{}]}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"^2$"):
        natlab.main(["matrix", "--from", str(results)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["matrix", "--from", "nowhere.json"], "nowhere.json: No such file or directory"),
        (["matrix", "--write", "nowhere.md"], "nowhere.md: No such file or directory"),
        (["up", "--lifetime-s", "0"], "--lifetime-s is more than 0"),
        (["up", "--lifetime-s", "nan"], "--lifetime-s is more than 0"),
        (["show", "no/name"], "'no/name' is no name of a lab: letters and digits"),
    ],
    ids=["no-results", "no-document", "no-lifetime", "lifetime-that-is-no-number", "no-name"],
)
def test_wrong_usage_ends_with_2_and_is_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        natlab.main(arguments)
    assert capsys.readouterr().err.endswith(f"error: {words}\n")


def test_scorecard_of_the_readme_is_what_the_rules_say_with_both_times() -> None:
    card = Scorecard.parse(Path("README.md").read_text(encoding="utf-8"))
    assert card.texts.keys() >= set(itertools.combinations_with_replacement(KINDS, 2))
    for (a, b), text in card.texts.items():
        is_direct = direct_path_possible(Access.parse(a), Access.parse(b))
        assert re.fullmatch(r"direct \d+ / \d+ ms" if is_direct else "relay", text)


def test_what_was_not_measured_is_derived_for_every_kind_and_told_apart() -> None:
    card = scorecard(["eim-apdf", "eim-eif/apdm-random"], [cell("eim-apdf", "eim-apdf", "direct", "direct")])
    lines = card.render_all().splitlines()
    rows = [[text.strip() for text in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    columns = rows[0][1:]
    assert columns == [*map(str, ACCESSES), "eim-eif/apdm-random"]
    shown = {
        (row[0], column): text
        for row in rows[2:]
        for column, text in zip(columns, row[1:], strict=True)
        if text
    }
    assert shown.keys() == set(itertools.combinations_with_replacement(columns, 2))
    assert [pair for pair, text in shown.items() if not is_derived(text)] == [("eim-apdf", "eim-apdf")]
    assert shown["open", "adm-apdf"] == "*direct*"
    assert shown["adm-apdf", "eim-eif/apdm-random"] == "*relay*"
    assert lines[-1] == f"In italics: {len(shown) - 1} pairs that were not measured, by RFC 4787 logic alone."


def test_scorecard_of_a_document_is_what_was_written_and_renders_the_same_again(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    # The other way round in the order of the kinds, and one that is not as expected.
    cells = [cell("eim-apdf", "open", "relay", "direct"), cell("open", "open", "direct", "direct")]
    card = scorecard(["eim-apdf", "open"], cells)
    write(document, card)
    text = document.read_text(encoding="utf-8")
    assert text == f"before\n{BEGIN}\n{card.render_all()}{END}\nafter\n"
    read = Scorecard.parse(text)
    assert (read.texts, read.summary) == (card.texts, card.summary)
    assert read.is_measured("open", "eim-apdf")
    assert not read.is_measured("eim-apdf", "eim-apdf")
    assert read.render_all() == card.render_all()


@pytest.mark.parametrize(
    ("text", "message"), [("no marks", "has no lines"), (f"{BEGIN}\n{END}\n", "there is no table")]
)
def test_document_without_a_scorecard_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scorecard.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--a", "cone"], "no such kind"),
        (["up", "--link", "a"], "write NAME:VALUE"),
        (["up", "--link", "c:delay=3"], "there is no c in this lab"),
        (["up", "--second", "c:open"], "there is no c in this lab"),
        (["matrix", "--kinds", "open,cone"], "no such kind"),
        (["matrix", "--punches", "0"], "at least 1"),
        (["exec", "--json", "x", "a", "true"], "the command's own"),
        (["nonsense"], "invalid choice"),
    ],
)
def test_wrong_usage_has_status_two_and_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
