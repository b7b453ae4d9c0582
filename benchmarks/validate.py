"""How `flowrun validate` grows with the project: time, time a file and peak memory of a whole process."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import project

SIZES = (10, 100, 1_000, 10_000)
ROUNDS = {10: 5, 100: 5, 1_000: 3, 10_000: 1}
GOALS_S = {1_000: 2.0}
FILE = """\
# The service of parcels number {n}: it hears of those of the one before, and asks it for a label.
flow: parcels_{n}
version: 1
description: From a parcel that is packed to one that is on its way.

events:
  parcel_{n}.packed:
    schema:
      type: object
      properties:
        parcel_id: {{type: string}}
        weight: {{type: integer, minimum: 1}}
        email: {{type: string}}
        note: {{type: string}}
      required: [parcel_id, weight]
      additionalProperties: false
    subject: "parcel/{{{{ event.parcel_id }}}}"
  parcel_{n}.sent: {{schema: {{type: object, properties: {{parcel_id: {{type: string}}}}, required: [parcel_id]}}}}

commands:
  label_{n}.print:
    schema: {{type: object, properties: {{parcel_id: {{type: string}}}}, required: [parcel_id]}}
    reply: {{type: object, properties: {{label: {{type: string}}}}, required: [label]}}
    handler: print
    timeout: 30s

routes:
  - on: parcel_{before}.packed
    when: event.weight > 0
    to: send
  - {{on: parcel_{n}.sent, to: tell}}

handlers:
  send:
    timeout: 1h
    retry: {{max_attempts: 5, delay: 200ms}}
    steps:
      - id: label_{n}
        command: label_{before}.print
        with: {{parcel_id: "{{{{ event.parcel_id }}}}"}}
        irreversible: true
      - when: event.note is defined
        use: log
        with: {{message: "Parcel {{{{ event.parcel_id }}}} of {{{{ event.weight }}}} g, {n}: {{{{ event.note }}}}"}}
      - switch:
          - when: event.weight > {n}
            do: [{{set: {{kind: "heavy, {{{{ steps.label_{n}.output.label }}}}"}}}}]
        default:
          - set: {{kind: light}}
      - emit: parcel_{n}.packed
        with: {{parcel_id: "{{{{ event.parcel_id }}}}", weight: "{{{{ event.weight }}}}"}}
      - emit: parcel_{n}.sent
        with: {{parcel_id: "{n}-{{{{ event.parcel_id }}}}"}}
  tell:
    steps:
      - {{use: log, with: {{message: "Parcel {{{{ event.parcel_id }}}} went by {n}."}}}}
  print:
    steps: [{{set: {{label: "{n}/{{{{ command.parcel_id }}}}"}}}}]
    reply: {{label: "{{{{ vars.label }}}}"}}
"""
FIRST = """\
flow: parcels_0
events: {{parcel_0.packed: {{external: true, schema: {schema}}}}}
commands: {{label_0.print: {{external: true, reply: {reply}}}}}
""".format(
    schema="{type: object, properties: {parcel_id: {type: string}, weight: {type: integer}, note: {type: string}},"
    " required: [parcel_id, weight]}",
    reply="{type: object, properties: {label: {type: string}}, required: [label]}",
)


def measure() -> Iterator[str]:
    lines, size = FILE.count("\n"), len(FILE.format(n=500, before=499)) / 1024
    yield f"| files of {lines} lines, {size:.1f} KB | s, median (min–max) | goal | ms a file | peak memory, MB |"
    yield "| --- | --- | --- | --- | --- |"
    for count in SIZES:
        with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:
            write(Path(name), count)
            rounds = [validated(Path(name)) for _ in range(ROUNDS[count])]
        times, peak = [seconds for seconds, _ in rounds], max(memory for _, memory in rounds)
        middle = statistics.median(times)
        spread = f"{middle:.2f} ({min(times):.2f}–{max(times):.2f})" if len(times) > 1 else f"{middle:.1f}"
        goal = f"≤ {GOALS_S[count]:.0f}" if count in GOALS_S else ""
        yield f"| {count:,} | {spread} | {goal} | {middle / count * 1e3:.1f} | {peak:.0f} |"


def write(folder: Path, count: int) -> None:
    """So many flow files in which nothing is wrong, each bound to the one before it."""
    (folder / "flows").mkdir()
    (folder / "flows/parcels_0.yaml").write_text(FIRST)
    for n in range(1, count):
        (folder / f"flows/parcels_{n}.yaml").write_text(FILE.format(n=n, before=n - 1))


def validated(folder: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of one `flowrun validate` that finds nothing."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [project.FLOWRUN, "validate"], cwd=folder, env=project.environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # with what it used, which Popen does not tell
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or "valid." not in said:
        raise RuntimeError(said)
    kilobytes = usage.ru_maxrss / 1024 if sys.platform == "darwin" else usage.ru_maxrss
    return seconds, kilobytes / 1024
