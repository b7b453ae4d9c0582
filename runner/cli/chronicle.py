"""The event log as people read it: a listing, one event with its causes and effects, a subject's chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runner.cli import output
from runner.cli.story import short
from runner.lang.report import printable
from runner.message import Meta, decode_json, encode_json
from runner.ports import AnyStore
from runner.records import EventFilter, LoggedEvent, RunSummary, StoredRun, event_json

EVERY = 1_000_000
VALUE_SHOWN = 80
"""Characters of a field's value; --json has it whole."""
_NOTHING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What led to an event: an event of the log, a command, or a message that nobody here knows."""

    id: str
    kind: str
    """`event`, `command` or `message`."""
    meta: Meta | None = None
    """Of an event or a command."""
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An event, and what led to it."""

    event: LoggedEvent
    cause: Cause | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All that is known of one event."""

    link: Link
    run: StoredRun | None
    """Which emitted it."""
    began: Sequence[RunSummary]
    caused: Sequence[LoggedEvent]


async def account(store: AnyStore, event: LoggedEvent) -> Account:
    """Look up what caused an event and what it caused."""
    [link] = await links(store, [event])
    related = await store.events(EventFilter(correlation_id=event.meta.correlation_id), limit=EVERY)
    return Account(
        link=link,
        run=await _run(store, event),
        began=await store.begun_by(event.meta),
        caused=[other for other in related if other.meta.causation_id == event.meta.id],
    )


async def links(store: AnyStore, events: Sequence[LoggedEvent]) -> list[Link]:
    """Each event with what led to it."""
    causes: dict[str, Cause] = {}
    found = []
    for event in events:
        ident = event.meta.causation_id
        if ident is not None and ident not in causes:
            causes[ident] = await _cause(store, event, ident)
        found.append(Link(event=event, cause=None if ident is None else causes[ident]))
    return found


async def _cause(store: AnyStore, event: LoggedEvent, ident: str) -> Cause:
    run = await _run(store, event)
    if run is not None and run.started.caller is not None:
        return Cause(id=ident, kind="command", meta=run.started.trigger)
    source = run.started.trigger.source if run is not None else None
    known = await store.events(EventFilter(id_begins=ident, source=source), limit=2)
    for cause in known:
        if cause.meta.id == ident:
            return Cause(id=ident, kind="event", meta=cause.meta, version=cause.version)
    return Cause(id=ident, kind="message", meta=run.started.trigger if run is not None else None)


async def _run(store: AnyStore, event: LoggedEvent) -> StoredRun | None:
    return await store.run(event.run_id) if event.handler is not None and event.run_id is not None else None


# --- as JSON


def account_json(found: Account) -> dict[str, Any]:
    """The event, and under `cause`, `run`, `began` and `caused` what `show` tells."""
    cause, run = found.link.cause, found.run
    return {
        **event_json(found.link.event),
        "cause": None if cause is None else {"id": cause.id, "kind": cause.kind, **_named(cause.meta)},
        "run": None if run is None else {"id": run.started.run_id, "handler": run.started.handler, "state": run.state},
        "began": [{"id": run.id, "handler": run.handler, "state": run.state} for run in found.began],
        "caused": [{"id": event.meta.id, **_named(event.meta)} for event in found.caused],
    }


def _named(meta: Meta | None) -> dict[str, str | None]:
    if meta is None:
        return {"type": None, "source": None, "subject": None}
    return {"type": meta.type, "source": meta.source, "subject": meta.subject}


# --- as text


def listing(events: Sequence[LoggedEvent]) -> Iterator[str]:
    """A table, a line an event."""
    rows = [
        (event.meta.time, event.meta.type, event.meta.subject or "-", _version(event), _by(event), event.meta.id)
        for event in events
    ]
    yield from output.table(["TIME", "TYPE", "SUBJECT", "VERSION", "BY", "ID"], rows)


def line(event: LoggedEvent) -> str:
    """One event, where more are to come."""
    meta = event.meta
    return printable(f"{meta.time}  {meta.type}  {meta.subject or '-'}  {_version(event)}  {_by(event)}  {meta.id}")


def account_lines(found: Account) -> Iterator[str]:
    """One event, with all that is known of it."""
    event, meta = found.link.event, found.link.event.meta
    about = "-" if meta.subject is None else f"{meta.subject}, version {event.version}"
    for name, value in (
        ("event", meta.id),
        ("type", meta.type),
        ("subject", about),
        ("source", meta.source),
        ("time", meta.time),
        ("position", str(event.position)),
        ("belongs to", meta.correlation_id),
        ("emitted by", _emitter(found)),
        ("caused by", _causes(found.link.cause)),
    ):
        yield f"{output.paint(name.ljust(10), 'bold')}  {printable(value)}"
    yield ""
    for text in msgspec.json.format(event.data, indent=2).decode().splitlines():
        yield printable(text)
    if found.began:
        yield ""
        rows = [(short(run.id), run.handler, str(run.state), run.started_at) for run in found.began]
        yield from output.table(["RUN BEGUN", "HANDLER", "STATE", "STARTED"], rows)
    if found.caused:
        yield ""
        events = [(other.meta.id, other.meta.type, other.meta.subject or "-", _by(other)) for other in found.caused]
        yield from output.table(["EVENT CAUSED", "TYPE", "SUBJECT", "BY"], events)


def chain_lines(links: Sequence[Link]) -> Iterator[str]:
    """A subject's story: each event, and what it says that was not known, or known otherwise, before."""
    known: dict[str, Any] = {}
    for link in links:
        event = link.event
        head = f"{event.meta.time}  {_version(event):>3}  "
        who = f"by {event.handler}, run {short(event.run_id or '')}" if event.handler else f"from {event.meta.source}"
        why = "" if link.cause is None else f", caused by {_cause_text(link.cause, event.meta.subject)}"
        name = output.paint(printable(event.meta.type), "bold")
        yield f"{head}{name}  {printable(who + why)}"
        for field, value in _fields(decode_json(event.data)):
            before = known.get(field, _NOTHING)
            if before is _NOTHING or before != value:
                was = "" if before is _NOTHING else f"{_value(before)} → "
                yield f"{' ' * len(head)}{printable(field)}: {was}{_value(value)}"
            known[field] = value


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a payload by dotted path; lists are whole."""
    if isinstance(value, Mapping) and (value or not path):
        for key, item in value.items():
            yield from _fields(item, f"{path}.{key}" if path else str(key))
    else:
        yield path or "(payload)", value


def _value(value: Any) -> str:
    text = printable(encode_json(value).decode())
    return text if len(text) <= VALUE_SHOWN else text[: VALUE_SHOWN - 1] + "…"


def _version(event: LoggedEvent) -> str:
    return "-" if event.version is None else str(event.version)


def _by(event: LoggedEvent) -> str:
    return event.handler or event.meta.source


def _emitter(found: Account) -> str:
    run, event = found.run, found.link.event
    if run is not None:
        return f"{run.started.handler}, run {run.started.run_id} ({run.state})"
    return "outside" if event.run_id is None else f"run {event.run_id}, which is not in this store"


def _causes(cause: Cause | None) -> str:
    if cause is None:
        return "-"
    return _cause_text(cause) if cause.meta is None else f"{_cause_text(cause)}  ({cause.id})"


def _cause_text(cause: Cause, told_of: str | None = None) -> str:
    if cause.meta is None:
        return f"message {cause.id}, which is not in the log"
    subject = cause.meta.subject
    about = "" if subject in (None, told_of) else f" about {subject}"
    version = "" if cause.version is None else f", version {cause.version}"
    return f"{'command ' if cause.kind == 'command' else ''}{cause.meta.type}{about}{version}"
