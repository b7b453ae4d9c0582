"""Which message begins a run: read, not too many, and no duplicate."""

from __future__ import annotations

import logging
from collections.abc import Callable

from runner.engine import intake
from runner.engine.counts import Counts
from runner.engine.intake import Coming
from runner.engine.refusals import Refusals
from runner.engine.runs import Environment
from runner.errors import EnvelopeError
from runner.message import Delivery, identity
from runner.plan import Plan, Program
from runner.ports import Clock, Mailbox, RateLimits, StoreReader
from runner.records import RunStarted
from runner.times import format_duration

_log = logging.getLogger("flowrun.worker")


class Reception:
    """Receives the messages of all handlers, and deals with those that begin no run.

    `log_only` takes a message that no run will bring into the log; `call_waits` is told that somebody waits for
    the reply of a run that stands already.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        reader: StoreReader,
        limits: RateLimits,
        mailbox: Mailbox,
        environment: Environment,
        clock: Clock,
        refusals: Refusals,
        counts: Counts,
        log_only: Callable[[Delivery], None],
        call_waits: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._limits = limits
        self._mailbox = mailbox
        self._environment = environment
        self._clock = clock
        self._refusals = refusals
        self._counts = counts
        self._log_only = log_only
        self._call_waits = call_waits
        self._nameless: set[str] = set()

    async def read(self, program: Program, delivery: Delivery) -> Coming | None:
        """What is to begin; None if nothing is, and the message is dealt with. Raises StoreError."""
        env = self._environment.env(program.env)
        try:
            coming = intake.read(self._plan, program, delivery, self._clock.now(), env)
        except EnvelopeError as fault:
            await self._refusals.refuse(program, delivery, fault)
            return None
        if coming is None:
            self._counts.passed_over += 1
            self._log_only(delivery)
        return coming

    async def is_known(self, started: RunStarted) -> bool:
        """Whether the run stands already. Raises StoreError."""
        return await self._reader.known(started.run_id)

    async def lets_through(self, program: Program, delivery: Delivery, coming: Coming) -> bool:
        """Whether the handler's rate limit takes the message; if not, it is dealt with. Raises StoreError."""
        limit = program.rate_limit
        if limit is None or coming.bucket is None:
            return True
        name = f"rate_limit {program.name}"
        wait_s = await self._limits.take_token(
            name, coming.bucket, limit=limit.limit, period_s=limit.period_s, burst=limit.burst, now=self._clock.now()
        )
        if wait_s is None:
            return True
        if program.drops and coming.started.caller is None:
            self._counts.dropped += 1
            self._log_only(delivery)
            return False
        told = f"no more than {limit.limit} in {format_duration(limit.period_s)}; the next in {format_duration(wait_s)}"
        await self._refusals.refuse(program, delivery, EnvelopeError("rate_limited", told))
        return False

    async def drop_duplicate(self, program: Program, delivery: Delivery, started: RunStarted) -> bool:
        """Another run has the message, or its key; the handler says what becomes of the latter. False, and nothing
        done, if the one that had the key has set it free meanwhile. Raises StoreError."""
        idempotency, key = program.idempotency, started.key
        holder = None if key is None else await self._reader.holder(program.name, key, self._clock.now())
        if key is not None and holder is None and not await self.is_known(started):
            return False
        other = holder if holder not in (None, started.run_id) else None
        if other is not None and idempotency is not None and idempotency.on_duplicate == "fail":
            fault = EnvelopeError("duplicate", f"run {other} has the idempotency key {key}")
            await self._refusals.refuse(program, delivery, fault)
            return True
        self._counts.duplicates += 1
        if other is not None:
            head = f"{started.run_id[:8]} {program.name}"
            _log.info("%s  is no run: %s has its idempotency key %s already", head, other[:8], key)
        if started.caller is not None and started.caller.reply_to is not None:
            await self._mailbox.add_caller(other or started.run_id, started.caller)
            self._call_waits()
        await self._refusals.settle(delivery)
        return True

    def mind_the_id(self, program: Program, delivery: Delivery) -> None:
        """Warn once of a handler whose producers give their messages no id."""
        if delivery.properties.message_id or program.name in self._nameless:
            return
        if identity(delivery)[0] is None:
            self._nameless.add(program.name)
            _log.warning(
                "%s gets messages without an id: such a one may run twice after a crash; let producers set message_id",
                program.name,
            )
