"""A lab is isolated from its machine, and nothing of it is left, however its owner ends."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.probes import server, udp
from tools.natlab.lab import Lab
from tools.natlab.namespaces import LabError
from tools.natlab.plan import pair

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 30.0
PLAN = pair("eim-eif", "apdm-random", delay_ms=1)

OWNER = textwrap.dedent("""
    import json, sys
    from tools.natlab.lab import Lab
    from tools.natlab.plan import pair
    with Lab(pair("eim-eif", "eim-apdf", delay_ms=1)) as lab:
        processes = [lab.popen(host, ["sleep", "1000"]) for host in ("a", "nat-b")]
        print(json.dumps([lab.keeper_pid, *(process.pid for process in processes)]), flush=True)
        if sys.argv[1:] == ["raise"]:
            raise RuntimeError("on purpose")
        processes[0].wait()
""")


def machine_state() -> dict[str, object]:
    """What a lab might leave its mark on."""
    state: dict[str, object] = {
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "routes": Path("/proc/net/route").read_text(encoding="ascii"),
        "mounts": Path("/proc/self/mounts").read_text(encoding="utf-8"),
        "names": sorted(path.name for path in Path("/run/netns").glob("*")),
        "forwards": Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii"),
    }
    if os.geteuid() == 0:
        listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
        state["ruleset"] = listed.stdout
    return state


def test_machine_is_unchanged_while_a_lab_runs_and_after() -> None:
    before = machine_state()
    with Lab(PLAN):
        assert machine_state() == before
    assert machine_state() == before


def test_hosts_have_no_interface_but_those_of_the_lab() -> None:
    with Lab(PLAN) as lab:
        found = {
            host: sorted(link["ifname"] for link in json.loads(lab.run(host, ["ip", "-j", "link"]).stdout))
            for host in lab.hosts
        }
    assert found == {
        "core": ["lo", "to-a", "to-b", "to-mid"],
        "mid": ["eth0", "lo"],
        "a": ["eth0", "lo"],
        "b": ["eth0", "lo"],
        "nat-a": ["lan", "lo", "wan"],
        "nat-b": ["lan", "lo", "wan"],
    }


def test_the_machines_own_addresses_do_not_answer_in_a_lab() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Lab(PLAN) as lab:
        for host in ("a", "core"):
            with lab.socket(host, socket.SOCK_STREAM) as client, pytest.raises(ConnectionRefusedError):
                client.connect(listener.getsockname())


def test_private_addresses_of_the_other_site_lead_nowhere() -> None:
    with Lab(PLAN) as lab, udp(lab, "a") as a, udp(lab, "b") as b, server(lab) as at_mid:
        a.sendto(b"to a private address", (lab.address("b"), b.getsockname()[1]))
        at_mid.sees(a)
        b.setblocking(False)
        with pytest.raises(BlockingIOError):
            b.recvfrom(100)


def test_labs_run_side_by_side() -> None:
    with Lab(PLAN) as one, Lab(PLAN) as other, server(one) as at_one, server(other) as at_other:
        with udp(one, "a") as client:
            assert at_one.sees(client)[0] == one.external_address("a")
        with udp(other, "a") as client:
            assert at_other.sees(client)[0] == other.external_address("a")
        one.rebind("a")
        with udp(other, "a") as client:
            assert at_other.sees(client) == (other.external_address("a"), client.getsockname()[1])


def has_ended(descriptors: list[int]) -> bool:
    """Whether each of these processes ends in time."""
    for descriptor in descriptors:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(LIMIT_S * 1e3):
            return False
    return True


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGINT", "raise"])
def test_nothing_outlives_its_owner(end: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, *(["raise"] if end == "raise" else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    descriptors: list[int] = []
    try:
        assert owner.stdout is not None
        pids = json.loads(owner.stdout.readline())
        if end == "raise":
            owner.wait(LIMIT_S)
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
            return
        descriptors = [os.pidfd_open(pid) for pid in pids]
        owner.send_signal(signal.Signals[end])
        owner.wait(LIMIT_S)
        assert has_ended(descriptors)
    finally:
        owner.kill()
        owner.wait()
        for descriptor in descriptors:
            os.close(descriptor)
        for stream in (owner.stdin, owner.stdout):
            if stream is not None:
                stream.close()


def test_lab_whose_keeper_is_killed_says_so_and_closes() -> None:
    with Lab(PLAN) as lab:
        process = lab.popen("a", ["sleep", "1000"])
        os.kill(lab.keeper_pid, signal.SIGKILL)
        with pytest.raises(LabError, match="namespaces are gone"):
            while True:  # the kill takes a moment
                lab.run("a", ["true"])
    assert process.wait(LIMIT_S) == -signal.SIGKILL


def test_failure_while_building_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keepers = []

    def fail(lab: Lab) -> None:
        keepers.append(os.pidfd_open(lab.keeper_pid))
        raise LabError("on purpose")

    monkeypatch.setattr(Lab, "_apply_queues", fail)
    with pytest.raises(LabError, match="on purpose"):
        Lab(PLAN)
    assert has_ended(keepers)
    os.close(keepers[0])


def test_process_in_a_lab_is_like_any_other() -> None:
    with Lab(PLAN) as lab:
        assert lab.run("a", ["sh", "-c", "cat; exit 3"], text="through", check=False).stdout == "through"
        assert lab.run("a", ["sh", "-c", "exit 3"], check=False).returncode == 3
        process = lab.popen("a", ["sleep", "1000"])
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert Path(f"/proc/{process.pid}/comm").read_text(encoding="ascii") == "sleep\n"
        process.terminate()
        assert process.wait(LIMIT_S) == -signal.SIGTERM
        process.terminate()
        with pytest.raises(LabError, match="not done after"):
            lab.run("a", ["sleep", "1000"], timeout_s=0.1)
        forgotten = lab.popen("a", ["sleep", "1000"])
    assert forgotten.wait(LIMIT_S) == -signal.SIGKILL


UNPRIVILEGED = textwrap.dedent("""
    import os
    from tools.natlab.lab import Lab
    from tools.natlab.plan import pair
    assert os.geteuid() != 0
    with Lab(pair("eim-eif", "apdm-sequential", delay_ms=5)) as lab:
        lab.set_link("a", lab.link("a"))
        lab.rebind("a")
        server, client = lab.socket("mid"), lab.socket("a")
        for each in (server, client):
            each.settimeout(15)
            each.bind(("", 4000))
        client.sendto(b"hello", ("203.0.113.10", 4000))
        source = server.recvfrom(100)[1]
        assert source[0] == lab.external_address("a") and source[1] != 4000, source
""")
NOBODY = 65534
# Another user may not be able to reach this interpreter, in somebody's home directory.
INTERPRETERS = (sys.executable, "/usr/bin/python3")
# All that a lab imports beside the standard library.
LAB_SOURCES = (
    "tools/__init__.py",
    "tools/natlab/*.py",
    "ztna/__init__.py",
    "ztna/address.py",
    "ztna/errors.py",
)
IS_NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 11))"


@pytest.fixture
def readable_natlab() -> Iterator[Path]:
    """A copy of the lab that every user can import; not below `tmp_path`, which only its user enters."""
    directory = Path(tempfile.mkdtemp(prefix="ztna-"))
    try:
        for source in LAB_SOURCES:
            for path in ROOT.glob(source):
                copy = directory / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        for path in (directory, *directory.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield directory
    finally:
        shutil.rmtree(directory)


def test_user_without_privileges_builds_one_in_a_user_namespace(readable_natlab: Path) -> None:
    nobody: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
            check=False,
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(readable_natlab)},
            **nobody,
        )

    def can_run(interpreter: str) -> bool:
        try:
            return run(interpreter, "-c", IS_NEW_ENOUGH).returncode == 0
        except OSError:
            return False

    if (probe := run("unshare", "--user", "--map-root-user", "--net", "true")).returncode != 0:
        pytest.skip(f"a user may have no namespaces here: {probe.stderr.strip()}")
    interpreter = next(filter(can_run, INTERPRETERS), None)
    if interpreter is None:
        pytest.skip(f"another user can run none of {', '.join(INTERPRETERS)}")
    built = run(interpreter, "-B", "-c", UNPRIVILEGED)
    assert built.returncode == 0, built.stderr
