"""What a run waits for by its own wish: a time, an event, or an event that cancels it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from runner.engine.effects import at_most
from runner.engine.line import Frame
from runner.engine.matching import token
from runner.engine.results import own
from runner.engine.run import Run
from runner.errors import ExpressionError
from runner.expressions import Scope
from runner.message import decode_json
from runner.outcome import Done, Failed, Parked
from runner.plan import Wait, WaitFor
from runner.ports import Clock
from runner.records import Arrival, Error, EventsTaken, WaitBegun
from runner.times import parse_time, rfc3339
from runner.values import clip

NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)


class Waits:
    """Begins waits, and says whether they are over. All may raise ExpressionError."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def await_cancel(self, run: Run) -> None:
        """Register the events that cancel the run, with what they must match now that it begins."""
        for cancel in run.program.cancel_on:
            values = cancel.match(run.scope("cancel_on", Frame(line=run.line)))
            run.await_events([token(cancel.event, cancel.fields, [values.get(f) for f in cancel.fields])], cancel=True)

    def wait(self, run: Run, step: Wait, frame: Frame) -> Done | Parked:
        """Park until the time that was named when the wait began."""
        key = frame.key(step)
        begun = run.history.waits.get(key)
        if begun is None:
            until = self._until(step, run.scope(key, frame))
            assert until is not None
            run.note(WaitBegun(step_id=key, at=rfc3339(self._clock.now()), until=rfc3339(until)))
        else:
            until = parse_time(begun.until or begun.at)
        return Done() if self._clock.now() >= until else Parked(at_most(until, run, frame), asleep=True)

    def wait_for(self, run: Run, step: WaitFor, frame: Frame) -> Done | Failed | Parked:
        """Park until enough events have come that match what was named when the wait began, or until it is too late."""
        key = frame.key(step)
        begun = run.history.waits.get(key)
        if begun is None:
            scope = run.scope(key, frame)
            values = own(step.match(scope))
            tokens = tuple(token(event, step.fields, [values.get(f) for f in step.fields]) for event in step.events)
            until = self._until(step, scope)
            run.note(
                WaitBegun(
                    step_id=key,
                    at=rfc3339(self._clock.now()),
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
            return self._take(run, step, key, came[:wanted])
        until = None if begun.until is None else parse_time(begun.until)
        if until is not None and self._clock.now() >= until:
            text = f"{step.target} did not come until {begun.until}"
            return Failed(Error(type="timeout", message=text, retryable=True, step=key))
        return Parked(at_most(until or NEVER, run, frame), asleep=True)

    def _take(self, run: Run, step: WaitFor, key: str, came: list[Arrival]) -> Done:
        run.note(EventsTaken(step_id=key, events=tuple((a.meta.source, a.meta.id) for a in came)))
        data = [decode_json(arrival.data) for arrival in came]
        metas = [arrival.meta.names() for arrival in came]
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
