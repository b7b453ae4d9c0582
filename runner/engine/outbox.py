"""Publishes what runs have committed, until the broker has confirmed it.

What this process commits the store hands over; it is asked only for what others left behind, or what was lost sight of.
A crash between publishing and marking sends again under the same id. What the broker would not take stays,
with its reason, and is tried again now and then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from runner.errors import StoreError, TransportError
from runner.ports import Store, Transport
from runner.records import Answer, Error, OutboxRow

BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
MOST_IN_HAND, MOST_BYTES_IN_HAND = 5_000, 16 * 1024 * 1024
"""While the broker is away: what comes then stays in the store until it is asked for."""
RETRY_REFUSED_S = 5.0
PAUSE_S = 1.0

T = TypeVar("T")
_log = logging.getLogger("flowrun.outbox")


class Outbox:
    """The one task of a process that publishes. The store's commits `add` to it; `poke` it for what others commit."""

    def __init__(self, store: Store, transport: Transport) -> None:
        self._store = store
        self._transport = transport
        self._stirred = asyncio.Event()
        self._stirred.set()
        self._must_ask = True
        self._in_hand: list[OutboxRow] = []
        self._bytes_in_hand = 0
        self._asked_for: frozenset[int] = frozenset()
        """Positions of what the store has just been asked for: a commit may hand over the same a moment later."""
        self._idle = asyncio.Event()

    def poke(self) -> None:
        """There may be something in the store to publish."""
        self._must_ask = True
        self._stir()

    def add(self, rows: Sequence[OutboxRow]) -> None:
        """Publish these, which the store owns; see `Doorbell.on_outgoing`."""
        if len(self._in_hand) < MOST_IN_HAND and self._bytes_in_hand < MOST_BYTES_IN_HAND and not self._must_ask:
            new = [row for row in rows if row.position not in self._asked_for]
            self._in_hand += new
            self._bytes_in_hand += sum(len(row.outgoing.body) for row in new)
        else:
            self._must_ask = True
        self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._stirred.set()

    async def flush(self) -> None:
        """Return when nothing is left that the broker would take."""
        self.poke()
        await self._idle.wait()

    async def run(self) -> None:
        """Publish for ever."""
        clock = asyncio.get_running_loop().time
        retry_at = clock() + RETRY_REFUSED_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(retry_at):
                    await self._stirred.wait()
            if clock() >= retry_at:  # by the clock, not by silence: a busy worker gets round to it too
                await self._safely(self.retry_refused)
                retry_at = clock() + RETRY_REFUSED_S
            self._stirred.clear()
            if not await self._safely(self._publish_all):
                self.poke()  # also for what was in hand: it stands in the store
                await asyncio.sleep(PAUSE_S)
            elif not self._stirred.is_set():
                self._idle.set()

    async def _publish_all(self) -> None:
        while True:
            if self._must_ask:
                self._must_ask = False
                await self._publish_asked()
            elif not await self._publish_in_hand():
                return

    async def retry_refused(self) -> None:
        """Offer the broker again what it would not take. Raises StoreError."""
        await self._publish_asked(refused=True)

    async def _publish_in_hand(self) -> bool:
        in_hand, self._in_hand, self._bytes_in_hand = self._in_hand, [], 0
        for batch in _batches(in_hand):
            await self._send(batch)
        return bool(in_hand)

    async def _publish_asked(self, *, refused: bool = False) -> None:
        """What is in the store, the oldest first; what is in hand stands there, too."""
        rows = await self._store.outbox(BATCH, refused=refused)
        self._must_ask |= len(rows) == BATCH
        self._asked_for = frozenset(row.position for row in rows)
        self._in_hand = [row for row in self._in_hand if row.position not in self._asked_for]
        self._bytes_in_hand = sum(len(row.outgoing.body) for row in self._in_hand)
        for batch in _batches(rows):
            await self._send(batch)

    async def _send(self, rows: Sequence[OutboxRow]) -> None:
        results = await self._patiently(lambda: self._transport.publish([row.outgoing for row in rows]))
        marks: dict[int, str | None] = {}
        answers: list[Answer] = []
        for row, reason in zip(rows, results, strict=True):
            answer = None if reason is None else _nobody(row, reason)
            answers += [] if answer is None else [answer]
            marks[row.position] = reason if answer is None else None
            if marks[row.position] is not None and row.reason is None:
                ident = row.outgoing.properties.message_id
                _log.warning("%s %s stays in the outbox: %s", row.outgoing.routing_key, ident, reason)
        await self._patiently(lambda: self._store.sent(marks, answers))

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Until it succeeds: a broker that is away answers nothing, and what was sent may have arrived, so it is sent
        again; what the store could not note would be this process's for ever. The same trouble is said once."""
        said = ""
        while True:
            try:
                result = await work()
            except (TransportError, StoreError) as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("%s; trying again", error)
                await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 jitter: many runners wait
                continue
            if said:
                _log.warning("publishing goes on")
            return result

    async def _safely(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except StoreError as error:
            _log.error("%s", error)
            return False
        except Exception:  # whatever it is, later messages must leave
            _log.exception("internal error, please report it")
            return False
        return True


def _nobody(row: OutboxRow, reason: str) -> Answer | None:
    """What the sender of a command that no queue takes is told at once. What else a broker refuses may be taken later,
    or have been: that is the step's own timeout's to end."""
    ident = row.outgoing.properties.message_id
    if row.outgoing.properties.reply_to is None or ident is None or not reason.startswith("unroutable"):
        return None
    text = f"no queue takes {row.outgoing.routing_key}: {reason}"
    return Answer(command_id=ident, error=Error(type="no_handler", message=text, retryable=False))


def _batches(rows: Sequence[OutboxRow]) -> Iterator[list[OutboxRow]]:
    """Batches small enough to be confirmed within a publish's timeout, also on a slow line: what is not is sent again,
    whole."""
    batch: list[OutboxRow] = []
    size = 0
    for row in rows:
        if batch and (len(batch) == BATCH or size + len(row.outgoing.body) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row.outgoing.body)
    if batch:
        yield batch
