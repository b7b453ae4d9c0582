"""A process of its own that validates mutants: `python tests/fuzz/validated.py FIRST END` prints a JSON line for each.

It may take no more than 256 MiB, what it has after its start-up included. What it has begun and not ended, it died of.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import SCHEMAS, mutant

from runner.cli.validate import command

MEMORY = 256 * 1024 * 1024


def main(first: int, end: int) -> None:
    with tempfile.TemporaryDirectory(prefix="flowrun-fuzz-") as name:
        root = Path(name)
        (root / "flows").mkdir()
        (root / "schemas").mkdir()
        write(root, b"flow: a\n", SCHEMAS)
        validate(root)  # imports
        limit = _pages(0) + MEMORY - _pages(1)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for seed in range(first, end):
            print(json.dumps({"seed": seed}), flush=True)
            write(root, *mutant(seed))
            print(json.dumps({"seed": seed, **validate(root)}), flush=True)


def write(root: Path, flow: bytes, schemas: dict[str, bytes]) -> None:
    (root / "flows" / "a.yaml").write_bytes(flow)
    for name, schema in schemas.items():
        (root / "schemas" / name).write_bytes(schema)


def validate(root: Path) -> dict[str, object]:
    """How it ended, seconds of CPU, and the most memory that this process has had, in MiB."""
    begin = time.process_time()
    result = CliRunner().invoke(command, ["-C", str(root), "--output-format", "json"])
    seconds = time.process_time() - begin
    failure = None
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        failure = "".join(traceback.format_exception(result.exception))
    elif result.exit_code not in (0, 1):
        failure = f"exit {result.exit_code}: {result.output}"
    elif '"FR999"' in result.output:
        failure = result.output
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"failure": failure, "seconds": seconds, "mebibytes": most}


def _pages(field: int) -> int:
    """Bytes of this process: 0 all of its address space, 1 what of it is in memory."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
