"""`flowrun events replay`: events of the log once more, to one handler and to no other."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import click
import msgspec

from runner.app import App, standing_store
from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.cli.event_options import filtered, wanted_of
from runner.diagnostics import did_you_mean
from runner.engine.run import run_id
from runner.errors import NotFoundError, RefusedError, TransportError
from runner.lang.report import printable
from runner.message import Outgoing, new_id, replayed_message
from runner.plan import Plan, Program
from runner.ports import AnyStore
from runner.records import EventFilter, LoggedEvent
from runner.settings import Settings, load_settings
from runner.topics import topic_matches

BATCH = 500


@click.command("replay")
@click.option("--handler", required=True, metavar="FLOW.HANDLER", help="Who gets them.")
@filtered
@click.option("--force", is_flag=True, help="Let those that have run already run again, under keys of their own.")
@click.option("--dry-run", is_flag=True, help="Say how many there are, and send none.")
@options.settings
@options.as_json
def replay_command(
    handler: str, kind: str | None, force: bool, dry_run: bool, root: Path, broker: str | None, store: str | None,
    as_json: bool, **which: str | None,
) -> None:  # fmt: skip
    """Send events of the log to one handler once more, in their order, and to nobody else.

    A handler that has had an event, or has a run with its idempotency key, does nothing: so what was missed is made
    up for, and nothing is done twice. With --force every event begins a new run, whose effects happen again.
    """
    settings = load_settings(root, broker=broker, store=store)
    plan = compiled(root, settings.project).plan
    program = _program(plan, handler)
    wanted = msgspec.structs.replace(wanted_of(which), types=_types(program, kind))
    asked = _Replay(settings, plan, program, wanted, new_id(), force)
    found = asyncio.run(asked.look() if dry_run else asked.send())
    if as_json:
        output.echo(output.json_value(found))
        return
    for line in _text(asked, found, dry_run):
        output.echo(line)


def _program(plan: Plan, name: str) -> Program:
    program = plan.programs.get(name)
    if program is None:
        hint = did_you_mean(name, plan.programs) or f"handlers: {', '.join(sorted(plan.programs)) or 'none'}"
        raise NotFoundError(f'there is no handler "{name}"', hint=hint)
    if not program.routes:
        why = f"it does the command {program.command}" if program.command is not None else "no route leads to it"
        raise RefusedError(f"{name} gets no events: {why}", hint="flowrun call sends a command")
    return program


def _types(program: Program, kind: str | None) -> tuple[str, ...]:
    """The events that its routes lead to it, or those of them that were asked for."""
    routed = sorted({name for route in program.routes for name in route.events})
    chosen = [name for name in routed if kind is None or topic_matches(kind, name)]
    if not chosen:
        hint = did_you_mean(str(kind), routed) or f"it gets {', '.join(routed)}"
        raise RefusedError(f'no route leads "{kind}" to {program.name}', hint=hint)
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class _Replay:
    """Which events, to whom; `ident` is in the headers of what is sent and of what comes of it."""

    settings: Settings
    plan: Plan
    program: Program
    wanted: EventFilter
    ident: str
    force: bool

    async def look(self) -> dict[str, Any]:
        """What would be sent, by type, and how much of it has a run already."""
        types, has_run = Counter[str](), 0
        async with standing_store(self.settings) as store:
            async for event in self._events(store, await store.head()):
                types[event.meta.type] += 1
                has_run += await store.known(run_id(self.program.name, event.meta.source, event.meta.id))
        return {"events": types.total(), "by_type": dict(sorted(types.items())), "have_run": has_run}

    async def send(self) -> dict[str, Any]:
        """Send those that are in the log now, and not what comes of the first of them. What is sent twice, because
        somebody did this again after a failure, begins one run."""
        begun, count = monotonic(), 0
        async with App(self.settings) as app:
            await app.prepare(self.plan.topology)
            last = await app.store.head()
            with _bar(last) as bar:
                batch: list[LoggedEvent] = []
                async for event in self._events(app.store, last):
                    batch.append(event)
                    if len(batch) == BATCH:
                        count += await self._publish(app, batch, count)
                        bar.update(batch[-1].position - bar.pos)
                        batch = []
                count += await self._publish(app, batch, count)
                bar.update(last - bar.pos)
        return {"events": count, "replay": self.ident if count else None, "seconds": round(monotonic() - begun, 3)}

    async def _publish(self, app: App, events: Sequence[LoggedEvent], before: int) -> int:
        for number, reason in enumerate(await app.transport.publish([self._message(event) for event in events])):
            if reason is not None:
                sent = before + number
                hint = f"{sent} events before it were sent" if sent else "flowrun doctor says what is wrong"
                raise TransportError(f"{self.program.queue} does not take it: {reason}", hint=hint)
        return len(events)

    def _message(self, event: LoggedEvent) -> Outgoing:
        return replayed_message(
            meta=event.meta,
            data=event.data,
            project=self.settings.project,
            queue=self.program.queue,
            replay=self.ident,
            anew=self.force,
        )

    async def _events(self, store: AnyStore, last: int) -> AsyncIterator[LoggedEvent]:
        after = 0
        while after < last:
            events = await store.events(self.wanted, limit=BATCH, after=after)
            for event in events:
                if event.position <= last:
                    yield event
            after = events[-1].position if len(events) == BATCH else last


def _bar(last: int) -> Any:
    """How far the log has been gone through."""
    return click.progressbar(length=last, label="replaying", file=sys.stderr, hidden=not sys.stderr.isatty())


def _text(asked: _Replay, found: dict[str, Any], dry_run: bool) -> list[str]:
    name, count = asked.program.name, found["events"]
    many = f"{count} event{'' if count == 1 else 's'}"
    if not dry_run:
        rate = f", {count / found['seconds']:,.0f}/s" if found["seconds"] else ""
        said = f", replay {asked.ident}" if count else ""
        return [f"{many} sent to {name}{said}{rate}"]
    lines = [f"{printable(kind)}  {number}" for kind, number in found["by_type"].items()]
    done, new = found["have_run"], count - found["have_run"]
    again = f"{done} that have run would run again" if asked.force else f"{done} have run, and would do nothing"
    lines.append(f"{many} would go to {name}: {new} new; {again}")
    return lines
