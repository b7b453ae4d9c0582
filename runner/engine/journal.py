"""The journal: every event that passes the project's exchange, for the event log and for the runs that wait for it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass

from runner.engine import intake
from runner.errors import EnvelopeError
from runner.message import Delivery, identity
from runner.plan import Event
from runner.ports import Clock, EventLog, Mailbox
from runner.records import EventRecord

BATCH = 500
MOST_LOGGED = 10_000

_log = logging.getLogger("flowrun.journal")


class Batches:
    """Does deliveries together: all that came while those before were being done."""

    def __init__(
        self,
        work: Callable[[Sequence[Delivery]], Awaitable[None]],
        spawn: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._work = work
        self._spawn = spawn
        self._waiting: list[Delivery] = []
        self._is_working = False

    @property
    def is_idle(self) -> bool:
        """Nothing is in hand."""
        return not self._is_working

    def deliver(self, delivery: Delivery) -> None:
        """Take one; it is done soon."""
        self._waiting.append(delivery)
        if not self._is_working:
            self._is_working = True
            self._spawn(self._work_off())

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                await self._work(batch)
        finally:
            self._is_working = False


class Logged:
    """The events that this process has put into the log with its runs, until the journal brings them back."""

    def __init__(self) -> None:
        self._events: dict[tuple[str | None, str], None] = {}

    def add(self, events: Sequence[EventRecord]) -> None:
        """They are in the log. Of very many the first are forgotten: the journal brought them to another process."""
        for event in events:
            self._events[event.meta.id, event.meta.source] = None
        while len(self._events) > MOST_LOGGED:
            del self._events[next(iter(self._events))]

    def takes(self, delivery: Delivery) -> bool:
        """Whether it is one of them; it is not expected again."""
        known = identity(delivery)
        if known not in self._events:
            return False
        del self._events[known]
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Puts events into the log, each once, and before those who wait for them.

    `events` are those of all plans that runs are under way by; `handled` those that some handler's queue gets as well.
    """

    logged: Logged
    log: EventLog
    mailbox: Mailbox
    clock: Clock
    events: Mapping[str, Event]
    handled: Collection[str]

    async def note(self, batch: Sequence[Delivery]) -> tuple[bool, Mapping[Delivery, EnvelopeError]]:
        """Keep what can be read. Whether some of it may be waited for; and which are dead letters, and why.

        Done twice it changes nothing more. Raises StoreError: then all may come again.
        """
        now = self.clock.now()
        patterns = await self.mailbox.patterns()
        records, arrivals, dead = [], [], {}
        for delivery in batch:
            if self._is_done(delivery, patterns):
                continue
            try:
                record, came = intake.read_event(self.events, patterns, delivery, now)
            except EnvelopeError as fault:
                if self._is_lost_with(delivery, patterns):
                    dead[delivery] = fault
                else:
                    self._pass_over(delivery, fault)
            except Exception:  # whatever it is, the other events must be kept
                _log.exception("internal error, please report it; the event is not in the log")
            else:
                arrivals += came
                if identity(delivery)[0] is not None or record.meta.type not in self.handled:
                    records.append(record)
                # else: each delivery gives it another id, and the runs that it begins log it under theirs
        await self.log.append(records)
        if arrivals:
            await self.mailbox.arrive(arrivals)
        return bool(arrivals), dead

    def _is_done(self, delivery: Delivery, awaited: Collection[str]) -> bool:
        """Whether it is in the log, and nobody waits for such an event."""
        if not self.logged.takes(delivery):
            return False
        event = intake.known_event(self.events, delivery)
        return event is None or event.name not in awaited

    def _is_lost_with(self, delivery: Delivery, awaited: Collection[str]) -> bool:
        """Whether somebody waits for such an event, and no handler's queue has it, and would bury it."""
        event = intake.known_event(self.events, delivery)
        return event is not None and event.name in awaited and event.name not in self.handled

    def _pass_over(self, delivery: Delivery, fault: EnvelopeError) -> None:
        event = intake.known_event(self.events, delivery)
        level = logging.DEBUG if event is not None and event.name in self.handled else logging.WARNING
        _log.log(level, "%s is not in the event log, %s: %s", delivery.routing_key, fault.reason, fault)
