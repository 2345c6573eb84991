"""Owns the choice of intermediates of a node; takes news of attachments, tells which to use and to leave."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar

from actors.base import Concern, Context
from ztna.signaling.client import REATTACHING
from ztna.signaling.selection import IntermediateSelector as Core
from ztna.signaling.selection import UseIntermediate
from ztna.v1 import candidate_gatherer_pb2, relay_leg_pb2, reload_pb2, signaling_client_pb2

# Of `NetworkChanged`.
ROUTE_CHANGED = "default_route_changed"


class IntermediateSelector(Concern):
    """Translates between messages and `ztna.signaling.selection`."""

    name = "intermediate_selector"
    handlers: ClassVar = {
        signaling_client_pb2.Attached: "attached",
        signaling_client_pb2.Detached: "detached",
        reload_pb2.ConfigurationReloaded: "configuration_reloaded",
        candidate_gatherer_pb2.NetworkChanged: "network_changed",
    }
    emits = (
        signaling_client_pb2.Attach,
        signaling_client_pb2.Detach,
        relay_leg_pb2.ConnectLeg,
        relay_leg_pb2.DisconnectLeg,
        relay_leg_pb2.RedialLeg,
        relay_leg_pb2.ProbeLeg,
        signaling_client_pb2.Reattach,
        signaling_client_pb2.RecheckIntermediate,
    )

    def __init__(
        self,
        context: Context,
        intermediate_ids: Sequence[str],
        own_certificate: Callable[[], Hashable],
        *,
        use_all: bool,
    ) -> None:
        """`own_certificate` gives the one that we show now."""
        super().__init__(context)
        self._intermediate_ids = tuple(intermediate_ids)
        self._own_certificate = own_certificate
        self._shown = own_certificate()
        self._hosts: frozenset[str] = frozenset()
        self._core = Core(intermediate_ids, context.io.random, use_all=use_all)

    def on_start(self) -> None:
        """Start, or start again after a failure: commands are harmless when repeated."""
        self._core.start(self.now)
        self._act()

    def attached(self, message: signaling_client_pb2.Attached) -> None:
        """An attachment stands."""
        self._core.handle_attached(message.intermediate_id, self.now)

    def detached(self, message: signaling_client_pb2.Detached) -> None:
        """An attachment is lost, or could not be made."""
        if message.reason == REATTACHING:
            return  # it comes back at once
        self._core.handle_detached(message.intermediate_id, self.now)
        self._act()

    def configuration_reloaded(self, _message: reload_pb2.ConfigurationReloaded) -> None:
        """Show a new certificate of ours to the intermediates, and leave those that are revoked now."""
        for name in self._intermediate_ids:
            self.emit(signaling_client_pb2.RecheckIntermediate(intermediate_id=name))
        shown = self._own_certificate()
        if shown == self._shown:
            return
        self._shown = shown
        self.log.info("intermediate_selector.certificate_renewed")
        for name in self._intermediate_ids:
            # Those that are not used have no connection, and do nothing.
            self.emit(relay_leg_pb2.RedialLeg(intermediate_id=name))
            self.emit(signaling_client_pb2.Reattach(intermediate_id=name))

    def network_changed(self, message: candidate_gatherer_pb2.NetworkChanged) -> None:
        """Let the intermediates see our new address.

        The leg goes on by itself once it has sent something. A TCP connection whose address has vanished
        only hangs, so signaling is attached anew when an address, or the way out, is no longer there.
        """
        former, self._hosts = self._hosts, frozenset(each.host for each in message.hosts)
        is_lost = bool(former - self._hosts) or message.reason == ROUTE_CHANGED
        for name in self._intermediate_ids:
            self.emit(relay_leg_pb2.ProbeLeg(intermediate_id=name))
            if is_lost:
                self.emit(signaling_client_pb2.Reattach(intermediate_id=name))

    def handle_timeout(self, now: float) -> None:
        """Move on from an intermediate that does not answer."""
        self._core.handle_timeout(now)
        self._act()

    def next_deadline(self) -> float | None:
        """When patience ends."""
        return self._core.next_deadline()

    def _act(self) -> None:
        for effect in self._core.drain():
            name = effect.intermediate_id
            if isinstance(effect, UseIntermediate):
                self.log.info("intermediate_selector.intermediate_used", intermediate=name)
                self.emit(relay_leg_pb2.ConnectLeg(intermediate_id=name))
                self.emit(signaling_client_pb2.Attach(intermediate_id=name))
            else:
                self.log.debug("intermediate_selector.intermediate_left", intermediate=name)
                self.emit(signaling_client_pb2.Detach(intermediate_id=name, reason="fail_over"))
                self.emit(relay_leg_pb2.DisconnectLeg(intermediate_id=name))
