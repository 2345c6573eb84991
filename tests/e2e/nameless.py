"""A daemon on a machine whose name service knows no name, and is not asked.

Usage: `python -P tests/e2e/nameless.py connector -c …`. The rest is what `ztna` takes. The resolver of gRPC
is its own: addresses of signaling have to be literal.
"""

from __future__ import annotations

import socket
from typing import Any, NoReturn

from ztna.cli.main import main


def _unknown(*_: Any, **__: Any) -> NoReturn:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


if __name__ == "__main__":
    socket.getaddrinfo = _unknown
    main()
