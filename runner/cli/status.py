"""`flowrun status`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import msgspec

from runner.app import open_transport, standing_store, store_file
from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.clock import SystemClock
from runner.engine.status import WINDOW_S, Status, look
from runner.plan import Plan
from runner.settings import Settings, load_settings

AGAIN_S = 2.0


@click.command("status")
@click.option("--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C; with --json a line each.")
@options.settings
@options.as_json
def command(watch: bool, root: Path, broker: str | None, store: str | None, as_json: bool) -> None:
    """Say how the project fares: each handler's lag, its runs and failures, and what was left lying.

    LAG are the messages that wait in its queue, QUEUED the runs that wait for their turn, a slot or a token. BEGUN and
    FAILED are of the last minute: runs that began in it, and those of them that have failed, or had to be undone.
    """
    settings = load_settings(root, broker=broker, store=store)
    plan = compiled(root, settings.project).plan
    try:
        asyncio.run(_tell(settings, plan, watch=watch, as_json=as_json))
    except KeyboardInterrupt:  # the way to end it
        if not watch:
            raise


async def _tell(settings: Settings, plan: Plan, *, watch: bool, as_json: bool) -> None:
    clock = SystemClock()
    async with standing_store(settings) as store, open_transport(settings, store_file(settings)) as transport:
        while True:
            found = await look(plan, store, transport, clock)
            if as_json:
                shown = found.value()
                output.echo(msgspec.json.encode(shown).decode() if watch else output.json_value(shown))
            else:
                if watch:
                    click.clear()
                for line in _text(found):
                    output.echo(line)
            if not watch:
                return
            await clock.sleep_until(clock.now() + timedelta(seconds=AGAIN_S))


def _text(status: Status) -> Iterator[str]:
    rows = [(h.name, *map(str, (h.lag, *msgspec.structs.astuple(h.figures)))) for h in status.handlers]
    yield from output.table(["HANDLER", "LAG", "QUEUED", "RUNNING", "WAITING", "BEGUN", "FAILED"], rows)
    for circuit in status.circuits:
        state = circuit.state(status.at).replace("_", "-")
        yield f"the circuit of {circuit.name} is {state}, until {circuit.lets_in_at(status.at)}"
    for handler in status.pressures:
        yield f"producers of {handler} were told that it is behind"
    yield ""
    yield f"{status.at}  {summary(status)}"


def summary(status: Status) -> str:
    """All of it in a line."""
    figures = [h.figures for h in status.handlers]
    backlog = status.backlog
    parts = [
        f"{sum(f.begun for f in figures) / WINDOW_S:,.1f} runs/s",
        f"{sum(f.running for f in figures):,} running",
        f"{sum(f.waiting for f in figures):,} waiting",
        f"{sum(f.failed for f in figures):,} failed",
        f"lag {sum(h.lag for h in status.handlers):,}",
    ]
    queued = sum(f.queued for f in figures)
    parts += [f"{queued:,} queued"] if queued else []
    open_ones = len(status.circuits)
    parts += [f"{open_ones} circuit{'s' if open_ones > 1 else ''} open"] if open_ones else []
    parts += [f"{backlog.outbox:,} in the outbox"] if backlog.outbox else []
    parts += [f"{backlog.refused:,} that no queue takes"] if backlog.refused else []
    parts += [f"{backlog.suspects:,} suspects"] if backlog.suspects else []
    parts += [f"{backlog.dead_letters:,} dead letters"] if backlog.dead_letters else []
    return " · ".join(parts)
