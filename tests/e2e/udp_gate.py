"""A UDP address that lets nothing through until it is opened: a firewall, as a node sees it."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Self

MAX_CLIENTS = 16
MAX_DATAGRAM_BYTES = 65_536
BUFFER_BYTES = 4 << 20


def _udp_socket() -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    udp.bind(("127.0.0.1", 0))
    udp.setblocking(False)
    return udp


class UdpGate:
    """Takes datagrams for `target`, a port of 127.0.0.1; drops them until `open`, and after `shut`."""

    def __init__(self, target: int) -> None:
        self._target = ("127.0.0.1", target)
        self._front = _udp_socket()
        self._is_open = threading.Event()
        self._is_over = threading.Event()
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._thread = threading.Thread(target=self._run)
        self.port: int = self._front.getsockname()[1]
        self.dropped = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._front.sendto(b"", self._front.getsockname())  # wakes the thread
        self._thread.join()

    def open(self) -> None:
        """Let everything through from now on."""
        self._is_open.set()

    def shut(self) -> None:
        """Let nothing through any more."""
        self._is_open.clear()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._front:
            selector.register(self._front, selectors.EVENT_READ, None)
            while not self._is_over.is_set():
                for key, _ in selector.select():
                    self._forward(selector, key.data)
            for back in self._backs.values():
                back.close()

    def _forward(self, selector: selectors.BaseSelector, client: tuple[str, int] | None) -> None:
        source = self._front if client is None else self._backs[client]
        while True:
            try:
                datagram, sender = source.recvfrom(MAX_DATAGRAM_BYTES)
            except BlockingIOError:
                return
            if not self._is_open.is_set():
                self.dropped += 1
            elif client is not None:
                self._front.sendto(datagram, client)
            else:
                self._back(selector, sender).sendto(datagram, self._target)

    def _back(self, selector: selectors.BaseSelector, client: tuple[str, int]) -> socket.socket:
        back = self._backs.get(client)
        if back is None:
            assert len(self._backs) < MAX_CLIENTS
            back = self._backs[client] = _udp_socket()
            selector.register(back, selectors.EVENT_READ, client)
        return back
