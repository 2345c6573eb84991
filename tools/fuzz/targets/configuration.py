"""Configuration: files, environment variables and flags of all three daemons."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

from tools.fuzz.target import Target, require
from ztna.errors import ConfigError
from ztna.settings.document import MAX_ELEMENTS, parse_document, parse_value
from ztna.settings.loader import load_any

SAMPLES = Path(__file__).resolve().parents[3] / "config"
_TOKENS = (
    "%YAML 1.2\n---\n", "%YAML 9" + "9" * 5000 + ".1\n---\n", "%TAG ! tag:x,2000:\n---\n", "--- \n",
    "...\n", "&a ", "*a", "<<: ", "? ", ": ", "- ", "!!str ", "!!binary ", "!<tag:yaml.org,2002:int> ",
    "!!python/object:os.system ", "|\n", ">-\n", '"\\x00"', '"\\U00110000"', '"\\UFFFFFFFF"', '"\\ud800"',
    "{", "}", "[", "]", ",", "#", "'", '"', "~", "null", "true", "0x10", "1e999", ".inf", ".nan", "-0",
    "9" * 5000, "1_000", "22:30", "2001-01-01", "=", "\ufeff", "\u2028", "\x85", "\t", "\r\n", "[" * 200,
    "{a: " * 200, "kind: agent\n", "kind: connector\n", "kind: intermediate\n", "services:\n",
    "services: 0\n", "node:\n", "node: []\n", "limits:\n", "policy: {}\n", "10.0.0.1:99999", "[::1]:0",
    "[::1%eth0]:1", "*:1", "id: A", "-1", "1h", "10s", "99999999999999999999s", "&a [*a, *a]",
    "&b {<<: *b}", "a: &x [1]\nb: *x\n", "? [a, b]\n: c\n", "? {a: b}\n",
)  # fmt: skip


class YamlDocument(Target):
    """Text becomes plain data, or an error that says where."""

    name = "yaml-document"
    what = "one YAML document, and the values of environment variables and flags"
    documented = (ConfigError,)
    tokens = tuple(token.encode() for token in _TOKENS)
    # Plain Python all the way: 1 ms for a file of 2 KB.
    short_runs = 200
    block = 200

    def corpus(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(SAMPLES.glob("*.yaml"))] + [
            b"a: [1, 2.5, null, true, 'x', \"y\\n\"]\nb: {c: |\n  text\n, d: 22:30}\n",
            b"base: &base\n  a: 1\nother: *base\n",
        ]

    def feed(self, data: bytes) -> None:
        text = data.decode("utf-8", errors="replace")
        parse_value(text[:200])
        document = parse_document(text)
        require(document.elements <= MAX_ELEMENTS, "too many elements")
        _require_plain(document.data)


class Configuration(Target):
    """A file is a daemon's settings, or every fault is named."""

    name = "configuration"
    what = "configuration files of all daemons, with an override by environment and flag"
    documented = (ConfigError,)
    # A valid file costs 2 ms to validate; the text alone is `yaml-document`.
    short_runs = 60
    block = 100
    tokens = YamlDocument.tokens

    def __init__(self) -> None:
        self._path = _directory() / "fuzz.yaml"

    def corpus(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(SAMPLES.glob("*.yaml"))]

    def vary(self, random: Random, body: bytes, bodies: Sequence[bytes]) -> bytes:
        if random.random() < 0.5:
            return super().vary(random, body, bodies)
        # Whole values, so that the document stays one.
        lines = body.split(b"\n")
        for _ in range(random.randint(1, 3)):
            index = random.randrange(len(lines))
            key, separator, _value = lines[index].partition(b":")
            if separator:
                lines[index] = key + b": " + random.choice(self.tokens).strip()
        return b"\n".join(lines)

    def feed(self, data: bytes) -> None:
        self._path.write_bytes(data)
        value = data[:40].decode("utf-8", errors="replace").replace("\0", "")
        load_any(self._path, {"ZTNA_LOG__LEVEL": value} if data[-1:] == b"}" else {})


def _require_plain(value: object) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            require(isinstance(key, str), f"a key of type {type(key).__name__}")
            _require_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _require_plain(inner)
    else:
        require(
            value is None or isinstance(value, (str, bool, int, float)),
            f"a value of type {type(value).__name__}",
        )


@cache
def _directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="ztna-fuzz-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


TARGETS: Sequence[type[Target]] = (YamlDocument, Configuration)
