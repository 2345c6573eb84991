"""A short run of every fuzz target, and proof that the tool finds what is there."""

from __future__ import annotations

import hashlib
import logging
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.fuzz import connections, mutate, runner
from tools.fuzz.__main__ import main
from tools.fuzz.target import Target, require
from tools.fuzz.targets import TARGETS
from ztna.errors import RemoteProtocolError
from ztna.quic.events import CloseReason, ConnectionClosed

SEED = 20_260_101
VERSION_3, VERSION_11 = (b"\xa0\x03\x02\x01" + bytes([each]) for each in (2, 10))  # in DER
ROOT = Path(__file__).resolve().parents[2]

# Hostile certificates make the library warn; that is all it does.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    handler, level = signal.getsignal(signal.SIGVTALRM), logging.getLogger("quic").level
    runner.prepare_process()
    yield
    signal.signal(signal.SIGVTALRM, handler)
    logging.getLogger("quic").setLevel(level)


class _Planted(Target):
    what = "a parser with a bug"
    block = 300

    def corpus(self) -> list[bytes]:
        return [bytes(range(8)), b"\x07" * 20]


class KeyErrorTarget(_Planted):
    name = "key-error"

    def feed(self, data: bytes) -> None:
        if not data:
            raise RemoteProtocolError("short")
        if b"\xff" in data:
            dict[int, int]()[data.index(b"\xff")]


class StatefulTarget(_Planted):
    name = "stateful"

    def __init__(self) -> None:
        self.seen = 0

    def feed(self, data: bytes) -> None:
        self.seen += b"\x40" in data
        require(self.seen < 3, "three of them")


class LeakTarget(_Planted):
    name = "leak"

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self.kept.append(bytes(100_000) + data)


class BoundTarget(_Planted):
    name = "bound"

    def __init__(self) -> None:
        self.kept: set[int] = set()

    def feed(self, data: bytes) -> None:
        self.kept.add(len(data))

    def check(self) -> None:
        require(len(self.kept) < 5, "too many sizes are kept")


class EndlessTarget(_Planted):
    name = "endless"

    def feed(self, data: bytes) -> None:
        while b"\xff" in data:
            pass


def planted(target: type[Target], *arguments: str) -> int:
    return main([target.name, "--jobs", "1", *arguments], {target.name: target})


def inputs_of(output: str) -> list[str]:
    """The hex lines of a report."""
    lines = output.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("inputs: ")) + 1
    return lines[start : start + int(lines[start - 1].split(";")[0].removeprefix("inputs: "))]


@pytest.mark.parametrize("name", TARGETS)
def test_short_run_of_a_target_finds_nothing(name: str) -> None:
    target = TARGETS[name]
    left = target.short_runs
    for block in range(left // target.block + 1):
        outcome = runner.run_block(target, SEED, block, min(left, target.block))
        assert outcome.found is None, outcome.found
        left -= outcome.inputs
    assert left == 0


@pytest.mark.parametrize("name", TARGETS)
def test_examples_of_a_target_are_accepted(name: str) -> None:
    target = TARGETS[name]()
    refused = 0
    for example in target.corpus():
        try:
            target.feed(example)
        except target.documented:
            refused += 1
    target.check()
    # Some show a refusal on purpose.
    assert refused <= len(target.corpus()) // 2


def test_bug_is_reported_with_a_minimal_input_and_what_reproduces_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert planted(KeyErrorTarget, "--seed", "5", "--runs", "2000") == 1
    report = capsys.readouterr().out
    assert "VIOLATION of key-error: KeyError: 0" in report
    assert "seed 5" in report
    assert "Traceback" in report
    assert "()[data.index" in report
    assert inputs_of(report) == ["ff"]
    assert planted(KeyErrorTarget, "--seed", "5", "--runs", "2000") == 1
    assert inputs_of(capsys.readouterr().out) == ["ff"]
    path = tmp_path / "input.hex"
    path.write_text("ff\n", encoding="ascii")
    assert planted(KeyErrorTarget, "--input", str(path)) == 1
    assert "KeyError" in capsys.readouterr().out
    path.write_text("00\n\n0102\n", encoding="ascii")
    assert planted(KeyErrorTarget, "--input", str(path)) == 0
    assert "2 inputs, nothing found" in capsys.readouterr().out


def test_bug_that_needs_several_inputs_is_reported_with_those_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert planted(StatefulTarget, "--seed", "5", "--runs", "3000") == 1
    lines = inputs_of(capsys.readouterr().out)
    assert len(lines) == 3
    path = tmp_path / "input.hex"
    path.write_text("\n".join(lines), encoding="ascii")
    assert planted(StatefulTarget, "--input", str(path)) == 1


@pytest.mark.parametrize(
    ("target", "complaint"), [(LeakTarget, "a block keeps"), (BoundTarget, "too many sizes are kept")]
)
def test_memory_that_grows_is_a_violation(
    target: type[Target], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planted(target, "--seed", "5", "--runs", "300") == 1
    assert complaint in capsys.readouterr().out


def test_input_that_takes_for_ever_is_a_violation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "INPUT_LIMIT_S", 0.2)
    assert planted(EndlessTarget, "--seed", "5", "--runs", "1000") == 1
    assert "one input takes more than 0.2 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["no-such"], ["--runs", "0"], ["--jobs", "0"], ["--input", "x"], ["grant", "--input", "/no/file"]],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_list_names_every_target_and_what_it_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(TARGETS)


def test_target_ends_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["relay-frame", "--jobs", "1", "--seconds", "0.001"]) == 0
    assert f"{TARGETS['relay-frame'].block} inputs" in capsys.readouterr().out


def test_several_processes_share_the_work_of_the_command() -> None:
    command = [
        sys.executable,
        "-m",
        "tools.fuzz",
        "relay-frame",
        "--runs",
        "1200",
        "--jobs",
        "2",
        "--seed",
        "1",
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "1200 inputs" in ended.stdout


def digest() -> str:
    """Of a few inputs of every target: what a seed means."""
    total = hashlib.sha256()
    for name, target in TARGETS.items():
        made, chance = target(), random.Random(name)
        corpus = made.corpus()
        for _ in range(20):
            total.update(made.draw(chance, corpus))
    return total.hexdigest()


def test_seed_means_the_same_inputs_in_every_process() -> None:
    code = "from tests.tools.test_fuzz import digest; print(digest())"
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert other.stdout.strip() == digest()


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.is_protobuf])
def test_messages_survive_being_taken_apart(name: str) -> None:
    target = TARGETS[name]
    for example in target().corpus():
        body = example[target.prefix_bytes :]
        fields = mutate.parse_fields(body)
        if fields is not None:
            assert b"".join(map(mutate.encode_field, fields)) == body


@pytest.mark.parametrize("vary", [mutate.mutate, mutate.mutate_protobuf])
def test_mutations_stay_within_the_size_that_is_worth_trying(
    vary: Callable[[random.Random, bytes, list[bytes]], bytes],
) -> None:
    chance = random.Random(SEED)
    data = bytes.fromhex("0a03616263") * 40
    for _ in range(500):
        assert len(vary(chance, data, [data, data * 500])) <= mutate.MAX_INPUT_BYTES


@pytest.mark.parametrize("is_client", [True, False], ids=["of-a-client", "of-a-server"])
def test_certificate_of_an_unknown_version_is_refused_and_no_error_of_ours(is_client: bool) -> None:
    pair = connections.Pair(
        connections.inner_options(is_client=True), connections.inner_options(is_client=False)
    )
    attacker, victim = (pair.client, pair.server) if is_client else (pair.server, pair.client)
    changed: list[bytes] = []

    def change(flight: bytes) -> bytes:
        changed.append(flight.replace(VERSION_3, VERSION_11))
        assert changed[-1] != flight
        return changed[-1]

    for _ in range(4):
        pair.now += connections.STEP_S
        for sender, receiver in ((pair.server, pair.client), (pair.client, pair.server)):
            if sender is attacker and not changed and connections.has_handshake(sender):
                connections.replace_handshake(sender, change)
            receiver.receive(sender.transmit(pair.now), pair.now)
    assert changed
    assert not victim.is_established
    assert victim.statistics().internal_errors == 0
    [closed] = [each for each in victim.events() if isinstance(each, ConnectionClosed)]
    assert closed.reason is CloseReason.BAD_CERTIFICATE
