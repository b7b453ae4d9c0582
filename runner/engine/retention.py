"""Takes old events out of the log, once an hour, in one process: into the archive first, if there is one.

What somebody may still need stays: what a projection is folded from, what belongs to a run that is not over, and what a
dead letter is of.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

from runner.errors import StoreError
from runner.ports import Clock, EventLog, ProjectionStore, ScheduleStore
from runner.records import LoggedEvent
from runner.times import rfc3339

NAME = "#retention"
"""Under which its hours are taken: no schedule can be called so."""
EVERY = timedelta(hours=1)
WINDOW = 5000
"""Positions that are looked at together."""

Archive = Callable[[Sequence[LoggedEvent]], None]
"""Keeps events elsewhere, safely, before it returns. Raises OSError."""

_log = logging.getLogger("flowrun.retention")


class Retention:
    """Forgets events that are older than `keep`, but those of the types `types`."""

    def __init__(
        self,
        *,
        keep: timedelta,
        archive: Archive | None,
        types: Collection[str],
        log: EventLog,
        projections: ProjectionStore,
        schedules: ScheduleStore,
        clock: Clock,
    ) -> None:
        self._keep = keep
        self._archive = archive
        self._types = types
        self._log = log
        self._projections = projections
        self._schedules = schedules
        self._clock = clock

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.tick()
            except (StoreError, OSError) as error:
                _log.error("old events stay in the log: %s", error)
            except Exception:  # whatever it is, the next hour comes
                _log.exception("internal error, please report it")
            await self._clock.sleep_until(self._clock.now() + EVERY / 4)

    async def tick(self) -> int:
        """Forget what is old, if nobody has in this hour; how many. Raises StoreError, OSError."""
        now = self._clock.now()
        hour = now.replace(minute=0, second=0, microsecond=0)
        await self._schedules.begin_schedule(NAME, hour - EVERY)
        return await self.sweep() if await self._schedules.take_slot(NAME, hour) else 0

    async def sweep(self) -> int:
        """Forget what is old; how many. Raises StoreError, OSError."""
        before, head, forgotten = self._clock.now() - self._keep, await self._log.head(), 0
        needed = {
            *self._types,
            *(name for build in await self._projections.builds() for name in json.loads(build.definition)),
        }
        for after in range(0, head, WINDOW):
            events = await self._log.old(before, but=needed, after=after, up_to=after + WINDOW)
            if events:
                if self._archive is not None:
                    await asyncio.to_thread(self._archive, events)
                await self._log.forget([event.position for event in events])
                forgotten += len(events)
        if forgotten:
            kept = "archived and " if self._archive is not None else ""
            _log.info("%d events from before %s are %sforgotten", forgotten, rfc3339(before), kept)
        return forgotten
