"""Messages whose schema changed, each in both directions.

Backward: who reads by the new files gets what was written by the old ones: from queues, from runs that began before,
from programs that are not updated yet. Forward: who still reads by the old files gets what is written by the new ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runner.lang.evolution.changes import Change, Direction, Side
from runner.lang.evolution.compatibility import Obstacle, Written, are_same, obstacles
from runner.lang.references import narrow, place_in_schema
from runner.source import Span


def changed_messages(old: Side, new: Side) -> Iterator[Change]:
    """Events, requests and replies that both states have, and that are otherwise now."""
    for message in (*_events(old, new), *_requests_and_replies(old, new)):
        if not are_same(message.old, message.new):
            yield from _one_way(message, "backward", obstacles(message.old, message.new))
            yield from _one_way(message, "forward", obstacles(message.new, message.old))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """A message that both states have; `old_readers` and `new_readers` take it."""

    kind: Literal["event", "request", "reply"]
    name: str
    old: Written
    new: Written
    old_readers: tuple[str, ...]
    new_readers: tuple[str, ...]
    span: Span


def _events(old: Side, new: Side) -> Iterator[_Message]:
    for name, event in new.declared.events.items():
        if name in old.declared.events:
            yield _Message(
                kind="event",
                name=name,
                old=old.event(name),
                new=new.event(name),
                old_readers=(*old.takers(name), "other programs"),
                new_readers=new.takers(name) or ("the event log",),
                span=event.node.span,
            )


def _requests_and_replies(old: Side, new: Side) -> Iterator[_Message]:
    for name, command in new.declared.commands.items():
        if name not in old.declared.commands:
            continue
        yield _Message(
            kind="request",
            name=name,
            old=old.request(name),
            new=new.request(name),
            old_readers=old.doer(name),
            new_readers=new.doer(name),
            span=command.node.span,
        )
        yield _Message(
            kind="reply",
            name=name,
            old=old.reply(name),
            new=new.reply(name),
            old_readers=old.senders(name) or ("whoever sends it",),
            new_readers=new.senders(name) or ("whoever sends it",),
            span=command.node.span,
        )


def _one_way(message: _Message, direction: Direction, found: list[Obstacle]) -> Iterator[Change]:
    readers = message.new_readers if direction == "backward" else message.old_readers
    for obstacle in found:
        span, in_old = _place(message, obstacle)
        yield Change(
            kind=message.kind,
            name=message.name,
            level=obstacle.level,
            text=obstacle.asks,
            span=span,
            in_old=in_old,
            direction=direction,
            pointer=_pointer(obstacle),
            example=obstacle.example,
            hits=readers,
        )
    if not found:
        can = "what was written before can be read" if direction == "backward" else "who reads as before can go on"
        yield Change(
            kind=message.kind,
            name=message.name,
            level="compatible",
            text=can,
            span=message.span if message.new.node is None else narrow(message.new.node),
            direction=direction,
        )


def _place(message: _Message, obstacle: Obstacle) -> tuple[Span, bool]:
    """Where in the new schema it is, or in the old one if only that has such a part."""
    found = [
        place_in_schema(written.node, written.document, written.documents, obstacle.path, obstacle.keyword)
        for written in (message.new, message.old)
        if written.node is not None
    ]
    if not found:
        return message.span, False
    if message.new.node is None:
        return message.span, False
    deepest = max(found, key=lambda place: place[0])
    return deepest[1], len(found) == 2 and deepest is found[1]


def _pointer(obstacle: Obstacle) -> str:
    parts = (str(step).replace("~", "~0").replace("/", "~1") for step in obstacle.path)
    return "".join(f"/{part}" for part in parts)
