"""Runs a program: forward through its steps, back through its compensations.

A step that has a record is never run again: after a crash the walk begins anew and passes over what is
recorded. Nothing is durable before `Run.commit`, and an effect begins only when what came before it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec

from runner.engine.compensation import is_completed, undo_plan
from runner.engine.effects import Effects
from runner.engine.replies import reply_to
from runner.engine.results import commit, expression_failed, own
from runner.engine.retry import Random, matches
from runner.engine.run import Run
from runner.engine.waits import Waits
from runner.errors import ExpressionError
from runner.expressions import holds
from runner.outcome import Done, Failed, Outcome, Parked, Stopped
from runner.plan import Emit, Fail, Send, Set, Step, Stop, Switch, Use, Wait, WaitFor
from runner.ports import Clock, Handler
from runner.records import (
    BranchTaken,
    Error,
    ErrorCaught,
    ReplySent,
    RunFailed,
    RunState,
    StepFinished,
    StepState,
    UndoFinished,
)
from runner.steps import fail, switch
from runner.times import rfc3339

Extra = Mapping[str, Any]
"""Names that only some places see: `error`, `output`."""


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
        self._effects = Effects(handlers=handlers, clock=clock, random=random, mask=mask)
        self._waits = Waits(clock)
        self._clock = clock
        self._draining = draining

    async def execute(self, run: Run) -> None:
        """Take a run as far as it goes now: to its end, or to where it is parked. All is committed then.

        Raises StoreError, and NotOurs if the run was begun by someone else.
        """
        outcome: Outcome = Done()
        if run.history.failure is None:
            outcome = await self._forward(run)
            if isinstance(outcome, Failed):
                self._fail(run, outcome)
        if run.history.failure is not None:
            await self._undo_all(run)
        elif isinstance(outcome, Parked):
            waits = RunState.RUNNING if self._draining() else RunState.WAITING
            await commit(run, waits, due_at=outcome.due_at, asleep=outcome.asleep)
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
            self._fail(run, self._effects.masked(misfit))
            await self._undo_all(run)

    def _take_reply(self, run: Run) -> Failed | None:
        caller, program = run.started.caller, run.program
        if caller is None:
            return None
        try:
            result = None if program.reply is None else own(program.reply(run.scope("reply")))
        except ExpressionError as error:
            return expression_failed(ExpressionError(f"the reply: {error}"))
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
        await commit(run, state, finished_at=now, error=error, key_until=until)

    # --- forward

    async def _forward(self, run: Run) -> Outcome:
        try:
            if run.is_new or run.history.revived_at is not None:
                self._waits.await_cancel(run)
        except ExpressionError as error:
            return expression_failed(error)
        if run.history.has_stopped(run.program.steps):
            return Stopped()
        return await self._block(run, run.program.steps, {})

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
        over = self._effects.over(run, step)
        if over is not None and step.id not in run.history.branches and step.id not in run.history.sent:
            # A process may have died in the midst of it: the first `use` that is not over is the one.
            cut = run.was_cut_short and isinstance(step, Use)
            run.was_cut_short = run.was_cut_short and not cut
            tried = len(run.history.attempts.get(step.id, ())) + cut
            record = self._finished(
                run, step, _state_of(over), started_at, error=over.error, attempts=tried, unknown=cut
            )
            run.note(record)
            return replace(over, unknown=cut)
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
            return expression_failed(error, step.id)

    async def _act(self, run: Run, step: Step, extra: Extra) -> Outcome:
        match step:
            case Use():
                return await self._effects.use(run, step, step.id, run.scope(step.id, **extra))
            case Send():
                return await self._effects.send(run, step, step.id, run.scope(step.id, **extra))
            case Emit():
                return self._effects.emit(run, step, run.scope(step.id, **extra))
            case Set():
                return Done(own(step.values(run.scope(step.id, **extra))))
            case Wait():
                return self._waits.wait(run, step, run.scope(step.id, **extra))
            case WaitFor():
                return self._waits.wait_for(run, step, run.scope(step.id, **extra))
            case Switch():
                return await self._switch(run, step, extra)
            case Fail():
                return fail.build(step, run.scope(step.id, **extra))
            case Stop():
                return Stopped()
        raise AssertionError(f"no such step kind: {step.action}")

    async def _switch(self, run: Run, step: Switch, extra: Extra) -> Outcome:
        if step.id not in run.history.branches:
            branch = switch.choose(step, run.scope(step.id, **extra))
            run.note(BranchTaken(step_id=step.id, branch=branch))
        taken = run.history.branches[step.id]
        if taken is None:
            return Done()
        return await self._block(run, step.branches[taken].steps, extra)

    # --- failure

    async def _failed(self, run: Run, step: Step, failure: Failed, started_at: str, extra: Extra) -> Outcome:
        """A step has failed for good: one of its catches takes the error, or it goes up."""
        failure = self._effects.masked(failure)
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
                await commit(run, RunState.COMPENSATING, due_at=self._clock.now(), error=error)
                return
            result = {"output": history.finished[step.id].output} if is_completed(history, step.id) else {}
            parked = await self._undo(run, undo, {**shown, **result})
            if parked is not None:
                await commit(run, RunState.COMPENSATING, due_at=parked.due_at, error=error)
                return
        outcome: Outcome = Stopped()
        if not history.has_stopped(run.program.on_failure):
            outcome = await self._block(run, run.program.on_failure, shown)
        if isinstance(outcome, Parked):
            await commit(run, RunState.COMPENSATING, due_at=outcome.due_at, error=error, asleep=outcome.asleep)
            return
        await self._end(run, _final(run, outcome), error)

    async def _undo(self, run: Run, undo: Use | Send | Emit, extra: Extra) -> Parked | None:
        started_at = self._started_at(run, undo)
        outcome: Done | Failed | Parked | None = None
        state = StepState.COMPLETED
        try:
            asked = run.scope(f"{undo.id}\0when", **extra)
            is_begun = undo.id in run.history.attempts or undo.id in run.history.sent
            if undo.when is not None and not is_begun and not holds(undo.when.evaluate(asked)):
                state, outcome = StepState.SKIPPED, Done()
            elif isinstance(undo, Use):
                outcome = await self._effects.use(run, undo, undo.id, run.scope(undo.id, **extra))
            elif isinstance(undo, Send):
                outcome = await self._effects.send(run, undo, undo.id, run.scope(undo.id, **extra))
            else:
                outcome = self._effects.emit(run, undo, run.scope(undo.id, **extra))
        except ExpressionError as error:
            outcome = expression_failed(error, undo.id)
        if isinstance(outcome, Parked):
            return outcome
        failed = isinstance(outcome, Failed)
        outcome = self._effects.masked(outcome) if isinstance(outcome, Failed) else outcome
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
                unknown=isinstance(outcome, Failed) and outcome.unknown,
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

    def _now_text(self) -> str:
        return rfc3339(self._clock.now())


def _state_of(failure: Failed) -> StepState:
    cancelled = failure.of_run and failure.error.type == "cancelled"
    return StepState.CANCELLED if cancelled else StepState.FAILED


def _is_pivot(step: Step) -> bool:
    return isinstance(step, Use | Send | Emit) and step.pivot


def _shown(error: Error) -> dict[str, Any]:
    return {name: getattr(error, name) for name in error.__struct_fields__}


def _final(run: Run, outcome: Outcome) -> RunState:
    undone = {record.state for record in run.history.undone.values()}
    if isinstance(outcome, Failed) or StepState.FAILED in undone:
        return RunState.COMPENSATION_FAILED
    if run.history.cancelled:
        return RunState.CANCELLED
    return RunState.COMPENSATED if StepState.COMPLETED in undone else RunState.FAILED
