"""What the watcher takes for proof: an answer counts for the check that it answers, and for no other."""

from __future__ import annotations

import struct
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from tests.simnet.link import Packet
from tests.simnet.world import Daemon
from tools.simulate import apps, invariants
from tools.simulate.generate import generate
from tools.simulate.invariants import Watcher
from tools.simulate.run import Run, run
from tools.simulate.scenario import Work, WorkKind
from ztna.address import TransportAddress

HERE, PEER, OTHER = (TransportAddress(f"198.51.100.{number}", 4000) for number in (1, 2, 3))
NODE = cast("Daemon", SimpleNamespace(id="agent-0"))


def stun(kind: int, transaction: int) -> bytes:
    return struct.pack(">HHI", kind, 0, 0x2112A442) + transaction.to_bytes(12)


@pytest.mark.parametrize(
    ("source", "transactions", "counted"),
    [(PEER, [7], 1), (PEER, [7, 7], 1), (PEER, [8], 0), (OTHER, [7], 0)],
    ids=["answer", "copy of one", "of no check", "from elsewhere"],
)
def test_confirmation_has_an_answer_of_its_own(
    source: TransportAddress, transactions: list[int], counted: int
) -> None:
    found: list[str] = []
    watcher = Watcher(found.append)
    watcher._stun(NODE, Packet(HERE, PEER, stun(1, 7)), is_outbound=True)
    for each in transactions:
        watcher._stun(NODE, Packet(source, HERE, stun(0x101, each)), is_outbound=False)
    for _ in range(counted):
        watcher._judge_confirmation(NODE, str(PEER))
    assert found == []
    watcher._judge_confirmation(NODE, str(PEER))
    assert "although no answer came" in found[0]


def test_path_that_is_selected_and_not_confirmed_in_time_is_a_violation_though_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(invariants, "CONSENT_LIMIT_S", 0.1)
    monkeypatch.setattr(Watcher, "_judge_direct", lambda *_: None)
    assert "is selected, and unconfirmed for" in run(generate(0, "failover")).violation


def test_upload_that_goes_on_after_a_half_close_and_never_ends_is_a_violation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = generate(0, "failover")
    work = Work(2.0, WorkKind.STREAM, "agent-0", "connector-0", up=1000, down=1000, ends_late=True)
    scenario = replace(scenario, work=(work,), faults=())
    assert not run(scenario).violation
    monkeypatch.setattr(apps._Served, "eof_received", lambda _served: None)
    monkeypatch.setattr(Run, "_heal", lambda _run: None)  # whose streams wait for a receipt
    assert "the upload never came to its end" in run(scenario).violation
