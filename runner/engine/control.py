"""What a person does to a run: retry, cancel, kill. Each leaves its record with the run: the audit.

A final run, or one to be killed, is seized: whoever had it can commit nothing more. A living one that is to be
cancelled is asked, because only who runs it can undo it.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from runner.engine.replies import reply_to
from runner.errors import RefusedError
from runner.message import Outgoing
from runner.plan import Plan
from runner.ports import RunControl, Store, StoreReader
from runner.records import (
    HELD,
    Change,
    Error,
    Intervention,
    Record,
    ReplySent,
    RunFailed,
    RunStarted,
    RunState,
    StepFinished,
    StoredRun,
)
from runner.times import rfc3339

Action = Literal["retry", "cancel", "kill"]
_AGAIN = uuid.UUID("0d3c1d7e-95a1-5c0e-8b5b-5b1a6f0a2c11")


class _Store(Store, StoreReader, RunControl, Protocol):
    """What this needs of a store."""


class Hand:
    """A person's hand on a store: `by` is who, as `user@host`, `reason` is why, `now` when."""

    def __init__(self, store: _Store, *, project: str, by: str, now: datetime, reason: str | None = None) -> None:
        self._store = store
        self._project = project
        self._by = by
        self._at = rfc3339(now)
        self._now = now
        self._reason = reason

    async def cancel(self, run: StoredRun) -> None:
        """Ask whoever runs it to stop and to undo it. Raises RefusedError."""
        may_cancel(run)
        if not await self._store.request(run.started.run_id, self._intervention("cancel", run)):
            raise RefusedError(f"run {run.started.run_id} has ended meanwhile")

    async def kill(self, run: StoredRun) -> None:
        """End it now, and undo nothing. Raises RefusedError."""
        may_kill(run)
        killed = await self._seized(run)
        why = f": {self._reason}" if self._reason else ""
        error = Error(type="cancelled", message=f"killed by {self._by}{why}", retryable=False)
        reply = ReplySent(at=self._at, error=error)
        caller = run.started.caller
        answer = None if caller is None else reply_to(caller, reply, self._project)
        await self._commit(
            killed,
            RunState.CANCELLED,
            self._intervention("kill", run),
            finished_at=self._at,
            error=error,
            reply=None if caller is None else reply,
            answer=answer,
        )

    async def retry(self, run: StoredRun, present: Plan | None, from_step: str | None = None) -> str:
        """Let it go on, or, where it was undone, begin it anew by the present plan. Returns the id of the run that
        goes on. Raises RefusedError."""
        may_retry(run, from_step)
        if run.state in (RunState.COMPENSATED, RunState.CANCELLED):
            assert present is not None
            return await self._begin_anew(run, present)
        await self._mind_the_key(run)
        failed = run.state is RunState.FAILED
        await self._commit(
            await self._seized(run),
            RunState.RUNNING if failed else RunState.COMPENSATING,
            self._intervention("retry", run, from_step=from_step),
            due_at=self._at,
            error=None if failed else run.error,
            key_until=None if run.started.key is None else HELD,
            forgive=True,
        )
        return run.started.run_id

    async def _begin_anew(self, run: StoredRun, present: Plan) -> str:
        started = run.started
        program = present.programs.get(started.handler)
        if program is None:
            raise RefusedError(f"run {started.run_id}: there is no handler {started.handler} any more")
        await self._mind_the_key(run)
        anew = str(uuid.uuid5(_AGAIN, started.run_id))
        caller = started.caller  # whom it told already that it failed, and who waits no longer
        again: RunStarted = msgspec.structs.replace(
            started,
            run_id=anew,
            plan_hash=program.plan_hash,
            started_at=self._at,
            caller=None if caller is None else msgspec.structs.replace(caller, expires_at=None),
        )
        note = self._intervention("retry", run, anew=anew)
        begun = await self._store.commit(Change(run_id=anew, state=RunState.RUNNING, started=again, due_at=self._at))
        if not begun and not await self._store.known(anew):  # else an earlier retry got so far and no further
            raise RefusedError(f"run {started.run_id}: another run has taken its idempotency key meanwhile")
        seized = await self._seized(run)
        await self._commit(seized, run.state, note, finished_at=run.finished_at, error=run.error)
        return anew

    async def _mind_the_key(self, run: StoredRun) -> None:
        key = run.started.key
        holder = await self._store.holder(run.started.handler, key, self._now) if key is not None else None
        if holder not in (None, run.started.run_id):
            raise RefusedError(f"run {run.started.run_id}: run {holder} has its idempotency key {key} now")

    async def _seized(self, run: StoredRun) -> StoredRun:
        seized = await self._store.seize(run.started.run_id)
        if seized is None or (seized.state is not run.state and (seized.state.is_final or run.state.is_final)):
            raise RefusedError(f"run {run.started.run_id} has changed meanwhile: look again")
        return seized

    async def _commit(
        self,
        run: StoredRun,
        state: RunState,
        note: Intervention,
        *,
        due_at: str | None = None,
        finished_at: str | None = None,
        error: Error | None = None,
        key_until: str | None = None,
        forgive: bool = False,
        reply: ReplySent | None = None,
        answer: Outgoing | None = None,
    ) -> None:
        records: tuple[Record, ...] = (note,) if reply is None else (note, reply)
        change = Change(
            run_id=run.started.run_id,
            state=state,
            first=len(run.records),
            records=records,
            outgoing=() if answer is None else (answer,),
            due_at=due_at,
            finished_at=finished_at,
            error=error,
            key_until=key_until,
            forgive=forgive,
            gate=run.started.handler,
        )
        await self._store.commit(change)

    def _intervention(self, action: Action, run: StoredRun, **how: str | None) -> Intervention:
        return Intervention(action=action, by=self._by, at=self._at, was=run.state, reason=self._reason, **how)


def may_cancel(run: StoredRun) -> None:
    """Raises RefusedError if it cannot be cancelled, and says why."""
    name = f"run {run.started.run_id}"
    if run.state.is_final:
        raise RefusedError(f"{name} is {run.state}: there is nothing to cancel")
    if run.state is RunState.COMPENSATING:
        raise RefusedError(f"{name} is being undone already", hint="flowrun runs kill ends it as it stands")
    if any(isinstance(r, StepFinished) and r.pivot for r in run.records):
        raise RefusedError(
            f"{name} has passed its pivot: it cannot be undone any more", hint="flowrun runs kill ends it as it stands"
        )


def may_kill(run: StoredRun) -> None:
    """Raises RefusedError if it has ended already."""
    if run.state.is_final:
        raise RefusedError(f"run {run.started.run_id} is {run.state}: there is nothing to kill")


def may_retry(run: StoredRun, from_step: str | None) -> None:
    """Raises RefusedError if there is nothing to retry, or not from that step, and says why."""
    name = f"run {run.started.run_id}"
    if not run.state.is_final:
        raise RefusedError(f"{name} is {run.state}: it goes on by itself")
    if run.state is RunState.COMPLETED:
        raise RefusedError(f"{name} is completed: there is nothing to retry")
    if (anew := began_anew_as(run)) is not None:
        raise RefusedError(f"{name} began anew as {anew}", hint=f"flowrun runs show {anew}; retry that one")
    if from_step is None:
        return
    if run.state is not RunState.FAILED:
        raise RefusedError(f"{name} is {run.state}: only a failed run goes on from a step")
    ran = own_steps(run)
    if from_step not in ran:
        raise RefusedError(f'{name} never came to a step "{from_step}"', hint=f"it ran: {', '.join(ran)}")


def began_anew_as(run: StoredRun) -> str | None:
    """The run that a retry of this one has begun."""
    return next((r.anew for r in run.records if isinstance(r, Intervention) and r.anew is not None), None)


def own_steps(run: StoredRun) -> list[str]:
    """The ids of the run's own steps that ended, `on_failure` not counted, in the order in which they did."""
    steps: dict[str, None] = {}
    undoing = False
    for record in run.records:
        match record:
            case RunFailed():
                undoing = True
            case Intervention():
                undoing = False
            case StepFinished() if not undoing:
                steps[record.step_id] = None
    return list(steps)
