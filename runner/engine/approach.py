"""The way of a handler's messages to its gate: in their order, and no more than may wait there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from runner.engine.counts import Counts
from runner.engine.intake import Coming
from runner.engine.journal import Batches
from runner.engine.reception import Reception
from runner.engine.refusals import Refusals
from runner.errors import EnvelopeError, StoreError
from runner.message import Delivery
from runner.plan import Gate, Program
from runner.ports import GateStore
from runner.records import Change, EventRecord, RunState

InHand = Callable[[Sequence[Delivery], Callable[[], Awaitable[None]]], Awaitable[None]]
"""Does the work with these messages again and again until the store is there for it."""


class Approach:
    """Brings the runs of one handler's messages to its `gate`. `on_came` is told that some did; `pause` ends the
    consuming of the handler's queue for now."""

    def __init__(
        self,
        program: Program,
        gate: Gate,
        *,
        store: GateStore,
        reception: Reception,
        refusals: Refusals,
        counts: Counts,
        in_hand: InHand,
        spawn: Callable[[Coroutine[None, None, None]], None],
        on_came: Callable[[], None],
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        self._program = program
        self._gate = gate
        self._store = store
        self._reception = reception
        self._refusals = refusals
        self._counts = counts
        self._on_came = on_came
        self._pause = pause
        self._room = 0
        self._batches = Batches(lambda batch: in_hand(batch, lambda: self._come(batch)), spawn)
        self.is_full = False
        """More runs wait at the gate than may. Messages are given back until none is in hand: so they stay in order."""

    def deliver(self, delivery: Delivery) -> None:
        """Take a message; its run comes to the gate together with those of the messages around it."""
        self._batches.deliver(delivery)

    async def look(self) -> None:
        """See whether a gate that was full has room again. Raises StoreError."""
        if self.is_full and self._batches.is_idle:
            enough = self._gate.most - self._gate.most // 10
            self.is_full = await self._store.waiting(self._program.name, enough) >= enough

    async def _come(self, batch: Sequence[Delivery]) -> None:
        program = self._program
        if self.is_full:  # else these would overtake those that were given back
            await self._refusals.settle(*batch, accept=False)
            return
        # At once, so that the tokens which they need are asked for together.
        reads = await asyncio.gather(*(self._read(each) for each in batch), return_exceptions=True)
        known: list[tuple[Delivery, Coming]] = []
        for delivery, coming in zip(batch, reads, strict=True):
            if isinstance(coming, BaseException):
                raise coming
            known += [] if coming is None else [(delivery, coming)]
        room = await self._room_for(len(known))
        changes = [_comes(each) for _, each in known[:room]]
        came: list[Delivery] = []
        for (delivery, each), is_new in zip(known, await self._store.come(changes) if changes else (), strict=False):
            self._reception.mind_the_id(program, delivery)
            if is_new:
                came.append(delivery)
            elif not await self._reception.drop_duplicate(program, delivery, each.started):
                await self._come([delivery])  # the key that it bears was freed meanwhile
        self._counts.begun += len(came)
        await self._refusals.settle(*came)
        self._on_came()
        await self._turn_away([delivery for delivery, _ in known[room:]])

    async def _read(self, delivery: Delivery) -> Coming | None:
        program = self._program
        try:
            coming = await self._reception.read(program, delivery)
            if coming is None or program.rate_limit is None or await self._reception.is_known(coming.started):
                return coming
            return coming if await self._reception.lets_through(program, delivery, coming) else None
        except StoreError:
            raise
        except Exception as error:
            await self._refusals.refuse_internal(program, delivery, error)
            return None

    async def _room_for(self, wanted: int) -> int:
        """For how many of these there is room. Those that wait are counted for a tenth of `most` at a time."""
        most = self._gate.most
        if self._room < wanted:
            free = most - await self._store.waiting(self._program.name, most)
            self._room = min(free, max(wanted, most // 10))
        room = min(self._room, wanted)
        self._room -= room
        return room

    async def _turn_away(self, deliveries: Sequence[Delivery]) -> None:
        """Too many wait already: refuse these, or leave them to the broker, and take no more for now."""
        if deliveries and self._gate.rejects:
            fault = EnvelopeError("queue_full", f"{self._gate.most} runs wait already")
            for delivery in deliveries:
                await self._refusals.refuse(self._program, delivery, fault)
        elif deliveries:
            self.is_full = True
            await self._pause()
            await self._refusals.settle(*deliveries, accept=False)


def _comes(coming: Coming) -> Change:
    """The change that brings a run to its gate, with the event that begins it: before its effects, in the log."""
    started = coming.started
    events = (EventRecord(meta=started.trigger, data=started.data),) if started.caller is None else ()
    return Change(run_id=started.run_id, state=RunState.QUEUED, started=started, events=events, place=coming.place)
