"""All declarations of a project together, as the rules see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runner.lang.declare import (
    CommandDecl,
    EventDecl,
    FlowDecl,
    HandlerDecl,
    ProjectionDecl,
    RouteDecl,
    StepDecl,
    all_steps,
)
from runner.lang.payloads import Payload, Payloads
from runner.plan import Signature
from runner.topics import topic_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Declarations:
    """What all flow files of a project declare, and the handler plugins that there are.

    `signatures` is None where plugins were not looked at. Where a flow file (`complete`) or a plugin
    (`signatures_complete`) could not be read, what it declares is not known, and no name can be said to be missing.
    """

    project: str
    complete: bool
    signatures_complete: bool
    flows: tuple[FlowDecl, ...]
    events: Mapping[str, EventDecl]
    commands: Mapping[str, CommandDecl]
    handlers: Mapping[str, HandlerDecl]
    projections: Mapping[str, ProjectionDecl]
    payloads: Mapping[str, Payload]
    """Of events and commands, by name."""
    replies: Mapping[str, Payload]
    compiler: Payloads
    signatures: Mapping[str, Signature] | None
    _routes: Mapping[str, list[RouteDecl]]
    """By the full name of the handler that they lead to."""
    _commands: Mapping[str, list[CommandDecl]]
    """By the full name of the handler that does them, whether there is one or not."""
    _senders: Mapping[str, list[tuple[HandlerDecl, StepDecl]]]
    """By the name of the command that they send, whether there is one or not."""

    def matching(self, pattern: str) -> list[str]:
        """The declared events that a route's `on` names, sorted."""
        if "*" in pattern or "#" in pattern:
            return sorted(name for name in self.events if topic_matches(pattern, name))
        return [pattern] if pattern in self.events else []

    def target(self, flow: FlowDecl, name: str) -> HandlerDecl | None:
        """The handler that a route's `to` names."""
        return self.handlers.get(_full(name, flow.name))

    def routes_to(self, handler: HandlerDecl) -> list[RouteDecl]:
        """The routes that lead to a handler, of all flows."""
        return self._routes.get(handler.full_name, [])

    def commands_of(self, handler: HandlerDecl) -> list[CommandDecl]:
        """The commands that name this handler; at most one, in a project without faults."""
        return self._commands.get(handler.full_name, [])

    def senders_of(self, command: CommandDecl) -> list[tuple[HandlerDecl, StepDecl]]:
        """The steps that send a command, compensations included, each with its handler."""
        return self._senders.get(command.name, [])

    def seems_to_do_a_command(self, handler: HandlerDecl) -> bool:
        """Whether it replies, and some command names no handler that there is: that is one fault, to be said once."""
        return handler.body.get("reply") is not None and any(
            not command.external
            and (command.handler is None or _full(str(command.handler.value), command.flow) not in self.handlers)
            for command in self.commands.values()
        )

    def steps(self) -> Iterator[tuple[FlowDecl, HandlerDecl, StepDecl]]:
        """Every step of every handler, compensations and `on_failure` included."""
        for flow in self.flows:
            for handler in flow.handlers:
                for step in all_steps(handler.steps + handler.on_failure):
                    yield flow, handler, step


def gather(
    flows: tuple[FlowDecl, ...],
    compiler: Payloads,
    signatures: Mapping[str, Signature] | None,
    *,
    project: str,
    complete: bool = True,
    signatures_complete: bool = True,
) -> Declarations:
    """Put the flows together; of two that declare one name, the first counts."""
    events: dict[str, EventDecl] = {}
    commands: dict[str, CommandDecl] = {}
    handlers: dict[str, HandlerDecl] = {}
    projections: dict[str, ProjectionDecl] = {}
    routes: dict[str, list[RouteDecl]] = {}
    for flow in flows:
        for route in flow.routes:
            for target in dict.fromkeys(_full(str(to.value), flow.name) for to in route.to):
                routes.setdefault(target, []).append(route)
        for event in flow.events:
            events.setdefault(event.name, event)
        for command in flow.commands:
            commands.setdefault(command.name, command)
        for handler in flow.handlers:
            handlers.setdefault(handler.full_name, handler)
        for projection in flow.projections:
            projections.setdefault(projection.name, projection)
    done: dict[str, list[CommandDecl]] = {}
    for command in commands.values():
        if command.handler is not None:
            done.setdefault(_full(str(command.handler.value), command.flow), []).append(command)
    payloads = {name: compiler.compile(event.schema, event.document) for name, event in events.items()}
    requests = {name: compiler.compile(c.body.get("schema"), c.document) for name, c in commands.items()}
    replies = {name: compiler.compile(c.body.get("reply"), c.document) for name, c in commands.items()}
    return Declarations(
        project=project,
        complete=complete,
        signatures_complete=signatures_complete,
        flows=flows,
        events=events,
        commands=commands,
        handlers=handlers,
        projections=projections,
        payloads={**requests, **payloads},
        replies=replies,
        compiler=compiler,
        signatures=signatures,
        _routes=routes,
        _commands=done,
        _senders=_senders(flows),
    )


def _senders(flows: tuple[FlowDecl, ...]) -> dict[str, list[tuple[HandlerDecl, StepDecl]]]:
    senders: dict[str, list[tuple[HandlerDecl, StepDecl]]] = {}
    for flow in flows:
        for handler in flow.handlers:
            for step in all_steps(handler.steps + handler.on_failure):
                if step.action == "command" and step.name is not None:
                    senders.setdefault(step.name, []).append((handler, step))
    return senders


def _full(name: str, flow: str) -> str:
    """A handler's name from outside its flow."""
    return name if "." in name else f"{flow}.{name}"
