"""A daemon under cProfile: `python -m tools.bench._profiled FILE ARGUMENT...`, with the arguments of `ztna`.

SIGUSR2 starts the profile, the next one writes it to FILE; what comes before and after is not part of it. It
counts processor time, so that waiting and a busy machine do not show.
"""

from __future__ import annotations

import cProfile
import signal
import sys
import time
from pathlib import Path

from ztna.cli.main import main


class _Switch:
    """Signal handler that turns the profile on, then off."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._profile: cProfile.Profile | None = None

    def __call__(self, *_: object) -> None:
        if self._profile is None:
            self._profile = cProfile.Profile(time.process_time)
            self._profile.enable()
            return
        self._profile.disable()
        self._profile.create_stats()
        # Whoever waits for the file finds it whole.
        partial = self._target.with_suffix(".partial")
        self._profile.dump_stats(partial)
        partial.replace(self._target)
        self._profile = None


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, _Switch(Path(sys.argv[1])))
    sys.argv = ["ztna", *sys.argv[2:]]
    main()
