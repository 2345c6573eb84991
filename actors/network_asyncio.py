"""Tells when addresses, links or routes of this host change: one netlink socket, or a look now and then.

What the kernel says is not read beyond its existence: whoever is told looks for himself, and compares. Linux
only.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Hashable
from typing import Final

from actors.sockaddr import SOCKET_FAMILY
from ztna.address import Family

# Linux values that Python's socket module lacks (include/uapi/linux/rtnetlink.h).
RTMGRP_LINK: Final = 0x1
RTMGRP_IPV4_IFADDR: Final = 0x10
RTMGRP_IPV4_ROUTE: Final = 0x40
RTMGRP_IPV6_IFADDR: Final = 0x100
RTMGRP_IPV6_ROUTE: Final = 0x400
GROUPS: Final = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE

DEBOUNCE_S: Final = 0.05
"""An uplink that comes or goes is a burst of messages, some 10 ms long; and a router that learns a thousand
routes a second costs us twenty looks."""
POLL_S: Final = 5.0
"""Without netlink (some sandboxes forbid it): a change is noticed before the paths give up by themselves."""
MAX_READS_PER_WAKEUP: Final = 64
_READ_BYTES: Final = 8192

# Any address beyond the local networks will do: none of these (RFC 5737, RFC 3849) is ever sent to.
_FAR_AWAY: Final = {Family.IPV4: ("192.0.2.1", 9), Family.IPV6: ("2001:db8::1", 9)}


def source_address(family: Family) -> str | None:
    """The address that packets to the internet would leave from; None without a route. Sends nothing."""
    try:
        with socket.socket(SOCKET_FAMILY[family], socket.SOCK_DGRAM) as sock:
            # Connecting a UDP socket looks the route up, and no more.
            sock.connect(_FAR_AWAY[family])
            host: str = sock.getsockname()[0]
    except OSError:
        return None
    return host


class NetworkWatch:
    """Calls `callback` on `loop` after every burst of changes, until `cancel`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[[], None],
        snapshot: Callable[[], Hashable],
        *,
        use_netlink: bool = True,
    ) -> None:
        """Without netlink, `snapshot` is taken and compared each `POLL_S`."""
        self._loop = loop
        self._callback = callback
        self._snapshot = snapshot
        self._timer: asyncio.TimerHandle | None = None
        self._sock = _open_netlink() if use_netlink else None
        if self._sock is None:
            self._last = snapshot()
            self._timer = loop.call_later(POLL_S, self._poll)
        else:
            loop.add_reader(self._sock.fileno(), self._on_readable)

    @property
    def uses_netlink(self) -> bool:
        """Whether the kernel tells us."""
        return self._sock is not None

    def cancel(self) -> None:
        """Tell nothing any more; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None and self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _on_readable(self) -> None:
        if self._sock is None or not _drain(self._sock):
            return
        if self._timer is None:
            self._timer = self._loop.call_later(DEBOUNCE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._callback()

    def _poll(self) -> None:
        self._timer = self._loop.call_later(POLL_S, self._poll)
        found = self._snapshot()
        if found != self._last:
            self._last = found
            self._callback()


def _open_netlink() -> socket.socket | None:
    try:
        sock = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
    except OSError:
        return None
    try:
        sock.bind((0, GROUPS))
    except OSError:
        sock.close()
        return None
    return sock


def _drain(sock: socket.socket) -> bool:
    """Read what is pending; whether the kernel said anything, or so much that some was lost."""
    has_news = False
    for _ in range(MAX_READS_PER_WAKEUP):
        try:
            _, (sender, _) = sock.recvfrom(_READ_BYTES)
        except OSError as error:
            return has_news or error.errno == errno.ENOBUFS
        # Other processes may send here, too; the kernel is number 0.
        has_news = has_news or sender == 0
    return has_news
