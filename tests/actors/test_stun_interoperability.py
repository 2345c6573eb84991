"""Clients of other makers against our responder, on loopback (Debian packages coturn and stun-client)."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest

from actors.udp_socket import IntermediateUdpSocket
from tests.actors.io_worlds import RealWorld
from tests.actors.real_actor import RealActor
from tools.deployment import free_port
from ztna.address import TransportAddress
from ztna.v1 import udp_socket_pb2

HOST = "127.0.0.1"
# A client that retransmits by RFC 3489 needs ten seconds to believe in silence.
LIMIT_S = 60.0


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skip for want of a program, except as root: root can install it, and `make lab-tools` does."""
    reason = f"{program} is not installed (Debian package {package}, make lab-tools)"
    return pytest.mark.skipif(os.geteuid() != 0 and shutil.which(program) is None, reason=reason)


class Server:
    """The sockets of an intermediate, and foreign clients that ask it."""

    def __init__(self, world: RealWorld) -> None:
        self.alternate_port = free_port(socket.SOCK_DGRAM, HOST)
        self._world = world
        self.actor = RealActor(
            world,
            functools.partial(
                IntermediateUdpSocket,
                bind=[TransportAddress(HOST, 0)],
                alternate_port=self.alternate_port,
                external_address=None,
            ),
        )
        (bound,) = self.actor.wait_for(udp_socket_pb2.SocketsBound)
        self.port = bound.addresses[0].port

    def run(self, *command: str, until: str = "") -> str:
        """What a client prints; with `until` it is ended behind the line that holds this."""
        assert shutil.which(command[0]) is not None, f"{command[0]} is not installed (make lab-tools)"
        return self._world.loop.run_until_complete(asyncio.wait_for(self._run(command, until), LIMIT_S))

    async def _run(self, command: tuple[str, ...], until: str) -> str:
        # Line by line, or the last lines of a client that is ended are lost.
        client = await asyncio.create_subprocess_exec(
            "stdbuf", "-oL", *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert client.stdout is not None
        lines: list[str] = []
        try:
            async for line in client.stdout:
                lines.append(line.decode(errors="replace"))
                if until and until in lines[-1]:
                    break
        finally:
            if client.returncode is None and until:
                client.kill()
            await client.wait()
        return "".join(lines)


@pytest.fixture
def server() -> Iterator[Server]:
    world = RealWorld(HOST)
    made = Server(world)
    yield made
    made.actor.stop()
    world.close()


@needs("turnutils_stunclient", "coturn")
def test_coturns_stunclient_reads_its_reflexive_address_and_ours(server: Server) -> None:
    # It ends by itself only where a second address answers, too.
    printed = server.run("turnutils_stunclient", "-p", str(server.port), HOST, until="UDP reflexive addr")
    assert f"Response origin: : {HOST}:{server.port}" in printed
    assert f"Other addr: : {HOST}:{server.alternate_port}" in printed
    assert re.search(r"UDP reflexive addr: 127\.0\.0\.1:\d+", printed)


@needs("turnutils_natdiscovery", "coturn")
def test_coturns_natdiscovery_finds_the_mapping_of_loopback(server: Server) -> None:
    printed = server.run("turnutils_natdiscovery", "-m", "-p", str(server.port), HOST)
    assert "NAT with Endpoint Independent Mapping!" in printed


@needs("stun", "stun-client")
def test_client_of_rfc_3489_reads_all_three_addresses(server: Server) -> None:
    printed = server.run("stun", f"{HOST}:{server.port}", "1", "-v", "-i", HOST, until="changedAddr")
    mapped = re.search(r"mappedAddr=127\.0\.0\.1:(\d+)", printed)
    opened = re.search(r"Opened port (\d+)", printed)
    assert mapped is not None
    assert opened is not None
    assert mapped[1] == opened[1]
    assert f"ChangedAddress = {HOST}:{server.alternate_port}" in printed
    assert f"SourceAddress = {HOST}:{server.port}" in printed


@needs("stun", "stun-client")
def test_client_of_rfc_3489_sees_no_nat_on_loopback(server: Server) -> None:
    printed = server.run("stun", f"{HOST}:{server.port}", "-v")
    assert "test I = 1" in printed
    assert "test III = 1" in printed, "the alternate port answers, too"
    assert "is nat  = 0" in printed
