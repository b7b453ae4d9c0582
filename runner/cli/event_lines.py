"""Events as JSON lines, out of the log and into it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from runner.cli.payload import MisfitError
from runner.errors import SettingsError
from runner.message import MAX_BODY_BYTES, Meta, decode_json
from runner.ports import EventLog
from runner.records import EventRecord, LoggedEvent, event_json
from runner.times import parse_time, rfc3339

BATCH = 500


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str
    source: str
    time: str
    data: msgspec.Raw
    subject: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    run_id: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


async def write(batches: AsyncIterator[Sequence[LoggedEvent]], file: Path | None, last: int) -> int:
    """Write a line an event; how many. A file is there whole, or as it was before. Raises SettingsError."""
    if file is None:
        return await _write(batches, sys.stdout.buffer, last)
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as target:
            count = await _write(batches, target, last)
        part.replace(file)
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    return count


async def _write(batches: AsyncIterator[Sequence[LoggedEvent]], target: BinaryIO, last: int) -> int:
    count = done = 0
    with _progress("exporting", last) as bar:
        async for events in batches:
            target.write(b"".join(msgspec.json.encode(event_json(event)) + b"\n" for event in events))
            count += len(events)
            bar.update(events[-1].position - done)
            done = events[-1].position
    target.flush()
    return count


def read(name: str, lines: Iterable[bytes]) -> list[EventRecord]:
    """The events of a file's lines; empty lines are passed over. Raises MisfitError with the first line at fault."""
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(_record(line))
            except (ValueError, RecursionError) as error:
                raise MisfitError(f"{name}:{number}: {error}", hint="nothing was imported") from None
    return records


def _record(line: bytes) -> EventRecord:
    found = _decode(line)
    for attribute in ("id", "type", "source"):
        if not getattr(found, attribute):
            raise ValueError(f"`{attribute}` is empty")
    data = bytes(found.data)
    decode_json(data)
    if len(data) > MAX_BODY_BYTES:
        raise ValueError(f"`data` has {len(data)} bytes, the limit is {MAX_BODY_BYTES}")
    try:
        time = rfc3339(parse_time(found.time))
    except ValueError:
        raise ValueError(f'`time` is no RFC 3339 time: "{found.time}"') from None
    meta = Meta(
        id=found.id,
        type=found.type,
        source=found.source,
        subject=found.subject,
        time=time,
        correlation_id=found.correlation_id or found.id,
        causation_id=found.causation_id,
    )
    return EventRecord(meta=meta, data=data, run_id=found.run_id)


async def add(log: EventLog, records: Sequence[EventRecord]) -> int:
    """Add them to the log; how many were new. Interrupted, it can be repeated."""
    added = 0
    with _progress("importing", len(records)) as bar:
        for start in range(0, len(records), BATCH):
            batch = records[start : start + BATCH]
            added += await log.append(batch)
            bar.update(len(batch))
    return added


def _progress(label: str, length: int) -> Any:
    hidden = not sys.stderr.isatty() or (label == "exporting" and os.isatty(1))
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden)
