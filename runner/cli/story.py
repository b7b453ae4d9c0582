"""A run as people read it: lines as it goes, and a timeline when it is over."""

from __future__ import annotations

from collections.abc import Iterator

from runner.cli.output import paint, state
from runner.lang.report import printable
from runner.message import REPLAY, encode_json
from runner.records import (
    AttemptBegun,
    AttemptFailed,
    BlockBegun,
    BranchTaken,
    Change,
    CommandSent,
    Error,
    ErrorCaught,
    EventsTaken,
    Intervention,
    LetIn,
    Record,
    ReplySent,
    RunFailed,
    RunStarted,
    RunState,
    StepFinished,
    StepState,
    StoredRun,
    UndoFinished,
    WaitBegun,
)
from runner.times import format_duration, parse_time

PAYLOAD_SHOWN = 500
"""Characters of what a run is about; --json has it whole."""


def short(run_id: str) -> str:
    """Enough of a run's id to tell it from the others of a day."""
    return run_id[:8]


def begin_line(started: RunStarted, *, stream: object = None) -> str:
    """That a run begins, and with what."""
    meta = started.trigger
    begins = paint("begins", "bold", stream=stream)
    return f"{short(started.run_id)} {started.handler}  {begins}  {printable(f'{meta.type} {meta.subject or meta.id}')}"


def change_lines(change: Change, handler: str, *, stream: object = None) -> Iterator[str]:
    """What a commit says, a line a fact, each with the run that it is of."""
    head = f"{short(change.run_id)} {handler}"
    for record in change.records:
        text = _line(record, stream)
        if text is not None:
            yield f"{head}    {text}"
    if change.finished_at is not None:
        why = f"  {_error(change.error)}" if change.error is not None else ""
        yield f"{head}  {state(str(change.state), stream=stream)}{why}"


def timeline(run: StoredRun) -> Iterator[str]:
    """`runs show`: the run's head, its steps in the order they ended, and its compensations."""
    started = run.started
    meta = started.trigger
    yield f"{paint('run', 'bold')}      {started.run_id}"
    yield f"{paint('handler', 'bold')}  {started.handler}  (plan {started.plan_hash})"
    about = f" about {meta.subject}" if meta.subject else ""
    origin = f"(id {meta.id} from {meta.source})"
    yield f"{paint('trigger', 'bold')}  {printable(f'{meta.type}{about}  {origin}')}"
    yield f"{paint('about', 'bold')}    {_payload(started.data)}"
    if (replay := started.trace.get(REPLAY)) is not None:
        yield f"{paint('replay', 'bold')}   {printable(replay)}"
    if meta.causation_id is not None:
        yield f"{paint('cause', 'bold')}    message {printable(f'{meta.causation_id}, of {meta.correlation_id}')}"
    end = run.finished_at
    took = f", took {_between(started.started_at, end)}" if end is not None else ""
    yield f"{paint('state', 'bold')}    {state(str(run.state))}{took}"
    if run.error is not None:
        yield f"{paint('error', 'bold')}    {_error(run.error)}"
    if run.due_at is not None:
        yield f"{paint('next', 'bold')}     goes on at {run.due_at}"
    if run.crashes:
        yield f"{paint('crashes', 'bold')}  {run.crashes}: processes that died while they had it"
    if run.request is not None:
        yield f"{paint('asked', 'bold')}    {printable(f'{run.request.action}, by {run.request.by}')}"
    yield ""
    is_queued = run.state is RunState.QUEUED or any(isinstance(record, LetIn) for record in run.records)
    yield f"{started.started_at}  {'is queued' if is_queued else 'begins'}"
    for record in run.records:
        text = _line(record, None)
        if text is not None:
            yield f"{_time(record)}  {text}"
    if end is not None:
        yield f"{end}  {state(str(run.state))}"


def _payload(data: bytes) -> str:
    text = printable(data.decode(errors="backslashreplace"))
    return text if len(text) <= PAYLOAD_SHOWN else text[: PAYLOAD_SHOWN - 1] + "…"


def _line(record: Record, stream: object) -> str | None:
    """One record as a line; None for what nobody wants to read."""
    match record:
        case BranchTaken() | AttemptBegun() | BlockBegun():
            return None
        case EventsTaken():
            return None
        case LetIn():
            return f"{paint('▸', 'cyan', stream=stream)} is let in"
        case WaitBegun():
            until = f" until {record.until}" if record.until is not None else ""
            return f"{paint('…', 'cyan', stream=stream)} {record.step_id}  waits{until}"
        case CommandSent():
            what = f"sent as {record.command_id}, waits for the reply until {record.deadline}"
            return f"{paint('→', 'cyan', stream=stream)} {record.step_id}  {what}"
        case ReplySent():
            what = printable(encode_json(record.result).decode())[:80] if record.error is None else _error(record.error)
            return f"{paint('←', 'cyan', stream=stream)} replies  {what}"
        case StepFinished():
            return _step_line(record, stream)
        case UndoFinished():
            return _undo_line(record, stream)
        case AttemptFailed():
            mark = paint("↻", "yellow", stream=stream)
            wait = _between(record.failed_at, record.retry_at)
            return f"{mark} {record.step_id}  attempt {record.attempt} failed, again in {wait}  {_error(record.error)}"
        case ErrorCaught():
            return f"{paint('!', 'yellow', stream=stream)} {record.step_id}  caught  {_error(record.error)}"
        case Intervention():
            return f"{paint('☞', 'cyan', stream=stream)} {_intervention(record)}"
        case RunFailed():
            return paint(f"✗ fails  {_error(record.error)}", "red", stream=stream)


def _intervention(record: Intervention) -> str:
    where = f" from {record.from_step}" if record.from_step is not None else ""
    anew = f" as {short(record.anew)}" if record.anew is not None else ""
    why = f": {record.reason}" if record.reason else ""
    return printable(f"{record.action}{where}{anew}, by {record.by}{why}")


def _step_line(record: StepFinished, stream: object) -> str:
    what = f"{record.step_id}  {record.action} {record.target}".rstrip()
    if record.state is StepState.SKIPPED:
        return paint(f"- {what}  skipped", "bright_black", stream=stream)
    if record.state is StepState.COMPLETED:
        return f"{paint('✓', 'green', stream=stream)} {what}{_took(record)}"
    if record.state is StepState.CANCELLED:
        return f"{paint('✗', 'yellow', stream=stream)} {what}{_took(record)}  {_error(record.error)}"
    return f"{paint('✗', 'red', stream=stream)} {what}{_took(record)}  {_error(record.error)}"


def _undo_line(record: UndoFinished, stream: object) -> str:
    step, _, place = record.step_id.rpartition(".compensate.")
    step += place.lstrip("0123456789")  # its rounds
    what = f"{step}  undo: {record.action} {record.target}"
    if record.state is StepState.SKIPPED:
        return paint(f"- {what}  not wanted (when)", "bright_black", stream=stream)
    if record.state is StepState.COMPLETED:
        return f"{paint('↶', 'yellow', stream=stream)} {what}{_took(record)}"
    return f"{paint('✗', 'red', stream=stream)} {what}  could not be undone{_took(record)}  {_error(record.error)}"


def _time(record: Record) -> str:
    match record:
        case StepFinished() | UndoFinished():
            return record.finished_at
        case AttemptFailed() | RunFailed() | ErrorCaught():
            return record.failed_at
        case Intervention() | ReplySent() | LetIn():
            return record.at
        case CommandSent():
            return record.sent_at
        case WaitBegun():
            return record.at
    return ""


def _took(record: StepFinished | UndoFinished) -> str:
    if record.started_at is None or record.action != "use":
        return ""
    tries = f", attempt {record.attempts}" if record.attempts > 1 else ""
    return f"  ({_between(record.started_at, record.finished_at)}{tries})"


def _between(start: str, end: str) -> str:
    return format_duration(max(0.0, (parse_time(end) - parse_time(start)).total_seconds()))


def _error(error: Error | None) -> str:
    if error is None:
        return ""
    return printable(error.type if error.message == error.type else f"{error.type}: {error.message}")
