"""Publishes what runs have committed, until the broker has confirmed it.

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
RETRY_REFUSED_S = 5.0
PAUSE_S = 1.0

T = TypeVar("T")
_log = logging.getLogger("flowrun.outbox")


class Outbox:
    """The one task of a process that publishes. `poke` it after a commit."""

    def __init__(self, store: Store, transport: Transport) -> None:
        self._store = store
        self._transport = transport
        self._poked = asyncio.Event()
        self._poked.set()
        self._idle = asyncio.Event()

    def poke(self) -> None:
        """There may be something to publish."""
        self._idle.clear()
        self._poked.set()

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
                    await self._poked.wait()
            if clock() >= retry_at:  # by the clock, not by silence: a busy worker gets round to it too
                await self._safely(self.retry_refused)
                retry_at = clock() + RETRY_REFUSED_S
            self._poked.clear()
            if not await self._safely(self._publish_all):
                self._poked.set()
                await asyncio.sleep(PAUSE_S)
            elif not self._poked.is_set():
                self._idle.set()

    async def _publish_all(self) -> None:
        while await self._publish_batch(refused=False):
            pass

    async def retry_refused(self) -> None:
        """Offer the broker again what it would not take. Raises StoreError."""
        await self._publish_batch(refused=True)

    async def _publish_batch(self, *, refused: bool) -> bool:
        rows = await self._store.outbox(BATCH, refused=refused)
        if not rows:
            return False
        for batch in _by_size(rows):
            await self._send(batch)
        return True

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


def _by_size(rows: Sequence[OutboxRow]) -> Iterator[list[OutboxRow]]:
    """Batches small enough to be confirmed within a publish's timeout, also on a slow line: what is not is sent
    again, whole."""
    batch: list[OutboxRow] = []
    size = 0
    for row in rows:
        if batch and size + len(row.outgoing.body) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row.outgoing.body)
    if batch:
        yield batch
