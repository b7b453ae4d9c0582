"""FR206 to FR209: each command has exactly one receiver, and a receiver serves it alone."""

from __future__ import annotations

from collections.abc import Iterator

from runner.diagnostics import Diagnostic, Related, did_you_mean, respelt
from runner.lang.declare import CommandDecl, FlowDecl, HandlerDecl, RouteDecl
from runner.lang.project import Declarations
from runner.source import ScalarNode


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Commands that nobody does, or that two things want of one handler; steps that send unknown ones."""
    for command in project.commands.values():
        yield from _receiver(project, command)
    for handler in project.handlers.values():
        yield from _served(project, handler)
    for flow in project.flows:
        for route in flow.routes:
            yield from _routed(project, flow, route)
    for _, _, step in project.steps():
        if project.complete and step.action == "command" and step.name and step.name not in project.commands:
            yield Diagnostic(
                code="FR206",
                summary=f'no command named "{step.name}"',
                span=step.target.span,
                help=did_you_mean(step.name, project.commands) or "declare it under commands:",
                fix=respelt(step.target, step.name, project.commands) if isinstance(step.target, ScalarNode) else None,
            )


def _receiver(project: Declarations, command: CommandDecl) -> Iterator[Diagnostic]:
    span = command.node.span
    if command.handler is None and not command.external:
        help = "name its handler: …, or say external: true if another program does it"
        yield Diagnostic(code="FR207", summary=f'nobody does the command "{command.name}"', span=span, help=help)
    elif command.handler is not None and command.external:
        help = "leave one of handler and external out"
        summary = f'the command "{command.name}" has two receivers'
        yield Diagnostic(code="FR207", summary=summary, span=command.handler.span, help=help)
    elif command.handler is not None and project.complete:
        name = str(command.handler.value)
        full = name if "." in name else f"{command.flow}.{name}"
        if full not in project.handlers:
            help = did_you_mean(full, project.handlers) or "a handler of another flow is called flow.handler"
            own = [each.name for each in project.handlers.values() if each.flow == command.flow]
            yield Diagnostic(
                code="FR205",
                summary=f'no handler named "{name}"',
                span=command.handler.span,
                help=help,
                fix=respelt(command.handler, name, project.handlers if "." in name else own),
            )


def _served(project: Declarations, handler: HandlerDecl) -> Iterator[Diagnostic]:
    commands = project.commands_of(handler)
    reply = handler.body.key("reply")
    if reply is not None and not commands and project.complete and not project.seems_to_do_a_command(handler):
        summary = f'"{handler.name}" does no command: nobody gets its reply'
        help = f"name it in a command: handler: {handler.name}"
        yield Diagnostic(code="FR209", summary=summary, span=reply.span, help=help)
    if len(commands) > 1 and commands[1].handler is not None and commands[0].handler is not None:
        related = (Related("the first one is here", commands[0].handler.span),)
        summary = f'"{handler.name}" does two commands: what it sees as command would be either'
        help = "give each a handler of its own"
        yield Diagnostic(code="FR208", summary=summary, span=commands[1].handler.span, help=help, related=related)


def _routed(project: Declarations, flow: FlowDecl, route: RouteDecl) -> Iterator[Diagnostic]:
    for to in route.to:
        handler = project.target(flow, str(to.value))
        commands = project.commands_of(handler) if handler is not None else []
        if handler is not None and commands:
            related = (Related("the command is declared here", commands[0].node.span),)
            summary = f'"{handler.name}" does the command "{commands[0].name}": no route may lead to it'
            help = "a handler serves events or one command"
            yield Diagnostic(code="FR208", summary=summary, span=to.span, help=help, related=related)
