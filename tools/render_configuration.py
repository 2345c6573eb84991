"""Render `docs/configuration.md`, the reference of every key, from the models in `ztna/settings`.

Usage: `python -m tools.render_configuration [--check]`. With `--check` nothing is written: the exit status is
1 when the committed file is not what the models give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ztna.settings import MODELS, DaemonKind
from ztna.settings.keys import Key, describe_keys
from ztna.settings.live import is_live as is_live_key

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEADINGS: dict[tuple[DaemonKind, ...], str] = {
    tuple(DaemonKind): "Every daemon",
    (DaemonKind.CONNECTOR, DaemonKind.AGENT): "Connector and agent",
    (DaemonKind.INTERMEDIATE,): "Intermediate",
    (DaemonKind.CONNECTOR,): "Connector",
    (DaemonKind.AGENT,): "Agent",
}

INTRODUCTION = """\
# Configuration

<!-- Rendered by `python -m tools.render_configuration` from the models in ztna/settings. Do not edit. -->

Each daemon reads one YAML file; `config/` holds a working sample of each.

```
ztna config check -c config/agent.yaml      # every fault, with file and line
ztna config show -c config/agent.yaml       # every key, its effective value and where that came from
```

Four layers make the effective value, the later wins:

1. the defaults below;
2. the file;
3. the environment: `ZTNA_<SECTION>__<KEY>`, two underscores between levels, numbers for the elements of a
   list, such as `ZTNA_LOG__LEVEL=debug` or `ZTNA_INTERMEDIATES__0__QUIC=relay.example.org:4433`;
4. flags: `--set log.level=debug`, `--set intermediates.0.quic=relay.example.org:4433`.

Values in the environment and in flags are YAML too, so a list has brackets, and quotes for the shell around
it: `ZTNA_UDP__BIND='["127.0.0.1:0"]'`, `--set 'udp.bind=["127.0.0.1:0"]'`. An unknown key is an
error, in each layer. (A variable without two underscores that is no key is ignored: Kubernetes sets
`ZTNA_PORT` and the like for a service called `ztna`.)

- A path may be relative: to the directory of the file, wherever the value was written. `~` is the home
  directory.
- An IPv6 address stands in brackets, and in quotes: `"[::]:4433"`.
- An id is a DNS label: 1 to 63 of `a-z`, `0-9` and inner hyphens. A number needs quotes: `"7"`.
- Only `true` and `false` are booleans; `no` and `on` are text.
- `_s`, `_ms` and `_bytes` in a name are the unit. `<n>` is the number of an element, from 0.
- A file has at most 1 MiB, and each key once.
- Keys marked ↻ can change in a running daemon: `ztna reload`, or SIGHUP. All others need a restart.
"""


def render() -> str:
    """The whole document."""
    parts = [INTRODUCTION]
    grouped = _grouped()
    for kinds, heading in HEADINGS.items():
        rows = "\n".join(_row(kinds, keys) for keys in grouped.pop(kinds))
        parts.append(
            f"## {heading}\n\n| key | type | default | bounds | meaning |\n|---|---|---|---|---|\n{rows}\n"
        )
    if grouped:
        raise ValueError(f"no heading for the keys of {', '.join(map(str, grouped))}")
    return "\n".join(parts)


def _grouped() -> dict[tuple[DaemonKind, ...], list[list[Key]]]:
    """Keys that mean the same, by the daemons that have them; only their defaults may differ."""
    same: dict[tuple[str, str, str], list[tuple[DaemonKind, Key]]] = defaultdict(list)
    for kind in DaemonKind:
        for key in describe_keys(MODELS[kind]):
            # `kind` itself has another type in each daemon, and means the same.
            type_name = "" if key.path == "kind" else key.type
            same[key.path, type_name, key.description].append((kind, key))
    grouped: dict[tuple[DaemonKind, ...], list[list[Key]]] = defaultdict(list)
    for found in same.values():
        grouped[tuple(kind for kind, _ in found)].append([key for _, key in found])
    return grouped


def _row(kinds: tuple[DaemonKind, ...], keys: list[Key]) -> str:
    key = keys[0]
    types = list(dict.fromkeys(each.type for each in keys))
    defaults = list(dict.fromkeys(_default(each) for each in keys))
    is_live = any(is_live_key(kind, key.path) for kind in kinds)
    cells = (
        f"`{key.path}`{' ↻' if is_live else ''}",
        " / ".join(types),
        " / ".join(defaults),
        key.bounds,
        key.description,
    )
    return "| " + " | ".join(cells) + " |"


def _default(key: Key) -> str:
    if key.is_required:
        return "required"
    if key.default is None:
        return "unset"
    return f"`{key.default if isinstance(key.default, str) else json.dumps(key.default)}`"


def _lines_that_differ(committed: str, fresh: str) -> Iterator[str]:
    known = set(committed.splitlines())
    return (line for line in fresh.splitlines() if line not in known)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when the file is stale")
    fresh = render()
    if not parser.parse_args().check:
        TARGET.write_text(fresh, encoding="utf-8")
        return 0
    committed = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if committed == fresh:
        return 0
    print(f"stale: {TARGET} (run `python -m tools.render_configuration`)", file=sys.stderr)
    for line in _lines_that_differ(committed, fresh):
        print(f"  {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
