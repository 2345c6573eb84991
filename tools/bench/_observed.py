"""A daemon that can be counted from inside: `python -m tools.bench._observed SOCKET ARGUMENT...`.

The arguments are those of `ztna`. Whoever connects to the unix socket gets one JSON object: how many asyncio
tasks, actors and connection IDs the process has, and on request how many objects. See `observe`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import threading
from typing import Any, Final
from weakref import WeakSet

import pykka

from ztna.cli.main import main
from ztna.quic.demux import ConnectionIdTable

ANSWER_LIMIT_S: Final = 30.0
COUNT: Final = b"count"
COLLECT: Final = b"collect"
_MAX_ANSWER_BYTES: Final = 4096

# The garbage collector knows of neither: what a daemon has had since its start is frozen.
_loops: WeakSet[asyncio.BaseEventLoop] = WeakSet()
_tables: WeakSet[ConnectionIdTable[Any]] = WeakSet()


def observe(socket_path: str, *, objects: bool = False) -> dict[str, int]:
    """The counts of a daemon that was started this way; raises `OSError` while it does not answer.

    With `objects` it collects its garbage first, which it does seldom by itself, and counts what is left.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_LIMIT_S)
        client.connect(socket_path)
        client.sendall(COLLECT if objects else COUNT)
        counts: dict[str, int] = json.loads(client.recv(_MAX_ANSWER_BYTES))
    return counts


def count(*, objects: bool) -> dict[str, int]:
    """What there is in this process now."""
    found = {
        "tasks": sum(len(asyncio.all_tasks(loop)) for loop in list(_loops)),
        "actors": len(pykka.ActorRegistry.get_all()),
        "connection_ids": sum(len(table) for table in list(_tables)),
    }
    if objects:
        gc.collect()
        found["objects"] = gc.get_freeze_count() + len(gc.get_objects())
    return found


def _note(kind: type[Any], known: WeakSet[Any]) -> None:
    """Have everything of this kind known from its beginning."""
    begin = kind.__init__

    def begin_known(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        known.add(self)

    kind.__init__ = begin_known


def _serve(listener: socket.socket) -> None:
    while True:
        client, _ = listener.accept()
        with client:
            client.sendall(json.dumps(count(objects=client.recv(len(COLLECT)) == COLLECT)).encode())


def _start(socket_path: str) -> None:
    _note(asyncio.BaseEventLoop, _loops)
    _note(ConnectionIdTable, _tables)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_path)
    listener.listen()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()


if __name__ == "__main__":
    _start(sys.argv[1])
    sys.argv = ["ztna", *sys.argv[2:]]
    main()
