"""Delivery → the message that begins a run, or the reason why it cannot."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

from runner.engine.matching import tokens_of
from runner.engine.run import run_id
from runner.errors import EnvelopeError, ExpressionError
from runner.expressions import Evaluate, Scope, holds
from runner.message import (
    FAILED,
    FLOWRUN_STATUS,
    MAX_BODY_BYTES,
    REPLAY,
    REPLAY_ANEW,
    Delivery,
    Message,
    Outgoing,
    Properties,
    claimed_type,
    decode_json,
    identity,
    new_id,
    read_message,
    short,
)
from runner.plan import Command, Event, Gate, Plan, Program, RateLimit
from runner.records import Answer, Arrival, Caller, DeadLetter, Error, EventRecord, Patterns, Place, RunStarted
from runner.steps.emit import subject_of
from runner.times import rfc3339
from runner.topics import topic_matches
from runner.values import as_text

_TOLD = {
    **{kind: kind for kind in ("timeout", "expression", "duplicate", "internal", "rate_limited")},
    "queue_full": "rate_limited",
}
"""Of a command that cannot begin, the error's type by the reason; any other is `invalid_input`."""
_LETTER_IDS = uuid.UUID("5b8c4f0a-3e0b-5b57-8d2d-6f3f1c8f2b90")


STEP_OF_PRIORITY_MS = 30_000
"""A step of priority counts for so much waiting: a run of priority 0 passes those of 9 that come 4.5 minutes later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """A message that is to begin a run: with its `place`, if the handler has a gate; `bucket` is whose token it needs
    of the handler's rate limit, None if there is none."""

    started: RunStarted
    place: Place | None = None
    bucket: str | None = None


def read(plan: Plan, program: Program, delivery: Delivery, now: datetime, env: Mapping[str, str]) -> Coming | None:
    """The beginning of the run; None if no route of the handler wants the message (it is passed over).

    Raises EnvelopeError: it is a dead letter.
    """
    if len(delivery.body) > MAX_BODY_BYTES:
        raise EnvelopeError("too_large", f"the body has {len(delivery.body)} bytes, the limit is {MAX_BODY_BYTES}")
    if program.command is not None:
        return _read_command(plan.commands[program.command], program, delivery, now, env)
    event = _event_of(plan, delivery)
    message = read_message(delivery, event.name, now)
    payload = _payload(event, message)
    message = _with_subject(event, message, payload, rfc3339(now))
    scope = _scope("event", payload, message, now, env)
    if not _wanted(program, event, scope):
        return None
    return _coming(program, _started(program, message, _key(program, scope), now, None, _anew(delivery)), scope, now)


def _anew(delivery: Delivery) -> str:
    """The replay that an event is to begin another run in; only what comes straight to the queue can say so."""
    headers = delivery.properties.headers
    return str(headers.get(REPLAY, "")) if delivery.exchange == "" and headers.get(REPLAY_ANEW) else ""


def _read_command(
    command: Command, program: Program, delivery: Delivery, now: datetime, env: Mapping[str, str]
) -> Coming:
    message = read_message(delivery, command.name, now, is_command=True)
    if message.expires_at is not None and rfc3339(now) >= message.expires_at:
        raise EnvelopeError("timeout", f"its caller waits no longer than {message.expires_at}")
    payload = _payload(command, message)
    caller = Caller(
        command=command.name,
        correlation_id=delivery.properties.correlation_id or message.meta.id,
        reply_to=delivery.properties.reply_to,
        expires_at=message.expires_at,
    )
    scope = _scope("command", payload, message, now, env)
    return _coming(program, _started(program, message, _key(program, scope), now, caller), scope, now)


def _coming(program: Program, started: RunStarted, scope: Scope, now: datetime) -> Coming:
    limit, gate = program.rate_limit, program.gate
    bucket = None if limit is None else _bucket(limit, scope, "the key of the rate limit")
    return Coming(started=started, bucket=bucket, place=None if gate is None else _place(program, gate, scope, now))


def _place(program: Program, gate: Gate, scope: Scope, now: datetime) -> Place:
    """Runs that wait for the same slot or token stand in one line, so that the rest need not be looked at; those of a
    partition stand in its line, whatever else they wait for."""
    slot = None if gate.slots is None else _digest(gate.slots.key, scope, "the key of the concurrency")
    bucket = None if gate.throttle is None else _bucket(gate.throttle, scope, "the key of the throttle")
    line = f"{slot or ''}/{bucket or ''}" if slot or bucket else None
    if gate.partition is not None:
        line = _digest(gate.partition, scope, "the partition")
    return Place(
        handler=program.name,
        line=line,
        is_ordered=gate.partition is not None and line is not None,
        slot=slot,
        bucket=bucket,
        rank=int(now.timestamp() * 1000) - _priority(gate, scope) * STEP_OF_PRIORITY_MS,
    )


def _bucket(limit: RateLimit, scope: Scope, what: str) -> str:
    """All that have no key share one."""
    return "" if limit.key is None else _digest(limit.key, scope, what) or "null"


def _digest(key: Evaluate, scope: Scope, what: str) -> str | None:
    """A key's value, whatever its length, in 32 characters; None for null."""
    try:
        value = key(scope)
    except ExpressionError as error:
        raise EnvelopeError("expression", f"{what}: {error}") from None
    return None if value is None else hashlib.sha256(as_text(value).encode("utf-8", "replace")).hexdigest()[:32]


def _priority(gate: Gate, scope: Scope) -> int:
    if gate.priority is None:
        return 0
    try:
        value = gate.priority(scope)
    except ExpressionError as error:
        raise EnvelopeError("expression", f"the priority: {error}") from None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 9:
        raise EnvelopeError("expression", f"the priority must be a number from 0 to 9: {as_text(value)}")
    return int(value)


def read_event(
    events: Mapping[str, Event], patterns: Patterns, delivery: Delivery, now: datetime
) -> tuple[EventRecord, list[Arrival]]:
    """An event from the journal, for the log, and as an arrival for each token that it bears. One that nobody declares
    is kept under the type that it gives itself.

    Raises EnvelopeError.
    """
    if len(delivery.body) > MAX_BODY_BYTES:
        raise EnvelopeError("too_large", f"the body has {len(delivery.body)} bytes, the limit is {MAX_BODY_BYTES}")
    event = known_event(events, delivery)
    message = read_message(delivery, _own_type(delivery) if event is None else event.name, now)
    if event is None:
        _json_of(message)
        return EventRecord(meta=message.meta, data=message.data), []
    payload = _payload(event, message)
    message = _with_subject(event, message, payload, rfc3339(now))
    arrivals = [
        Arrival(token=token, received_at=rfc3339(now), meta=message.meta, data=message.data)
        for token in tokens_of(event.name, payload, patterns)
    ]
    return EventRecord(meta=message.meta, data=message.data), arrivals


def _own_type(delivery: Delivery) -> str:
    """What an undeclared event says it is; the routing key only if it says nothing."""
    names = claimed_type(delivery)
    if not names:
        raise EnvelopeError("unknown_event", "a message without a type")
    said = names[1:] if delivery.routing_key else names
    return (said or names)[0]


def caller_of(program: Program, delivery: Delivery) -> Caller | None:
    """Who waits for the answer to a command that may be broken; None if nobody does."""
    properties = delivery.properties
    correlation_id = properties.correlation_id or identity(delivery)[0]
    if program.command is None or not properties.reply_to or not correlation_id:
        return None
    return Caller(command=program.command, correlation_id=correlation_id, reply_to=properties.reply_to)


def refusal(fault: EnvelopeError) -> Error:
    """What the caller of a command is told that cannot begin."""
    kind = _TOLD.get(fault.reason, "invalid_input")
    details: dict[str, Any] = {"begun": False} if kind == "timeout" else {}
    retryable = kind in ("timeout", "internal", "rate_limited")
    return Error(type=kind, message=str(fault), retryable=retryable, details=details)


def says_too_late(answer: Answer) -> bool:
    """Whether it says no more than that its command came too late to be begun. The caller's own clock says that,
    and the same command may have gone out again since: that one's answer counts."""
    error = answer.error
    return error is not None and error.type == "timeout" and error.details.get("begun") is False


def read_answer(delivery: Delivery) -> Answer:
    """A reply, as it came to our queue. Raises EnvelopeError."""
    properties = delivery.properties
    command_id = properties.correlation_id
    if not command_id:
        raise EnvelopeError("bad_envelope", "a reply needs the correlation_id of its command")
    try:
        body = decode_json(delivery.body)
    except ValueError as error:
        raise EnvelopeError("invalid_json", f"the reply is not JSON: {error}") from None
    if properties.headers.get(FLOWRUN_STATUS) != FAILED:
        return Answer(command_id=command_id, result=body)
    try:
        return Answer(command_id=command_id, error=msgspec.convert({"message": "", "retryable": False, **body}, Error))
    except (msgspec.ValidationError, TypeError):
        raise EnvelopeError("bad_envelope", "a failed reply is {type, message, retryable, details}") from None


def _scope(root: str, payload: Any, message: Message, now: datetime, env: Mapping[str, str]) -> Scope:
    return {
        root: payload,
        "meta": message.meta.names(),
        "env": dict(env),
        "now": lambda: rfc3339(now),
        "uuid": new_id,
    }


def _started(
    program: Program, message: Message, key: str | None, now: datetime, caller: Caller | None, anew: str = ""
) -> RunStarted:
    meta = message.meta
    again = f"\0{anew}" if anew else ""
    return RunStarted(
        run_id=run_id(program.name, meta.source, f"{meta.id}{again}"),
        flow=program.flow,
        handler=program.name,
        plan_hash=program.plan_hash,
        trigger=meta,
        data=message.data,
        started_at=rfc3339(now),
        trace=dict(message.trace),
        key=f"{key} (replay {anew})" if key is not None and anew else key,
        caller=caller,
    )


def dead_letter(handler: str, delivery: Delivery, fault: EnvelopeError, now: datetime) -> DeadLetter:
    """The delivery, kept whole. The same message at the same handler is the same letter."""
    known, source = identity(delivery)
    name = f"{handler}\0{source}\0{known}\0{fault.reason}"
    ident = uuid.uuid5(_LETTER_IDS, name) if known else uuid.uuid4()
    types = claimed_type(delivery)
    if delivery.exchange == "" and len(types) > 1:
        types = types[1:]  # it came straight to the queue, whose name was its routing key
    return DeadLetter(
        id=str(ident),
        reason=fault.reason,
        error=Error(type=fault.reason, message=str(fault), retryable=False),
        handler=handler,
        type=types[0] if types else None,
        source=source,
        message_id=known,
        received_at=rfc3339(now),
        body=delivery.body,
        headers={key: _plain(value) for key, value in delivery.properties.headers.items()},
        exchange=delivery.exchange,
        routing_key=delivery.routing_key,
        content_type=delivery.properties.content_type,
        app_id=delivery.properties.app_id,
        correlation_id=delivery.properties.correlation_id,
    )


def fallen_letter(plan: Plan, delivery: Delivery, now: datetime) -> DeadLetter:
    """A delivery from the broker's own net. Where it fell from, and why, is in the `x-death` that the broker wrote
    (https://www.rabbitmq.com/docs/dlx#effects)."""
    headers = delivery.properties.headers
    death = _first(headers.get("x-death"))
    queue = str(headers.get("x-first-death-queue") or death.get("queue") or delivery.queue)
    why = str(headers.get("x-first-death-reason") or death.get("reason") or "dead_lettered")
    fallen = replace(
        delivery,
        exchange=str(headers.get("x-first-death-exchange", death.get("exchange", delivery.exchange))),
        routing_key=str(_first(death.get("routing-keys"), delivery.routing_key)),
    )
    handler = next((p.name for p in plan.programs.values() if p.queue == queue), queue)
    fault = EnvelopeError(f"broker_{why}", f"the broker took it out of {queue}: {why}")
    return dead_letter(handler, fallen, fault, now)


def _first(items: Any, otherwise: Any = None) -> Any:
    """The first of a list, if it is one that has any."""
    return items[0] if isinstance(items, list) and items else {} if otherwise is None else otherwise


def second_chance(letter: DeadLetter, project: str) -> Outgoing:
    """A dead letter as a message to its own handler's queue, and to no other subscriber.

    It keeps its id, or gets the letter's: if it is sent twice, it is one message all the same.
    """
    return Outgoing(
        exchange="",
        routing_key=f"{project}.{letter.handler}",
        body=letter.body,
        properties=Properties(
            message_id=short(letter.message_id or letter.id),  # a longer one stands in a header
            type=letter.type,
            app_id=letter.app_id,
            content_type=letter.content_type,
            correlation_id=letter.correlation_id,
            # What the broker wrote of its first death is not the new message's.
            headers={name: value for name, value in letter.headers.items() if not name.startswith("x-")},
        ),
        mandatory=True,
    )


def _event_of(plan: Plan, delivery: Delivery) -> Event:
    """The event that the routing key names, else the one that the message says it is."""
    event = known_event(plan.events, delivery)
    if event is not None:
        return event
    shown = ", ".join(f'"{name}"' for name in claimed_type(delivery)) or "a message without a type"
    raise EnvelopeError("unknown_event", f"no event is declared for {shown}")


def known_event(events: Mapping[str, Event], delivery: Delivery) -> Event | None:
    """The declared event that a delivery is, however broken it may be; None if it is none."""
    if (event := events.get(delivery.routing_key)) is not None:
        return event  # as nearly always: its attributes need not be read
    for name in claimed_type(delivery):
        if name in events:
            return events[name]
    for event in events.values():
        if any(topic_matches(key, delivery.routing_key) for key in event.keys):
            return event
    return None


def _json_of(message: Message) -> Any:
    try:
        return decode_json(message.data)
    except ValueError as error:
        raise EnvelopeError("invalid_json", f"the body is not JSON: {error}") from None


def _payload(event: Event | Command, message: Message) -> Any:
    payload = _json_of(message)
    misfit = event.check(payload)
    if misfit is not None:
        raise EnvelopeError("schema_violation", f"{event.name} does not fit its schema: {misfit}")
    return payload


def _with_subject(event: Event, message: Message, payload: Any, now: str) -> Message:
    if message.meta.subject is not None:
        return message
    try:
        subject = subject_of(event, payload, now)
    except ExpressionError as error:
        raise EnvelopeError("expression", f"the subject of {event.name}: {error}") from None
    return replace(message, meta=replace(message.meta, subject=subject))


def _wanted(program: Program, event: Event, scope: Scope) -> bool:
    try:
        return any(
            route.when is None or holds(route.when.evaluate(scope))
            for route in program.routes
            if event.name in route.events
        )
    except ExpressionError as error:
        raise EnvelopeError("expression", f"a route's `when`: {error}") from None


def _key(program: Program, scope: Scope) -> str | None:
    if program.idempotency is None:
        return None
    try:
        value = program.idempotency.key(scope)
        if value is None or value == "":
            raise ExpressionError("it is empty")
        return as_text(value)
    except ExpressionError as error:
        raise EnvelopeError("expression", f"the idempotency key: {error}") from None


def _plain(value: Any) -> Any:
    """A header's value as JSON has it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
