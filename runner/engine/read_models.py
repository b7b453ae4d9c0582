"""Reads of read models: what is kept, and folded on top of it what the log has had since.

So a reader sees every event that was in the log when it asked, whether or not somebody keeps the read model up to date.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runner.engine.folding import Folding, key_text
from runner.engine.projector import BATCH, Load
from runner.errors import GivenUpError, NotFoundError, NotReadyError
from runner.plan import Projection
from runner.ports import EventLog, ProjectionStore
from runner.records import AsOf, Build, Entry, EventFilter, LoggedEvent

MAX_TAIL = 10_000
"""So many events at most are folded for one read that does not say otherwise."""
PAGE = 500

Progress = Callable[[int], None]
"""Is told of how many events have been folded since it was told last."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a read begins with: a read model of the store, or nothing, from the beginning of the log."""

    projection: Projection
    build: Build | None

    @property
    def position(self) -> int:
        return 0 if self.build is None else self.build.position


class ReadModels:
    """Reads entries of the projections of a plan."""

    def __init__(
        self, projections: Mapping[str, Projection], *, log: EventLog, store: ProjectionStore, load: Load
    ) -> None:
        self._projections = projections
        self._log = log
        self._store = store
        self._load = load

    async def get(self, name: str, key: object, *, patient: bool = False) -> dict[str, Any] | None:
        """The entry under a key, as of now; None if there is none. `patient`: however many events are to be folded.

        Raises NotFoundError for a projection that nobody declares, NotReadyError while it is not built yet, FoldError
        for what is no key, StoreError.
        """
        text = key_text(key)
        while True:
            with suppress(GivenUpError):
                kept = await self._kept(name)
                entries = await self._up_to_date(kept, keys={text}, most=None if patient else MAX_TAIL)
                return entries[text].state if text in entries else None

    async def get_as_of(self, name: str, key: object, as_of: AsOf) -> dict[str, Any] | None:
        """The entry under a key as it was then. Raises NotFoundError, FoldError, StoreError."""
        text = key_text(key)
        while True:
            with suppress(GivenUpError):
                return await self._as_of(await self._kept(name), text, as_of)

    async def _as_of(self, kept: _Kept, text: str, as_of: AsOf) -> dict[str, Any] | None:
        folding = Folding(kept.projection)  # what is folded twice below changes nothing
        if kept.build is not None:
            snapshot, events = await self._store.history(kept.build, text, as_of)
            folding.start_with([snapshot] if snapshot is not None else [])
            folding.fold(change for change in folding.look(events) if change.key == text)
        async for batch in self._events(kept, after=kept.position, as_of=as_of):
            folding.fold(change for change in folding.look(batch) if change.key == text)
        return folding.entries[text].state if text in folding.entries else None

    async def all(
        self, name: str, *, after: str = "", most: int | None = MAX_TAIL, progress: Progress | None = None
    ) -> AsyncIterator[Entry]:
        """All entries as of now behind a key, in the order of their keys. Raises as `get`.

        If another read model takes the place of the one that is served meanwhile, the rest is that one's.
        """
        while True:
            with suppress(GivenUpError):
                async for entry in self._all(await self._kept(name), after, most, progress):
                    after = entry.key
                    yield entry
                return

    async def _all(self, kept: _Kept, after: str, most: int | None, progress: Progress | None) -> AsyncIterator[Entry]:
        newer = await self._up_to_date(kept, keys=None, most=most, progress=progress)
        rest = sorted(key for key in newer if key > after)
        async for entry in self._stored(kept, after):
            while rest and rest[0] < entry.key:
                if (added := newer[rest.pop(0)]).state is not None:
                    yield added
            if rest and rest[0] == entry.key:
                entry = newer[rest.pop(0)]
            if entry.state is not None:
                yield entry
        for key in rest:
            if newer[key].state is not None:
                yield newer[key]

    async def all_as_of(self, name: str, as_of: AsOf, *, progress: Progress | None = None) -> Sequence[Entry]:
        """All entries as they were then, folded from the beginning of the log. Raises NotFoundError, StoreError."""
        kept = _Kept((await self._kept(name)).projection, None)
        folding = Folding(kept.projection)
        async for batch in self._events(kept, after=0, as_of=as_of):
            folding.fold(folding.look(batch))
            if progress is not None:
                progress(len(batch))
        return [entry for _, entry in sorted(folding.entries.items()) if entry.state is not None]

    async def standing(self) -> Mapping[str, tuple[Build | None, Build | None]]:
        """By the name of each declared projection, what is served, and what is built to replace it."""
        builds = await self._store.builds()
        return {
            name: (
                next((b for b in builds if b.name == name and b.is_served), None),
                next((b for b in builds if b.name == name and not b.is_served), None),
            )
            for name in sorted(self._projections)
        }

    def is_declared(self, build: Build) -> bool:
        """Whether it is of the present definition."""
        return build.name in self._projections and self._projections[build.name].definition == build.definition

    def _declared(self, name: str) -> Projection:
        if name not in self._projections:
            hint = f"declared: {', '.join(sorted(self._projections))}" if self._projections else "none is declared"
            raise NotFoundError(f'no projection named "{name}"', hint=hint)
        return self._projections[name]

    async def _kept(self, name: str) -> _Kept:
        """What is served, be it of an older definition; else what is built; else nothing."""
        declared = self._declared(name)
        builds = [build for build in await self._store.builds() if build.name == name]
        build = next((b for b in builds if b.is_served), builds[0] if builds else None)
        if build is None or build.definition == declared.definition:
            return _Kept(declared, build)
        return _Kept(self._load(name, build.definition), build)

    async def _up_to_date(
        self, kept: _Kept, *, keys: set[str] | None, most: int | None, progress: Progress | None = None
    ) -> Mapping[str, Entry]:
        """The entries under these keys, as of now; with None, all that have changed since they were kept."""
        folding, position, count = Folding(kept.projection), kept.position, 0
        if kept.build is not None and keys is not None:
            position, entries = await self._store.entries(kept.build, keys)
            folding.start_with(entries.values())
        async for batch in self._events(kept, after=position):
            count += len(batch)
            if most is not None and count > most:
                raise NotReadyError(f"{kept.projection.name} is being built: {await self._how_far(kept)}")
            changes = folding.look(batch)
            if keys is None and kept.build is not None:
                unknown = {change.key for change in changes} - folding.entries.keys()
                folding.start_with((await self._store.entries(kept.build, unknown))[1].values())
            folding.fold(change for change in changes if keys is None or change.key in keys)
            if progress is not None:
                progress(len(batch))
        return folding.entries

    async def _how_far(self, kept: _Kept) -> str:
        return f"the log has {await self._log.head():,} events, and {kept.position:,} are folded"

    async def _events(
        self, kept: _Kept, *, after: int, as_of: AsOf | None = None
    ) -> AsyncIterator[Sequence[LoggedEvent]]:
        """The events of interest behind a position, up to then, batch by batch."""
        as_of = as_of or AsOf()
        wanted = EventFilter(types=tuple(kept.projection.folds), until=as_of.time)
        while True:
            events = await self._log.events(wanted, limit=BATCH, after=after)
            inside = [e for e in events if as_of.position is None or e.position <= as_of.position]
            if inside:
                yield inside
            if len(inside) < BATCH:
                return
            after = inside[-1].position

    async def _stored(self, kept: _Kept, after: str) -> AsyncIterator[Entry]:
        while kept.build is not None:
            page = await self._store.page(kept.build, after=after, limit=PAGE)
            for entry in page:
                yield entry
            if len(page) < PAGE:
                return
            after = page[-1].key
