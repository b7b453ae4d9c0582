"""Publishes events by the clock: one a slot, however many processes run.

How far a schedule has come stands in the store, and who moves it on publishes: all others find the slot taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from runner.errors import ExpressionError, StoreError
from runner.plan import Plan, Schedule
from runner.ports import Clock, ScheduleStore
from runner.steps.emit import Emitter, PayloadError, build
from runner.times import rfc3339

LOOK_AGAIN_S = 30.0
"""No sleep is longer: a machine that slept itself, or whose clock was set, is noticed."""
PAUSE_S = 1.0
MOST_AT_ONCE = 1000

_log = logging.getLogger("flowrun.worker")


def slots(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """The schedule's times after a moment, in UTC. Around a change of clocks as Debian's cron has them."""
    for local in CronSim(schedule.cron, after.astimezone(ZoneInfo(schedule.timezone))):
        if (slot := local.astimezone(UTC)) > after:
            yield slot


def latest_slot(schedule: Schedule, now: datetime) -> datetime | None:
    """The schedule's last time up to now, now included, in UTC. Found backwards: it may have been down for long."""
    at = now.replace(microsecond=now.microsecond or 1).astimezone(ZoneInfo(schedule.timezone))
    local = next(CronSim(schedule.cron, at, reverse=True), None)
    return None if local is None else local.astimezone(UTC)


def due(schedule: Schedule, last: datetime, now: datetime) -> list[datetime]:
    """The slots to publish for, of those that have come since the last one: one that has come just now, and of those
    that were missed before it what `catch_up` says; at most `MOST_AT_ONCE`, the rest next time."""
    if schedule.catch_up == "all":
        return list(takewhile(lambda slot: slot <= now, islice(slots(schedule, last), MOST_AT_ONCE)))
    latest = latest_slot(schedule, now)
    if latest is None or latest <= last:
        return []
    missed = now - latest >= timedelta(seconds=LOOK_AGAIN_S)
    return [] if missed and schedule.catch_up == "none" else [latest]


class Scheduler:
    """The one task of a process that looks at the clock. `poke` is called after something was published."""

    def __init__(
        self,
        *,
        plan: Plan,
        store: ScheduleStore,
        clock: Clock,
        env: Callable[[tuple[str, ...]], Mapping[str, str]],
        poke: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._store = store
        self._clock = clock
        self._env = env
        self._poke = poke

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.tick()
            except StoreError as error:
                _log.warning("%s; schedules wait for it", error)
                await self._clock.sleep_until(self._clock.now() + timedelta(seconds=PAUSE_S))
            except Exception:  # whatever it is, later slots must be served
                _log.exception("internal error, please report it")
                await self._clock.sleep_until(self._clock.now() + timedelta(seconds=LOOK_AGAIN_S))
            else:
                await self._clock.sleep_until(self.next_look())

    def next_look(self) -> datetime:
        """When the next slot comes, but not too far away."""
        now = self._clock.now()
        coming = [slot for schedule in self._plan.schedules for slot in islice(slots(schedule, now), 1)]
        return min([*coming, now + timedelta(seconds=LOOK_AGAIN_S)])

    async def tick(self) -> None:
        """Publish for every slot that has come. Raises StoreError."""
        now = self._clock.now()
        for schedule in self._plan.schedules:
            last = await self._store.begin_schedule(schedule.name, now)
            for slot in due(schedule, last, now):
                await self._serve(schedule, slot)

    async def _serve(self, schedule: Schedule, slot: datetime) -> None:
        emitter = Emitter(project=self._plan.project, source=f"/flowrun/{self._plan.project}/{schedule.flow}")
        env = tuple({name for program in self._plan.programs.values() for name in program.env})
        try:
            data = schedule.data({"slot": rfc3339(slot), "env": dict(self._env(env))})
            record, outgoing = build(self._plan.events[schedule.event], data, emitter, rfc3339(self._clock.now()))
        except (ExpressionError, PayloadError) as error:
            if await self._store.take_slot(schedule.name, slot):
                _log.error("%s published nothing for %s: %s", schedule.name, rfc3339(slot), error)
            return
        if await self._store.take_slot(schedule.name, slot, record, outgoing):
            _log.info("%s publishes %s for %s", schedule.name, schedule.event, rfc3339(slot))
            self._poke()
