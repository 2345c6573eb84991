"""A daemon that hears nothing of one IPv4 address from SIGUSR1 to SIGUSR2: a path that dies, and heals.

Usage: `python -P tests/e2e/deaf.py 127.0.0.3 agent -c …`. The rest is what `ztna` takes.

The kernel drops what comes, by a filter on the UDP sockets (socket(7), SO_ATTACH_FILTER), for which nobody
needs privileges. The daemon is the real one and knows nothing of it: no error, no ICMP message; and the
relay, which has another address, is heard as before.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from ztna.cli.main import main

CUT, HEAL = signal.SIGUSR1, signal.SIGUSR2

_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
# linux/filter.h: where the network header begins, and in it the source address (RFC 791 §3.1).
_SOURCE_ADDRESS: Final = (-0x100000 + 12) & 0xFFFFFFFF
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_WHOLE_PACKET: Final = 0xFFFFFFFF


def _filter(peer: IPv4Address) -> bytes:
    """The program: nothing of what `peer` sent, all of the rest."""
    instructions = (
        (_LOAD_WORD, 0, 0, _SOURCE_ADDRESS),
        (_JUMP_IF_EQUAL, 0, 1, int(peer)),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, _WHOLE_PACKET),
    )
    return b"".join(struct.pack("HBBI", *each) for each in instructions)


def _udp_sockets() -> list[socket.socket]:
    """Copies of this process's IPv4 UDP sockets."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            copy = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue  # no socket
        if (copy.family, copy.type) == (socket.AF_INET, socket.SOCK_DGRAM):
            found.append(copy)
        else:
            copy.close()
    return found


def _cut(program: ctypes.Array[ctypes.c_char]) -> None:
    pointer = struct.pack("HP", len(program) // struct.calcsize("HBBI"), ctypes.addressof(program))
    for each in _udp_sockets():
        with each:
            each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def _heal() -> None:
    for each in _udp_sockets():
        with each, suppress(FileNotFoundError):  # it has none
            each.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


if __name__ == "__main__":
    instructions = _filter(IPv4Address(sys.argv.pop(1)))
    kept = ctypes.create_string_buffer(instructions, len(instructions))
    signal.signal(CUT, lambda *_: _cut(kept))
    signal.signal(HEAL, lambda *_: _heal())
    main()
