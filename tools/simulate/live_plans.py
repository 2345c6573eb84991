"""The plans of simulated daemons: real ones, with simulated gRPC, whose policy changes without a file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

from actors.base import Context
from actors.child_group import ChildSpec
from actors.credentials import Credentials
from actors.daemon import Node
from actors.grpc_carrier import CarrierOwner
from actors.grpc_relay_stream import RelayStreamOwner
from actors.grpc_signaling import ListenerOwner
from actors.io import Io
from actors.plans import AgentPlan, ConnectorPlan, IntermediatePlan, NodePlan
from actors.relay_leg import OpenStream
from actors.signaling_client import OpenGrpc
from actors.signaling_service import SignalingService
from tests.simnet.sim_grpc import SimCarrier, SimGrpcServer, SimRelayStream
from tests.simnet.sim_io import SimIo
from ztna.settings import AgentSettings, ConnectorSettings, IntermediateAddress, IntermediateSettings
from ztna.settings.values import SignalingTransport


def adopt(plan: object, credentials: Credentials) -> None:
    """Let the running plan have these, as its reload does with what it finds in files."""
    plan._credentials.adopt(credentials)  # type: ignore[attr-defined] # noqa: SLF001 - of every plan


class _OverSimulatedGrpc(NodePlan[Any]):
    """Dials simulated streams where a daemon dials gRPC."""

    _io: Io

    def specs(self, node: Node) -> list[ChildSpec]:
        """As ever; and remember what to dial through."""
        self._io = node.io
        return super().specs(node)

    def _relay_opener(self, each: IntermediateAddress) -> OpenStream | None:
        if self._settings.signaling.transport is SignalingTransport.QUIC:
            return None

        def open_stream(owner: RelayStreamOwner) -> SimRelayStream:
            return SimRelayStream(self._sim_io, _target(each), each.id, self._credentials, owner)

        return open_stream

    def _grpc_opener(self, each: IntermediateAddress) -> OpenGrpc | None:
        if self._settings.signaling.transport is SignalingTransport.QUIC:
            return None

        def open_grpc(owner: CarrierOwner) -> SimCarrier:
            return SimCarrier(self._sim_io, _target(each), each.id, self._credentials, owner)

        return cast("OpenGrpc", open_grpc)

    @property
    def _sim_io(self) -> SimIo:
        return cast("SimIo", self._io)


class LiveAgentPlan(_OverSimulatedGrpc, AgentPlan):
    """An agent's."""


class LiveConnectorPlan(_OverSimulatedGrpc, ConnectorPlan):
    """A connector's."""


class LiveIntermediatePlan(IntermediatePlan):
    """An intermediate's."""

    def __init__(self, settings: IntermediateSettings, credentials: Credentials, *, has_grpc: bool) -> None:
        """`has_grpc`: listen for simulated gRPC."""
        super().__init__(settings, credentials, has_grpc=False)
        self._listens = has_grpc

    def forbid(self, agents: Collection[str]) -> None:
        """Allow these nothing."""
        policy = [rule for rule in self._settings.policy if not set(rule.agents) & set(agents)]
        self._settings = self._settings.model_copy(update={"policy": tuple(policy)})

    def _signaling_service(self, node: Node, context: Context) -> SignalingService:
        if not self._listens:
            return super()._signaling_service(node, context)
        limits = self._settings.limits

        def open_server(owner: ListenerOwner) -> SimGrpcServer:
            return SimGrpcServer(
                cast("SimIo", context.io),
                self._settings.grpc.listen,
                lambda: self._credentials,
                owner,
                limits.signaling_queue,
            )

        return SignalingService(
            context,
            self._credentials,
            node.handshakes,
            cast("Any", open_server),
            limits.attached_nodes,
            limits.frames_per_second,
        )


MakePlan = Callable[[Any, Credentials], Any]
PLANS: dict[type, MakePlan] = {AgentSettings: LiveAgentPlan, ConnectorSettings: LiveConnectorPlan}
"""By the settings of a node."""


def _target(each: IntermediateAddress) -> tuple[str, int]:
    return each.grpc.host, each.grpc.port
