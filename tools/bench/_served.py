"""A process of a benchmark that serves: it prints what it is reached by as JSON, and ends with its input."""

from __future__ import annotations

import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self


class ServedProcess:
    """`python -m MODULE …`; a context manager that ends it."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._process: subprocess.Popen[str] | None = None
        self.told: dict[str, Any] = {}
        """What it printed once it served."""
        self.pid = 0

    def __enter__(self) -> Self:
        """Start it, and wait for what it prints."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        self.told, self.pid = json.loads(self._process.stdout.readline()), self._process.pid
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
