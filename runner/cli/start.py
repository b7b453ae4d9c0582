"""`flowrun start`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from runner import __version__
from runner.app import App, Project, check_environment, masker
from runner.cli import options, story
from runner.cli.compiled import compiled
from runner.engine.run import Run
from runner.engine.worker import Worker
from runner.errors import SettingsError
from runner.lang.report import printable
from runner.plan import Program
from runner.records import Change
from runner.settings import Settings, load_settings, mask_url
from runner.times import parse_duration_s

IDLE_POLL_S = 0.05
DRAIN_TIMED_OUT = 75

_log = logging.getLogger("flowrun")


@click.command("start")
@click.argument("flows", nargs=-1)
@options.settings
@click.option("--until-idle", is_flag=True, help="End when nothing is left to do.")
@click.option("--grace", default="25s", show_default=True, help="How long to wait for running steps when stopped.")
@click.option("--quiet", "-q", is_flag=True, help="Log warnings only, not every step.")
def command(
    flows: tuple[str, ...],
    root: Path,
    broker: str | None,
    store: str | None,
    until_idle: bool,
    grace: str,
    quiet: bool,
) -> None:
    """Run the project's flows until SIGINT or SIGTERM, then drain.

    FLOWS are names of flows; without them all are run. A second signal stops at once: what was running is
    taken up by the next start.

    Exit codes: 0 drained, 1 invalid flows, 2 settings, 69 broker or store unreachable, 75 drain timed out.
    """
    grace_s = parse_duration_s(grace)
    if grace_s is None:
        raise click.BadParameter(f'"{grace}" is not a duration; for example 25s', param_hint="--grace")
    settings = load_settings(root, broker=broker, store=store)
    project = compiled(root, settings.project)
    programs = _programs(project, flows)
    check_environment(programs)
    _set_up_logging(logging.WARNING if quiet else logging.INFO, programs)
    raise SystemExit(_run(_start(settings, project, programs, until_idle=until_idle, grace_s=grace_s)))


def _programs(project: Project, flows: tuple[str, ...]) -> tuple[Program, ...]:
    plan = project.compilation.plan
    assert plan is not None
    known = {program.flow for program in plan.programs.values()}
    for flow in flows:
        if flow not in known:
            raise SettingsError(f'there is no flow "{flow}"', hint=f"flows: {', '.join(sorted(known))}")
    return tuple(p for p in plan.programs.values() if not flows or p.flow in flows)


def _run(main: Coroutine[None, None, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return int(uvloop.run(main))


async def _start(
    settings: Settings, project: Project, programs: tuple[Program, ...], *, until_idle: bool, grace_s: float
) -> int:
    plan = project.compilation.plan
    assert plan is not None
    stop = _stop_on_signals()
    async with App(settings) as app:
        await app.transport.declare(plan.topology)
        worker = await app.worker(project, programs=programs, watch=_watch, mask=masker(programs))
        tasks = await worker.start()
        _say_ready(settings, project, programs)
        await _until(stop, worker, until_idle)
        drained = await worker.drain(grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _say_what_was_done(worker)
        backlog = await app.store.backlog()
        if backlog.refused:
            _log.warning("%d messages stay in the outbox: no queue takes them", backlog.refused)
    if not drained:
        _log.warning("some steps did not end within the grace; the next start takes their runs up")
    return 0 if drained else DRAIN_TIMED_OUT


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()

    def stopped() -> None:
        if stop.is_set():
            sys.stderr.write("stopped at once\n")
            os._exit(130)
        _log.info("stopping: running steps end first; a second signal stops at once")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped)
    return stop


async def _until(stop: asyncio.Event, worker: Worker, until_idle: bool) -> None:
    """Until a signal, or until the worker was found idle twice: a message may be between two hands once."""
    idle = 0
    while not stop.is_set():
        if not until_idle:
            await stop.wait()
            return
        idle = idle + 1 if await worker.is_idle() else 0
        if idle == 2:
            return
        try:
            async with asyncio.timeout(IDLE_POLL_S):
                await stop.wait()
        except TimeoutError:
            continue


# --- what is said


def _say_ready(settings: Settings, project: Project, programs: tuple[Program, ...]) -> None:
    plan = project.compilation.plan
    assert plan is not None
    brokers = ", ".join(mask_url(url) for url in settings.brokers)
    _log.info(
        "flowrun %s · project %s · broker %s · store %s",
        __version__,
        settings.project,
        brokers,
        mask_url(settings.store),
    )
    served = sum(bool(program.routes) for program in programs)
    _log.info("ready: %d handler%s waiting for events", served, " is" if served == 1 else "s are")
    external = [event.name for event in plan.events.values() if event.external]
    if external:
        _log.info("in another terminal: flowrun emit %s --data '{…}'", external[0])


def _say_what_was_done(worker: Worker) -> None:
    counts = worker.counts
    parts = [f"{counts.begun} run{'' if counts.begun == 1 else 's'} begun", f"{counts.finished} finished"]
    if counts.passed_over:
        parts.append(f"{counts.passed_over} messages passed over")
    if counts.duplicates:
        parts.append(f"{counts.duplicates} duplicates dropped")
    if counts.dead_letters:
        parts.append(f"{counts.dead_letters} dead letters")
    _log.info("stopped: %s", ", ".join(parts))


def _watch(run: Run, change: Change | None) -> None:
    if not _log.isEnabledFor(logging.INFO):
        return
    if change is None:
        _log.info("%s", story.begin_line(run.started, stream=sys.stderr))
        return
    for line in story.change_lines(change, run.program.name, stream=sys.stderr):
        _log.info("%s", line)


class _Formatter(logging.Formatter):
    """`05:33:00.123 text`; a level's name only from warnings on."""

    default_time_format = "%H:%M:%S"
    default_msec_format = "%s.%03d"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        text = super().formatMessage(record)
        return text if record.name == "flowrun" else printable(text)  # colours are ours alone

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(printable(line) for line in super().formatException(ei).split("\n"))

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        name = "" if record.name in ("flowrun", "flowrun.worker", "flowrun.outbox") else f"[{record.name}] "
        return f"{self.formatTime(record)} {level}{name}{text}"


def _set_up_logging(level: int, programs: tuple[Program, ...]) -> None:
    mask = masker(programs)
    handler = logging.StreamHandler(sys.stderr)
    formatter = _Formatter()

    class _Masked(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return mask(formatter.format(record))

    handler.setFormatter(_Masked())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("flowrun").setLevel(level)
