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

from runner.delays import Random
from runner.engine.blocks import Blocks
from runner.engine.breakers import Breakers
from runner.engine.compensation import is_completed, undo_plan
from runner.engine.effects import Effects
from runner.engine.history import rounds_of
from runner.engine.line import Frame
from runner.engine.replies import reply_to
from runner.engine.results import NotOurs, commit, expression_failed, own
from runner.engine.retry import matches
from runner.engine.run import Run
from runner.engine.together import Hands
from runner.engine.waits import Waits
from runner.errors import ExpressionError, VersionConflictError
from runner.expressions import Evaluate, holds
from runner.handler import ReadableProjections
from runner.masking import Mask
from runner.outcome import Done, Failed, Outcome, Parked, Stopped
from runner.plan import Emit, Fail, Foreach, Parallel, Send, Set, Step, Stop, Switch, Use, Wait, WaitFor
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


class Executor:
    """Executes runs. `mask` takes secrets out of errors and results; `draining` says that the process is to
    stop, so that owned runs are put down at the next step."""

    def __init__(
        self,
        *,
        handlers: Mapping[str, Handler],
        clock: Clock,
        random: Random,
        mask: Mask,
        projections: ReadableProjections,
        breakers: Breakers,
        draining: Callable[[], bool],
    ) -> None:
        self._effects = Effects(
            handlers=handlers, clock=clock, random=random, mask=mask, projections=projections, breakers=breakers
        )
        self._waits = Waits(clock)
        self._blocks = Blocks(Hands(self._block, clock, draining), self._undo)
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
            self._fail(run, misfit)
            await self._undo_all(run)

    def _take_reply(self, run: Run) -> Failed | None:
        caller, program = run.started.caller, run.program
        if caller is None:
            return None
        try:
            result = None if program.reply is None else own(program.reply(run.scope("reply", Frame(line=run.line))))
        except ExpressionError as error:
            return expression_failed(ExpressionError(f"the reply: {error}"))
        misfit = run.plan.commands[caller.command].check_reply(result)
        if misfit is not None:
            text = f"the reply of {caller.command} does not fit its schema: {misfit}"
            return Failed(Error(type="invalid_output", message=text, retryable=False))
        run.note(ReplySent(at=self._now_text(), result=result))
        return None

    def _fail(self, run: Run, failure: Failed) -> None:
        failure = self._effects.masked(failure)
        cancelled = run.cancel if failure.error.type == "cancelled" and failure.over is not None else None
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
        return await self._block(run, run.program.steps, Frame(line=run.line))

    async def _block(self, run: Run, steps: tuple[Step, ...], frame: Frame) -> Outcome:
        history, output = run.history, None
        for step in steps:
            key = frame.key(step)
            if key not in history.finished:
                outcome = await self._step(run, step, frame)
                if not isinstance(outcome, Done):
                    return outcome
            elif (broken := history.broken(step, frame.rounds)) is not None:  # before a crash, on a line of several
                return _failed_as(broken, run)
            record = history.finished[key]
            output = record.output if record.state is not StepState.SKIPPED else output
        return Done(output)

    async def _step(self, run: Run, step: Step, frame: Frame) -> Outcome:
        key, history = frame.key(step), run.history
        caught = history.caught.get(key)
        if caught is not None:
            return await self._catch(run, step, caught, frame)
        if run.owned and self._draining():
            return Parked(self._clock.now())
        started_at = self._started_at(run, key)
        over = self._effects.over(run, step, frame)
        if over is not None and not (key in history.branches or key in history.blocks or key in history.sent):
            # A process may have died in the midst of it: the first `use` that is not over is the one.
            cut = isinstance(step, Use) and frame.line.was_cut_short()
            tried = len(history.attempts.get(key, ())) + cut
            record = self._finished(
                run, step, key, _state_of(over), started_at, error=over.error, attempts=tried, unknown=cut
            )
            run.note(record)
            return replace(over, unknown=cut)
        outcome = await self._begin(run, step, frame)
        if outcome is None:
            run.note(self._skipped(step, key))
            return Done()
        if isinstance(outcome, Failed):
            return await self._failed(run, step, outcome, started_at, frame)
        if isinstance(outcome, Done | Stopped):
            done = outcome if isinstance(outcome, Done) else Done()
            if key not in history.finished:
                run.note(self._completed(run, step, key, started_at, done))
        return outcome

    async def _begin(self, run: Run, step: Step, frame: Frame) -> Outcome | None:
        """Do what the step does; None if its `when` does not hold. `when` is asked once, not again by a retry."""
        key, history = frame.key(step), run.history
        begun = (history.attempts, history.branches, history.blocks, history.sent, history.waits)
        try:
            asked = None if any(key in known for known in begun) else step.when
            if asked is not None and not holds(asked.evaluate(run.scope(f"{key}\0when", frame))):
                return None
            return await self._act(run, step, frame)
        except ExpressionError as error:
            return expression_failed(error, key)

    async def _act(self, run: Run, step: Step, frame: Frame) -> Outcome:
        match step:
            case Use():
                return await self._effects.use(run, step, frame)
            case Send():
                return await self._effects.send(run, step, frame)
            case Emit() if step.expected_version is not None:
                return await self._emit_at(step.expected_version, run, step, frame)
            case Emit():
                return self._effects.emit(run, step, frame)
            case Set():
                return Done(own(step.values(run.scope(frame.key(step), frame))))
            case Wait():
                return self._waits.wait(run, step, frame)
            case WaitFor():
                return self._waits.wait_for(run, step, frame)
            case Switch():
                return await self._switch(run, step, frame)
            case Parallel():
                return await self._blocks.parallel(run, step, frame)
            case Foreach():
                return await self._blocks.foreach(run, step, frame)
            case Fail():
                return fail.build(step, frame.key(step), run.scope(frame.key(step), frame))
            case Stop():
                return Stopped()
        raise AssertionError(f"no such step kind: {step.action}")

    async def _emit_at(self, version: Evaluate, run: Run, step: Emit, frame: Frame) -> Outcome:
        """Publish, if the subject is at that version; the event and the step's record are one commit."""
        key = frame.key(step)
        built = self._effects.build_event(run, step, frame)
        if isinstance(built, Failed):
            return built
        record, outgoing = built
        expected, subject = version(run.scope(f"{key}\0version", frame)), record.meta.subject
        if not isinstance(expected, int) or isinstance(expected, bool) or expected < 0 or subject is None:
            what = (
                f"expected_version must be a whole number from 0 on, of an event with a subject: {subject}, {expected}"
            )
            return Failed(Error(type="invalid_input", message=what, retryable=False, step=key))
        done = Done({"id": record.meta.id})
        finished = self._completed(run, step, key, self._started_at(run, key), done)
        try:
            if not await run.commit_step(finished, msgspec.structs.replace(record, expected=expected), outgoing):
                raise NotOurs
        except VersionConflictError as conflict:
            details = {"subject": subject, "expected": expected, "actual": conflict.actual}
            message = conflict.message
            return Failed(Error(type="version_conflict", message=message, retryable=True, details=details, step=key))
        return done

    async def _switch(self, run: Run, step: Switch, frame: Frame) -> Outcome:
        key = frame.key(step)
        if key not in run.history.branches:
            branch = switch.choose(step, run.scope(key, frame))
            run.note(BranchTaken(step_id=key, branch=branch))
        taken = run.history.branches[key]
        if taken is None:
            return Done()
        return await self._block(run, step.branches[taken].steps, frame)

    # --- failure

    async def _failed(self, run: Run, step: Step, failure: Failed, started_at: str, frame: Frame) -> Outcome:
        """A step has failed for good: one of its catches takes the error, or it goes up."""
        key, failure = frame.key(step), self._effects.masked(failure)
        for number, catch in enumerate(step.catches):
            if failure.over is not None or not (catch.types is None or matches(failure.error.type, catch.types)):
                continue
            caught = ErrorCaught(
                step_id=key,
                catch=number,
                error=failure.error,
                attempts=self._attempts(run, key),
                started_at=started_at,
                failed_at=self._now_text(),
                unknown=failure.unknown,
            )
            run.note(caught)
            return await self._catch(run, step, caught, frame)
        run.note(
            self._finished(run, step, key, _state_of(failure), started_at, error=failure.error, unknown=failure.unknown)
        )
        return failure

    async def _catch(self, run: Run, step: Step, caught: ErrorCaught, frame: Frame) -> Outcome:
        error = run.history.layer(frame.home, frame.rounds).steps[step.id]["error"]
        outcome = await self._block(run, step.catches[caught.catch].steps, frame.seeing(error=error))
        if isinstance(outcome, Parked):
            return outcome
        output = outcome.output if isinstance(outcome, Done) else None
        run.note(
            StepFinished(
                step_id=frame.key(step),
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
        shown = {"error": msgspec.structs.asdict(error)}
        for key, step, undo in undo_plan(run.program, history):
            rounds = rounds_of(key)
            if undo.id + rounds in history.undone:
                continue
            if run.owned and self._draining():
                await commit(run, RunState.COMPENSATING, due_at=self._clock.now(), error=error)
                return
            names = {**history.names(step.home, rounds), **shown}
            parked = await self._undo(run, undo, Frame(line=run.line, home=step.home, rounds=rounds, names=names), key)
            if parked is not None:
                await commit(run, RunState.COMPENSATING, due_at=parked.due_at, error=error)
                return
        outcome: Outcome = Stopped()
        if not history.has_stopped(run.program.on_failure):
            outcome = await self._block(run, run.program.on_failure, Frame(line=run.line, names=shown))
        if isinstance(outcome, Parked):
            await commit(run, RunState.COMPENSATING, due_at=outcome.due_at, error=error, asleep=outcome.asleep)
            return
        await self._end(run, _final(run, outcome), error)

    async def _undo(self, run: Run, undo: Use | Send | Emit, frame: Frame, of: str) -> Parked | None:
        """Undo what the step with the record id `of` did. Parked, if it is to be tried again; else it is noted."""
        key = frame.key(undo)
        if is_completed(run.history, of):
            frame = frame.seeing(output=run.history.finished[of].output)
        started_at = self._started_at(run, key)
        outcome: Done | Failed | Parked | None = None
        state = StepState.COMPLETED
        try:
            asked = None if key in run.history.attempts or key in run.history.sent else undo.when
            if asked is not None and not holds(asked.evaluate(run.scope(f"{key}\0when", frame))):
                state, outcome = StepState.SKIPPED, Done()
            elif isinstance(undo, Use):
                outcome = await self._effects.use(run, undo, frame)
            elif isinstance(undo, Send):
                outcome = await self._effects.send(run, undo, frame)
            else:
                outcome = self._effects.emit(run, undo, frame)
        except ExpressionError as error:
            outcome = expression_failed(error, key)
        if isinstance(outcome, Parked):
            return outcome
        failed = isinstance(outcome, Failed)
        outcome = self._effects.masked(outcome) if isinstance(outcome, Failed) else outcome
        run.note(
            UndoFinished(
                step_id=key,
                action=undo.action,
                target=undo.target,
                state=StepState.FAILED if failed else state,
                attempts=0 if state is StepState.SKIPPED else self._attempts(run, key),
                started_at=started_at,
                finished_at=self._now_text(),
                output=outcome.output if isinstance(outcome, Done) else None,
                error=outcome.error if isinstance(outcome, Failed) else None,
                unknown=isinstance(outcome, Failed) and outcome.unknown,
            )
        )
        return None

    # --- small things

    def _completed(self, run: Run, step: Step, key: str, started_at: str, done: Done) -> StepFinished:
        record = self._finished(
            run, step, key, StepState.COMPLETED, started_at, output=done.output, pivot=_is_pivot(step)
        )
        return record if done.event is None else msgspec.structs.replace(record, event=done.event)

    def _finished(
        self,
        run: Run,
        step: Step,
        key: str,
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
            step_id=key,
            action=step.action,
            target=step.target,
            state=state,
            attempts=self._attempts(run, key) if attempts is None else attempts,
            started_at=started_at,
            finished_at=self._now_text(),
            output=output,
            error=error,
            pivot=pivot,
            unknown=unknown,
        )

    def _skipped(self, step: Step, key: str) -> StepFinished:
        return StepFinished(
            step_id=key,
            action=step.action,
            target=step.target,
            state=StepState.SKIPPED,
            attempts=0,
            started_at=None,
            finished_at=self._now_text(),
        )

    def _attempts(self, run: Run, key: str) -> int:
        return len(run.history.attempts.get(key, ())) + 1

    def _started_at(self, run: Run, key: str) -> str:
        history = run.history
        if failed := history.attempts.get(key):
            return failed[0].started_at
        begun = history.waits.get(key) or history.blocks.get(key)
        return begun.at if begun is not None else self._now_text()

    def _now_text(self) -> str:
        return rfc3339(self._clock.now())


def _state_of(failure: Failed) -> StepState:
    cancelled = failure.over is not None and failure.error.type == "cancelled"
    return StepState.CANCELLED if cancelled else StepState.FAILED


def _is_pivot(step: Step) -> bool:
    return isinstance(step, Use | Send | Emit) and step.pivot


def _failed_as(record: StepFinished, run: Run) -> Failed:
    """A failure as its record has it."""
    error = record.error
    assert error is not None
    around = error.step if error.step is not None and run.history.is_around(error.step, record.step_id) else None
    over = "" if around is None and record.state is StepState.CANCELLED else around
    return Failed(error, over=over, unknown=record.unknown)


def _final(run: Run, outcome: Outcome) -> RunState:
    if isinstance(outcome, Failed) or any(r.state is StepState.FAILED for r in run.history.undone.values()):
        return RunState.COMPENSATION_FAILED
    if run.history.cancelled:
        return RunState.CANCELLED
    undone = any(record.state is StepState.COMPLETED for record in run.history.undone_since)
    return RunState.COMPENSATED if undone else RunState.FAILED
