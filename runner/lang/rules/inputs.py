"""FR304 to FR307: what is given fits the plugin's parameters, or the schema of the event, command or reply, as far as
its text tells.

A value that is a template is known only at run time; a constant is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from runner.diagnostics import Diagnostic, Related, did_you_mean, respelt
from runner.lang.declare import CommandDecl, HandlerDecl, IngressDecl, StepDecl, scalars
from runner.lang.payloads import Payload
from runner.lang.project import Declarations
from runner.plan import Signature
from runner.source import MappingNode, Node, ScalarNode, Span, plain

_OPAQUE = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas", "not"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """What is given for a payload: `what` is the payload's name, `key` the key that stands at `place`, or could."""

    kind: str
    what: str
    key: str
    given: Node | None
    place: Span
    declared: Related


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Inputs that cannot fit."""
    for _, _, step in project.steps():
        name = step.name or ""
        if step.inputs is not None and not isinstance(step.inputs, MappingNode):
            yield from _one_template(step)
        elif step.action == "use" and project.signatures is not None:
            signature = project.signatures.get(name)
            if signature is not None:
                yield from _use(step, signature)
        elif name in {"emit": project.events, "command": project.commands}.get(step.action, {}):
            yield from _payload(project, project.payloads[name], _data_of(project, step, name))
    for flow in project.flows:
        for schedule in flow.schedules:
            name = "" if schedule.event is None else str(schedule.event.value)
            if schedule.event is not None and name in project.events:
                key = schedule.body.key("with")
                data = _Data(
                    kind="event",
                    what=f'event "{name}"',
                    key="with",
                    given=schedule.inputs,
                    place=(key or schedule.event).span,
                    declared=Related("the event is declared here", project.events[name].node.span),
                )
                yield from _payload(project, project.payloads[name], data)
        for endpoint in flow.ingress:
            yield from _of_endpoint(project, endpoint)
    for handler in project.handlers.values():
        for command in project.commands_of(handler):
            yield from _reply(project, handler, command)


def _data_of(project: Declarations, step: StepDecl, name: str) -> _Data:
    kind = "event" if step.action == "emit" else "command"
    node = project.events[name].node if step.action == "emit" else project.commands[name].node
    return _Data(
        kind=kind,
        what=f'{kind} "{name}"',
        key="with",
        given=step.inputs,
        place=(step.node.key("with") or step.target).span,
        declared=Related(f"the {kind} is declared here", node.span),
    )


def _of_endpoint(project: Declarations, endpoint: IngressDecl) -> Iterator[Diagnostic]:
    """Without `with` the payload is the request's body, which only the request knows."""
    kind, target, declared = (
        ("event", endpoint.event, project.events)
        if endpoint.command is None
        else ("command", endpoint.command, project.commands)
    )
    key, name = endpoint.body.key("with"), "" if target is None else str(target.value)
    if isinstance(endpoint.inputs, ScalarNode) and isinstance(endpoint.inputs.value, str):
        yield from _text(endpoint.inputs)
    elif key is not None and name in declared:
        data = _Data(
            kind=kind,
            what=f'{kind} "{name}"',
            key="with",
            given=endpoint.inputs,
            place=key.span,
            declared=Related(f"the {kind} is declared here", declared[name].node.span),
        )
        yield from _payload(project, project.payloads[name], data)


def _reply(project: Declarations, handler: HandlerDecl, command: CommandDecl) -> Iterator[Diagnostic]:
    """A handler without `reply` answers null."""
    payload = project.replies[command.name]
    declared = Related("the command is declared here", command.node.span)
    key = handler.body.key("reply")
    if key is not None:
        data = _Data(
            kind="reply",
            what=f'the reply of "{command.name}"',
            key="reply",
            given=handler.body.get("reply"),
            place=key.span,
            declared=declared,
        )
        yield from _payload(project, payload, data)
    elif payload.check(None) is not None:
        summary = f'"{handler.name}" answers nothing, and the reply of "{command.name}" must fit its schema'
        help = "add reply: {…} beside its steps"
        yield Diagnostic(code="FR305", summary=summary, span=handler.node.span, help=help, related=(declared,))


def _one_template(step: StepDecl) -> Iterator[Diagnostic]:
    """A `with` that is no mapping is one template: any other text can never be an object."""
    node = step.inputs
    if (
        step.action not in ("use", "command", "emit")
        or not isinstance(node, ScalarNode)
        or not isinstance(node.value, str)
    ):
        return  # of the wrong shape
    yield from _text(node)


def _text(node: ScalarNode) -> Iterator[Diagnostic]:
    if not _is_one_template(str(node.value)):
        summary = '"with" is a text, and must be a mapping'
        help = 'write with: {name: value}, or one template: with: "{{ … }}"'
        yield Diagnostic(code="FR307", summary=summary, span=node.span, help=help)


def _is_one_template(text: str) -> bool:
    stripped = text.strip()
    return stripped.startswith("{{") and stripped.endswith("}}") and stripped.count("{{") == 1


def _use(step: StepDecl, signature: Signature) -> Iterator[Diagnostic]:
    parameters = {parameter.name: parameter for parameter in signature.parameters}
    given = _given(step.inputs)
    for name, (key, value) in given.items():
        parameter = parameters.get(name)
        if parameter is not None:
            schema = {**parameter.schema, "$defs": signature.definitions}
            yield from _constant(name, value, schema, signature.location)
        elif not signature.accepts_any:
            help = did_you_mean(name, parameters) or f"it takes: {', '.join(parameters) or 'nothing'}"
            summary = f'{signature.name} has no parameter "{name}" ({signature.location})'
            fix = respelt(key, name, set(parameters) - set(given))
            yield Diagnostic(code="FR304", summary=summary, span=key.span, help=help, fix=fix)
    for parameter in signature.parameters:
        if parameter.required and parameter.name not in given:
            summary = f'{signature.name} needs "{parameter.name}" ({signature.location})'
            help = _add_it("with", step.inputs, parameter.name)
            place = (step.node.key("with") or step.target).span
            yield Diagnostic(code="FR305", summary=summary, span=place, help=help)


def _payload(project: Declarations, payload: Payload, data: _Data) -> Iterator[Diagnostic]:
    outline = payload.outline
    if payload.fits_anything() or _OPAQUE & set(outline):
        return
    if data.given is not None and not isinstance(data.given, MappingNode):
        return  # one template, or the wrong shape
    properties: Mapping[str, Any] = outline.get("properties", {})
    given = _given(data.given)
    related = (data.declared,)
    for name, (key, value) in given.items():
        if name in properties:
            check = project.compiler.fragment_check(payload, properties[name])
            fault = check(plain(value)) if _is_constant(value) else None
            if fault is not None:
                summary = f'"{name}" does not fit the {data.kind}: {fault.partition(": ")[2]}'
                yield Diagnostic(code="FR306", summary=summary, span=value.span, related=related)
        elif outline.get("additionalProperties") is False:
            help = did_you_mean(name, properties)
            summary = f'{data.what} has no field "{name}"'
            fix = respelt(key, name, set(properties) - set(given))
            yield Diagnostic(code="FR304", summary=summary, span=key.span, help=help, related=related, fix=fix)
    for name in outline.get("required", ()):
        if name not in given:
            summary = f'{data.what} needs the field "{name}"'
            help = _add_it(data.key, data.given, name)
            yield Diagnostic(code="FR305", summary=summary, span=data.place, help=help, related=related)


def _add_it(key: str, given: Node | None, name: str) -> str:
    return f"add {name}: …" if given is not None else f"add {key}: {{{name}: …}}"


def _given(inputs: Node | None) -> dict[str, tuple[ScalarNode, Node]]:
    if not isinstance(inputs, MappingNode):
        return {}
    return {name: (key, value) for name, key, value in inputs.items()}


def _constant(name: str, value: Node, schema: Mapping[str, Any], location: str) -> Iterator[Diagnostic]:
    if not _is_constant(value):
        return
    validator = jsonschema_rs.validator_for(dict(schema), offline=True)
    for error in validator.iter_errors(plain(value)):
        summary = f'"{name}" does not fit: {error.message} ({location})'
        yield Diagnostic(code="FR306", summary=summary, span=value.span)
        return


def _is_constant(value: Node) -> bool:
    return not any("{{" in str(node.value) for node in scalars(value))
