"""The composition root: settings → store, transport, plan, worker."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import NotFoundError, SettingsError
from runner.lang.compile import Compilation, compile_project
from runner.lang.load import Sources
from runner.plan import Plan, Program
from runner.settings import FILE, Settings, mask_url, project_name, read_file

if TYPE_CHECKING:
    from runner.engine.worker import Watch, Worker
    from runner.ports import AnyStore, Transport
    from runner.registry import Registry
    from runner.sqlite_file import SqliteFile


@dataclass(frozen=True, slots=True)
class Project:
    """A project's files, compiled, and its handlers."""

    compilation: Compilation
    registry: Registry | None


def load_project(
    root: Path, *, project: str | None = None, plugins: bool = True, files: Iterable[str] | None = None
) -> Project:
    """Compile the project at `root`; never touches broker, store or network. Its plugins are imported,
    unless `plugins` is False: then only what needs no plugin is checked."""
    registry = None
    if plugins:
        from runner.registry import discover

        registry = discover(root)
    compilation = compile_project(
        Sources(root),
        project=project or project_name(root),
        signatures=registry.signatures if registry is not None else None,
        signatures_complete=registry is None or not registry.diagnostics,
        files=files,
    )
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

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def worker(
        self, project: Project, *, programs: tuple[Program, ...], watch: Watch, mask: Callable[[str], str]
    ) -> Worker:
        """A worker for these programs. Keeps the plan's sources, and compiles those of unfinished runs."""
        from runner.clock import SystemClock
        from runner.engine.executor import Executor
        from runner.engine.worker import Environment, Worker

        plan, registry = project.compilation.plan, project.registry
        assert plan is not None
        assert registry is not None
        for plan_hash, sources in plan.sources.items():
            await self.store.keep_plan(plan_hash, sources)
        clock = SystemClock()

        def executor(draining: Callable[[], bool]) -> Executor:
            return Executor(
                handlers=registry.handlers,
                clock=clock,
                random=random.random,
                mask=mask,
                draining=draining,
            )

        async def load_older() -> Mapping[str, Plan]:
            return self._older_plans(await self.store.unfinished_plans(), plan, registry)

        return Worker(
            plan=plan,
            load_older=load_older,
            programs=programs,
            only_these=len(programs) < len(plan.programs),
            transport=self.transport,
            store=self.store,
            reader=self.store,
            executor=executor,
            environment=Environment(env=read_env, secrets=read_secrets),
            clock=clock,
            watch=watch,
        )

    def _older_plans(self, kept: Mapping[str, Mapping[str, str]], plan: Plan, registry: Registry) -> dict[str, Plan]:
        """The plans that unfinished runs began with and that the files no longer say."""
        older = {}
        for plan_hash, sources in kept.items():
            if plan_hash in plan.sources:
                continue
            compilation = compile_project(Sources(None, sources), project=plan.project, signatures=registry.signatures)
            if compilation.plan is not None:
                older[plan_hash] = compilation.plan
        return older


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
        raise NotFoundError(f"there is no store at {file.path} yet", hint="flowrun start makes it")
    return open_store(settings, file)


def open_transport(settings: Settings, file: SqliteFile | None) -> Transport:
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
    return RabbitTransport(settings.brokers, name=name)


# --- env and secrets


def read_env(names: tuple[str, ...]) -> dict[str, str]:
    """Environment variables, those that are set."""
    return {name: os.environ[name] for name in names if name in os.environ}


def read_secrets(names: tuple[str, ...]) -> dict[str, str]:
    """Secrets: the variable `X`, or the file that `X_FILE` names; those that are there and can be read."""
    found = {}
    for name in names:
        value = os.environ.get(name)
        path = os.environ.get(f"{name}_FILE")
        if value is None and path is not None:
            with suppress(OSError, UnicodeDecodeError):
                value = Path(path).read_text().rstrip("\n")
        if value is not None:
            found[name] = value
    return found


def check_environment(programs: Iterable[Program]) -> None:
    """Raise SettingsError that lists every variable and secret the programs need and that is not there."""
    missing: dict[str, str] = {}
    for program in programs:
        have = {**read_env(program.env), **read_secrets(program.secrets)}
        for name in program.env:
            if name not in have:
                missing.setdefault(name, f"{name} ({program.flow})")
        for name in program.secrets:
            if name not in have:
                unreadable = os.environ.get(f"{name}_FILE")
                what = f"{name}_FILE={unreadable}, which cannot be read" if unreadable else f"{name} or {name}_FILE"
                missing.setdefault(name, f"{what} ({program.flow})")
    if missing:
        raise SettingsError(f"not set: {', '.join(missing.values())}", hint="the flows say so under uses:")


def masker(programs: Iterable[Program]) -> Callable[[str], str]:
    """A function that replaces the programs' secrets, as they are now, in a text."""
    names = tuple({name for program in programs for name in program.secrets})

    def mask(text: str) -> str:
        for value in read_secrets(names).values():
            if value:
                text = text.replace(value, "***")
        return text

    return mask
