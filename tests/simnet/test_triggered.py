"""The rule of triggered checks, as packets show it: what breaks it, and what is no breach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from tests.simnet.clock import VirtualClock
from tests.simnet.link import Packet
from tests.simnet.world import Daemon
from tools.simulate.triggered import TriggeredChecks
from ztna.address import TransportAddress
from ztna.stun.attributes import Username, XorMappedAddress
from ztna.stun.message import BINDING, Message, MessageClass, build
from ztna.v1 import checklist_pb2, types_pb2

US, THEM = TransportAddress("192.0.2.1", 1000), TransportAddress("192.0.2.2", 2000)
SESSION = bytes(16)


@dataclass
class _Named:
    id: str = "agent-0"


@dataclass
class Scene:
    """One node that searches, and its peer."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    breaches: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rule = TriggeredChecks(self.breaches.append)
        self.daemon = cast("Daemon", _Named())
        local = types_pb2.IceCredentials(ufrag="ours", pwd="p" * 22)
        self.rule.message(
            self.daemon, checklist_pb2.PrepareChecks(session_id=SESSION, generation=1, local=local)
        )

    def start(self) -> None:
        self.rule.message(self.daemon, checklist_pb2.StartChecks(session_id=SESSION, generation=1))

    def hear(self, number: int) -> None:
        """A check of the peer comes, and is answered."""
        self._pass(_check(number, "ours:theirs"), is_outbound=False)
        self._pass(_answer(number), is_outbound=True)

    def send(self, number: int) -> None:
        self._pass(_check(number, "theirs:ours"), is_outbound=True)

    def be_answered(self, number: int) -> None:
        self._pass(_answer(number), is_outbound=False)

    def _pass(self, payload: bytes, *, is_outbound: bool) -> None:
        source, destination = (US, THEM) if is_outbound else (THEM, US)
        self.rule.packet(
            self.daemon, Packet(source, destination, payload), self.clock, is_outbound=is_outbound
        )


def _check(number: int, username: str) -> bytes:
    return build(Message(BINDING, MessageClass.REQUEST, number.to_bytes(12), (Username(username),)))


def _answer(number: int) -> bytes:
    mapped = (XorMappedAddress(US),)
    return build(Message(BINDING, MessageClass.SUCCESS_RESPONSE, number.to_bytes(12), mapped))


def test_check_that_is_answered_and_followed_by_none_is_a_breach() -> None:
    scene = Scene()
    scene.start()
    scene.send(1)
    scene.hear(100)
    scene.send(1)  # once more is no other check
    scene.clock.run_for(1.0)
    assert scene.breaches == ["agent-0: a check of 192.0.2.2:2000 was answered, and none sent back"]


@pytest.mark.parametrize("is_answered", [False, True])
def test_check_that_is_followed_by_another_or_by_an_answer_is_none(is_answered: bool) -> None:
    scene = Scene()
    scene.start()
    scene.send(1)
    scene.hear(100)
    if is_answered:
        scene.be_answered(1)
    else:
        scene.send(2)
    scene.hear(101)
    scene.clock.run_for(1.0)
    assert scene.breaches == []


@pytest.mark.parametrize("end", [checklist_pb2.StopChecks, checklist_pb2.PairNominated])
def test_search_that_is_over_or_has_not_begun_owes_nothing(
    end: type[checklist_pb2.StopChecks | checklist_pb2.PairNominated],
) -> None:
    scene = Scene()
    scene.hear(100)
    scene.start()
    scene.hear(101)
    scene.rule.message(scene.daemon, end(session_id=SESSION, generation=1))
    scene.hear(102)
    scene.clock.run_for(1.0)
    assert scene.breaches == []
