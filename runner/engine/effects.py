"""What a run does to the world: one try at a plugin, a command, an event; and whether there is another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from runner.delays import Random
from runner.engine.breakers import Breakers
from runner.engine.line import Frame
from runner.engine.results import cancelled, commit, own
from runner.engine.retry import delay_before_next
from runner.engine.run import Run
from runner.errors import OwnershipError
from runner.handler import Context, ReadableProjections
from runner.masking import Mask
from runner.message import Outgoing
from runner.outcome import Done, Failed, Parked
from runner.plan import Emit, Send, Step, Use
from runner.ports import Clock, Handler
from runner.records import AttemptBegun, AttemptFailed, CommandSent, Error, EventRecord
from runner.steps import command as command_step
from runner.steps import emit as emit_step
from runner.steps import use as use_step
from runner.times import parse_time, rfc3339

LONGEST_UNKEPT_S = 600.0
"""A step that may take longer begins only once the run is kept, and its message acknowledged: RabbitMQ closes the
channel on which a message is out for half an hour (https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)."""


def at_most(moment: datetime, run: Run, frame: Frame) -> datetime:
    """Not later than when the run, or the block that a step stands in, is out of time."""
    limits = () if frame.line.is_undoing else (run.deadline, frame.line.limit)
    return min([moment, *(limit for limit in limits if limit is not None)])


class Effects:
    """Tries steps that reach outside. A failure that is to be repeated parks the run until then.

    `mask` takes secrets out of errors and results: what a handler says of one, nobody reads.
    """

    def __init__(
        self,
        *,
        handlers: Mapping[str, Handler],
        clock: Clock,
        random: Random,
        mask: Mask,
        projections: ReadableProjections,
        breakers: Breakers,
    ) -> None:
        self._breakers = breakers
        self._handlers = handlers
        self._clock = clock
        self._random = random
        self._mask = mask
        self._projections = projections
        self._warned: set[tuple[str, str]] = set()

    async def use(self, run: Run, step: Use, frame: Frame) -> Done | Failed | Parked:
        """Try once; a failure that is to be repeated parks the run until then."""
        key = frame.key(step)
        if (not_now := self._not_now(run, step, frame)) is not None:
            return not_now
        inputs = own(step.inputs(run.scope(key, frame)))
        if not isinstance(inputs, dict):
            message = "`with` must give an object"
            return Failed(Error(type="invalid_input", message=message, retryable=False, step=key))
        if (closed_until := await self._breakers.closed_until(run.program, step)) is not None:
            return Parked(at_most(closed_until, run, frame))
        failed = run.history.attempts.get(key, [])
        attempt = len(failed) + 1
        started = self._clock.now()
        if run.has_crashed:
            again = frame.line.was_cut_short()
            run.note(AttemptBegun(step_id=key, attempt=attempt, started_at=rfc3339(started), again=again))
        if run.must_commit or (not run.owned and step.timeout_s > LONGEST_UNKEPT_S):
            await commit(run)
            started = self._clock.now()
            if (over := self.over(run, step, frame)) is not None:  # while we committed
                await self._breakers.note(run.program, step, over)
                return over
        limit = self._attempt_limit(run, step, frame, started)
        context = Context(
            run_id=run.id,
            step_id=key,
            attempt=attempt,
            idempotency_key=f"{run.id}/{key}",
            deadline=started + timedelta(seconds=limit),
            correlation_id=run.started.trigger.correlation_id,
            logger=run.logger,
            projections=self._projections,
        )
        outcome = await self._attempt(run, step, frame, context, inputs, limit)
        await self._breakers.note(run.program, step, outcome)
        if isinstance(outcome, Done):
            return self._without_secrets(run, step, outcome)
        if (over := self.over(run, step, frame)) is not None:
            return replace(over, unknown=outcome.unknown)
        return self._retry(run, step, frame, outcome, attempt, started)

    async def _attempt(
        self, run: Run, step: Use, frame: Frame, context: Context, inputs: Mapping[str, Any], limit: float
    ) -> Done | Failed:
        with run.attempting(frame.line) as attempt:
            try:
                return await use_step.attempt(self._handlers[step.handler], context, inputs, limit)
            except asyncio.CancelledError:
                if run.is_lost:
                    raise OwnershipError.of(run.id) from None
                over = self.over(run, step, frame)
                if over is None or not attempt.is_interrupted:
                    raise
                return replace(over, unknown=True)

    async def send(self, run: Run, step: Send, frame: Frame) -> Done | Failed | Parked:
        """Send it once, and park until there is an answer, or until it is too late for one."""
        key = frame.key(step)
        sent = run.history.sent.get(key)
        failed = run.history.attempts.get(key, [])
        attempt = len(failed) + 1
        # After a timeout the same command goes out again; a failed reply is followed by a new one.
        again = sent if failed and failed[-1].unknown else run.history.unanswered.get(key)
        if again is not None and again.command_id in run.answers:
            sent = again  # it was answered late
        elif sent is None or sent.attempt < attempt:
            if (not_now := self._not_now(run, step, frame)) is not None:
                return not_now
            return await self._send_out(run, step, frame, attempt, again)
        declared = run.plan.commands[step.command]
        started, deadline = parse_time(sent.sent_at), parse_time(sent.deadline)
        answer = run.answers.get(sent.command_id)
        if answer is not None:
            outcome = command_step.outcome(declared, answer, key)
        elif self._clock.now() < deadline and self.over(run, step, frame) is None:
            return Parked(deadline)
        else:
            outcome = command_step.unanswered(declared, key, (deadline - started).total_seconds())
        await self._breakers.note(run.program, step, outcome)
        if isinstance(outcome, Done):
            return self._without_secrets(run, step, outcome)
        if (over := self.over(run, step, frame)) is not None:
            return replace(over, unknown=outcome.unknown)
        return self._retry(run, step, frame, outcome, attempt, started)

    async def _send_out(
        self, run: Run, step: Send, frame: Frame, attempt: int, again: CommandSent | None
    ) -> Failed | Parked:
        key = frame.key(step)
        number = run.history.asked.get(key, 0)
        command_id = again.command_id if again is not None else run.derived(f"{key}\0command\0{number}")
        now = self._clock.now()
        deadline = now + timedelta(seconds=self._attempt_limit(run, step, frame, now))
        assert run.plan.replies is not None
        try:
            outgoing = command_step.build(
                run.plan.commands[step.command],
                own(step.data(run.scope(key, frame))),
                self._emitter(run),
                command_id,
                now,
                deadline,
                run.plan.replies,
            )
        except emit_step.PayloadError as error:
            return Failed(Error(type="invalid_input", message=str(error), retryable=False, step=key))
        if (closed_until := await self._breakers.closed_until(run.program, step)) is not None:
            return Parked(at_most(closed_until, run, frame))
        run.note(
            CommandSent(
                step_id=key,
                command_id=command_id,
                attempt=attempt,
                sent_at=rfc3339(now),
                deadline=rfc3339(deadline),
                is_new=again is None,
            )
        )
        run.send(command_id, outgoing)
        return Parked(deadline)

    def emit(self, run: Run, step: Emit, frame: Frame) -> Done | Failed:
        """Publish an event; it leaves with the run's next commit."""
        built = self.build_event(run, step, frame)
        if isinstance(built, Failed):
            return built
        record, outgoing = built
        run.publish(record, outgoing)
        return Done({"id": record.meta.id})

    def build_event(self, run: Run, step: Emit, frame: Frame) -> tuple[EventRecord, Outgoing] | Failed:
        """The event that a step publishes."""
        key, event = frame.key(step), run.plan.events[step.event]
        data = step.data(run.scope(key, frame))
        try:
            return emit_step.build(event, data, self._emitter(run), rfc3339(self._clock.now()))
        except emit_step.PayloadError as error:
            return Failed(Error(type="invalid_input", message=str(error), retryable=False, step=key))

    def _emitter(self, run: Run) -> emit_step.Emitter:
        return emit_step.Emitter(
            project=run.plan.project,
            source=f"/flowrun/{run.plan.project}/{run.program.flow}",
            cause=run.started.trigger,
            trace=run.started.trace,
            run_id=run.id,
        )

    def _retry(
        self, run: Run, step: Use | Send, frame: Frame, failure: Failed, attempt: int, started: datetime
    ) -> Failed | Parked:
        key, failure = frame.key(step), self.masked(failure)
        now = self._clock.now()
        failed = run.history.attempts.get(key, [])
        first = parse_time(failed[0].started_at) if failed else started
        elapsed_s = (now - first).total_seconds()
        delay_s = delay_before_next(step.retry, failure, attempt, elapsed_s, self._random)
        if delay_s is None:
            return failure
        due_at = now + timedelta(seconds=delay_s)
        run.note(
            AttemptFailed(
                step_id=key,
                attempt=attempt,
                started_at=rfc3339(started),
                failed_at=rfc3339(now),
                retry_at=rfc3339(due_at),
                error=failure.error,
                undo=run.history.failure is not None,
                unknown=failure.unknown,
            )
        )
        return Parked(at_most(due_at, run, frame))

    def _not_now(self, run: Run, step: Use | Send, frame: Frame) -> Failed | Parked | None:
        """Whether an attempt is too late; or too early: a late answer to another command wakes the run as well."""
        failed = run.history.attempts.get(frame.key(step), [])
        if (over := self.over(run, step, frame)) is not None:
            return replace(over, unknown=any(last.unknown for last in failed[-1:]))
        retry_at = parse_time(failed[-1].retry_at) if failed else None
        if retry_at is None or self._clock.now() >= retry_at:
            return None
        return Parked(at_most(retry_at, run, frame))

    def over(self, run: Run, step: Step, frame: Frame) -> Failed | None:
        """A person wants the run cancelled, its own timeout has passed, or its line goes no further."""
        if frame.line.is_undoing:
            return None
        key = frame.key(step)
        if run.is_to_be_cancelled:
            return cancelled(run, key)
        now = self._clock.now()
        if run.deadline is None or now < run.deadline:
            return frame.line.over(now)
        caller = run.started.caller
        expired = caller is not None and caller.expires_at == rfc3339(run.deadline)
        limit = run.program.timeout_s or 0.0
        message = "its caller waits no longer" if expired else f"the run took longer than {limit:g} s"
        return Failed(Error(type="timeout", message=message, retryable=True, step=key), over="")

    def _attempt_limit(self, run: Run, step: Use | Send, frame: Frame, now: datetime) -> float:
        end = at_most(now + timedelta(seconds=step.timeout_s), run, frame)
        return min(step.timeout_s, (end - now).total_seconds())

    def masked(self, failure: Failed) -> Failed:
        """The failure without the secrets that its texts may hold."""
        error = failure.error
        clean = Error(
            type=self._mask.text(error.type),
            message=self._mask.text(error.message),
            retryable=error.retryable,
            details=self._mask.value(error.details),
            step=error.step,
        )
        return replace(failure, error=clean)

    def _without_secrets(self, run: Run, step: Use | Send, done: Done) -> Done:
        """The result as it is kept, and as later steps read it. That it held a secret is said once a step."""
        clean = self._mask.value(done.output)
        if clean is done.output or clean == done.output:  # the former where there are no secrets: no look at it
            return done
        place = (run.program.name, step.id)
        if place not in self._warned:
            self._warned.add(place)
            run.logger.warning("the result of %s holds a secret: it is kept, and read by later steps, masked", step.id)
        return replace(done, output=clean)
