"""Lets faults happen, and ends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tests.simnet.link import LinkConfig
from tools.simulate.abuse import Strangers
from tools.simulate.deployment import Deployment
from tools.simulate.scenario import LINK_FAULTS, Fault, FaultKind, Scenario
from tools.simulate.variants import HOST, site_elsewhere
from ztna.access.identity import Role
from ztna.v1 import hole_punch_pb2

Undo = Callable[[], None]
Note = Callable[[str], None]
"""Takes what happened, for the timeline."""

_CHANGES: Final[dict[FaultKind, Callable[[LinkConfig, float], LinkConfig]]] = {
    FaultKind.CUT: lambda link, _: replace(link, is_up=False),
    FaultKind.LOSS: lambda link, share: replace(link, loss=max(link.loss, share)),
    FaultKind.DELAY: lambda link, seconds: replace(link, latency_s=link.latency_s + seconds),
    FaultKind.JITTER: lambda link, seconds: replace(link, jitter_s=max(link.jitter_s, seconds)),
    FaultKind.DUPLICATION: lambda link, share: replace(link, duplication=max(link.duplication, share)),
    FaultKind.CORRUPTION: lambda link, share: replace(link, corruption=max(link.corruption, share)),
    FaultKind.REORDERING: lambda link, share: replace(link, reordering=max(link.reordering, share)),
    FaultKind.RATE: lambda link, bps: replace(link, rate_bps=bps, queue_bytes=32_768),
    FaultKind.MTU: lambda link, size: replace(link, mtu=min(link.mtu, int(size))),
}


class Faults:
    """Works off the faults of a scenario on the world's clock."""

    def __init__(self, world: Deployment, scenario: Scenario, note: Note) -> None:
        """`note` is told of each."""
        self.strangers = Strangers(world)
        self._world = world
        self._note = note
        self._starts: dict[FaultKind, Callable[[Fault], Undo | None]] = {
            FaultKind.KILL: self._kill,
            FaultKind.STOP: self._stop,
            FaultKind.FREEZE: self._freeze,
            FaultKind.CRASH: self._crash,
            FaultKind.REBIND: self._rebind,
            FaultKind.NEW_ADDRESS: self._renumber,
            FaultKind.MOVE: self._move,
            FaultKind.BLOCK_UDP: self._block_udp,
            FaultKind.CLOCK: self._set_clock,
            FaultKind.DEAD_SERVICE: self._switch_off,
            FaultKind.SLOW_SERVICE: self._slow,
            FaultKind.RESTART_ICE: self._restart_ice,
            FaultKind.REVOKE: self._revoke,
            FaultKind.ABUSE: self._abuse,
            FaultKind.INTRUDE: self._intrude,
            FaultKind.SUSPEND: self._suspend,
            FaultKind.EXPIRE: self._expire,
            FaultKind.WITHDRAW: self._withdraw,
        }
        for fault in scenario.faults:
            world.clock.call_at(world.now + fault.at, lambda fault=fault: self._begin(fault))  # type: ignore[misc]

    def _begin(self, fault: Fault) -> None:
        self._note(f"fault: {_told(fault)}")
        end = self._start(fault)
        if end is None:
            return

        def finish() -> None:
            self._note(f"mended: {_told(fault)}")
            end()

        self._world.clock.call_at(self._world.now + fault.lasts_s, finish)

    def _start(self, fault: Fault) -> Undo | None:
        if fault.kind in LINK_FAULTS:
            change = _CHANGES[fault.kind]
            tells = {"tells_mtu": True} if fault.detail == "told" else {}
            return self._world.links.change(
                fault.target, fault.other, lambda link: replace(change(link, fault.amount), **tells)
            )
        return self._starts[fault.kind](fault)

    def _kill(self, fault: Fault) -> Undo | None:
        return self._end_process(fault.target, self._world.kill)

    def _stop(self, fault: Fault) -> Undo | None:
        return self._end_process(fault.target, self._world.drain)

    def _crash(self, fault: Fault) -> None:
        self._world.crash(fault.target, fault.detail)

    def _rebind(self, fault: Fault) -> None:
        place = self._world.places[fault.target]
        for nat in (*place.nats, *place.firewalls):
            nat.rebind()

    def _move(self, fault: Fault) -> None:
        self._world.move(fault.target, site_elsewhere(fault.detail))

    def _block_udp(self, fault: Fault) -> Undo:
        lan = self._world.places[fault.target].lan
        lan.blocks_udp = True
        return lambda: setattr(lan, "blocks_udp", False)

    def _set_clock(self, fault: Fault) -> None:
        self._world.daemons[fault.target].host.skew_s += fault.amount

    def _switch_off(self, fault: Fault) -> Undo:
        # With resets: a machine without power would leave the connector to retransmit, which ours does not.
        self._world.network.crash(self._world.service_hosts[fault.target], resets=True)
        return lambda: self._world.start_service(fault.target)

    def _slow(self, fault: Fault) -> Undo:
        self._world.services[fault.target].slow(is_slow=True)
        return lambda: self._world.services[fault.target].slow(is_slow=False)

    def _revoke(self, fault: Fault) -> None:
        self._world.revoke(fault.target)

    def _abuse(self, fault: Fault) -> None:
        self.strangers.attack(fault.target, fault.detail, fault.amount)

    def _intrude(self, fault: Fault) -> None:
        self._world.intrude(fault.target)

    def _expire(self, fault: Fault) -> Undo:
        # Nothing is to be done: it was issued to end now (`Deployment`).
        return lambda: self._world.renew_certificate(fault.target)

    def _withdraw(self, fault: Fault) -> Undo | None:
        world = self._world
        world.withdraw_certificate(fault.target)
        for name, daemon in world.daemons.items():
            group = "intermediates" if daemon.role is Role.INTERMEDIATE else "peers"
            if name != fault.target and fault.detail in {"all", group}:
                world.learn_list(name)
        if fault.target in world.scenario.intermediates:
            world.outcasts[fault.target] = world.now
        if not fault.lasts_s:
            return None

        def renew() -> None:
            world.outcasts.pop(fault.target, None)
            world.renew_certificate(fault.target)

        return renew

    def _end_process(self, name: str, end: Callable[[str], object]) -> Undo | None:
        if self._world.daemons[name].node is None:
            return None
        end(name)

        def start() -> None:
            # A service manager has no endless patience with a process that was told to stop.
            self._world.finish(name)
            if self._world.daemons[name].node is None:
                self._world.start(name)

        return start

    def _freeze(self, fault: Fault) -> None:
        io = self._world.daemons[fault.target].io
        if io is not None:
            io.freeze(fault.lasts_s)

    def _suspend(self, fault: Fault) -> Undo:
        self._world.suspend(fault.target, fault.lasts_s, stands=fault.detail == "stands")
        return lambda: None

    def _renumber(self, fault: Fault) -> None:
        if fault.detail == HOST:
            self._world.renumber(fault.target)
            return
        nats = self._world.places[fault.target].nats
        if nats:
            nats[0].move(self._world.fresh_address())

    def _restart_ice(self, fault: Fault) -> None:
        daemon = self._world.daemons[fault.target]
        if daemon.node is not None:
            for session_id in daemon.facts.established:
                daemon.node.router.emit(hole_punch_pb2.RestartIce(session_id=session_id, reason="operator"))


def _told(fault: Fault) -> str:
    parts = [fault.kind.value, fault.target]
    if fault.other:
        parts.append(f"to {fault.other}")
    if fault.amount:
        parts.append(f"by {fault.amount:g}")
    if fault.detail:
        parts.append(fault.detail)
    if fault.lasts_s:
        parts.append(f"for {fault.lasts_s:g} s")
    return " ".join(parts)
