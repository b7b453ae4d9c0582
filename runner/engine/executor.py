"""Runs a program: forward through its steps, back through its compensations.

A step that has a record is never run again: after a crash the walk begins anew and passes over what is
recorded. Nothing is durable before `Run.commit`, and an effect begins only when what came before it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from runner.engine.compensation import is_completed, undo_plan
from runner.engine.matching import token
from runner.engine.replies import reply_to
from runner.engine.retry import Random, delay_before_next, matches
from runner.engine.run import Run
from runner.errors import ExpressionError, OwnershipError
from runner.expressions import Scope, holds
from runner.handler import Context
from runner.message import decode_json, encode_json
from runner.outcome import Done, Failed, Outcome, Parked, Stopped
from runner.plan import Emit, Fail, Send, Set, Step, Stop, Switch, Use, Wait, WaitFor
from runner.ports import Clock, Handler
from runner.records import (
    Arrival,
    AttemptBegun,
    AttemptFailed,
    BranchTaken,
    CommandSent,
    Error,
    ErrorCaught,
    EventsTaken,
    ReplySent,
    RunFailed,
    RunState,
    StepFinished,
    StepState,
    UndoFinished,
    WaitBegun,
)
from runner.steps import command, emit, fail, switch, use
from runner.times import parse_time, rfc3339
from runner.values import clip

NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)

Extra = Mapping[str, Any]
"""Names that only some places see: `error`, `output`."""


class NotOurs(Exception):
    """The first commit found the run standing already: another delivery of the same message began it."""


class Executor:
    """Executes runs. `mask` takes secrets out of the texts of errors; `draining` says that the process is to
    stop, so that owned runs are put down at the next step."""

    def __init__(
        self,
        *,
        handlers: Mapping[str, Handler],
        clock: Clock,
        random: Random,
        mask: Callable[[str], str],
        draining: Callable[[], bool],
    ) -> None:
        self._handlers = handlers
        self._clock = clock
        self._random = random
        self._mask = mask
        self._draining = draining

    async def execute(self, run: Run) -> None:
        """Take a run as far as it goes now: to its end, or to where it is parked. All is committed then.

        Raises StoreError, and NotOurs if the run was begun by someone else.
        """
        outcome: Outcome = Done()
        if not run.owned:
            self._await_cancel(run)
        if run.history.failure is None:
            outcome = await self._block(run, run.program.steps, {})
            if isinstance(outcome, Failed):
                self._fail(run, outcome)
        if run.history.failure is not None:
            await self._undo_all(run)
        elif isinstance(outcome, Parked):
            waits = RunState.RUNNING if self._draining() else RunState.WAITING
            await self._commit(run, waits, due_at=outcome.due_at, asleep=outcome.asleep)
        else:
            await self._complete(run)

    async def give_up(self, run: Run, error: Error) -> None:
        """End a run whose undoing cannot be gone on with: that is for a person."""
        await self._end(run, RunState.COMPENSATION_FAILED, error)

    async def _complete(self, run: Run) -> None:
        """The steps are over; what the caller gets must fit as well."""
        misfit = self._take_reply(run)
        if misfit is None:
            await self._end(run, RunState.COMPLETED)
        else:
            self._fail(run, self._masked(misfit))
            await self._undo_all(run)

    def _take_reply(self, run: Run) -> Failed | None:
        caller, program = run.started.caller, run.program
        if caller is None:
            return None
        try:
            result = None if program.reply is None else _own(program.reply(run.scope("reply")))
        except ExpressionError as error:
            return Failed(Error(type="expression", message=f"the reply: {error}", retryable=False))
        misfit = run.plan.commands[caller.command].check_reply(result)
        if misfit is not None:
            text = f"the reply of {caller.command} does not fit its schema: {misfit}"
            return Failed(Error(type="invalid_output", message=text, retryable=False))
        run.note(ReplySent(at=self._now_text(), result=result))
        return None

    def _fail(self, run: Run, failure: Failed) -> None:
        cancelled = run.cancel if failure.error.type == "cancelled" and failure.of_run else None
        if cancelled is not None:
            run.note(cancelled)
        run.note(RunFailed(error=failure.error, failed_at=self._now_text(), cancelled=cancelled is not None))
        run.state = RunState.COMPENSATING

    async def _end(self, run: Run, state: RunState, error: Error | None = None) -> None:
        """The run is final. Its key bars others for a while, unless nothing is left of what it did."""
        now = self._clock.now()
        if run.cancel is not None and not run.history.cancelled:
            run.note(run.cancel)  # it came too late, or could not be heeded
        if run.started.caller is not None:
            if error is not None:
                run.note(ReplySent(at=rfc3339(now), error=error))
            outgoing = reply_to(run.started.caller, run.history.reply, run.plan.project)
            if outgoing is not None:
                run.answer(outgoing)
        idempotency = run.program.idempotency
        is_undone = state in (RunState.COMPENSATED, RunState.CANCELLED, RunState.FAILED) and not run.history.pivoted
        until = None if idempotency is None or is_undone else now + timedelta(seconds=idempotency.ttl_s)
        await self._commit(run, state, finished_at=now, error=error, key_until=until)

    # --- forward

    async def _block(self, run: Run, steps: tuple[Step, ...], extra: Extra) -> Outcome:
        output: Any = None
        for step in steps:
            if step.id not in run.history.finished:
                outcome = await self._step(run, step, extra)
                if not isinstance(outcome, Done):
                    return outcome
            record = run.history.finished[step.id]
            output = record.output if record.state is not StepState.SKIPPED else output
        return Done(output)

    async def _step(self, run: Run, step: Step, extra: Extra) -> Outcome:
        caught = run.history.caught.get(step.id)
        if caught is not None:
            return await self._catch(run, step, caught, extra)
        if run.owned and self._draining():
            return Parked(self._clock.now())
        started_at = self._started_at(run, step)
        over = self._over(run, step)
        if over is not None and step.id not in run.history.branches and step.id not in run.history.sent:
            tried = len(run.history.attempts.get(step.id, ()))
            run.note(self._finished(run, step, _state_of(over), started_at, error=over.error, attempts=tried))
            return over
        outcome = await self._begin(run, step, extra)
        if outcome is None:
            run.note(self._skipped(step))
            return Done()
        if isinstance(outcome, Failed):
            return await self._failed(run, step, outcome, started_at, extra)
        if isinstance(outcome, Done | Stopped):
            done = outcome if isinstance(outcome, Done) else Done()
            run.note(self._completed(run, step, started_at, done))
        return outcome

    async def _begin(self, run: Run, step: Step, extra: Extra) -> Outcome | None:
        """Do what the step does; None if its `when` does not hold. `when` is asked once, not again by a retry."""
        history = run.history
        begun = (history.attempts, history.branches, history.sent, history.waits)
        is_begun = any(step.id in known for known in begun)
        try:
            asked = None if is_begun else step.when
            if asked is not None and not holds(asked.evaluate(run.scope(f"{step.id}\0when", **extra))):
                return None
            return await self._act(run, step, extra)
        except ExpressionError as error:
            return _expression_failed(step, error)

    async def _act(self, run: Run, step: Step, extra: Extra) -> Outcome:
        match step:
            case Use():
                return await self._use(run, step, step.id, run.scope(step.id, **extra))
            case Send():
                return await self._send(run, step, step.id, run.scope(step.id, **extra))
            case Emit():
                return self._emit(run, step, run.scope(step.id, **extra))
            case Set():
                return Done(_own(step.values(run.scope(step.id, **extra))))
            case Wait():
                return self._wait(run, step, run.scope(step.id, **extra))
            case WaitFor():
                return self._wait_for(run, step, run.scope(step.id, **extra))
            case Switch():
                return await self._switch(run, step, extra)
            case Fail():
                return fail.build(step, run.scope(step.id, **extra))
            case Stop():
                return Stopped()
        raise AssertionError(f"no such step kind: {step.action}")

    def _await_cancel(self, run: Run) -> None:
        for cancel in run.program.cancel_on:
            values = cancel.match(run.scope("cancel_on"))
            run.await_events([token(cancel.event, cancel.fields, [values[f] for f in cancel.fields])], cancel=True)

    def _wait(self, run: Run, step: Wait, scope: Scope) -> Done | Parked:
        begun = run.history.waits.get(step.id)
        if begun is None:
            until = self._until(step, scope)
            assert until is not None
            run.note(WaitBegun(step_id=step.id, at=self._now_text(), until=rfc3339(until)))
        else:
            until = parse_time(begun.until or begun.at)
        return Done() if self._clock.now() >= until else self._asleep(run, until)

    def _wait_for(self, run: Run, step: WaitFor, scope: Scope) -> Done | Failed | Parked:
        begun = run.history.waits.get(step.id)
        if begun is None:
            values = _own(step.match(scope))
            tokens = tuple(token(event, step.fields, [values[f] for f in step.fields]) for event in step.events)
            until = self._until(step, scope)
            run.note(
                WaitBegun(
                    step_id=step.id,
                    at=self._now_text(),
                    until=None if until is None else rfc3339(until),
                    tokens=tokens,
                )
            )
            run.await_events(tokens)
            return Parked(self._clock.now())  # due at once: what came before the wait counts as well
        wanted = step.count or 1
        came = [
            a for a in run.arrivals if a.token in begun.tokens and (a.meta.source, a.meta.id) not in run.history.taken
        ]
        if len(came) >= wanted:
            return self._take(run, step, came[:wanted])
        until = None if begun.until is None else parse_time(begun.until)
        if until is not None and self._clock.now() >= until:
            text = f"{step.target} did not come until {begun.until}"
            return Failed(Error(type="timeout", message=text, retryable=True, step=step.id))
        return self._asleep(run, until or NEVER)

    def _take(self, run: Run, step: WaitFor, came: list[Arrival]) -> Done:
        run.note(EventsTaken(step_id=step.id, events=tuple((a.meta.source, a.meta.id) for a in came)))
        data = [decode_json(arrival.data) for arrival in came]
        metas = [asdict(arrival.meta) for arrival in came]
        return Done(data[0], metas[0]) if step.count is None else Done(data, metas)

    def _until(self, step: Wait | WaitFor, scope: Scope) -> datetime | None:
        seconds = step.duration_s if isinstance(step, Wait) else step.timeout_s
        if seconds is not None:
            return self._clock.now() + timedelta(seconds=seconds)
        if step.until is None:
            return None
        value = step.until.evaluate(scope)
        try:
            return parse_time(value)
        except (TypeError, ValueError):
            raise ExpressionError(f"`until` must be an RFC 3339 time, and is {clip(repr(value))}") from None

    def _asleep(self, run: Run, until: datetime) -> Parked:
        return Parked(until if run.deadline is None else min(until, run.deadline), asleep=True)

    async def _switch(self, run: Run, step: Switch, extra: Extra) -> Outcome:
        if step.id not in run.history.branches:
            branch = switch.choose(step, run.scope(step.id, **extra))
            run.note(BranchTaken(step_id=step.id, branch=branch))
        taken = run.history.branches[step.id]
        if taken is None:
            return Done()
        return await self._block(run, step.branches[taken].steps, extra)

    def _emitter(self, run: Run) -> emit.Emitter:
        return emit.Emitter(
            project=run.plan.project,
            source=f"/flowrun/{run.plan.project}/{run.program.flow}",
            cause=run.started.trigger,
            trace=run.started.trace,
        )

    async def _send(self, run: Run, step: Send, key: str, scope: Scope) -> Done | Failed | Parked:
        """Send it once, and park until there is an answer, or until it is too late for one."""
        sent = run.history.sent.get(key)
        failed = run.history.attempts.get(key, [])
        attempt = len(failed) + 1
        # After a timeout the same command goes out again; a failed reply is followed by a new one.
        again = sent if failed and failed[-1].unknown else run.history.unanswered.get(key)
        if again is not None and again.command_id in run.answers:
            sent = again  # it was answered late
        elif sent is None or sent.attempt < attempt:
            if (not_now := self._not_now(run, step, key)) is not None:
                return not_now
            return self._send_out(run, step, key, scope, attempt, again)
        declared = run.plan.commands[step.command]
        started, deadline = parse_time(sent.sent_at), parse_time(sent.deadline)
        answer = run.answers.get(sent.command_id)
        if answer is not None:
            outcome = command.outcome(declared, answer, step.id)
        elif self._clock.now() < deadline and self._over(run, step) is None:
            return Parked(deadline)
        else:
            outcome = command.unanswered(declared, step.id, (deadline - started).total_seconds())
        if isinstance(outcome, Done):
            return outcome
        if (over := self._over(run, step)) is not None:
            return replace(over, unknown=outcome.unknown)
        return self._retry(run, step, key, outcome, attempt, started)

    def _send_out(
        self, run: Run, step: Send, key: str, scope: Scope, attempt: int, again: CommandSent | None
    ) -> Failed | Parked:
        number = run.history.asked.get(key, 0)
        command_id = again.command_id if again is not None else run.derived(f"{key}\0command\0{number}")
        now = self._clock.now()
        deadline = now + timedelta(seconds=self._attempt_limit(run, step, now))
        assert run.plan.replies is not None
        try:
            outgoing = command.build(
                run.plan.commands[step.command],
                _own(step.data(scope)),
                self._emitter(run),
                command_id,
                now,
                deadline,
                run.plan.replies,
            )
        except emit.PayloadError as error:
            return Failed(Error(type="invalid_input", message=str(error), retryable=False, step=step.id))
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

    def _emit(self, run: Run, step: Emit, scope: Scope) -> Done | Failed:
        event = run.plan.events[step.event]
        try:
            record, outgoing = emit.build(event, step.data(scope), self._emitter(run), self._now_text())
        except emit.PayloadError as error:
            return Failed(Error(type="invalid_input", message=str(error), retryable=False, step=step.id))
        run.publish(record, outgoing)
        return Done({"id": record.meta.id})

    async def _use(self, run: Run, step: Use, key: str, scope: Scope) -> Done | Failed | Parked:
        """Try once; a failure that is to be repeated parks the run until then."""
        if (not_now := self._not_now(run, step, key)) is not None:
            return not_now
        inputs = _own(step.inputs(scope))
        if not isinstance(inputs, dict):
            message = "`with` must give an object"
            return Failed(Error(type="invalid_input", message=message, retryable=False, step=step.id))
        failed = run.history.attempts.get(key, [])
        attempt = len(failed) + 1
        started = self._clock.now()
        if run.has_crashed:
            again, run.was_cut_short = run.was_cut_short, False
            run.note(AttemptBegun(step_id=key, attempt=attempt, started_at=rfc3339(started), again=again))
        if run.must_commit:
            await self._commit(run)
            started = self._clock.now()
            if (over := self._over(run, step)) is not None:  # while we committed
                return over
        limit = self._attempt_limit(run, step, started)
        context = Context(
            run_id=run.id,
            step_id=key,
            attempt=attempt,
            idempotency_key=f"{run.id}/{key}",
            deadline=started + timedelta(seconds=limit),
            correlation_id=run.started.trigger.correlation_id,
            logger=run.logger,
        )
        outcome = await self._attempt(run, step, context, inputs, limit)
        if isinstance(outcome, Done):
            return Done(self._masked_value(outcome.output)) if run.program.secrets else outcome
        if (over := self._over(run, step)) is not None:
            return replace(over, unknown=outcome.unknown)
        return self._retry(run, step, key, outcome, attempt, started)

    async def _attempt(
        self, run: Run, step: Use, context: Context, inputs: Mapping[str, Any], limit: float
    ) -> Done | Failed:
        try:
            with run.attempting():
                return await use.attempt(self._handlers[step.handler], context, inputs, limit)
        except asyncio.CancelledError:
            if run.is_lost:
                raise OwnershipError.of(run.id) from None
            if not run.is_to_be_cancelled:
                raise
            return replace(_cancelled(run, step), unknown=True)

    def _not_now(self, run: Run, step: Use | Send, key: str) -> Failed | Parked | None:
        """Whether an attempt is too late; or too early: a late answer to another command wakes the run as well."""
        failed = run.history.attempts.get(key, [])
        if (over := self._over(run, step)) is not None:
            return replace(over, unknown=any(last.unknown for last in failed[-1:]))
        retry_at = parse_time(failed[-1].retry_at) if failed else None
        if retry_at is None or self._clock.now() >= retry_at:
            return None
        return Parked(retry_at if run.deadline is None else min(retry_at, run.deadline))

    def _retry(
        self, run: Run, step: Use | Send, key: str, failure: Failed, attempt: int, started: datetime
    ) -> Failed | Parked:
        failure = self._masked(failure)
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
        return Parked(due_at if run.deadline is None else min(due_at, run.deadline))

    # --- failure

    async def _failed(self, run: Run, step: Step, failure: Failed, started_at: str, extra: Extra) -> Outcome:
        """A step has failed for good: one of its catches takes the error, or it goes up."""
        failure = self._masked(failure)
        for number, catch in enumerate(step.catches):
            if failure.of_run or not (catch.types is None or matches(failure.error.type, catch.types)):
                continue
            caught = ErrorCaught(
                step_id=step.id,
                catch=number,
                error=failure.error,
                attempts=self._attempts(run, step),
                started_at=started_at,
                failed_at=self._now_text(),
                unknown=failure.unknown,
            )
            run.note(caught)
            return await self._catch(run, step, caught, extra)
        record = self._finished(run, step, _state_of(failure), started_at, error=failure.error, unknown=failure.unknown)
        run.note(record)
        return failure

    async def _catch(self, run: Run, step: Step, caught: ErrorCaught, extra: Extra) -> Outcome:
        error = run.history.steps[step.id]["error"]
        outcome = await self._block(run, step.catches[caught.catch].steps, {**extra, "error": error})
        if isinstance(outcome, Parked):
            return outcome
        output = outcome.output if isinstance(outcome, Done) else None
        run.note(
            StepFinished(
                step_id=step.id,
                action=step.action,
                target=step.target,
                state=StepState.FAILED,
                attempts=caught.attempts,
                started_at=caught.started_at,
                finished_at=self._now_text(),
                output=output,
                error=caught.error,
            )
        )
        return outcome

    async def _undo_all(self, run: Run) -> None:
        """Undo what completed, in reverse; then `on_failure`; then the run is final. Past a pivot, none of that."""
        history = run.history
        error = history.failure
        assert error is not None
        if history.pivoted:
            await self._end(run, RunState.FAILED, error)
            return
        shown = {"error": _shown(error)}
        for step, undo in undo_plan(run.program, history):
            if undo.id in history.undone:
                continue
            if run.owned and self._draining():
                await self._commit(run, RunState.COMPENSATING, due_at=self._clock.now(), error=error)
                return
            result = {"output": history.finished[step.id].output} if is_completed(history, step.id) else {}
            parked = await self._undo(run, undo, {**shown, **result})
            if parked is not None:
                await self._commit(run, RunState.COMPENSATING, due_at=parked.due_at, error=error)
                return
        outcome = await self._block(run, run.program.on_failure, shown)
        if isinstance(outcome, Parked):
            await self._commit(run, RunState.COMPENSATING, due_at=outcome.due_at, error=error, asleep=outcome.asleep)
            return
        await self._end(run, _final(run, outcome), error)

    async def _undo(self, run: Run, undo: Use | Send | Emit, extra: Extra) -> Parked | None:
        started_at = self._started_at(run, undo)
        outcome: Done | Failed | Parked | None = None
        state = StepState.COMPLETED
        try:
            asked = run.scope(f"{undo.id}\0when", **extra)
            if undo.when is not None and undo.id not in run.history.attempts and not holds(undo.when.evaluate(asked)):
                state, outcome = StepState.SKIPPED, Done()
            elif isinstance(undo, Use):
                outcome = await self._use(run, undo, undo.id, run.scope(undo.id, **extra))
            elif isinstance(undo, Send):
                outcome = await self._send(run, undo, undo.id, run.scope(undo.id, **extra))
            else:
                outcome = self._emit(run, undo, run.scope(undo.id, **extra))
        except ExpressionError as error:
            outcome = _expression_failed(undo, error)
        if isinstance(outcome, Parked):
            return outcome
        failed = isinstance(outcome, Failed)
        outcome = self._masked(outcome) if isinstance(outcome, Failed) else outcome
        run.note(
            UndoFinished(
                step_id=undo.id,
                action=undo.action,
                target=undo.target,
                state=StepState.FAILED if failed else state,
                attempts=0 if state is StepState.SKIPPED else self._attempts(run, undo),
                started_at=started_at,
                finished_at=self._now_text(),
                output=outcome.output if isinstance(outcome, Done) else None,
                error=outcome.error if isinstance(outcome, Failed) else None,
            )
        )
        return None

    # --- small things

    def _completed(self, run: Run, step: Step, started_at: str, done: Done) -> StepFinished:
        record = self._finished(run, step, StepState.COMPLETED, started_at, output=done.output, pivot=_is_pivot(step))
        return record if done.event is None else msgspec.structs.replace(record, event=done.event)

    def _finished(
        self,
        run: Run,
        step: Step,
        state: StepState,
        started_at: str,
        *,
        output: Any = None,
        error: Error | None = None,
        attempts: int | None = None,
        pivot: bool = False,
        unknown: bool = False,
    ) -> StepFinished:
        return StepFinished(
            step_id=step.id,
            action=step.action,
            target=step.target,
            state=state,
            attempts=self._attempts(run, step) if attempts is None else attempts,
            started_at=started_at,
            finished_at=self._now_text(),
            output=output,
            error=error,
            pivot=pivot,
            unknown=unknown,
        )

    def _skipped(self, step: Step) -> StepFinished:
        return StepFinished(
            step_id=step.id,
            action=step.action,
            target=step.target,
            state=StepState.SKIPPED,
            attempts=0,
            started_at=None,
            finished_at=self._now_text(),
        )

    def _attempts(self, run: Run, step: Step) -> int:
        return len(run.history.attempts.get(step.id, ())) + 1

    def _started_at(self, run: Run, step: Step) -> str:
        history = run.history
        failed, wait = history.attempts.get(step.id), history.waits.get(step.id)
        if failed:
            return failed[0].started_at
        return wait.at if wait is not None else self._now_text()

    def _attempt_limit(self, run: Run, step: Use | Send, now: datetime) -> float:
        deadline = run.deadline
        return step.timeout_s if deadline is None else min(step.timeout_s, (deadline - now).total_seconds())

    def _over(self, run: Run, step: Step) -> Failed | None:
        """The run's own timeout has passed, or a person wants it cancelled."""
        if run.is_to_be_cancelled:
            return _cancelled(run, step)
        if run.deadline is None or self._clock.now() < run.deadline:
            return None
        caller = run.started.caller
        expired = caller is not None and caller.expires_at == rfc3339(run.deadline)
        limit = run.program.timeout_s or 0.0
        message = "its caller waits no longer" if expired else f"the run took longer than {limit:g} s"
        return Failed(Error(type="timeout", message=message, retryable=True, step=step.id), of_run=True)

    def _masked(self, failure: Failed) -> Failed:
        error = failure.error
        clean = Error(
            type=error.type,
            message=self._mask(error.message),
            retryable=error.retryable,
            details=self._masked_value(error.details),
            step=error.step,
        )
        return replace(failure, error=clean)

    def _masked_value(self, value: Any) -> Any:
        match value:
            case str():
                return self._mask(value)
            case list():
                return [self._masked_value(item) for item in value]
            case dict():
                return {self._mask(key): self._masked_value(item) for key, item in value.items()}
        return value

    def _now_text(self) -> str:
        return rfc3339(self._clock.now())

    async def _commit(self, run: Run, state: RunState | None = None, **how: Any) -> None:
        if not await run.commit(state, **how):
            raise NotOurs


def _cancelled(run: Run, step: Step) -> Failed:
    assert run.cancel is not None
    why = f": {run.cancel.reason}" if run.cancel.reason else ""
    error = Error(type="cancelled", message=f"cancelled by {run.cancel.by}{why}", retryable=False, step=step.id)
    return Failed(error, of_run=True)


def _state_of(failure: Failed) -> StepState:
    cancelled = failure.of_run and failure.error.type == "cancelled"
    return StepState.CANCELLED if cancelled else StepState.FAILED


def _is_pivot(step: Step) -> bool:
    return isinstance(step, Use | Send | Emit) and step.pivot


def _own(value: Any) -> Any:
    """A copy of an expression's value: `vars` and `steps` change as the run goes on, and a handler may do as it
    likes with what it got."""
    try:
        return decode_json(encode_json(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ExpressionError(f"the result is no JSON value: {error}") from None


def _expression_failed(step: Step, error: ExpressionError) -> Failed:
    return Failed(Error(type="expression", message=str(error), retryable=False, step=step.id))


def _shown(error: Error) -> dict[str, Any]:
    return {name: getattr(error, name) for name in error.__struct_fields__}


def _final(run: Run, outcome: Outcome) -> RunState:
    undone = {record.state for record in run.history.undone.values()}
    if isinstance(outcome, Failed) or StepState.FAILED in undone:
        return RunState.COMPENSATION_FAILED
    if run.history.cancelled:
        return RunState.CANCELLED
    return RunState.COMPENSATED if StepState.COMPLETED in undone else RunState.FAILED
