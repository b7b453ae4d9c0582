"""Rows ↔ records: the same columns in every SQL store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from runner.errors import GivenUpError, NotFoundError, VersionConflictError
from runner.message import Meta, Outgoing, Properties
from runner.plan import Binding, Exchange, Queue, Topology
from runner.records import (
    HELD,
    Answer,
    Arrival,
    Build,
    Caller,
    Change,
    DeadLetter,
    Entry,
    Error,
    EventRecord,
    Figures,
    Intervention,
    LoggedEvent,
    OutboxRow,
    Patterns,
    Place,
    Record,
    RunStarted,
    RunState,
    RunSummary,
    StoredRun,
)

_state = msgspec.json.Decoder(dict[str, Any]).decode
_record = msgspec.json.Decoder(Record).decode
_meta = msgspec.json.Decoder(Meta).decode
_error = msgspec.json.Decoder(Error).decode
_trace = msgspec.json.Decoder(dict[str, str]).decode
_properties = msgspec.json.Decoder(Properties).decode
_exchange = msgspec.json.Decoder(Exchange).decode
_queue = msgspec.json.Decoder(Queue).decode
_binding = msgspec.json.Decoder(Binding).decode
_letter = msgspec.json.Decoder(DeadLetter).decode
_arrival = msgspec.json.Decoder(Arrival).decode
_answer = msgspec.json.Decoder(Answer).decode
caller = msgspec.json.Decoder(Caller).decode
intervention = msgspec.json.Decoder(Intervention).decode


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOST_SKEW_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket as one number, the moment when it is full again (the generic cell rate algorithm, ITU-T I.371).

    In whole nanoseconds: sums of floats would let one too many or too few through.
    """

    limit: int
    period_s: float
    burst: int
    now: datetime

    @property
    def now_ns(self) -> int:
        """Now, since 1970."""
        return nanoseconds(self.now)

    @property
    def token_ns(self) -> int:
        """The time that a token takes to come."""
        return max(1, round(self.period_s * 1e9 / self.limit))

    @property
    def values(self) -> tuple[int, int, int]:
        """The time that a token takes to come, the time that all take, and now.

        Those who ask at once do so in another order than their clocks say: the last of a burst would be refused for
        being a moment early. So a token may be taken a hundredth of its time before it has come.
        """
        return self.token_ns, self.token_ns * self.burst + min(self.token_ns // 100, 10**9), self.now_ns

    def take(self, full_at_ns: int, *, early: bool = False) -> int | None:
        """When it is full again, once a token is taken, if it may be a little `early`; None if there is none."""
        token_ns, all_ns, now_ns = self.values
        after = max(full_at_ns, now_ns) + token_ns
        return after if after <= now_ns + (all_ns if early else token_ns * self.burst) else None

    def opens_at(self, full_at_ns: int) -> int:
        """When there is a token, if there is none."""
        return full_at_ns + self.token_ns * (1 - self.burst)

    @property
    def bound(self) -> tuple[int, int]:
        """When it is full, if it is empty now; and from when on it was emptied under a smaller limit: clocks differ
        by less."""
        latest_ns = self.now_ns + self.token_ns * self.burst
        return latest_ns, latest_ns + MOST_SKEW_NS

    def bounded(self, full_at_ns: int) -> int:
        """One that was emptied under a smaller limit is empty under this one."""
        latest_ns, beyond_ns = self.bound
        return latest_ns if full_at_ns > beyond_ns else full_at_ns

    def wait_s(self, full_at_ns: int) -> float:
        """How long until there is a token, if there is none."""
        return max(0, self.opens_at(full_at_ns) - self.now_ns) / 1e9


def nanoseconds(moment: datetime) -> int:
    """A time, since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def text(value: object) -> str:
    """A value as JSON text."""
    return msgspec.json.encode(value).decode()


def error_text(error: Error | None) -> str | None:
    """An error as JSON text; none for none."""
    return None if error is None else text(error)


def error_beginning(kind: str) -> str:
    """How the JSON text of every error of this type, or of this family (`http.*`), begins: it is the first of its
    fields."""
    if kind.endswith(".*"):
        return f'{{"type":{text(kind[:-1])[:-1]}'
    return f'{{"type":{text(kind)},'


def is_parted_with(change: Change) -> bool:
    """Afterwards the run is nobody's: it is parked, over, or waits to be let in."""
    return change.due_at is not None or change.finished_at is not None or change.place is not None


def run_values(change: Change, started: RunStarted, owner: str) -> tuple[Any, ...]:
    """id, flow, handler, plan_hash, state, trigger, trace, data, started_at, key, key_until, crashes, caller, due_at,
    finished_at, error, asleep, owner: of a run that begins, as the change leaves it."""
    is_parted = is_parted_with(change)
    held_until = HELD if change.finished_at is None else change.key_until
    return (
        started.run_id,
        started.flow,
        started.handler,
        started.plan_hash,
        str(change.state),
        text(started.trigger),
        text(started.trace),
        started.data,
        started.started_at,
        started.key,
        None if started.key is None else held_until,
        int(change.suspect and not is_parted),
        None if started.caller is None else text(started.caller),
        change.due_at,
        change.finished_at,
        error_text(change.error),
        int(change.asleep),
        None if is_parted else owner,
    )


def state_values(change: Change) -> tuple[Any, ...]:
    """run_id, state, due_at, finished_at, error, key_until, suspect, forgive, asleep: of a run that goes on or ends."""
    return (
        change.run_id,
        str(change.state),
        change.due_at,
        change.finished_at,
        error_text(change.error),
        change.key_until,
        int(change.suspect),
        int(change.forgive),
        int(change.asleep),
    )


def record_values(change: Change) -> list[tuple[str, int, str]]:
    """run_id, number, body of each record."""
    return [(change.run_id, number, text(record)) for number, record in enumerate(change.records, change.first)]


def event_values(event: EventRecord) -> tuple[Any, ...]:
    """id, type, source, subject, time, correlation_id, causation_id, data, run_id."""
    m = event.meta
    return m.id, m.type, m.source, m.subject, m.time, m.correlation_id, m.causation_id, event.data, event.run_id


def figures(unfinished: Iterable[Sequence[Any]], recent: Iterable[Sequence[Any]]) -> dict[str, Figures]:
    """Of (handler, state, count) and (handler, begun, failed)."""
    counts: dict[str, dict[str, int]] = {}
    for handler, state, count in unfinished:
        known = counts.setdefault(handler, {})
        name = state if state in ("queued", "waiting") else "running"
        known[name] = known.get(name, 0) + count
    for handler, begun, failed in recent:
        counts.setdefault(handler, {}).update(begun=begun, failed=failed)
    return {handler: Figures(**given) for handler, given in counts.items()}


def mind_the_version(event: EventRecord, actual: int) -> None:
    """Raise VersionConflictError if its subject is at another version than the event expects."""
    if event.expected is not None and event.expected != actual:
        raise VersionConflictError(event.meta.subject or "", event.expected, actual)


def build(row: Sequence[Any]) -> Build:
    """Of id, name, definition, position, is_served, claimed_by, claimed_until, faults, last_fault."""
    ident, name, definition, position, is_served, claimed_by, claimed_until, faults, last_fault = row
    return Build(
        id=ident,
        name=name,
        definition=definition,
        position=position,
        is_served=bool(is_served),
        claimed_by=claimed_by,
        claimed_until=claimed_until,
        faults=faults,
        last_fault=last_fault,
    )


def entry_values(build: Build, entry: Entry) -> tuple[Any, ...]:
    """build, key, state, position, changes, latest."""
    state = None if entry.state is None else text(entry.state)
    return build.id, entry.key, state, entry.position, entry.changes, entry.latest


def entry(row: Sequence[Any]) -> Entry:
    """Of key, state, position, changes, latest."""
    key, state, position, changes, latest = row
    return Entry(
        key=key, state=None if state is None else _state(state), position=position, changes=changes, latest=latest
    )


def entries(build: Build, found: Sequence[Sequence[Any]]) -> tuple[int, dict[str, Entry]]:
    """The build's position, which stands in every row, and the entries behind it, by key; nulls if there are none.

    Raises GivenUpError if there is no row.
    """
    if not found:
        raise GivenUpError.of(build.name)
    known = [entry(tuple(row)[1:]) for row in found if row[1] is not None]
    return found[0][0], {each.key: each for each in known}


def logged_event(row: Sequence[Any]) -> LoggedEvent:
    """Of position, id, type, source, subject, version, time, correlation_id, causation_id, data, run_id, handler."""
    position, ident, kind, source, subject, version, time, correlation_id, causation_id, data, run_id, handler = row
    return LoggedEvent(
        position=position,
        version=version,
        meta=Meta(
            id=ident,
            type=kind,
            source=source,
            subject=subject,
            time=time,
            correlation_id=correlation_id,
            causation_id=causation_id,
        ),
        data=bytes(data),
        run_id=run_id,
        handler=handler,
    )


def place_values(change: Change, place: Place) -> dict[str, Any]:
    """run_id, handler, line, is_ordered, slot, bucket, rank."""
    return {"run_id": change.run_id, **msgspec.structs.asdict(place)}


def trigger_beginning(event: Meta) -> str:
    """How the JSON text of every trigger with this id begins: it is the first of its fields."""
    return f'{{"id":{text(event.id)},'


def outgoing_values(message: Outgoing) -> tuple[Any, ...]:
    """exchange, routing_key, properties, body, mandatory."""
    return message.exchange, message.routing_key, text(message.properties), message.body, message.mandatory


def caller_values(run_id: str, caller: Caller) -> tuple[str, str, str]:
    """run_id, correlation_id, reply_to: what tells one that waits for a run's reply from another."""
    return run_id, caller.correlation_id, caller.reply_to or ""


def letter_values(letter: DeadLetter) -> tuple[str, str, str, str, str, bytes]:
    """id, reason, handler, received_at, letter (without its body), body."""
    described = text(msgspec.structs.replace(letter, body=b""))
    return letter.id, letter.reason, letter.handler, letter.received_at, described, letter.body


def dead_letter(row: Sequence[Any]) -> DeadLetter:
    """Of letter, body."""
    letter, body = row
    return msgspec.structs.replace(_letter(letter), body=bytes(body))


def the_letter(found: Sequence[Sequence[Any]], ident: str) -> DeadLetter | None:
    """The dead letter that an id, or the beginning of one, stands for. Raises NotFoundError if it fits several."""
    letters = [dead_letter(row) for row in found]
    if len(letters) > 1 and letters[0].id != ident:
        raise NotFoundError(f'more than one dead letter begins with "{ident}"', hint="give more of its id")
    return letters[0] if letters else None


def outbox_row(row: Sequence[Any]) -> OutboxRow:
    """Of position, exchange, routing_key, properties, body, mandatory, reason."""
    position, exchange, routing_key, properties, body, mandatory, reason = row
    outgoing = Outgoing(
        exchange=exchange,
        routing_key=routing_key,
        body=bytes(body),
        properties=_properties(properties),
        mandatory=bool(mandatory),
    )
    return OutboxRow(position=position, outgoing=outgoing, reason=reason)


def stored_run(
    row: Sequence[Any],
    bodies: Iterable[str],
    answers: Iterable[str] = (),
    arrivals: Iterable[Sequence[Any]] = (),
) -> StoredRun:
    """Of the columns of `runs` that the query `run` names, the run's records in order, its commands' answers, and
    what came of what it waits for."""
    ident, flow, handler, plan_hash, state, trigger, trace, data, started_at, *rest = row
    finished_at, due_at, error, crashes, key, request, sender = rest
    return StoredRun(
        started=RunStarted(
            run_id=ident,
            flow=flow,
            handler=handler,
            plan_hash=plan_hash,
            trigger=_meta(trigger),
            data=bytes(data),
            started_at=started_at,
            trace=_trace(trace),
            key=key,
            caller=caller(sender) if sender else None,
        ),
        state=RunState(state),
        records=tuple(_record(body) for body in bodies),
        crashes=crashes,
        due_at=due_at,
        finished_at=finished_at,
        error=_error(error) if error else None,
        request=intervention(request) if request else None,
        answers=tuple(_answer(answer) for answer in answers),
        arrivals=tuple(arrival(came) for came in arrivals),
    )


def declared_values(topology: Topology) -> list[tuple[str, str, str]]:
    """kind, name, body of each object."""
    return [
        *(("exchange", exchange.name, text(exchange)) for exchange in topology.exchanges),
        *(("queue", queue.name, text(queue)) for queue in topology.queues),
        *(("binding", str(binding), text(binding)) for binding in topology.bindings),
    ]


def declared_topology(found: Iterable[Sequence[str]]) -> Topology:
    """Of kind, body."""
    bodies: dict[str, list[str]] = {"exchange": [], "queue": [], "binding": []}
    for kind, body in found:
        bodies[kind].append(body)
    return Topology(
        exchanges=tuple(_exchange(body) for body in bodies["exchange"]),
        queues=tuple(_queue(body) for body in bodies["queue"]),
        bindings=tuple(_binding(body) for body in bodies["binding"]),
    )


def arrival_values(arrival: Arrival) -> tuple[str, str, str, str, str, bytes]:
    """token, source, id, received_at, arrival (without its data), data."""
    described = text(msgspec.structs.replace(arrival, data=b""))
    return arrival.token, arrival.meta.source, arrival.meta.id, arrival.received_at, described, arrival.data


def wait_values(change: Change) -> list[tuple[str, str, bool]]:
    """token, run_id, cancels of each."""
    waits = [(token, change.run_id, False) for token in change.tokens]
    return waits + [(token, change.run_id, True) for token in change.cancel_tokens]


def is_cancelled_by(arrival: Arrival, trigger: str, started_at: str) -> bool:
    """Whether a run that such events cancel is: it has begun before, and by another event."""
    meta = _meta(trigger)
    return arrival.received_at >= started_at and (meta.source, meta.id) != (arrival.meta.source, arrival.meta.id)


def pattern_values(patterns: Patterns) -> list[tuple[str, str]]:
    """event, fields of each."""
    return [(event, text(list(fields))) for event, sets in patterns.items() for fields in sets]


def patterns(found: Iterable[Sequence[str]]) -> Patterns:
    """Of event, fields."""
    known: dict[str, set[tuple[str, ...]]] = {}
    for event, fields in found:
        known.setdefault(event, set()).add(tuple(msgspec.json.decode(fields, type=list[str])))
    return {event: frozenset(sets) for event, sets in known.items()}


def cancel_values(arrival: Arrival) -> tuple[str, str]:
    """request, at: of an event that cancels."""
    meta = arrival.meta
    request = Intervention(
        action="cancel",
        by=f"event {meta.type}",
        at=arrival.received_at,
        was=RunState.RUNNING,
        reason=f"id {meta.id} from {meta.source}",
    )
    return text(request), arrival.received_at


def arrival(row: Sequence[Any]) -> Arrival:
    """Of arrival, data."""
    described, data = row
    return msgspec.structs.replace(_arrival(described), data=bytes(data))


def run_summary(row: Sequence[Any]) -> RunSummary:
    """Of id, flow, handler, state, trigger, started_at, finished_at, error."""
    ident, flow, handler, state, trigger, started_at, finished_at, error = row
    meta = _meta(trigger)
    return RunSummary(
        id=ident,
        flow=flow,
        handler=handler,
        state=RunState(state),
        trigger={"id": meta.id, "type": meta.type, "source": meta.source, "subject": meta.subject},
        started_at=started_at,
        finished_at=finished_at,
        error=_error(error) if error else None,
    )


def columns(values: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows, at least one → one list a column, as `unnest` wants them."""
    return [[storable(value) for value in column] for column in zip(*values, strict=True)]


def storable(value: Any) -> Any:
    """PostgreSQL's text cannot hold a NUL; JSON text writes it as an escape, so that only plain columns lose it."""
    return value.replace("\x00", "\ufffd") if isinstance(value, str) and "\x00" in value else value
