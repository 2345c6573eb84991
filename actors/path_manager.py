"""Owns the choice of path of one session; takes news of relay channels, emits the selected path."""

from __future__ import annotations

from typing import ClassVar

from actors.base import Concern, Context
from ztna.path.manager import PathManager as Core
from ztna.v1 import path_manager_pb2, relay_leg_pb2, types_pb2


class PathManager(Concern):
    """Translates between messages and `ztna.path.manager`."""

    name = "path_manager"
    handlers: ClassVar = {relay_leg_pb2.RelayPathChanged: "relay_path_changed"}
    emits = (path_manager_pb2.PathSelected,)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._core = Core()
        self._session_id = bytes.fromhex(context.key)

    def relay_path_changed(self, message: relay_leg_pb2.RelayPathChanged) -> None:
        """A channel of this session works, or no longer does."""
        if message.is_up:
            self._core.handle_relay_up(message.intermediate_id, message.max_packet_bytes)
        else:
            self._core.handle_relay_down(message.intermediate_id)
        for selected in self._core.drain():
            relay = selected.relay
            self.log.info(
                "path_manager.path_selected",
                path=selected.kind.value,
                intermediate=relay.intermediate_id if relay else None,
                resumed=selected.is_resumed,
            )
            self.emit(
                path_manager_pb2.PathSelected(
                    session_id=self._session_id,
                    kind=types_pb2.PATH_KIND_RELAY if relay else types_pb2.PATH_KIND_UNSPECIFIED,
                    intermediate_id=relay.intermediate_id if relay else "",
                    max_packet_bytes=relay.max_packet_bytes if relay else 0,
                    is_resumed=selected.is_resumed,
                )
            )
