"""Real handshakes in a storm, on a virtual clock: how many begin in any second, and who gets in."""

from __future__ import annotations

import heapq

import pytest

from tests.unit.quic.identities import AGENT, INTERMEDIATE, leg_options
from ztna.address import TransportAddress
from ztna.quic.admission import HANDSHAKE_COST_S, MAX_HANDSHAKE_BURST_S, MAX_HANDSHAKE_SHARE
from ztna.quic.connection import Connection
from ztna.quic.demux import ConnectionIdTable
from ztna.quic.endpoint import Accept, Deliver, Endpoint, Reply

NODES = 60
DELAY_S = 0.02
START = 50.0
CLIENT_OPTIONS = leg_options(AGENT, "intermediate", is_client=True)


class Storm:
    """Clients that all dial at once, each over a link of `DELAY_S`; a client that fails dials anew."""

    def __init__(self, networks: int) -> None:
        table: ConnectionIdTable[int] = ConnectionIdTable()
        self.endpoint = Endpoint(leg_options(INTERMEDIATE, "agent", is_client=False), table)
        self.table = table
        self.clients: dict[int, Connection] = {}
        self.servers: dict[int, Connection] = {}
        self.accepted_at: list[float] = []
        self.addresses = {
            node: TransportAddress.of(f"10.{node % networks}.0.{1 + node // networks}", 4000)
            for node in range(NODES)
        }
        self.nodes = {address: node for node, address in self.addresses.items()}
        self.queue: list[tuple[float, int, int, bool, bytes]] = []
        self.sequence = 0
        for node in range(NODES):
            self.clients[node] = Connection.client(CLIENT_OPTIONS)
            self.clients[node].connect(START)
            self._send(node, self.clients[node].transmit(START), START, to_server=True)

    @property
    def inside(self) -> int:
        return sum(
            client.is_established and node in self.servers and self.servers[node].is_established
            for node, client in self.clients.items()
        )

    def run(self, limit_s: float) -> float:
        """Until everybody is in; how long that took."""
        now = START
        while self.inside < NODES:
            ends = [*self.clients.values(), *self.servers.values()]
            due = [each.next_deadline() for each in ends]
            due += [self.queue[0][0] if self.queue else None, self.endpoint.next_deadline()]
            now = max(now, min(each for each in due if each is not None))
            assert now < START + limit_s, f"{self.inside} of {NODES} are in"
            while self.queue and self.queue[0][0] <= now:
                _, _, node, to_server, data = heapq.heappop(self.queue)
                if to_server:
                    self._arrive(node, data, now)
                else:
                    self.clients[node].receive([data], now)
            for admitted in self.endpoint.handle_timeout(now):
                self._admit(self.nodes[admitted.source], admitted.connection, now)
            for node in list(self.clients):
                self._turn(node, now)
        return now - START

    def _turn(self, node: int, now: float) -> None:
        for ends, to_server in ((self.clients, True), (self.servers, False)):
            connection = ends.get(node)
            if connection is None:
                continue
            deadline = connection.next_deadline()
            if deadline is not None and deadline <= now:
                connection.handle_timeout(now)
            connection.events()
            self._send(node, connection.transmit(now), now, to_server=to_server)
            if not to_server:
                for connection_id in connection.local_connection_ids:
                    self.table.add(connection_id, node)

    def _arrive(self, node: int, data: bytes, now: float) -> None:
        decision = self.endpoint.handle_datagram(data, self.addresses[node], now)
        match decision:
            case Reply():
                self._send(node, [decision.data], now, to_server=False)
            case Accept():
                self._admit(node, decision.connection, now)
            case Deliver():
                self.servers[decision.owner].receive([data], now)
            case _:
                pass

    def _admit(self, node: int, connection: Connection, now: float) -> None:
        self.accepted_at.append(now)
        self.servers[node] = connection
        for connection_id in connection.local_connection_ids:
            self.table.add(connection_id, node)

    def _send(self, node: int, datagrams: list[bytes], now: float, *, to_server: bool) -> None:
        for data in datagrams:
            self.sequence += 1
            heapq.heappush(self.queue, (now + DELAY_S, self.sequence, node, to_server, data))


@pytest.mark.parametrize("networks", [1, NODES], ids=["one-site", "everywhere"])
def test_storm_of_clients_takes_a_fifth_of_any_second_and_all_get_in(networks: int) -> None:
    storm = Storm(networks)
    took_s = storm.run(limit_s=9.0)
    # The budget never lies idle while somebody waits.
    assert took_s <= 1.2 * NODES * HANDSHAKE_COST_S / (MAX_HANDSHAKE_SHARE - MAX_HANDSHAKE_BURST_S)
    times = sorted(storm.accepted_at)
    assert len(times) == NODES, "nobody's handshake was done twice"
    busiest = max(sum(start <= each < start + 1.0 for each in times) for start in times)
    assert busiest * HANDSHAKE_COST_S <= MAX_HANDSHAKE_SHARE
    at_once = max(times.count(each) for each in times)
    assert at_once * HANDSHAKE_COST_S <= MAX_HANDSHAKE_BURST_S
    assert storm.endpoint.handshaking == 0
