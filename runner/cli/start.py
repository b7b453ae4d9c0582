"""`flowrun start`."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner import __version__
from runner.app import App, Project, Role
from runner.cli import guarded, options, output, story
from runner.cli.compiled import compiled
from runner.cli.status_line import AboveTheLine, draw
from runner.engine.outbox import Outbox
from runner.engine.run import Run
from runner.engine.worker import Worker
from runner.environment import check_environment, masked_by
from runner.errors import SettingsError, StoreError, TransportError
from runner.lang.report import printable
from runner.masking import SHORTEST, Mask, is_maskable
from runner.plan import Endpoint, Program, Projection
from runner.records import Change
from runner.settings import Settings, load_settings, mask_url
from runner.supervisor import Post, Supervisor
from runner.times import parse_duration_s
from runner.watchdog import Watchdog

if TYPE_CHECKING:
    from runner.web.server import HttpServer

IDLE_POLL_S = 0.05
WAIT_POLL_S = 0.5
DRAIN_TIMED_OUT = 75

_log = logging.getLogger("flowrun")
_PLAIN = tuple(
    f"flowrun{name}" for name in ("", ".worker", ".outbox", ".watchdog", ".http", ".projections", ".retention")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What the command line says."""

    root: Path
    flows: tuple[str, ...]
    broker: str | None
    store: str | None
    http: str | None
    until_idle: bool
    grace_s: float
    wait_s: float
    level: int


@click.command("start")
@click.argument("flows", nargs=-1)
@options.settings
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="How many processes run.")
@click.option("--http", metavar="HOST:PORT", help="Serve the flows' ingress there.  [default: as flowrun.yaml says]")
@click.option("--until-idle", is_flag=True, help="End when nothing is left to do.")
@click.option("--grace", default="25s", show_default=True, help="How long to wait for running steps when stopped.")
@click.option("--wait", default="0s", show_default=True, help="How long to wait for broker and store to be there.")
@click.option("--quiet", "-q", is_flag=True, help="Log warnings only, not every step.")
def command(
    flows: tuple[str, ...],
    root: Path,
    broker: str | None,
    store: str | None,
    workers: int,
    http: str | None,
    until_idle: bool,
    grace: str,
    wait: str,
    quiet: bool,
) -> None:
    """Run the project's flows until SIGINT or SIGTERM, then drain.

    FLOWS are names of flows; without them all are run. A second signal stops at once: what was running is
    taken up by the next start. A process that crashes is replaced; a message that it crashes with again and
    again is put aside.

    Exit codes: 0 drained, 1 invalid flows or drift, 2 settings, 69 broker or store unreachable, 75 drain timed out.
    """
    given = _Options(
        root=root,
        flows=flows,
        broker=broker,
        store=store,
        http=http,
        until_idle=until_idle,
        grace_s=_duration_s(grace, "--grace"),
        wait_s=_duration_s(wait, "--wait"),
        level=logging.WARNING if quiet else logging.INFO,
    )
    _set_up_logging(given.level, Mask())
    listener = _listener(given)
    supervisor = Supervisor(
        lambda post: guarded(lambda: _serve(given, post, listener)),
        workers,
        on_stop=lambda: listener.close() if listener is not None else None,
    )
    raise SystemExit(supervisor.run())


def _listener(given: _Options) -> socket.socket | None:
    """The socket that HTTP is served on, here in the parent: a port that is taken is one error, not one a worker."""
    address = _settings(given).listen
    if address is None:
        return None
    from runner.web.address import bind

    return bind(address)


def _settings(given: _Options) -> Settings:
    return load_settings(given.root, broker=given.broker, store=given.store, http=given.http)


def _duration_s(text: str, option: str) -> float:
    seconds = parse_duration_s(text)
    if seconds is None:
        raise click.BadParameter(f'"{text}" is not a duration; for example 25s', param_hint=option)
    return seconds


# --- in a child


@dataclass(frozen=True, slots=True)
class _Http:
    """What is served over HTTP, and where; without a socket, nothing is."""

    endpoints: tuple[Endpoint, ...]
    projections: tuple[Projection, ...]
    listener: socket.socket | None

    @property
    def guarded_by(self) -> tuple[Endpoint | Projection, ...]:
        """What may need secrets of its own."""
        if self.listener is None:
            return ()
        return (*self.endpoints, *(each for each in self.projections if each.bearer is not None))


def _serve(given: _Options, post: Post, listener: socket.socket | None) -> int:
    settings = _settings(given)
    project = compiled(given.root, settings.project)
    programs = _programs(project, given.flows)
    endpoints = tuple(e for e in project.plan.ingress if not given.flows or e.flow in given.flows)
    http = _Http(endpoints, tuple(project.plan.projections.values()), listener)
    what_runs: list[Program | Endpoint | Projection] = [*programs, *http.guarded_by]
    check_environment(what_runs)
    mask = Mask()
    secrets = masked_by(mask)(tuple({name for each in what_runs for name in each.secrets}))
    _set_up_logging(given.level, mask, f"[worker {post.number}] " if post.of > 1 and post.number else "")
    if post.is_first:
        _say_what_shows(secrets)
    role = Role(programs=programs, watch=_watch, mask=mask, on_suspects=lambda: post.tell("suspects"))
    if post.kind == "suspects":
        if listener is not None:
            listener.close()  # it is the workers'
        return _run(_open(settings, project, role, given, post, _run_suspects))
    return _run(_open(settings, project, role, given, post, partial(_run_worker, http)))


def _programs(project: Project, flows: tuple[str, ...]) -> tuple[Program, ...]:
    known = {program.flow for program in project.plan.programs.values()}
    known |= {endpoint.flow for endpoint in project.plan.ingress}
    for flow in flows:
        if flow not in known:
            raise SettingsError(f'there is no flow "{flow}"', hint=f"flows: {', '.join(sorted(known))}")
    return tuple(p for p in project.plan.programs.values() if not flows or p.flow in flows)


def _run(main: Coroutine[None, None, int]) -> int:
    """Not `asyncio.run`: that waits at its end for handlers which do not heed that they are cancelled, and this
    process ends without asking them."""
    _spare_the_collector()
    try:
        import uvloop
    except ImportError:
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(main)


def _spare_the_collector() -> None:
    """What is loaded by now stays for good: no collection looks through it again. And the default, one for every 700
    new objects, comes many times in the life of a hundred runs, finds hardly any garbage, and takes an eighth of the
    process."""
    gc.freeze()
    gc.set_threshold(20_000)


async def _open(
    settings: Settings,
    project: Project,
    role: Role,
    given: _Options,
    post: Post,
    work: Callable[[App, Project, Role, _Options, Post, asyncio.Event], Awaitable[int]],
) -> int:
    """Connect, and do this child's work until it is done, or until the parent's SIGTERM."""
    Watchdog(post.parent)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        app = await _connected(settings, given.wait_s, stop, stack)
        post.tell("owner", app.store.owner)
        await app.store.forget_dead(post.dead)
        code = await work(app, project, role, given, post, stop)
    post.tell("done", code)  # here, while signals are still listened to
    return code


async def _connected(settings: Settings, wait_s: float, stop: asyncio.Event, stack: AsyncExitStack) -> App:
    """The app, entered on `stack`, at the latest `wait_s` from now. Raises StoreError or TransportError."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_s
    while True:
        try:
            return await stack.enter_async_context(App(settings))
        except (StoreError, TransportError) as error:
            if clock() >= deadline or stop.is_set():
                raise
            _log.warning("%s; waiting for it", error)
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_POLL_S):
                await stop.wait()


async def _run_worker(
    http: _Http, app: App, project: Project, role: Role, given: _Options, post: Post, stop: asyncio.Event
) -> int:
    await app.prepare(project.plan.topology)
    worker = await app.worker(project, role)
    if post.is_first:
        _say_what_starts(app.settings)
    tasks = await worker.start()
    if post.is_first and _has_status_line(given):
        tasks = (*tasks, asyncio.create_task(draw(project.plan, app.store, app.transport)))
    server = await _begin_http(http, app, project, role, worker)
    post.tell("ready")
    if post.is_first:
        _say_ready(project, role.programs, post.of)
        _say_http(http)
    await _until(stop, worker, given.until_idle)
    clock = asyncio.get_running_loop().time
    ends_at = clock() + given.grace_s
    if server is not None:
        await server.stop(given.grace_s / 2)  # first, because replies come only as long as this worker works
    drained = await worker.drain(max(0.0, ends_at - clock()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    _say_what_was_done(worker)
    if not drained:
        _log.warning("some steps did not end within the grace; the next start takes their runs up")
    with suppress(StoreError):
        backlog = await app.store.backlog()
        if backlog.refused:
            _log.warning("%d messages stay in the outbox: no queue takes them; see flowrun doctor", backlog.refused)
    return 0 if drained else DRAIN_TIMED_OUT


async def _begin_http(http: _Http, app: App, project: Project, role: Role, worker: Worker) -> HttpServer | None:
    if http.listener is None:
        return None
    from runner.web.server import serve

    return await serve(app, project.plan, http.endpoints, worker, http.listener, role.mask)


async def _run_suspects(
    app: App, project: Project, role: Role, given: _Options, post: Post, stop: asyncio.Event
) -> int:
    outbox = Outbox(app.store, app.transport)
    sending = asyncio.create_task(outbox.run())
    suspects = app.suspects(
        project,
        role,
        outbox=outbox,
        draining=stop.is_set,
        culprits=post.culprits,
        tell=lambda run_id: post.tell("suspect", run_id),
    )
    await suspects.run(stop)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    return 0


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


def _say_what_shows(secrets: Mapping[str, str]) -> None:
    for name in sorted(name for name, value in secrets.items() if value and not is_maskable(value)):
        _log.warning("secret %s is not masked: it is shorter than %d characters, or true or false", name, SHORTEST)


def _say_what_starts(settings: Settings) -> None:
    brokers = ", ".join(mask_url(url) for url in settings.brokers)
    _log.info(
        "flowrun %s · project %s · broker %s · store %s",
        __version__,
        settings.project,
        brokers,
        mask_url(settings.store),
    )


def _say_ready(project: Project, programs: tuple[Program, ...], workers: int) -> None:
    served = sum(program.is_served for program in programs)
    many = f", in {workers} processes" if workers > 1 else ""
    _log.info("ready: %d handler%s waiting for messages%s", served, " is" if served == 1 else "s are", many)
    external = [event.name for event in project.plan.events.values() if event.external]
    if external:
        _log.info("in another terminal: flowrun emit %s --data '{…}'", external[0])


def _say_http(http: _Http) -> None:
    counts = ((len(http.endpoints), "endpoint"), (len(http.projections), "projection"))
    many = ", ".join(f"{number} {noun}{'' if number == 1 else 's'}" for number, noun in counts if number) or "nothing"
    if http.listener is not None:
        from runner.web.address import shown

        _log.info("HTTP on %s: %s", shown(http.listener), many)
    elif http.endpoints:
        many = f"{len(http.endpoints)} endpoint{'' if len(http.endpoints) == 1 else 's'}"
        _log.info("%s not served: say where, with --http 127.0.0.1:8080 or http: in flowrun.yaml", many)


def _has_status_line(given: _Options) -> bool:
    return given.level <= logging.INFO and sys.stderr.isatty() and output.has_colour(sys.stderr)


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
        text = self._mask.text(super().formatMessage(record))
        return text if record.name == "flowrun" else printable(text)  # colours are ours alone

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(printable(line) for line in self._mask.text(super().formatException(ei)).split("\n"))

    def __init__(self, mask: Mask, prefix: str) -> None:
        super().__init__()
        self._mask = mask
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        name = "" if record.name in _PLAIN else f"[{record.name}] "
        return f"{self.formatTime(record)} {self._prefix}{level}{name}{text}"


def _set_up_logging(level: int, mask: Mask, prefix: str = "") -> None:
    handler = AboveTheLine(sys.stderr) if sys.stderr.isatty() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(mask, prefix))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("flowrun").setLevel(level)
