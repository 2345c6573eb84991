"""A NAT of any RFC 4787 behaviour, and STUN servers beyond it, for tests of what we learn of both."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ztna.address import TransportAddress
from ztna.nat.behaviour import Dependence, PortAllocation
from ztna.stun.attributes import (
    Attribute,
    ChangeRequest,
    ErrorCode,
    OtherAddress,
    UnknownAttributes,
    XorMappedAddress,
)
from ztna.stun.message import BINDING, Message, MessageClass, build, parse

EXTERNAL_HOST = "203.0.113.5"
EI = Dependence.ENDPOINT_INDEPENDENT
AD = Dependence.ADDRESS_DEPENDENT
APD = Dependence.ADDRESS_AND_PORT_DEPENDENT


def depends_on(dependence: Dependence, remote: TransportAddress) -> object:
    return {EI: None, AD: remote.host, APD: remote}[dependence]


@dataclass
class FakeNat:
    mapping: Dependence = EI
    filtering: Dependence = APD
    allocation: PortAllocation = PortAllocation.PRESERVED
    step: int = 1
    external_host: str = EXTERNAL_HOST
    chance: random.Random = field(default_factory=lambda: random.Random(5))

    def __post_init__(self) -> None:
        self.next_port = 20_000
        self.mappings: dict[object, TransportAddress] = {}
        self.inside: dict[TransportAddress, TransportAddress] = {}
        self.opened: set[tuple[TransportAddress, object]] = set()

    def outbound(self, local: TransportAddress, remote: TransportAddress) -> TransportAddress:
        key = (local, depends_on(self.mapping, remote))
        if key not in self.mappings:
            self.mappings[key] = TransportAddress(self.external_host, self._port(local))
            self.inside[self.mappings[key]] = local
        external = self.mappings[key]
        self.opened.add((external, depends_on(self.filtering, remote)))
        return external

    def inbound(self, external: TransportAddress, source: TransportAddress) -> TransportAddress | None:
        is_open = (external, depends_on(self.filtering, source)) in self.opened
        return self.inside.get(external) if is_open else None

    def _port(self, local: TransportAddress) -> int:
        if self.allocation is PortAllocation.PRESERVED:
            if TransportAddress(self.external_host, local.port) not in self.inside:
                return local.port
            return self.chance.randrange(1024, 65_536)
        if self.allocation is PortAllocation.RANDOM:
            return self.chance.randrange(1024, 65_536)
        self.next_port += self.step
        return self.next_port


class NoNat(FakeNat):
    def outbound(self, local: TransportAddress, remote: TransportAddress) -> TransportAddress:
        self.opened.add((local, depends_on(self.filtering, remote)))
        self.inside[local] = local
        return local


@dataclass
class FakeServer:
    """Two ports on one address, or (RFC 5780) on two."""

    host: str = "192.0.2.1"
    other_host: str = ""
    has_other_port: bool = True
    is_silent: bool = False
    ports: tuple[int, int] = (3478, 3479)

    @property
    def primary(self) -> TransportAddress:
        return TransportAddress(self.host, self.ports[0])

    def addresses(self) -> set[TransportAddress]:
        ports = self.ports if self.has_other_port else self.ports[:1]
        return {
            TransportAddress(host, port) for host in {self.host, self.other_host} - {""} for port in ports
        }

    def answer(
        self, data: bytes, source: TransportAddress, at: TransportAddress
    ) -> tuple[bytes, TransportAddress] | None:
        if self.is_silent or at not in self.addresses():
            return None
        request = parse(data)
        change = request.find(ChangeRequest) or ChangeRequest()
        if (change.change_ip and not self.other_host) or (change.change_port and not self.has_other_port):
            refusal = (ErrorCode(420), UnknownAttributes((ChangeRequest.TYPE,)))
            return build(Message(BINDING, MessageClass.ERROR_RESPONSE, request.transaction_id, refusal)), at
        other_host = (self.other_host if at.host == self.host else self.host) or self.host
        other_port = self.ports[at.port == self.ports[0]]
        attributes: tuple[Attribute, ...] = (XorMappedAddress(source),)
        if self.has_other_port:
            attributes = (*attributes, OtherAddress(TransportAddress(other_host, other_port)))
        sender = TransportAddress(
            other_host if change.change_ip else at.host, other_port if change.change_port else at.port
        )
        answer = Message(BINDING, MessageClass.SUCCESS_RESPONSE, request.transaction_id, attributes)
        return build(answer), sender


@dataclass
class FakeInternet:
    """Carries a request through the NAT to a server, and the answer back as far as the filter lets it."""

    nat: FakeNat
    servers: list[FakeServer]
    requests: int = 0
    lost: set[TransportAddress] = field(default_factory=set)
    """Where requests go and are lost."""

    def exchange(
        self, data: bytes, local: TransportAddress, remote: TransportAddress
    ) -> tuple[bytes, TransportAddress] | None:
        self.requests += 1
        external = self.nat.outbound(local, remote)
        if remote in self.lost:
            return None
        for server in self.servers:
            answer = server.answer(data, external, remote)
            if answer is not None:
                return answer if self.nat.inbound(external, answer[1]) == local else None
        return None
