"""Runs that processes died with, one at a time in a process of their own: it harms nobody but the culprit.

Who started this process sees it die, and knows by `tell` with which run: that one is ended by the next. If
nobody is left to see it, because everything was killed, the crash that was counted beforehand counts, and the
run has more chances: who kills from outside, again and again, hits the suspect under test more than once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from runner.engine.outbox import Outbox
from runner.engine.run import Run
from runner.engine.runs import Runs
from runner.errors import StoreError
from runner.ports import Clock, Store, StoreReader
from runner.records import Change, Error, RunFailed, RunState, StoredRun
from runner.times import rfc3339

POLL_S = 0.5
MAX_CRASHES = 8

_log = logging.getLogger("flowrun.worker")


class Suspects:
    """The one that runs suspects. `tell` is told the id of each before its code runs; `culprits` are those that the
    processes before this one died with."""

    def __init__(
        self,
        *,
        runs: Runs,
        store: Store,
        reader: StoreReader,
        outbox: Outbox,
        clock: Clock,
        handlers: Collection[str] | None,
        culprits: Collection[str],
        tell: Callable[[str], None],
    ) -> None:
        self._runs = runs
        self._store = store
        self._reader = reader
        self._outbox = outbox
        self._clock = clock
        self._handlers = handlers
        self._culprits = set(culprits)
        self._tell = tell

    async def run(self, stop: asyncio.Event) -> None:
        """Until there are none left, or until `stop`; what has been committed is published then."""
        heeding = asyncio.create_task(self._heed())
        try:
            while not stop.is_set() and await self._next():
                continue
            await self._outbox.flush()
        finally:
            heeding.cancel()

    async def _next(self) -> bool:
        """Run one, or wait a little for one; False if there is none left."""
        try:
            for stored in await self._store.take(self._clock.now(), 1, handlers=self._handlers, suspects=True):
                await self._judge(stored)
                return True
            if (await self._reader.backlog(handlers=self._handlers)).suspects == 0:
                return False
        except StoreError as error:
            _log.error("%s", error)
        await asyncio.sleep(POLL_S)
        return True

    async def _judge(self, stored: StoredRun) -> None:
        run = await self._runs.recall(stored)
        if run is None:
            return
        convicted = run.id in self._culprits or stored.crashes >= MAX_CRASHES
        self._culprits.discard(run.id)
        if convicted and run.history.failure is not None:
            await self._give_up(run, stored.crashes)
            return
        if convicted:
            run.note(RunFailed(error=_crashed(stored.crashes), failed_at=rfc3339(self._clock.now())))
            run.state = RunState.COMPENSATING
            await run.commit()
        await self._runs.commit(Change(run_id=run.id, state=run.state, suspect=True, error=run.history.failure))
        self._tell(run.id)
        await self._runs.execute(run)
        self._tell("")

    async def _give_up(self, run: Run, crashes: int) -> None:
        """It crashes while it is undone as well: that is for a person."""
        error = _crashed(crashes)
        await self._runs.give_up(run, error)
        _log.error("run %s is %s: %s", run.id, run.state, error.message)

    async def _heed(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._runs.heed()
            except StoreError as error:
                _log.error("%s", error)


def _crashed(crashes: int) -> Error:
    return Error(type="crashed", message=f"{crashes} processes died while they ran it", retryable=False)
