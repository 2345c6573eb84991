"""Real handshakes in a storm, on a virtual clock: how many begin in any second, and who gets in."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from random import Random

import pytest

from tests.unit.quic.identities import AGENT, INTERMEDIATE, leg_options
from ztna.address import TransportAddress
from ztna.quic.budget import (
    MAX_HANDSHAKE_BURST_S,
    MAX_HANDSHAKE_SHARE,
    WHOLE_HANDSHAKE,
    HandshakeBudget,
    fixed_cost,
)
from ztna.quic.connection import Connection
from ztna.quic.demux import ConnectionIdTable
from ztna.quic.endpoint import Accept, Deliver, Endpoint, Reply

NODES = 60
DELAY_S = 0.02
MAX_REST_S = 10.0
"""Between two attempts of a client, drawn evenly: a node's own back-off soon rests longer."""
START = 50.0
COST_S = 0.008
SUSTAINED_SHARE = MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S
CLIENT_OPTIONS = leg_options(AGENT, "intermediate", is_client=True)


@dataclass(eq=False, slots=True)
class End:
    """One end of a connection of a node."""

    node: int
    connection: Connection
    is_client: bool
    deadline: float | None = None


class Storm:
    """Clients that all dial at once, each over a link of `DELAY_S`; a client that fails dials anew."""

    def __init__(self, nodes: int, networks: int) -> None:
        self.table: ConnectionIdTable[End] = ConnectionIdTable()
        self.endpoint = Endpoint(
            leg_options(INTERMEDIATE, "agent", is_client=False),
            self.table,
            HandshakeBudget(fixed_cost(COST_S / WHOLE_HANDSHAKE)),
        )
        self.clients: dict[int, End] = {}
        self.servers: list[End] = []
        self.accepted_at: list[float] = []
        self.addresses = {
            node: TransportAddress.of(f"10.{node % networks}.0.{1 + node // networks}", 4000)
            for node in range(nodes)
        }
        self.nodes = {address: node for node, address in self.addresses.items()}
        self.queue: list[
            tuple[float, int, End | int, bytes]
        ] = []  # to this end, or from a node to the server
        self.redial_at: dict[int, float] = {}
        self.sequence = 0
        self.random = Random(1)
        for node in range(nodes):
            self._dial(node, START)

    @property
    def inside(self) -> int:
        """Nodes that both ends hold for connected."""
        served = {end.node for end in self.servers if end.connection.is_established}
        return sum(end.connection.is_established and end.node in served for end in self.clients.values())

    def run(self, limit_s: float) -> float:
        """Until everybody is in; how long that took."""
        now, ends = START, len(self.addresses)
        while self.inside < ends:
            due = [end.deadline for end in (*self.clients.values(), *self.servers)]
            due += [self.queue[0][0] if self.queue else None, self.endpoint.next_deadline()]
            due += self.redial_at.values()
            now = max(now, min(each for each in due if each is not None))
            assert now < START + limit_s, f"{self.inside} of {ends} are in"
            self._step(now)
        return now - START

    def _step(self, now: float) -> None:
        while self.queue and self.queue[0][0] <= now:
            _, _, to, data = heapq.heappop(self.queue)
            if isinstance(to, End):
                to.connection.receive([data], now)
                self._drive(to, now)
            else:
                self._arrive(to, data, now)
        for admitted in self.endpoint.handle_timeout(now):
            self._admit(self.nodes[admitted.source], admitted.connection, now)
        for end in [*self.clients.values(), *self.servers]:
            if end.deadline is not None and end.deadline <= now:
                end.connection.handle_timeout(now)
                self._drive(end, now)
        for node in [node for node, at in self.redial_at.items() if at <= now]:
            del self.redial_at[node]
            self._dial(node, now)

    def _dial(self, node: int, now: float) -> None:
        end = self.clients[node] = End(node, Connection.client(CLIENT_OPTIONS), is_client=True)
        end.connection.connect(now)
        self._drive(end, now)

    def _drive(self, end: End, now: float) -> None:
        connection, node = end.connection, end.node
        connection.events()
        for data in connection.transmit(now):
            self._send(node if end.is_client else self.clients[node], data, now)
        # A node keeps its leg alive by its own pings, which need not be played here.
        end.deadline = None if connection.is_established else connection.next_deadline()
        if not end.is_client:
            for connection_id in connection.local_connection_ids:
                self.table.add(connection_id, end)
        elif connection.is_closed and node not in self.redial_at:
            end.deadline = None
            self.redial_at[node] = now + self.random.uniform(0.0, MAX_REST_S)

    def _arrive(self, node: int, data: bytes, now: float) -> None:
        decision = self.endpoint.handle_datagram(data, self.addresses[node], now)
        match decision:
            case Reply():
                self._send(self.clients[node], decision.data, now)
            case Accept():
                self._admit(node, decision.connection, now)
            case Deliver():
                decision.owner.connection.receive([data], now)
                self._drive(decision.owner, now)
            case _:
                pass

    def _admit(self, node: int, connection: Connection, now: float) -> None:
        self.accepted_at.append(now)
        self.servers.append(End(node, connection, is_client=False))
        self._drive(self.servers[-1], now)

    def _send(self, to: End | int, data: bytes, now: float) -> None:
        self.sequence += 1
        heapq.heappush(self.queue, (now + DELAY_S, self.sequence, to, data))


@pytest.mark.parametrize("networks", [1, NODES], ids=["one-site", "everywhere"])
def test_storm_of_clients_takes_a_fifth_of_any_second_and_all_get_in(networks: int) -> None:
    storm = Storm(NODES, networks)
    took_s = storm.run(limit_s=9.0)
    # The budget never lies idle while somebody waits.
    assert took_s <= 1.2 * NODES * COST_S / SUSTAINED_SHARE
    times = sorted(storm.accepted_at)
    assert len(times) == NODES, "nobody's handshake was done twice"
    busiest = max(sum(start <= each < start + 1.0 for each in times) for start in times)
    assert busiest * COST_S <= MAX_HANDSHAKE_SHARE + COST_S
    at_once = max(times.count(each) for each in times)
    assert at_once * COST_S <= MAX_HANDSHAKE_BURST_S + COST_S
    assert storm.endpoint.handshaking == 0


def test_storm_that_outlasts_the_patience_of_its_clients_wastes_hardly_a_handshake() -> None:
    nodes = 600  # half a minute of the budget; a client gives an attempt up after ten seconds
    storm = Storm(nodes, 40)
    took_s = storm.run(limit_s=120.0)
    assert took_s <= 1.5 * nodes * COST_S / SUSTAINED_SHARE
    assert len(storm.accepted_at) <= 1.1 * nodes
