"""The process of a fleet: many simulated nodes on one event loop, told what to do line by line.

Each line of standard input is a JSON object with a `command`; the answer is one JSON line on standard output.
The process ends with its input. See `tools.bench.fleet` for the other end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.bench._fleet_node import SimulatedNode, Target, make_credentials
from ztna.access.identity import Verifier
from ztna.address import TransportAddress
from ztna.pki.files import PkiDirectory

NODES_PER_NETWORK = 250
"""Hosts of a /24, the unit by which an intermediate tells one site from another."""

LEAVE_LIMIT_S = 5.0


class FleetProcess:
    """All nodes of one process."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        """Issue identities and bind sockets as ordered; raises `OSError` and `ConfigError`."""
        os.nice(int(order["niceness"]))
        ca = PkiDirectory(Path(order["pki"])).load_authority()
        verifier = Verifier([ca.certificate], ca.trust_domain)
        host, _, port = str(order["quic"]).rpartition(":")
        target = Target(order["intermediate_id"], TransportAddress(host, int(port)), order["grpc"])
        self._ready_at: dict[SimulatedNode, float] = {}
        self._handles: list[asyncio.TimerHandle] = []
        self._nodes = [
            SimulatedNode(
                make_credentials(ca, verifier, f"{order['prefix']}-{number}"),
                target,
                TransportAddress(_host(number, int(order["networks"])), 0),
                self._changed,
            )
            for number in range(int(order["count"]))
        ]
        self._commands: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "attach": self._attach,
            "report": self._report,
            "leave": self._leave,
        }

    def handle(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Do as ordered; returns the answer."""
        return self._commands[order["command"]](order)

    def _changed(self, node: SimulatedNode) -> None:
        if node.is_up:
            self._ready_at[node] = time.monotonic()
        else:
            self._ready_at.pop(node, None)

    def _attach(self, order: Mapping[str, Any]) -> dict[str, Any]:
        loop, over_s = asyncio.get_running_loop(), float(order["over_s"])
        for number, node in enumerate(self._nodes):
            self._handles.append(loop.call_later(over_s * number / len(self._nodes), node.attach))
        return {"at": time.monotonic()}

    def _report(self, order: Mapping[str, Any]) -> dict[str, Any]:
        losses: Counter[str] = Counter()
        for node in self._nodes:
            losses.update(node.losses)
        ready_at = {node: at for node, at in self._ready_at.items() if at >= float(order["since"])}
        missing = [node for node in self._nodes if node not in ready_at]
        return {
            "attached": sum(node.is_attached for node in self._nodes),
            "up": len(ready_at),
            "losses": losses,
            "cpu_s": time.process_time(),
            "ready_at": sorted(ready_at.values()) if order["with_times"] else [],
            "last_loss": missing[-1].last_loss if missing else "",
        }

    def _leave(self, order: Mapping[str, Any]) -> dict[str, Any]:
        del order
        for handle in self._handles:
            handle.cancel()
        for node in self._nodes:
            node.leave()
        return {}


def _host(number: int, networks: int) -> str:
    """Spread nodes over `networks` networks of loopback, each node an address of its own."""
    return f"127.1.{number % networks}.{1 + number // networks % NODES_PER_NETWORK}"


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    fleet = FleetProcess(json.loads(await reader.readline()))
    _answer({})
    while line := await reader.readline():
        order = json.loads(line)
        _answer(fleet.handle(order))
        if order["command"] == "leave":
            break
    # The last words of gRPC are written by tasks of its carriers.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=LEAVE_LIMIT_S)


def _answer(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
