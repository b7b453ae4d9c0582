"""FR304 to FR307: `with` fits the plugin's parameters, or the event's schema, as far as its text tells.

A value that is a template is known only at run time; a constant is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema_rs

from runner.diagnostics import Diagnostic, Related, did_you_mean
from runner.lang.declare import StepDecl, scalars
from runner.lang.payloads import Payload
from runner.lang.project import Declarations
from runner.plan import Signature
from runner.source import MappingNode, Node, ScalarNode, Span, plain

_OPAQUE = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas", "not"})


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
        elif step.action == "emit" and name in project.events:
            place = project.events[name].node.span
            yield from _payload(project, step, project.payloads[name], Related("the event is declared here", place))
        elif step.action == "command" and name in project.commands:
            place = project.commands[name].node.span
            yield from _payload(project, step, project.payloads[name], Related("the command is declared here", place))


def _one_template(step: StepDecl) -> Iterator[Diagnostic]:
    """A `with` that is no mapping is one template: any other text can never be an object."""
    node = step.inputs
    if (
        step.action not in ("use", "command", "emit")
        or not isinstance(node, ScalarNode)
        or not isinstance(node.value, str)
    ):
        return  # of the wrong shape
    if not _is_one_template(node.value):
        summary = '"with" is a text, and must be a mapping'
        help = 'write with: {name: value}, or one template: with: "{{ … }}"'
        yield Diagnostic(code="FR307", summary=summary, span=node.span, help=help)


def _is_one_template(text: str) -> bool:
    stripped = text.strip()
    return stripped.startswith("{{") and stripped.endswith("}}") and stripped.count("{{") == 1


def _use(step: StepDecl, signature: Signature) -> Iterator[Diagnostic]:
    parameters = {parameter.name: parameter for parameter in signature.parameters}
    given = _given(step)
    for name, (key, value) in given.items():
        parameter = parameters.get(name)
        if parameter is not None:
            schema = {**parameter.schema, "$defs": signature.definitions}
            yield from _constant(name, value, schema, signature.location)
        elif not signature.accepts_any:
            help = did_you_mean(name, parameters) or f"it takes: {', '.join(parameters) or 'nothing'}"
            summary = f'{signature.name} has no parameter "{name}" ({signature.location})'
            yield Diagnostic(code="FR304", summary=summary, span=key.span, help=help)
    for parameter in signature.parameters:
        if parameter.required and parameter.name not in given:
            summary = f'{signature.name} needs "{parameter.name}" ({signature.location})'
            help = _add_it(step, parameter.name)
            yield Diagnostic(code="FR305", summary=summary, span=_place(step), help=help)


def _payload(project: Declarations, step: StepDecl, payload: Payload, declared: Related) -> Iterator[Diagnostic]:
    what = "event" if step.action == "emit" else "command"
    outline = payload.outline
    if payload.fits_anything() or _OPAQUE & set(outline):
        return
    properties: Mapping[str, Any] = outline.get("properties", {})
    given = _given(step)
    related = (declared,)
    for name, (key, value) in given.items():
        if name in properties:
            check = project.compiler.fragment_check(payload, properties[name])
            fault = check(plain(value)) if _is_constant(value) else None
            if fault is not None:
                summary = f'"{name}" does not fit the {what}: {fault.partition(": ")[2]}'
                yield Diagnostic(code="FR306", summary=summary, span=value.span, related=related)
        elif outline.get("additionalProperties") is False:
            help = did_you_mean(name, properties)
            summary = f'{what} "{step.name}" has no field "{name}"'
            yield Diagnostic(code="FR304", summary=summary, span=key.span, help=help, related=related)
    for name in outline.get("required", ()):
        if name not in given:
            summary = f'{what} "{step.name}" needs the field "{name}"'
            help = _add_it(step, name)
            yield Diagnostic(code="FR305", summary=summary, span=_place(step), help=help, related=related)


def _place(step: StepDecl) -> Span:
    return (step.node.key("with") or step.target).span


def _add_it(step: StepDecl, name: str) -> str:
    return f"add {name}: …" if step.node.get("with") is not None else f"add with: {{{name}: …}}"


def _given(step: StepDecl) -> dict[str, tuple[ScalarNode, Node]]:
    if not isinstance(step.inputs, MappingNode):
        return {}
    return {name: (key, value) for name, key, value in step.inputs.items()}


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
