"""A daemon whose event loop hangs from SIGUSR1 to SIGUSR2, while its other threads go on.

Usage: `python -P tests/e2e/hanging.py connector -c …`. The rest is what `ztna` takes. Its
service manager is told `HUNG=1` when it begins: whatever comes behind that is not of the loop.
"""

from __future__ import annotations

import os
import signal
import socket

from ztna.cli.main import main

HANG, GO_ON = signal.SIGUSR1, signal.SIGUSR2


def _hang(*_: object) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"HUNG=1", os.environ["NOTIFY_SOCKET"])
    signal.sigwait([GO_ON])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [GO_ON])
    signal.signal(HANG, _hang)
    main()
