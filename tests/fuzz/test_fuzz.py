"""Whatever stands in the files, `validate` ends with 0 or 1, in two seconds and 256 MiB.

`make test` runs the first few hundred mutants, `make fuzz` ten thousand; `FLOWRUN_FUZZ_FIRST` begins elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CASES = int(os.environ.get("FLOWRUN_FUZZ_CASES", "300"))
FIRST = int(os.environ.get("FLOWRUN_FUZZ_FIRST", "0"))
EACH = 100
"""So many mutants for one process."""
SECONDS = 2.0
TIMEOUT_S = 100

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")


@linux_only
@pytest.mark.parametrize("first", range(FIRST, FIRST + CASES, EACH))
def test_validate_ends_in_words_in_time_and_in_bounds(first: int) -> None:
    found = _validated(first, min(first + EACH, FIRST + CASES))
    last = found[-1]
    assert "seconds" in last, f"mutant {last['seed']} ended the process, or took longer than {TIMEOUT_S} s"
    ended = [one for one in found if "seconds" in one]
    for one in ended:
        assert one["failure"] is None, f"mutant {one['seed']}: {one['failure']}"
        assert one["seconds"] < SECONDS, f"mutant {one['seed']} took {one['seconds']:.1f} s"
    slowest = max(ended, key=lambda one: one["seconds"])
    print(f"slowest: mutant {slowest['seed']}, {slowest['seconds']:.2f} s; most memory: {last['mebibytes']:.0f} MiB")


def _validated(first: int, end: int) -> list[dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).with_name("validated.py")), str(first), str(end)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, errors = process.communicate()
    found = [json.loads(line) for line in said.splitlines()]
    assert found, errors
    return found
