"""Delays, jitters and drops packets of NFQUEUE queues by verdicts that come late.

Packets stay in the kernel, only their numbers come here. The kernel may lack netem, and a verdict that
comes late delays a packet just as well: any size, IPv4 and IPv6, checksums and offloads untouched. Order
within a queue is kept, as on a real link, so jitter never reorders. If this process ends, packets pass
undelayed (`--queue-bypass` in the rule that queues them).

Started in a lab as a script of its own (`python -I delayd.py`), so it imports only the standard library. Each
line on standard input, `QUEUE DELAY_MS JITTER_MS LOSS`, binds or changes a queue and is answered by a line
`ok`. Messages: linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270
NETLINK_NO_ENOBUFS: Final = 5
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4
NLMSG_ERROR: Final = 2

NFNL_SUBSYS_QUEUE: Final = 3
PACKET: Final = NFNL_SUBSYS_QUEUE << 8 | 0
VERDICT: Final = NFNL_SUBSYS_QUEUE << 8 | 1
CONFIG: Final = NFNL_SUBSYS_QUEUE << 8 | 2
VERDICT_BATCH: Final = NFNL_SUBSYS_QUEUE << 8 | 3

NFQA_PACKET_HDR: Final = 1
NFQA_VERDICT_HDR: Final = 2
NFQA_CFG_CMD: Final = 1
NFQA_CFG_PARAMS: Final = 2
NFQA_CFG_QUEUE_MAXLEN: Final = 3
CFG_CMD_BIND: Final = 1
COPY_META: Final = 1
NF_DROP: Final = 0
NF_ACCEPT: Final = 1

NLMSGHDR: Final = struct.Struct("=IHHII")
NFGENMSG: Final = struct.Struct(">BBH")
NLATTR: Final = struct.Struct("=HH")
HEADER_BYTES: Final = NLMSGHDR.size + NFGENMSG.size

# Half a second of 100 Mbit/s in small packets; more is a link that cannot keep up, and loses.
MAX_QUEUED_PACKETS: Final = 50_000
RECEIVE_BUFFER_BYTES: Final = 4 << 20
MAX_MESSAGE_BYTES: Final = 1 << 16
# Packets that one wake-up takes, so that due ones do not wait for a flood to end.
MAX_BURST: Final = 256
PR_SET_TIMERSLACK: Final = 29
REALTIME_PRIORITY: Final = 10


@dataclass
class Queue:
    """One direction of one link."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    # (when to release, packet id), in order of both.
    held: deque[tuple[float, int]] = field(default_factory=deque)
    last_due: float = 0.0

    def hold(self, packet_id: int, now: float, chance: random.Random) -> bool:
        """Take a packet in, unless it is to be lost."""
        if self.loss and chance.random() < self.loss:
            return False
        due = now + max(0.0, self.delay_s + self.jitter_s * chance.uniform(-1.0, 1.0))
        self.last_due = max(self.last_due, due)
        self.held.append((self.last_due, packet_id))
        return True

    def release(self, now: float) -> int | None:
        """The last packet that is due, which stands for all before it."""
        last = None
        while self.held and self.held[0][0] <= now:
            last = self.held.popleft()[1]
        return last


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded."""
    return NLATTR.pack(NLATTR.size + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, queue: int, *attributes: bytes, flags: int = NLM_F_REQUEST) -> bytes:
    """One nfnetlink message."""
    body = NFGENMSG.pack(socket.AF_UNSPEC, 0, queue) + b"".join(attributes)
    return NLMSGHDR.pack(NLMSGHDR.size + len(body), kind, flags, 0, 0) + body


def verdict(kind: int, queue: int, packet_id: int, decision: int) -> bytes:
    """A verdict on one packet, or (`VERDICT_BATCH`) on all of the queue up to it."""
    return message(kind, queue, attribute(NFQA_VERDICT_HDR, struct.pack(">II", decision, packet_id)))


def packets(data: bytes) -> list[tuple[int, int]]:
    """Queue and id of each packet that a read brought."""
    found = []
    offset = 0
    while offset + HEADER_BYTES <= len(data):
        length, kind, _, _, _ = NLMSGHDR.unpack_from(data, offset)
        if length < NLMSGHDR.size:
            break
        if kind == PACKET:
            queue = NFGENMSG.unpack_from(data, offset + NLMSGHDR.size)[2]
            packet_id = _packet_id(data, offset + HEADER_BYTES, offset + length)
            if packet_id is not None:
                found.append((queue, packet_id))
        offset += (length + 3) & ~3
    return found


def _packet_id(data: bytes, offset: int, end: int) -> int | None:
    while offset + NLATTR.size <= end:
        length, kind = NLATTR.unpack_from(data, offset)
        if kind == NFQA_PACKET_HDR:
            packet_id: int = struct.unpack_from(">I", data, offset + NLATTR.size)[0]
            return packet_id
        offset += max(NLATTR.size, (length + 3) & ~3)
    return None


class Delayer:
    """The queues, and the netlink socket that they come through."""

    def __init__(self) -> None:
        self._queues: dict[int, Queue] = {}
        self._chance = random.Random()
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._netlink.bind((0, 0))
        self._netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        # Overload is loss, not an error.
        self._netlink.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)

    def configure(self, number: int, delay_ms: float, jitter_ms: float, loss: float) -> None:
        """Bind or change a queue. Raises `OSError` when the kernel refuses it."""
        if number not in self._queues:
            self._bind(number)
        queue = self._queues[number]
        queue.delay_s, queue.jitter_s, queue.loss = delay_ms / 1e3, jitter_ms / 1e3, loss

    def run(self, commands: int) -> None:
        """Work until `commands`, a descriptor, ends."""
        self._netlink.setblocking(False)
        netlink = self._netlink.fileno()
        while True:
            readable, _, _ = select.select([commands, netlink], [], [], self._wait_s())
            self._release(time.monotonic())
            if netlink in readable:
                self._take()
            if commands in readable and not self._command(commands):
                return

    def _wait_s(self) -> float | None:
        dues = [queue.held[0][0] for queue in self._queues.values() if queue.held]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _release(self, now: float) -> None:
        for number, queue in self._queues.items():
            last = queue.release(now)
            if last is not None:
                self._send(verdict(VERDICT_BATCH, number, last, NF_ACCEPT))

    def _take(self) -> None:
        for _ in range(MAX_BURST):
            try:
                data = self._netlink.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            now = time.monotonic()
            for number, packet_id in packets(data):
                if not self._queues[number].hold(packet_id, now, self._chance):
                    self._send(verdict(VERDICT, number, packet_id, NF_DROP))

    def _command(self, commands: int) -> bool:
        text = os.read(commands, MAX_MESSAGE_BYTES).decode()
        for line in text.splitlines():
            number, delay_ms, jitter_ms, loss = line.split()
            self.configure(int(number), float(delay_ms), float(jitter_ms), float(loss))
            print("ok", flush=True)
        return bool(text)

    def _bind(self, number: int) -> None:
        self._acknowledged(number, attribute(NFQA_CFG_CMD, struct.pack(">BxH", CFG_CMD_BIND, 0)))
        # The queue exists from here on, and may have packets before the next lines are through.
        self._queues[number] = Queue()
        self._acknowledged(number, attribute(NFQA_CFG_PARAMS, struct.pack(">IB", 0, COPY_META)))
        self._acknowledged(number, attribute(NFQA_CFG_QUEUE_MAXLEN, struct.pack(">I", MAX_QUEUED_PACKETS)))

    def _acknowledged(self, number: int, configuration: bytes) -> None:
        self._send(message(CONFIG, number, configuration, flags=NLM_F_REQUEST | NLM_F_ACK))
        while True:
            select.select([self._netlink], [], [])
            data = self._netlink.recv(MAX_MESSAGE_BYTES)
            if NLMSGHDR.unpack_from(data)[1] == NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, NLMSGHDR.size)[0]
                if code:
                    raise OSError(code, f"queue {number}: {os.strerror(code)}")
                return
            now = time.monotonic()
            for queue, packet_id in packets(data):
                self._queues[queue].hold(packet_id, now, self._chance)

    def _send(self, data: bytes) -> None:
        try:
            self._netlink.send(data)
        except OSError as error:
            # The packet left its queue without us, as when its link went down.
            if error.errno not in {errno.ENOENT, errno.EAGAIN}:
                raise


def main() -> None:
    """Entry point of the script."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with suppress(OSError):  # a user namespace has no right to it; then a busy machine is late more often
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    Delayer().run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
