"""What is said of two states of a project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from runner.lang.compile import Compilation
from runner.lang.declare import declare
from runner.lang.evolution.compatibility import Written
from runner.lang.load import Sources
from runner.lang.payloads import Payload, Payloads
from runner.lang.project import Declarations, gather
from runner.plan import Plan, Send, WaitFor
from runner.source import Document, Node, Span

Level = Literal["breaking", "unknown", "compatible"]
Direction = Literal["backward", "forward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is otherwise than before.

    `level`: it breaks something, that cannot be decided, or it breaks nothing. `pointer` leads to the part of a payload
    that is meant, `example` is a list of one message that was to be had and is refused, or of none; `hits` are those
    who get what they cannot serve. `in_old`: the place is one of the old files, because the new ones have none.
    """

    kind: Literal["event", "request", "reply", "command", "handler", "route", "endpoint", "project", "run"]
    name: str
    level: Level
    text: str
    span: Span
    in_old: bool = False
    direction: Direction | None = None
    pointer: str | None = None
    example: tuple[Any, ...] = ()
    hits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """A state of a project: its plan, and what its files declare."""

    plan: Plan
    declared: Declarations

    @classmethod
    def of(cls, compilation: Compilation, sources: Sources) -> Side:
        """Of a project that compiled without errors from these sources."""
        assert compilation.plan is not None
        documents = [compilation.documents[name] for name in sources.flow_files()]
        flows = tuple(flow for document in documents if (flow := declare(document)) is not None)
        declared = gather(flows, Payloads(sources), None, project=compilation.plan.project)
        return cls(compilation.plan, declared)

    def written(self, node: Node | None, document: Document, payload: Payload) -> Written:
        """A payload schema, for comparing it."""
        return Written(node=node, document=document, documents=self.declared.compiler.documents, check=payload.check)

    def event(self, name: str) -> Written:
        """The schema of an event."""
        event = self.declared.events[name]
        return self.written(event.schema, event.document, self.declared.payloads[name])

    def request(self, name: str) -> Written:
        """The schema of a command's request."""
        command = self.declared.commands[name]
        return self.written(command.body.get("schema"), command.document, self.declared.payloads[name])

    def reply(self, name: str) -> Written:
        """The schema of a command's reply."""
        command = self.declared.commands[name]
        return self.written(command.body.get("reply"), command.document, self.declared.replies[name])

    def takers(self, event: str) -> tuple[str, ...]:
        """The handlers that an event reaches: by a route, or because they wait for it."""
        return tuple(
            program.name
            for program in self.plan.programs.values()
            if any(event in route.events for route in program.routes)
            or any(isinstance(step, WaitFor) and event in step.events for step in program.every.values())
            or any(cancel.event == event for cancel in program.cancel_on)
        )

    def makes(self, event: str) -> bool:
        """Whether something here publishes the event."""
        return event in self.plan.emitted

    def doer(self, command: str) -> tuple[str, ...]:
        """Who does a command."""
        return (self.plan.commands[command].handler or f"the program that does {command}",)

    def senders(self, command: str) -> tuple[str, ...]:
        """Who sends a command: handlers and endpoints."""
        programs = self.plan.programs.values()
        handlers = [p.name for p in programs if any(_sends(step, command) for step in p.every.values())]
        doors = [f"{each.method} {each.path}" for each in self.plan.ingress if each.command == command]
        return (*handlers, *doors)


def _sends(step: object, command: str) -> bool:
    return isinstance(step, Send) and step.command == command
