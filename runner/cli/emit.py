"""`flowrun emit`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from runner.app import open_transport, prepare, store_file
from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.cli.payload import MisfitError, parse_payload, read_payload
from runner.clock import SystemClock
from runner.diagnostics import did_you_mean
from runner.errors import ExpressionError, NotFoundError, TransportError
from runner.message import Outgoing
from runner.plan import Event, Plan
from runner.settings import Settings, load_settings
from runner.steps.emit import Emitter, PayloadError, build
from runner.times import rfc3339

BATCH = 200


@click.command("emit")
@click.argument("event")
@click.option("--data", help="The payload: JSON, @FILE, or - for standard input.")
@click.option("--file", "lines", type=click.File("rb"), help="Many payloads: JSON lines; - is standard input.")
@click.option("--id", "ident", help="The event's id; the same id from the same source is the same event.")
@click.option("--source", help="Who says it (CloudEvents source).  [default: /flowrun/<project>/cli]")
@click.option("--subject", help="What it is about.  [default: as the event declares]")
@options.settings
@options.as_json
def command(
    event: str,
    data: str | None,
    lines: Any,
    ident: str | None,
    source: str | None,
    subject: str | None,
    root: Path,
    broker: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Check a payload, publish it as EVENT, and print the event's id.

    Declares what the plan needs, so that an event emitted before the first start waits for it.

    An event that no handler takes is published all the same: a fact needs no listener.

    Exit codes: 0 confirmed, 1 the payload does not fit, or a queue is missing, 69 broker unreachable.
    """
    if (data is None) == (lines is None):
        raise click.UsageError("give the payload with --data, or many with --file")
    if lines is not None and (ident or subject):
        raise click.UsageError("--id and --subject are for one event, not for --file")
    settings = load_settings(root, broker=broker, store=store)
    plan = compiled(root, settings.project).compilation.plan
    assert plan is not None
    declared = _declared(plan, event)
    emitter = Emitter(project=settings.project, source=source or f"/flowrun/{settings.project}/cli")
    payloads = [("--data", read_payload("--data", data))] if data is not None else list(_lines(lines))
    messages = [_message(declared, where, payload, emitter, ident, subject) for where, payload in payloads]
    asyncio.run(_publish(settings, plan, messages, progress=lines is not None))
    ids = [message.properties.message_id for message in messages]
    if as_json:
        output.echo(output.json_value([{"id": i} for i in ids] if lines is not None else {"id": ids[0]}))
    else:
        for event_id in ids:
            output.echo(str(event_id))


def _declared(plan: Plan, name: str) -> Event:
    event = plan.events.get(name)
    if event is None:
        hint = did_you_mean(name, plan.events) or f"declared: {', '.join(sorted(plan.events)) or 'none'}"
        raise NotFoundError(f'there is no event "{name}"', hint=hint)
    return event


def _lines(file: Any) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{file.name}:{number}"
            yield where, parse_payload(where, line)


def _message(
    event: Event, where: str, payload: Any, emitter: Emitter, ident: str | None, subject: str | None
) -> Outgoing:
    now = rfc3339(SystemClock().now())
    try:
        return build(event, payload, emitter, now, ident=ident, subject=subject)[1]
    except (PayloadError, ExpressionError) as error:
        raise MisfitError(f"{where}: {error}", hint="nothing was published") from None


async def _publish(settings: Settings, plan: Plan, messages: list[Outgoing], *, progress: bool) -> None:
    async with open_transport(settings, store_file(settings)) as transport:
        await prepare(settings, transport, plan.topology)
        with click.progressbar(
            length=len(messages), label="publishing", file=sys.stderr, hidden=not progress, show_pos=True
        ) as bar:
            for start in range(0, len(messages), BATCH):
                batch = messages[start : start + BATCH]
                for message, reason in zip(batch, await transport.publish(batch), strict=True):
                    if reason is not None:
                        ident = message.properties.message_id
                        raise _Refused(
                            f"{message.routing_key} {ident} was not taken: {reason}",
                            hint=f"{start} events before it were published" if start else None,
                        )
                bar.update(len(batch))


class _Refused(TransportError):
    exit_code = 1
