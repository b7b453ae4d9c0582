"""What the store keeps of a run. A run is resumed by reading its records again, never by guessing.

All are frozen; times are RFC 3339 texts in UTC, outputs JSON values.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

import msgspec

from runner.message import Meta, Outgoing


class RunState(StrEnum):
    """A run's states (LANGUAGE, Steps)."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATED = "compensated"
    COMPENSATION_FAILED = "compensation_failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing more happens by itself."""
        return self in _FINAL


_FINAL = frozenset(
    {
        RunState.COMPLETED,
        RunState.FAILED,
        RunState.COMPENSATED,
        RunState.COMPENSATION_FAILED,
        RunState.CANCELLED,
    }
)


class StepState(StrEnum):
    """What became of a step."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """A step's or a run's error, as flows see it under `error`."""

    type: str
    message: str
    retryable: bool
    details: dict[str, Any] = {}
    step: str | None = None


class StepFinished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="step"):
    """A step's result, for good. It is never run again in this run, unless a person says so.

    `target` is what the action names: a handler, an event. `pivot`: with it the run has passed the point of no
    return. `unknown`: it failed, and may have had its effect all the same.
    """

    step_id: str
    action: str
    state: StepState
    attempts: int
    started_at: str | None
    finished_at: str
    output: Any = None
    error: Error | None = None
    target: str = ""
    pivot: bool = False
    unknown: bool = False
    event: Any = None
    """Of a `wait_for`: the meta of what came, or a list of them."""


class LetIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="let_in"):
    """The run, which was `queued`, has passed the gate of its handler: it begins."""

    at: str


class AttemptBegun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="begun"):
    """An attempt begins of which nobody may ever hear the end: the run has met crashes before. `again`: the process
    that died may have been in the midst of it."""

    step_id: str
    attempt: int
    started_at: str
    again: bool = False


class AttemptFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="attempt"):
    """An attempt failed and will be repeated at `retry_at`; `undo` if it was a compensation's."""

    step_id: str
    attempt: int
    started_at: str
    failed_at: str
    retry_at: str
    error: Error
    undo: bool = False
    unknown: bool = False


class BlockBegun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="block"):
    """A `parallel` or a `foreach` begins; with what a loop goes through."""

    step_id: str
    at: str
    items: list[Any] = []


class BranchTaken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="branch"):
    """The branch that a switch took, so that it is not decided again after a crash; None if none held. Of a `parallel`
    that waits for any: the one that came first. Of a `foreach` with `until`: the last round that has begun."""

    step_id: str
    branch: int | None


class ErrorCaught(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="caught"):
    """A step failed for good and one of its catches (counted from 0) took the error."""

    step_id: str
    catch: int
    error: Error
    attempts: int
    started_at: str
    failed_at: str
    unknown: bool = False


class RunFailed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="failed"):
    """The run's own steps are over; from here it undoes what it did. `cancelled`: because a person said so."""

    error: Error
    failed_at: str
    cancelled: bool = False


class UndoFinished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="undo"):
    """A compensation's result; `step_id` is its own: the step's, and its place in the step's list."""

    step_id: str
    action: str
    state: StepState
    attempts: int
    started_at: str | None
    finished_at: str
    output: Any = None
    error: Error | None = None
    target: str = ""
    unknown: bool = False


class WaitBegun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="wait"):
    """A wait begins: until `until`, if that is given; for events that bear one of `tokens`."""

    step_id: str
    at: str
    until: str | None = None
    tokens: tuple[str, ...] = ()


class EventsTaken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="taken"):
    """Events that a wait got, as (source, id): no other wait of the run gets them."""

    step_id: str
    events: tuple[tuple[str, str], ...]


class CommandSent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="sent"):
    """A command went out, under `command_id`, and is waited for until `deadline`."""

    step_id: str
    command_id: str
    attempt: int
    sent_at: str
    deadline: str
    is_new: bool = True
    """Not the same one again, after a timeout."""


class ReplySent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="reply"):
    """What the run answers to its caller: a result, or an error."""

    at: str
    result: Any = None
    error: Error | None = None


class Intervention(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="intervention"):
    """What a person did to a run: the audit. `by` is `user@host`; `reason` is theirs.

    `was` is the run's state before. `from_step` is where a retry goes on, unless at the failed step; `anew` is the
    run that a retry began instead.
    """

    action: Literal["retry", "cancel", "kill"]
    by: str
    at: str
    was: RunState
    reason: str | None = None
    from_step: str | None = None
    anew: str | None = None


Record = (
    StepFinished
    | LetIn
    | AttemptBegun
    | AttemptFailed
    | WaitBegun
    | EventsTaken
    | CommandSent
    | ReplySent
    | BlockBegun
    | BranchTaken
    | ErrorCaught
    | RunFailed
    | UndoFinished
    | Intervention
)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent the command that began a run, and until when it waits. Without `reply_to` nobody does."""

    command: str
    correlation_id: str
    reply_to: str | None = None
    expires_at: str | None = None


Patterns = Mapping[str, frozenset[tuple[str, ...]]]
"""By event, the sets of fields (dotted paths, sorted) that some wait looks at."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """An event that some step may wait for; `token` stands for its name, and for fields and their values."""

    token: str
    received_at: str
    meta: Meta
    data: bytes


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for a command: a result, or an error."""

    command_id: str
    result: Any = None
    error: Error | None = None


class RunStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a run: which message began it, by which plan. `data` is the payload as it came.

    `key` is its idempotency key: while one run of the handler holds it, no other begins with it. `caller` is there
    if it was a command.
    """

    run_id: str
    flow: str
    handler: str
    plan_hash: str
    trigger: Meta
    data: bytes
    started_at: str
    trace: dict[str, str] = {}
    key: str | None = None
    caller: Caller | None = None


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An event for the event log. `run_id` is the run that emitted it; None if it came from outside. `expected` is the
    version that its subject must be at before it; None: any."""

    meta: Meta
    data: bytes
    run_id: str | None = None
    expected: int | None = None


class LoggedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as the log has it: its place in the log, and its version, the place among those of its subject.

    `handler` is whose run emitted it, if the store has the run.
    """

    position: int
    version: int | None
    meta: Meta
    data: bytes
    run_id: str | None = None
    handler: str | None = None


def event_json(event: LoggedEvent) -> dict[str, Any]:
    """An event as commands and archives have it (LANGUAGE, Commands); `data` byte for byte, but on one line."""
    meta = event.meta
    return {
        "position": event.position,
        "id": meta.id,
        "type": meta.type,
        "source": meta.source,
        "subject": meta.subject,
        "version": event.version,
        "time": meta.time,
        "correlation_id": meta.correlation_id,
        "causation_id": meta.causation_id,
        "run_id": event.run_id,
        "data": msgspec.Raw(msgspec.json.format(event.data, indent=-1)),
    }


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of the log: those that fit all that is given. `since` and `until` are of the events' own times,
    `until` and `up_to_version` included."""

    id_begins: str | None = None
    types: tuple[str, ...] | None = None
    source: str | None = None
    subject: str | None = None
    correlation_id: str | None = None
    since: str | None = None
    until: str | None = None
    up_to_version: int | None = None


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """A read model in the store: the entries that the projection `name` has by `definition`, folded from the log up to
    `position`. `is_served`: it is the one that is read; another of its name is built to replace it.

    Until `claimed_until`, `claimed_by` folds it, so that others need not. `faults` counts the events that could not be
    folded, and were left out; `last_fault` says why the last one was.
    """

    id: int
    name: str
    definition: str
    position: int
    is_served: bool
    claimed_by: str | None = None
    claimed_until: str | None = None
    faults: int = 0
    last_fault: str | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of a read model; `state` is None once it is deleted. It changed `changes` times, last by the event at
    `position`; `latest` is the latest time of the events that changed it."""

    key: str
    state: dict[str, Any] | None = None
    position: int = 0
    changes: int = 0
    latest: str = ""


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """What events of the log, up to `position`, made of a read model: its entries that changed, as they are now.

    `changes` are all of them, by key and position, with the events that were left out: in the past, without what has
    happened since, they may not be. `snapshots` are entries as they were after some of the changes.
    """

    position: int
    entries: tuple[Entry, ...] = ()
    changes: tuple[tuple[str, int], ...] = ()
    snapshots: tuple[Entry, ...] = ()
    faults: int = 0
    last_fault: str | None = None


class AsOf(msgspec.Struct, frozen=True, kw_only=True):
    """Up to where a read model is folded: to a place in the log, or by the events' own times; both included."""

    position: int | None = None
    time: str | None = None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that cannot begin a run, kept whole, with the reason."""

    id: str
    reason: str
    error: Error
    handler: str
    type: str | None
    source: str | None
    message_id: str | None
    received_at: str
    body: bytes
    headers: dict[str, Any]
    exchange: str
    routing_key: str
    content_type: str | None = None
    app_id: str | None = None
    correlation_id: str | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands at its handler's gate. Those of one `line` pass one after the other; if it `is_ordered`, in
    the order in which they came, and each only when the one before is final. `slot` and `bucket` say whose slot and
    whose token it needs. Of those that may pass, the one with the lowest `rank` does."""

    handler: str
    line: str | None = None
    is_ordered: bool = False
    slot: str | None = None
    bucket: str | None = None
    rank: int = 0


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """A token bucket: `limit` tokens come in `period_s`, at most `burst` are there at once."""

    limit: int
    period_s: float
    burst: int


class Circuit(msgspec.Struct, frozen=True):
    """A circuit that is not closed: open until then; from then on one attempt at a time is let through, and nothing
    else while one is under way, at most until `probe_until`."""

    name: str
    open_until: str
    probe_until: str | None = None

    def lets_in_at(self, now: str) -> str:
        """From when on an attempt may be let through: not while another is under way."""
        return self.probe_until if self.probe_until is not None and self.probe_until > now else self.open_until

    def state(self, now: str) -> Literal["open", "half_open"]:
        """Half-open: an attempt may be let through, or is under way."""
        return "open" if self.open_until > now else "half_open"


class GateRules(msgspec.Struct, frozen=True, kw_only=True):
    """What holds at a handler's gate: the throttle's tokens, and how many runs there may be for one slot. While it
    `is_shut`, only those pass that have passed before, and go on."""

    handler: str
    tokens: Tokens | None = None
    slots: int | None = None
    is_shut: bool = False


HELD = "9999"
"""Until when a run that is not final holds its idempotency key: after any time."""

SUSPECT_CRASHES = 2
"""A run that so many processes died with is a suspect: from then on it runs alone, in a process of its own."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What is committed together, or not at all.

    `started` begins the run; the store refuses it if that run stands already, or if another one holds its key.
    `first` is the number of the first of `records` within the run. `due_at` parks the run until then,
    `finished_at` ends it; its key is then held until `key_until`, or free. With `due_at`, `key_until` takes the key
    back, which may be another's until then, but no longer. `suspect` counts a crash beforehand;
    the change that next parks or ends the run, alive, takes that back: a suspect stays one, any other run is
    forgiven. `forgive` takes back all.
    """

    run_id: str
    state: RunState
    started: RunStarted | None = None
    first: int = 0
    records: tuple[Record, ...] = ()
    events: tuple[EventRecord, ...] = ()
    outgoing: tuple[Outgoing, ...] = ()
    commands: tuple[str, ...] = ()
    """Ids of commands among `outgoing`, whose answers are the run's."""
    tokens: tuple[str, ...] = ()
    """Of events that the run waits for from now on: an arrival that bears one makes it due."""
    cancel_tokens: tuple[str, ...] = ()
    """Of events that cancel the run."""
    asleep: bool = False
    """It is parked in a `wait` or a `wait_for`: not a thing left to do."""
    due_at: str | None = None
    finished_at: str | None = None
    error: Error | None = None
    key_until: str | None = None
    suspect: bool = False
    forgive: bool = False
    place: Place | None = None
    """It begins as `queued`, there; nobody owns it until it is let in."""
    gate: str | None = None
    """The handler at whose gate the run may have stood: when it is parked or ends, another may pass."""


class StoredRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the store has it. `crashes` counts the processes that died with it; `request` is what a person wants
    to become of it."""

    started: RunStarted
    state: RunState
    records: tuple[Record, ...]
    crashes: int
    due_at: str | None = None
    finished_at: str | None = None
    error: Error | None = None
    request: Intervention | None = None
    answers: tuple[Answer, ...] = ()
    arrivals: tuple[Arrival, ...] = ()
    """Of events that it waits for, or waited for: what came since it began, the earliest first."""


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that were let in at a gate, and when the next may be, if only time keeps it."""

    runs: tuple[StoredRun, ...] = ()
    next_at: datetime | None = None


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `runs list`."""

    id: str
    flow: str
    handler: str
    state: RunState
    trigger: dict[str, str | None]
    started_at: str
    finished_at: str | None
    error: Error | None


class OutboxRow(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is committed but not yet confirmed by the broker."""

    position: int
    outgoing: Outgoing
    reason: str | None = None


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a store says of itself. `clock_skew_s` is its clock less ours; `free_bytes` is left on its disk."""

    product: str
    version: str
    schema_version: int
    clock_skew_s: float = 0.0
    free_bytes: int | None = None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of one handler, in numbers: those that go on now, those that wait, and those that have not been let in;
    how many began since some moment, and how many of these have failed, or had to be undone."""

    queued: int = 0
    running: int = 0
    waiting: int = 0
    begun: int = 0
    failed: int = 0


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What a store still has to do, in numbers; `suspects` are among the `runs`, those asleep in a wait are not."""

    runs: int
    suspects: int
    outbox: int
    refused: int
    dead_letters: int
