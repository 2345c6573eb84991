"""What `ztna` commands return, for scripts; `actors.daemon.ExitStatus` is what the daemons do."""

from __future__ import annotations

from typing import Final

EXIT_FAILURE: Final = 1
EXIT_CONFIG: Final = 2
EXIT_AUTHENTICATION: Final = 3
EXIT_UNREACHABLE: Final = 4
