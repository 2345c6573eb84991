"""Our checklist against aioice's agent, over real sockets on loopback, in either role."""

from __future__ import annotations

import asyncio
import random
from typing import cast

import aioice
import aioice.ice
import pytest

from tests.unit.ice.simulation import credentials, host_candidate
from ztna.address import TransportAddress
from ztna.core import Transmit
from ztna.ice.candidate import Candidate, CandidateType
from ztna.ice.checklist import Checklist
from ztna.ice.checklist_effects import ChecklistEffect, ChecklistFailed, PairNominated, SendCheck
from ztna.ice.credentials import IceCredentials

LOOPBACK = "127.0.0.1"
PATIENCE_S = 30.0


class Peer(asyncio.DatagramProtocol):
    """A checklist driven by a socket and a timer."""

    def __init__(self) -> None:
        self.core = Checklist(random.Random(1))
        self.effects: list[ChecklistEffect] = []
        self.payloads: asyncio.Queue[bytes] = asyncio.Queue()
        self.nominated: asyncio.Future[PairNominated] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.DatagramTransport
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls) -> Peer:
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_datagram_endpoint(cls, local_addr=(LOOPBACK, 0))
        return peer

    @property
    def port(self) -> int:
        port: int = self.transport.get_extra_info("sockname")[1]
        return port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data[0] > 3:
            self.payloads.put_nowait(data)
            return
        self.core.handle_message(data, TransportAddress.of(*addr[:2]), LOOPBACK, self.now())
        self.act()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def act(self) -> None:
        for effect in self.core.drain():
            self.effects.append(effect)
            match effect:
                case SendCheck():
                    self.send(effect.request)
                case Transmit():
                    self.send(effect)
                case PairNominated() if not self.nominated.done():
                    self.nominated.set_result(effect)
        self.stop_timer()
        deadline = self.core.next_deadline()
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self.timeout)

    def timeout(self) -> None:
        self.core.handle_timeout(self.now())
        self.act()

    def send(self, transmit: Transmit) -> None:
        assert transmit.remote.host == LOOPBACK
        self.transport.sendto(transmit.data, (transmit.remote.host, transmit.remote.port))

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def close(self) -> None:
        self.stop_timer()
        self.transport.close()
        await self._closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set_result(None)


def ours(foreign: aioice.Candidate) -> Candidate:
    address = TransportAddress(foreign.host, foreign.port)
    return Candidate(CandidateType(foreign.type), address, address, foreign.priority, foreign.foundation)


def theirs(candidate: Candidate) -> aioice.Candidate:
    return aioice.Candidate(
        foundation=candidate.foundation,
        component=1,
        transport="udp",
        priority=candidate.priority,
        host=candidate.address.host,
        port=candidate.address.port,
        type=candidate.type.value,
    )


async def complete(*, we_control: bool, they_control: bool, knows_us: bool = True) -> Peer:
    """Bring both up, pass data both ways, close both."""
    peer = await Peer.open()
    foreign = aioice.Connection(ice_controlling=they_control, use_ipv6=False)
    try:
        await foreign.gather_candidates()
        local = credentials("ours")
        own = host_candidate(LOOPBACK, peer.port)
        foreign.remote_username, foreign.remote_password = local.ufrag, local.pwd
        if knows_us:
            await foreign.add_remote_candidate(theirs(own))
        peer.core.handle_prepare(1, local, [own], is_controlling=we_control)
        remote = IceCredentials(foreign.local_username, foreign.local_password)
        candidates = [ours(each) for each in foreign.local_candidates]
        peer.core.handle_start(1, remote, candidates, 0.0, peer.now())
        peer.act()
        connecting = asyncio.create_task(foreign.connect())
        nominated = await asyncio.wait_for(peer.nominated, PATIENCE_S)
        if knows_us:
            await foreign.add_remote_candidate(None)
        await asyncio.wait_for(connecting, PATIENCE_S)
        await foreign.send(b"\x40 from theirs")
        assert await asyncio.wait_for(peer.payloads.get(), PATIENCE_S) == b"\x40 from theirs"
        destination = nominated.pair.destination
        peer.transport.sendto(b"\x40 from ours", (destination.host, destination.port))
        assert await asyncio.wait_for(foreign.recv(), PATIENCE_S) == b"\x40 from ours"
    finally:
        await peer.close()
        await foreign.close()
    return peer


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: [LOOPBACK])


@pytest.mark.parametrize("we_control", [True, False], ids=["controlling", "controlled"])
def test_checklist_completes_with_a_foreign_agent(we_control: bool) -> None:
    peer = asyncio.run(complete(we_control=we_control, they_control=not we_control))
    assert peer.core.is_controlling is we_control
    assert not [effect for effect in peer.effects if isinstance(effect, ChecklistFailed)]
    assert not peer.core.dropped


@pytest.mark.parametrize("role", [True, False], ids=["both controlling", "both controlled"])
def test_roles_in_conflict_are_settled_with_a_foreign_agent(role: bool) -> None:
    asyncio.run(complete(we_control=role, they_control=role))


def test_foreign_agent_learns_of_us_by_our_check() -> None:
    asyncio.run(complete(we_control=True, they_control=False, knows_us=False))
