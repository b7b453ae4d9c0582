"""Names that are gone, or mean something else: events, commands, handlers, routes, endpoints.

A queue that no handler reads any more stays, and stays bound (`plan --diff` calls it left over).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from runner.lang.declare import CommandDecl, EventDecl, HandlerDecl, IngressDecl
from runner.lang.evolution.changes import Change, Level, Side
from runner.lang.evolution.compatibility import Written, are_same
from runner.lang.payloads import accept_all
from runner.source import Span, plain


def changed_names(old: Side, new: Side) -> Iterator[Change]:
    """What is gone, new, or somewhere else."""
    yield from _event_names(old, new)
    yield from _command_names(old, new)
    yield from _handler_names(old, new)
    yield from _routes(old, new)
    yield from _endpoints(old, new)


def _event_names(old: Side, new: Side) -> Iterator[Change]:
    added = [name for name in new.declared.events if name not in old.declared.events]
    for name, event in old.declared.events.items():
        if name not in new.declared.events:
            yield _event_gone(old, new, event, _renamed(name, added, old.event, new.event))
    for name in added:
        yield _added("event", name, new.declared.events[name].node.span)
    for name, event in new.declared.events.items():
        before = old.declared.events.get(name)
        if before is not None and (keys := _texts(before.keys) - _texts(event.keys)):
            known = f"what others publish under {', '.join(sorted(keys))} is known by its ce-type or type alone"
            yield Change(
                kind="event", name=name, level="unknown", text=known, span=event.node.span, hits=new.takers(name)
            )


def _event_gone(old: Side, new: Side, event: EventDecl, now: str | None) -> Change:
    """A handler that stands gets what waits in its queue, and knows it no more. Of what nobody here takes, and is not
    made here either, nobody can miss anything: what others publish is logged as before."""
    name = event.name
    routed = [p.name for p in old.plan.programs.values() if any(name in route.events for route in p.routes)]
    standing = tuple(handler for handler in routed if handler in new.plan.programs)
    is_made = old.makes(name)
    head = "is gone" if now is None else f'is gone, or called "{now}" now'
    what = "what waits in the queues of its handlers is a dead letter, unknown_event"
    return Change(
        kind="event",
        name=name,
        level="breaking" if standing or (is_made and event.external) else "unknown" if is_made else "compatible",
        text=f"{head}: {what}" if standing else f"{head}: it is published no more" if is_made else head,
        span=event.node.span,
        in_old=True,
        hits=(*standing, *(("other programs that read it",) if is_made else ())),
    )


def _command_names(old: Side, new: Side) -> Iterator[Change]:
    added = [name for name in new.declared.commands if name not in old.declared.commands]
    for name, command in old.declared.commands.items():
        if name in new.declared.commands:
            yield from _command_moved(old, new, name, new.declared.commands[name])
            continue
        now = _renamed(name, added, old.request, new.request)
        head = "is gone" if now is None else f'is gone, or called "{now}" now'
        handler = old.plan.commands[name].handler
        what = (
            "the program that did it is asked no more"
            if handler is None
            else f"who sends it waits in vain, and what waits in {old.plan.programs[handler].queue} is not done"
        )
        yield Change(
            kind="command",
            name=name,
            level="compatible" if handler is None else "breaking",
            text=f"{head}: {what}",
            span=command.node.span,
            in_old=True,
            hits=() if handler is None else old.senders(name) or ("whoever sends it",),
        )
    for name in added:
        yield _added("command", name, new.declared.commands[name].node.span)


def _command_moved(old: Side, new: Side, name: str, command: CommandDecl) -> Iterator[Change]:
    before, now = old.plan.commands[name].handler, new.plan.commands[name].handler
    if before == now:
        return
    level: Level = "breaking"
    if before is None:
        level, text = "unknown", f"another program did it, {now} does it now: while that has its queue bound, both do"
    else:
        queue = old.plan.programs[before].queue
        text = f"{before} did it, {now or 'another program'} does it now: what waits in {queue} is not done, and "
        text += "while that stays bound, each command goes there as well"
    span = command.node.span if command.handler is None else command.handler.span
    yield Change(
        kind="command", name=name, level=level, text=text, span=span, hits=old.senders(name) or ("whoever sends it",)
    )


def _handler_names(old: Side, new: Side) -> Iterator[Change]:
    added = [name for name in new.declared.handlers if name not in old.declared.handlers]
    for name, handler in old.declared.handlers.items():
        program = old.plan.programs[name]
        if name in new.declared.handlers or program.command is not None:
            continue  # what becomes of a command's handler is said of the command
        alike = [each for each in added if _is_alike(handler, new.declared.handlers[each])]
        head = f'is gone, or called "{alike[0]}" now' if len(alike) == 1 else "is gone"
        what = (
            f"nobody reads what waits in {program.queue}, and while that stays bound, it fills"
            if program.is_served
            else "nothing reached it"
        )
        yield Change(
            kind="handler",
            name=name,
            level="breaking" if program.is_served else "compatible",
            text=f"{head}: {what}",
            span=handler.node.span,
            in_old=True,
            hits=tuple(sorted({event for route in program.routes for event in route.events})),
        )
    for name in added:
        yield _added("handler", name, new.declared.handlers[name].node.span)


def _is_alike(one: HandlerDecl, other: HandlerDecl) -> bool:
    return plain(one.body) == plain(other.body)


def _routes(old: Side, new: Side) -> Iterator[Change]:
    for name, handler in new.declared.handlers.items():
        if name not in old.declared.handlers:
            continue
        before, now = _routed(old, name), _routed(new, name)
        queue = new.plan.programs[name].queue
        for event, conditions in before.items():
            if event not in new.declared.events or now.get(event) == conditions:
                continue
            if event not in now:
                level: Level = "breaking"
                text, in_old = (
                    f"is gone: {event} in {queue} is passed over, and while that stays bound, more comes",
                    True,
                )
                span = old.declared.handlers[name].node.span
            else:
                level = "compatible" if None in now[event] or conditions <= now[event] else "unknown"
                text, in_old, span = (
                    f"holds on other conditions: {event} in {queue} may be passed over",
                    False,
                    handler.node.span,
                )
            yield Change(
                kind="route",
                name=f"{event} → {name}",
                level=level,
                text=text if level != "compatible" else "holds on fewer conditions",
                span=span,
                in_old=in_old,
                hits=() if level == "compatible" else (name,),
            )


def _routed(side: Side, handler: str) -> Mapping[str, set[object]]:
    """The events that reach a handler, and the conditions of each; None is one that always holds."""
    found: dict[str, set[object]] = {}
    for route in side.declared.routes_to(side.declared.handlers[handler]):
        for node in route.patterns:
            for event in side.declared.matching(str(node.value)):
                found.setdefault(event, set()).add(None if route.when is None else route.when.value)
    return found


def _endpoints(old: Side, new: Side) -> Iterator[Change]:
    served = {(each.method, each.shape) for flow in new.declared.flows for each in flow.ingress}
    for flow in old.declared.flows:
        for endpoint in flow.ingress:
            if (endpoint.method, endpoint.shape) not in served:
                yield _endpoint_gone(endpoint)


def _endpoint_gone(endpoint: IngressDecl) -> Change:
    return Change(
        kind="endpoint",
        name=f"{endpoint.method} {endpoint.path}",
        level="breaking",
        text="is gone: a request gets 404",
        span=endpoint.node.span,
        in_old=True,
        hits=("HTTP clients",),
    )


def _added(kind: Literal["event", "command", "handler"], name: str, span: Span) -> Change:
    return Change(kind=kind, name=name, level="compatible", text="is new", span=span)


def _renamed(
    name: str, added: Iterable[str], before: Callable[[str], Written], now: Callable[[str], Written]
) -> str | None:
    """The one new name under which just the same schema stands."""
    schema = before(name)
    if schema.check is accept_all:
        return None
    alike = [each for each in added if are_same(schema, now(each))]
    return alike[0] if len(alike) == 1 else None


def _texts(nodes: Iterable[Any]) -> set[str]:
    return {str(node.value) for node in nodes}
