"""Generate `ztna/v1/*_pb2*.py` and their stubs from `proto/ztna/v1/*.proto`.

Usage: `python -m tools.generate_protos [--check]`. With `--check` nothing is written: the exit status is 1
when a committed file differs from what the schema generates.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
PACKAGE = Path("ztna") / "v1"


def generate(destination: Path) -> None:
    """Write the generated package below `destination`; raises `RuntimeError` when protoc refuses."""
    (destination / PACKAGE).mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path) for path in (PROTO_ROOT / PACKAGE).glob("*.proto"))
    with_services = [path for path in sources if "\nservice " in Path(path).read_text(encoding="utf-8")]
    plugin = Path(sys.executable).parent
    base = [
        "protoc",
        f"--proto_path={PROTO_ROOT}",
        f"--plugin=protoc-gen-mypy={plugin / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugin / 'protoc-gen-mypy_grpc'}",
    ]
    for arguments in (
        [*base, f"--python_out={destination}", f"--mypy_out=quiet:{destination}", *sources],
        [*base, f"--grpc_python_out={destination}", f"--mypy_grpc_out=quiet:{destination}", *with_services],
    ):
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed; its message is above")


def stale_files() -> list[str]:
    """Names of committed generated files that differ from, or are missing beside, what the schema gives."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = Path(scratch) / PACKAGE
        committed = ROOT / PACKAGE
        names = {p.name for p in fresh.iterdir()} | {p.name for p in committed.glob("*_pb2*")}
        return sorted(
            name
            for name in names
            if not (fresh / name).exists()
            or not (committed / name).exists()
            or not filecmp.cmp(fresh / name, committed / name, shallow=False)
        )


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when something is stale")
    arguments = parser.parse_args()
    if arguments.check:
        stale = stale_files()
        for name in stale:
            print(f"stale: {PACKAGE / name} (run `make proto`)", file=sys.stderr)
        return 1 if stale else 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        for old in (ROOT / PACKAGE).glob("*_pb2*"):
            old.unlink()
        for new in (Path(scratch) / PACKAGE).iterdir():
            shutil.copy(new, ROOT / PACKAGE / new.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
