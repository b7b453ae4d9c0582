"""Messages that begin no run: commands are answered, anything else is kept as a dead letter, and both are settled."""

from __future__ import annotations

import asyncio
import logging

from runner.engine import intake
from runner.engine.counts import Counts
from runner.engine.replies import reply_to
from runner.errors import EnvelopeError, StoreError, TransportError
from runner.masking import Mask
from runner.message import Delivery
from runner.plan import Plan, Program
from runner.ports import Clock, Store, Transport
from runner.records import Caller, DeadLetter, ReplySent
from runner.times import rfc3339

PAUSE_S = 1.0

_log = logging.getLogger("flowrun.worker")


class Refusals:
    """Says no to messages, so that nothing is lost: whoever sent a command is told, any other message is kept."""

    def __init__(
        self, *, plan: Plan, store: Store, transport: Transport, clock: Clock, mask: Mask, counts: Counts
    ) -> None:
        self._plan = plan
        self._store = store
        self._transport = transport
        self._clock = clock
        self._mask = mask
        self._counts = counts

    async def refuse(self, program: Program, delivery: Delivery, fault: EnvelopeError) -> None:
        """A command that cannot begin is answered at once; anything else is a dead letter."""
        caller = intake.caller_of(program, delivery)
        if caller is None:
            await self.bury(program.name, delivery, fault)
            return
        fault = self._masked(fault)
        _log.warning("%s: a command is refused, %s: %s", program.name, fault.reason, fault)
        await self.reply(caller, ReplySent(at=rfc3339(self._clock.now()), error=intake.refusal(fault)))
        await self.settle(delivery)

    async def refuse_internal(self, program: Program, delivery: Delivery, error: Exception) -> None:
        """Refuse a message on which flowrun itself failed."""
        _log.exception("internal error, please report it; the message is a dead letter")
        await self.refuse(program, delivery, EnvelopeError("internal", f"{type(error).__name__}: {error}"))

    async def reply(self, caller: Caller, reply: ReplySent) -> None:
        """However long the broker is away: nobody else would answer."""
        outgoing = reply_to(caller, reply, self._plan.project)
        while outgoing is not None:
            try:
                await self._transport.publish([outgoing])
            except TransportError as error:
                _log.warning("%s; the reply waits", error)
                await asyncio.sleep(PAUSE_S)
            else:
                return

    async def bury(self, handler: str, delivery: Delivery, fault: EnvelopeError) -> None:
        """Make a message a dead letter, and acknowledge it. Raises StoreError: then it is neither."""
        await self.keep(handler, delivery, fault)
        await self.settle(delivery)

    async def keep(self, handler: str, delivery: Delivery, fault: EnvelopeError) -> None:
        """Make a message a dead letter, and leave it to the caller to settle it. Raises StoreError."""
        letter = intake.dead_letter(handler, delivery, self._masked(fault), self._clock.now())
        await self._store.bury(letter)
        self._say(letter)

    async def take_over(self, delivery: Delivery) -> None:
        """What the broker itself has dead-lettered belongs with our own dead letters. Raises StoreError."""
        letter = intake.fallen_letter(self._plan, delivery, self._clock.now())
        await self._store.bury(letter)
        self._say(letter)
        await self.settle(delivery)

    async def settle(self, *deliveries: Delivery, accept: bool = True) -> None:
        """Until it is done: a delivery that stays unsettled would keep its place in the prefetch for ever."""
        while True:
            try:
                await self._transport.settle(deliveries, accept=accept)
            except (TransportError, StoreError) as error:
                _log.warning("a message could not be settled: %s; trying again", error)
                await asyncio.sleep(PAUSE_S)
            else:
                return

    def _masked(self, fault: EnvelopeError) -> EnvelopeError:
        """Why a message cannot begin a run, without secrets; what it holds itself is kept as it came."""
        return EnvelopeError(fault.reason, self._mask.text(str(fault)))

    def _say(self, letter: DeadLetter) -> None:
        self._counts.dead_letters += 1
        name = f"{letter.handler}: {letter.routing_key} {letter.message_id or '(no id)'}"
        _log.warning("%s is a dead letter, %s: %s", name, letter.reason, letter.error.message)
