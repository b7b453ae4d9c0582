"""The composition root: settings → store, transport, plan, worker."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from runner.environment import masked_by, read_env
from runner.errors import NotFoundError, SettingsError, TopologyError
from runner.lang.compile import Compilation, compile_project
from runner.lang.load import Sources
from runner.lang.projections import compile_projection
from runner.plan import Plan, Program, Topology
from runner.settings import FILE, Settings, mask_url, project_name, read_file

if TYPE_CHECKING:
    from runner.engine.breakers import Breakers
    from runner.engine.outbox import Outbox
    from runner.engine.projector import Projector
    from runner.engine.read_models import ReadModels
    from runner.engine.retention import Retention
    from runner.engine.run import Run
    from runner.engine.runs import Environment, Runs, Watch
    from runner.engine.suspects import Suspects
    from runner.engine.worker import Worker
    from runner.masking import Mask
    from runner.ports import AnyStore, AnyTransport
    from runner.records import Change
    from runner.registry import Registry
    from runner.sqlite_file import SqliteFile


DIFF_HINT = "flowrun plan --diff shows all"


@dataclass(frozen=True, slots=True)
class Project:
    """A project's files, compiled, and its handlers."""

    compilation: Compilation
    registry: Registry | None

    @property
    def plan(self) -> Plan:
        """The plan of a project without errors."""
        assert self.compilation.plan is not None
        return self.compilation.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a process runs, whom it tells, and what may not be seen in what it says."""

    programs: tuple[Program, ...]
    watch: Watch
    mask: Mask
    on_suspects: Callable[[], None]


def load_project(
    root: Path, *, project: str | None = None, plugins: bool = True, files: Iterable[str] | None = None
) -> Project:
    """Compile the project at `root`; never touches broker, store or network. Its plugins are imported,
    unless `plugins` is False: then only what needs no plugin is checked."""
    registry = None
    if plugins:
        from runner.registry import discover

        registry = discover(root)
    compilation = _compile(Sources(root), registry, project=project or project_name(root), files=files)
    document, faults = read_file(root)
    extra = [*faults, *(registry.diagnostics if registry is not None else ())]
    documents = {**compilation.documents, **(registry.documents if registry is not None else {})}
    if document is not None:
        documents[FILE] = document
    merged = Compilation(
        plan=compilation.plan,
        diagnostics=tuple(sorted({*compilation.diagnostics, *extra}, key=lambda d: d.sort_key)),
        documents=documents,
    )
    if merged.errors:
        merged = Compilation(plan=None, diagnostics=merged.diagnostics, documents=documents)
    return Project(merged, registry)


def look_again(root: Path, loaded: Project, texts: Mapping[str, str], files: Iterable[str]) -> Compilation:
    """Compile flow files once more, with these texts in the place of theirs, against the plugins that were loaded."""
    return _compile(Sources(root, texts), loaded.registry, project=project_name(root), files=files)


def _compile(sources: Sources, registry: Registry | None, *, project: str, files: Iterable[str] | None) -> Compilation:
    with _without_collector():
        return compile_project(
            sources,
            project=project,
            signatures=registry.signatures if registry is not None else None,
            signatures_complete=registry is None or not registry.diagnostics,
            files=files,
        )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Compile without the collector of cycles, and keep it from what was built: that stays, and looking through it
    again and again took half of the time that 1,000 files take, for nothing."""
    if gc.get_freeze_count():  # by an earlier call, whose files may have changed since
        gc.unfreeze()
        gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


class App:
    """A project's open store and transport. Enter it, then use `store`, `transport`, `worker`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        file = store_file(settings)
        self.store = open_store(settings, file)
        self.transport = open_transport(settings, file)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> App:
        """Connect. Raises StoreError or TransportError."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.store)
            await stack.enter_async_context(self.transport)
            self._stack = stack.pop_all()
        return self

    async def prepare(self, topology: Topology) -> None:
        """Make the topology stand, or look whether it does, as the settings say, and remember what was declared.

        Raises TransportError or TopologyError.
        """
        await prepare(self.settings, self.transport, topology)
        if self.settings.topology == "declare":
            await self.store.keep_declared(topology)

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def worker(self, project: Project, role: Role) -> Worker:
        """Consumes and runs. Keeps the plan's sources, and compiles those of unfinished runs."""
        from runner.clock import SystemClock
        from runner.engine.worker import Worker

        plan = project.plan
        for plan_hash, sources in plan.sources.items():
            await self.store.keep_plan(plan_hash, sources)

        breakers = self._breakers(plan)

        def runs(draining: Callable[[], bool], on_commit: Watch) -> Runs:
            return self._runs(project, role, breakers, draining, on_commit)

        return Worker(
            plan=plan,
            programs=role.programs,
            only_these=len(role.programs) < len(plan.programs),
            transport=self.transport,
            store=self.store,
            reader=self.store,
            doorbell=self.store,
            mailbox=self.store,
            event_log=self.store,
            schedules=self.store,
            gate=self.store.gate,
            limits=self.store,
            breakers=breakers,
            traffic=self.store.traffic,
            projector=projector(plan, self.store),
            retention=self._retention(plan),
            runs=runs,
            environment=_environment(role.mask),
            mask=role.mask,
            clock=SystemClock(),
            watch=role.watch,
            on_suspects=role.on_suspects,
        )

    def suspects(
        self,
        project: Project,
        role: Role,
        *,
        outbox: Outbox,
        draining: Callable[[], bool],
        culprits: Collection[str],
        tell: Callable[[str], None],
    ) -> Suspects:
        """Runs what processes died with, in a process of its own."""
        from runner.clock import SystemClock
        from runner.engine.suspects import Suspects

        def on_commit(run: Run, change: Change | None) -> None:
            role.watch(run, change)
            if change is not None and change.outgoing:
                outbox.poke()

        some = len(role.programs) < len(project.plan.programs)
        return Suspects(
            runs=self._runs(project, role, self._breakers(project.plan), draining, on_commit),
            store=self.store,
            reader=self.store,
            outbox=outbox,
            clock=SystemClock(),
            handlers=[program.name for program in role.programs] if some else None,
            culprits=culprits,
            tell=tell,
        )

    def _breakers(self, plan: Plan) -> Breakers:
        from runner.clock import SystemClock
        from runner.engine.breakers import Breakers

        return Breakers(self.store.traffic, SystemClock(), project=plan.project)

    def _runs(
        self, project: Project, role: Role, breakers: Breakers, draining: Callable[[], bool], on_commit: Watch
    ) -> Runs:
        from runner.clock import SystemClock
        from runner.engine.executor import Executor
        from runner.engine.runs import Plans, Runs

        plan, registry = project.plan, project.registry
        assert registry is not None

        async def load_older() -> Mapping[str, Plan]:
            return self._older_plans(await self.store.unfinished_plans(), plan, registry)

        return Runs(
            plans=Plans(present=plan, load_older=load_older),
            store=self.store,
            reader=self.store,
            control=self.store,
            executor=Executor(
                handlers=registry.handlers,
                clock=SystemClock(),
                random=random.random,
                mask=role.mask,
                projections=read_models(plan, self.store),
                breakers=breakers,
                draining=draining,
            ),
            environment=_environment(role.mask),
            clock=SystemClock(),
            on_commit=on_commit,
        )

    def _retention(self, plan: Plan) -> Retention | None:
        from runner.archive import FolderArchive
        from runner.clock import SystemClock
        from runner.engine.retention import Retention

        settings = self.settings
        if settings.retention_s is None:
            return None
        return Retention(
            keep=timedelta(seconds=settings.retention_s),
            archive=None if settings.archive is None else FolderArchive(settings.archive),
            types={name for projection in plan.projections.values() for name in projection.folds},
            log=self.store,
            projections=self.store.projections,
            schedules=self.store,
            clock=SystemClock(),
        )

    def _older_plans(self, kept: Mapping[str, Mapping[str, str]], plan: Plan, registry: Registry) -> dict[str, Plan]:
        """The plans that unfinished runs began with and that the files no longer say."""
        older = {}
        for plan_hash, sources in kept.items():
            if plan_hash in plan.sources:
                continue
            compilation = compile_kept(sources, plan.project, registry)
            if compilation.plan is not None:
                older[plan_hash] = compilation.plan
        return older


def read_models(plan: Plan, store: AnyStore) -> ReadModels:
    """The plan's projections, to be read from an entered store."""
    from runner.engine.read_models import ReadModels

    return ReadModels(plan.projections, log=store, store=store.projections, load=compile_projection)


def projector(plan: Plan, store: AnyStore) -> Projector:
    """Folds the plan's projections into an entered store."""
    from runner.clock import SystemClock
    from runner.engine.projector import Projector

    return Projector(
        projections=plan.projections.values(),
        log=store,
        store=store.projections,
        owner=store.owner,
        clock=SystemClock(),
        load=compile_projection,
    )


def compile_kept(sources: Mapping[str, str], project: str, registry: Registry) -> Compilation:
    """Flow files and schemas that the project had once, with the handlers that there are now: what runs go on by that
    began with them."""
    return compile_project(Sources(None, sources), project=project, signatures=registry.signatures)


async def prepare(settings: Settings, transport: AnyTransport, topology: Topology) -> None:
    """Make the topology stand, or look whether it does, as the settings say. Raises TransportError, TopologyError."""
    if settings.topology == "declare":
        try:
            await transport.declare(topology)
        except TopologyError as error:
            raise await _all_drift(transport, topology, error) from error
    elif settings.topology == "verify":
        amiss = [d for d in await transport.compare(topology) if d.change not in ("none", "unknown")]
        if amiss:
            first = f'{amiss[0].kind} "{amiss[0].name}": {amiss[0].detail or "it is not there"}'
            more = f", and {len(amiss) - 1} more" if len(amiss) > 1 else ""
            raise TopologyError(f"the broker's objects are not the plan's: {first}{more}", hint=DIFF_HINT)


async def _all_drift(transport: AnyTransport, topology: Topology, first: TopologyError) -> TopologyError:
    """The broker says what differs one by one; its operator wants to know all."""
    drift = [d for d in await transport.compare(topology) if d.is_drift]
    text = "; ".join(d.detail for d in drift) or first.message
    return TopologyError(text, hint=f"drain and delete, or name another project; {DIFF_HINT}")


def _environment(mask: Mask) -> Environment:
    from runner.engine.runs import Environment

    return Environment(env=read_env, secrets=masked_by(mask))


def store_file(settings: Settings) -> SqliteFile | None:
    """The SQLite file that the store's URL names; None if it names a PostgreSQL. Raises SettingsError."""
    from runner.sqlite_file import SqliteFile

    kind, _, path = settings.store.partition(":")
    if kind in ("postgresql", "postgres"):
        return None
    if kind != "sqlite" or not path:
        raise SettingsError(
            f'"{mask_url(settings.store)}" is not a store',
            hint="write sqlite:PATH or postgresql://user:password@host/db",
        )
    return SqliteFile(path if path == ":memory:" else str((settings.root / path).resolve()))


def open_store(settings: Settings, file: SqliteFile | None) -> AnyStore:
    """The store that the settings name, to be entered; in `file`, if that is given."""
    if file is not None:
        from runner.stores.sqlite import SqliteStore

        return SqliteStore(file)
    from runner.stores.postgres import PostgresStore

    return PostgresStore(settings.store, settings.project)


def standing_store(settings: Settings) -> AnyStore:
    """The store, to be entered, for a command that only looks: a file that is not there yet is not made.

    Raises NotFoundError.
    """
    file = store_file(settings)
    if file is not None and not Path(file.path).exists():
        raise NotFoundError(
            f"there is no store at {file.path} yet",
            hint="flowrun start makes it, in a project's folder; -C names another",
        )
    return open_store(settings, file)


def open_transport(settings: Settings, file: SqliteFile | None) -> AnyTransport:
    """The transport that the settings name, to be entered; the embedded broker lives in `file`."""
    if settings.brokers == ("embedded:",):
        if file is None:
            raise SettingsError(
                "the embedded broker lives in the SQLite store's file, and the store is PostgreSQL",
                hint="name a broker: --broker amqp://user:password@host/vhost",
            )
        from runner.transports.embedded import EmbeddedTransport

        return EmbeddedTransport(file)
    if any(broker.startswith("embedded:") for broker in settings.brokers):
        raise SettingsError("embedded: stands alone: it cannot be one of several brokers")
    from runner.transports.rabbitmq import RabbitTransport

    name = f"flowrun:{settings.project}:{os.uname().nodename}:{os.getpid()}"
    return RabbitTransport(settings.brokers, name=name, folder=settings.root.resolve())
