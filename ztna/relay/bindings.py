"""Which two attachments each session joins: channels that follow a party from one attachment to its next."""

from __future__ import annotations

from ztna.relay.channels import ChannelTable, SessionTraffic


class SessionBindings:
    """The sessions of a relay. `channels` is the table that packets are looked up in."""

    def __init__(self) -> None:
        self.channels = ChannelTable()
        self._ends: dict[bytes, tuple[bytes, bytes]] = {}  # agent's and connector's attachment

    def bind(
        self, session_id: bytes, agent_attach_id: bytes, connector_attach_id: bytes, now: float
    ) -> tuple[int, int] | None:
        """Make channels for a session, in place of former ones; None when an attachment has none left.

        When one end has a new attachment, the other keeps its channel, so that packets on their way still
        arrive. The same two ends get new channels.
        """
        ends = (agent_attach_id, connector_attach_id)
        former = self._ends.get(session_id)
        if former is not None:
            replaced = [(old, new) for old, new in zip(former, ends, strict=True) if old != new]
            if len(replaced) == 1:
                channels = self.channels.rebind(session_id, *replaced[0], now)
                if channels is not None:
                    self._ends[session_id] = ends
                return channels
            self.release(session_id, now)
        channels = self.channels.bind(session_id, *ends, now)
        if channels is not None:
            self._ends[session_id] = ends
        return channels

    def release(self, session_id: bytes, now: float) -> tuple[bytes, ...]:
        """Forget the channels of a session; returns the attachments that it joined, none if it is unknown."""
        self.channels.release(session_id, now)
        return self._ends.pop(session_id, ())

    def release_attachment(self, attach_id: bytes, now: float) -> None:
        """Forget an attachment, and the channels of all its sessions."""
        for session_id in self.channels.release_attachment(attach_id, now):
            self._ends.pop(session_id, None)

    def traffic(self) -> dict[bytes, SessionTraffic]:
        """Counters of every bound session."""
        return {session_id: self.channels.traffic(session_id) for session_id in self._ends}
