"""What may import what, and what must equal what: the shape of the project as assertions.

Imports are read from the source, those inside functions and under TYPE_CHECKING included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from actors import topology
from actors.wiring import Wiring
from tools import generate_protos, render_actor_map, render_configuration, render_nat_compatibility

ROOT = Path(__file__).resolve().parent.parent
GENERATED = "ztna.v1"

CORES = (
    "ztna.access",
    "ztna.ice",
    "ztna.nat",
    "ztna.path",
    "ztna.quic",
    "ztna.relay",
    "ztna.service",
    "ztna.session",
    "ztna.signaling",
    "ztna.stun",
    "ztna.address",
    "ztna.core",
    "ztna.deadlines",
    "ztna.errors",
    "ztna.token_bucket",
)

CORE_BANS = {
    "pykka": "actors carry messages to a core; a core does not know them",
    "grpc": "how frames travel is the actors' business",
    "google.protobuf": "the wire format may change without the cores; actors/translate.py stands between",
    GENERATED: "the wire format may change without the cores; actors/translate.py stands between",
    "structlog": "a core reports by its effects, the actor logs them",
    "logging": "a core reports by its effects, the actor logs them",
    "socket": "bytes come and go as arguments and effects",
    "asyncio": "a core is driven, it never waits",
    "threading": "a core belongs to one caller",
    "concurrent": "a core belongs to one caller",
    "time": "the time is an argument",
    "subprocess": "no I/O in a core",
    "pathlib": "no I/O in a core",
    "secrets": "chance is an argument, a `random.Random`",
    "aioquic.asyncio": "it costs three to four times as much per packet as our own driver (docs/adr/0006)",
    "actors": "layers point one way: cli, then actors, then cores",
    "ztna.cli": "layers point one way: cli, then actors, then cores",
    "ztna.pki": "it does I/O; the cores do none",
}

TOOLS = ("bench", "demo", "deployment", "fuzz", "generate_protos", "natlab", "render_actor_map")
RINGS = ("unit", "actors", "e2e", "netns")

# (importing package, banned module prefix, reason)
BANS = [
    *((core, banned, reason) for core in CORES for banned, reason in CORE_BANS.items()),
    ("actors", "ztna.cli", "layers point one way: the command line calls the actors"),
    ("actors", "click", "only ztna.cli talks to a terminal"),
    ("actors", "rich", "only ztna.cli talks to a terminal"),
    ("ztna.settings", "actors", "settings are read before there are actors"),
    ("ztna.settings", "ztna.cli", "only ztna.cli talks to a terminal"),
    ("ztna.pki", "actors", "a CA is files and cryptography"),
    ("ztna.pki", "ztna.cli", "only ztna.cli talks to a terminal"),
    ("ztna", "tools", "the wheel ships ztna and actors alone"),
    ("ztna", "tests", "the wheel ships ztna and actors alone"),
    ("actors", "tools", "the wheel ships ztna and actors alone"),
    ("actors", "tests", "the wheel ships ztna and actors alone"),
    *((f"tools.{each}", "tests", "tests prove tools, not the reverse") for each in TOOLS),
    # The simulated network is the tests' own; what drives it by seeds stands upon it.
    *(("tools.simulate", f"tests.{each}", "it stands upon the simulated network alone") for each in RINGS),
]

# Which of our packages each core may import.
LAYERS: dict[str, set[str]] = {
    "ztna.errors": set(),
    "ztna.address": {"ztna.errors"},
    "ztna.core": {"ztna.address"},
    "ztna.deadlines": set(),
    "ztna.token_bucket": {"ztna.errors"},
    "ztna.settings": {"ztna.address", "ztna.errors"},
    "ztna.access": {"ztna.errors"},
    "ztna.stun": {"ztna.address", "ztna.core", "ztna.deadlines", "ztna.errors", "ztna.token_bucket"},
    "ztna.nat": {"ztna.address", "ztna.core", "ztna.errors", "ztna.stun"},
    "ztna.ice": {
        "ztna.address",
        "ztna.core",
        "ztna.errors",
        "ztna.nat",
        "ztna.stun",
        "ztna.token_bucket",
    },
    "ztna.path": {"ztna.address", "ztna.core", "ztna.errors", "ztna.ice"},
    "ztna.session": set(),
    "ztna.service": {"ztna.address", "ztna.errors", "ztna.token_bucket"},
    "ztna.quic": {"ztna.address", "ztna.errors", "ztna.token_bucket"},
    "ztna.signaling": {
        "ztna.access",
        "ztna.deadlines",
        "ztna.errors",
        "ztna.settings",
        "ztna.token_bucket",
    },
    "ztna.relay": {
        "ztna.access",
        "ztna.address",
        "ztna.deadlines",
        "ztna.errors",
        "ztna.quic",
        "ztna.signaling",
        "ztna.token_bucket",
    },
}

# The only places that know every actor.
COMPOSERS = {"actors.topology", "actors.plans"}


@cache
def modules() -> dict[str, Path]:
    """Every module of ours but the generated ones, by dotted name."""
    found = {}
    for top in ("ztna", "actors", "tools"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if not is_within(name, GENERATED):
                found[name] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Dotted names that a module imports; `from a import b` counts as `a.b`."""
    return frozenset(imported_names(modules()[module].read_text(encoding="utf-8")))


def imported_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def importers(package: str, banned: str) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in modules()
        if is_within(module, package)
        for name in sorted(imports(module))
        if is_within(name, banned)
    ]


def concern_modules(wiring: Wiring) -> set[str]:
    return {concern.__module__ for concern in wiring.concerns}


def test_import_scanner_sees_every_form_of_import() -> None:
    source = "import a.b\nfrom c import d as e\ndef f():\n    from g.h import i\nif X:\n    import j\n"
    assert set(imported_names(source)) == {"a.b", "c.d", "g.h.i", "j"}


def test_every_package_named_here_exists() -> None:
    named = {*CORES, *LAYERS, *COMPOSERS, *(package for package, _, _ in BANS)}
    assert named <= {*modules()}


@pytest.mark.parametrize(("package", "banned", "reason"), BANS, ids=[f"{p} not {b}" for p, b, _ in BANS])
def test_banned_import_is_absent(package: str, banned: str, reason: str) -> None:
    assert importers(package, banned) == [], reason


def test_cores_take_no_entropy_from_the_system_but_quic() -> None:
    # aioquic draws its keys and connection IDs from the system as well, so nothing is lost there.
    found = [line for core in CORES if core != "ztna.quic" for line in importers(core, "os")]
    assert found == []


def test_aioquic_is_known_to_ztna_quic_alone() -> None:
    # tools.bench measures our packet path against bare aioquic, its baseline; tools.fuzz seals what an
    # attacker with keys would send; tools.simulate looks whether anything within it grows.
    knowing = ("ztna.quic", "tools.bench", "tools.fuzz", "tools.simulate")
    found = [
        module
        for module in modules()
        if not any(is_within(module, package) for package in knowing)
        and any(is_within(name, "aioquic") for name in imports(module))
    ]
    assert found == []


def test_click_and_rich_are_known_to_the_command_line_alone() -> None:
    found = [
        module
        for module in modules()
        if is_within(module, "ztna")
        and not is_within(module, "ztna.cli")
        and any(is_within(name, package) for name in imports(module) for package in ("click", "rich"))
    ]
    assert found == []


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_core_imports_only_the_layers_beneath_it(package: str) -> None:
    used = {
        other
        for module in modules()
        if is_within(module, package)
        for name in imports(module)
        for other in LAYERS
        if is_within(name, other) and other != package
    }
    assert used <= LAYERS[package]


def test_layers_have_no_cycle() -> None:
    settled: set[str] = set()
    while len(settled) < len(LAYERS):
        free = {name for name, beneath in LAYERS.items() if beneath <= settled} - settled
        assert free, f"a cycle among {sorted(LAYERS.keys() - settled)}"
        settled |= free


def test_no_actor_imports_another_actor() -> None:
    actors = set().union(*(concern_modules(wiring) for wiring in topology.WIRINGS))
    found = [
        f"{module} imports {actor}"
        for module in modules()
        if is_within(module, "actors") and module not in COMPOSERS
        for actor in sorted(actors - {module})
        if any(is_within(name, actor) for name in imports(module))
    ]
    assert found == []


@pytest.mark.parametrize("wiring", topology.WIRINGS, ids=lambda wiring: wiring.daemon)
def test_wiring_agrees_with_every_dispatch_table(wiring: Wiring) -> None:
    assert wiring.problems() == []


def test_generated_code_is_current() -> None:
    assert generate_protos.stale_files() == []


def test_actor_map_is_current() -> None:
    tables = [table for name in render_actor_map.TABLES for table in render_actor_map.load(name)]
    assert render_actor_map.OUTPUT.read_text(encoding="utf-8") == render_actor_map.render(tables), (
        "run `make docs`"
    )


def test_configuration_reference_is_current() -> None:
    committed = render_configuration.TARGET.read_text(encoding="utf-8")
    assert committed == render_configuration.render(), "run `python -m tools.render_configuration`"


def test_nat_compatibility_is_current() -> None:
    committed = render_nat_compatibility.TARGET.read_text(encoding="utf-8")
    assert committed == render_nat_compatibility.render(), "run `python -m tools.render_nat_compatibility`"
    committed = render_nat_compatibility.README.read_text(encoding="utf-8")
    assert committed == render_nat_compatibility.scorecard(), "run `python -m tools.render_nat_compatibility`"
