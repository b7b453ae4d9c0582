"""Keeps read models up to date with the event log: one task a process, one process a read model at a time.

A batch of events, the entries that it changes and the position behind it are one commit, made only if the position is
still the one that was read: so each event is folded once, whoever crashes when, and however many processes try.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

import msgspec

from runner.engine.folding import Folding
from runner.errors import GivenUpError, StoreError
from runner.plan import Projection
from runner.ports import Clock, EventLog, ProjectionStore
from runner.records import Build, EventFilter
from runner.times import rfc3339

BATCH = 500
FIRST_BATCH = 50
BATCH_BYTES = 4 * 1024 * 1024
"""Of the payloads of a batch, more or less: decoded, and with their entries, they take many times that."""
LOOK_AGAIN_S = 1.0
"""What other processes have logged is folded after so long; what this one has, at once."""
GATHER_S = 0.1
CLAIM_S = 5.0
"""So long others leave a read model to who folded it last: a claim spares work, the position keeps it right."""
SWEEP = 1000

Load = Callable[[str, str], Projection]
"""Compiles a projection, by its name and its definition."""

_log = logging.getLogger("flowrun.projections")


class Projector:
    """Folds what the log has into the read models of the store. `poke` it when there may be more."""

    def __init__(
        self, *, projections: Collection[Projection], log: EventLog, store: ProjectionStore, owner: str, clock: Clock,
        load: Load,
    ) -> None:  # fmt: skip
        self._projections = projections
        self._log = log
        self._store = store
        self._owner = owner
        self._clock = clock
        self._load = load
        self._loaded: dict[str, Projection] = {each.definition: each for each in projections}
        self._poked = asyncio.Event()
        self._is_behind = True
        self._limits: dict[int, int] = {}
        """How many events are folded together, by read model: as many as the last ones were small."""

    @property
    def is_idle(self) -> bool:
        """It has folded all that it was told of."""
        return not self._projections or not (self._is_behind or self._poked.is_set())

    def poke(self) -> None:
        """There may be something to fold."""
        self._poked.set()

    async def run(self) -> None:
        """For ever, or until nothing is left of read models that nobody declares any more."""
        is_begun = False
        while True:
            self._poked.clear()
            try:
                if not is_begun:
                    await self.begin()
                    is_begun = True
                self._is_behind = True
                while await self.step():
                    pass
                self._is_behind = False
                if not self._projections:
                    return
            except StoreError as error:
                _log.warning("%s; read models wait for it", error)
            except Exception:  # whatever it is, later events must be folded
                _log.exception("internal error, please report it")
            await self._pause()

    async def _pause(self) -> None:
        """Until there may be more; but let some gather, for one commit costs as much as a hundred events."""
        await asyncio.sleep(GATHER_S)
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._poked.wait()
        except TimeoutError:
            return

    async def begin(self) -> None:
        """See that every declared read model stands, or begins to be built; give up others. Raises StoreError."""
        for projection in self._projections:
            await self._store.begin_build(projection.name, projection.definition)
        await self._store.keep_only([projection.name for projection in self._projections])

    async def step(self) -> bool:
        """Fold a batch into each read model that is not another process's. Whether there is more. Raises StoreError."""
        more = [await self._fold_apart(build) for build in await self._builds() if self.may_fold(build)]
        return await self._store.sweep(SWEEP) or any(more)

    async def _builds(self) -> Sequence[Build]:
        """All that there are; what a process of older files has given up meanwhile is begun again."""
        builds = await self._store.builds()
        missing = [each for each in self._projections if each.name not in {build.name for build in builds}]
        for projection in missing:
            await self._store.begin_build(projection.name, projection.definition)
        return await self._store.builds() if missing else builds

    def may_fold(self, build: Build) -> bool:
        """Whether no other process has claimed it. A claim that no clock like ours could have made counts for none:
        its process may have died, and would keep the read model for as long as its clock was ahead."""
        if build.claimed_by in (None, self._owner) or build.claimed_until is None:
            return True
        now = self._clock.now()
        return not rfc3339(now) < build.claimed_until <= rfc3339(now + timedelta(seconds=2 * CLAIM_S))

    async def _fold_apart(self, build: Build) -> bool:
        """As `fold`; but a read model that cannot be folded keeps no other from it."""
        try:
            return await self.fold(build)
        except StoreError:
            raise
        except Exception:
            _log.exception("%s is not folded on: internal error, please report it", build.name)
            return False

    async def fold(self, build: Build) -> bool:
        """Fold a batch into one; it is served once nothing is left to fold. Whether more may be. Raises StoreError."""
        projection = self._projection(build)
        wanted = EventFilter(types=tuple(projection.folds))
        limit = min(self._limits.get(build.id, FIRST_BATCH), BATCH)
        events = await self._log.events(wanted, limit=limit, after=build.position)
        size = sum(len(event.data) for event in events)
        self._limits[build.id] = max(1, min(BATCH, limit * BATCH_BYTES // max(size, 1)))
        if events:
            folding = Folding(projection)
            changes = folding.look(events)
            try:
                position, entries = await self._store.entries(build, {change.key for change in changes})
            except GivenUpError:
                return True
            if position != build.position:
                return True
            folding.start_with(entries.values())
            folding.fold(changes)
            folded = folding.folded(events[-1].position)
            if folded.last_fault is not None:
                _log.warning("%s leaves out %s", build.name, folded.last_fault)
            until = rfc3339(self._clock.now() + timedelta(seconds=CLAIM_S))
            if not await self._store.fold(build, folded, claimed_by=self._owner, claimed_until=until):
                return True
            build = msgspec.structs.replace(build, position=folded.position)
        if len(events) < limit and not build.is_served:
            await self._store.serve(build)
            _log.info("%s is built", build.name)
        return len(events) == limit

    def _projection(self, build: Build) -> Projection:
        if build.definition not in self._loaded:
            self._loaded[build.definition] = self._load(build.name, build.definition)
        return self._loaded[build.definition]
