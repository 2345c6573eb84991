"""A daemon that can be counted from inside: `python -m tools.bench._observed SOCKET ARGUMENT...`.

The arguments are those of `ztna`. Whoever connects to the unix socket gets one JSON object: how many asyncio
tasks, actors, connection IDs and objects of the garbage collector the process has. See `observe`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import threading
from typing import Final

import pykka

from ztna.cli.main import main
from ztna.quic.demux import ConnectionIdTable

ANSWER_LIMIT_S: Final = 30.0
_MAX_ANSWER_BYTES: Final = 4096


def observe(socket_path: str) -> dict[str, int]:
    """The counts of a daemon that was started this way; raises `OSError` while it does not answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_LIMIT_S)
        client.connect(socket_path)
        counts: dict[str, int] = json.loads(client.recv(_MAX_ANSWER_BYTES))
    return counts


def count() -> dict[str, int]:
    """What there is in this process now, garbage collected first."""
    gc.collect()
    found = gc.get_objects()
    # `type`, since asking a proxy for its class may run code that belongs to another thread.
    loops = [each for each in found if issubclass(type(each), asyncio.BaseEventLoop)]
    return {
        "tasks": sum(len(asyncio.all_tasks(loop)) for loop in loops),
        "actors": len(pykka.ActorRegistry.get_all()),
        "connection_ids": sum(len(each) for each in found if issubclass(type(each), ConnectionIdTable)),
        "objects": len(found),
    }


def _serve(listener: socket.socket) -> None:
    while True:
        client, _ = listener.accept()
        with client:
            client.sendall(json.dumps(count()).encode())


def _start(socket_path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(socket_path)
    listener.listen()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()


if __name__ == "__main__":
    _start(sys.argv[1])
    sys.argv = ["ztna", *sys.argv[2:]]
    main()
