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
from runner.source import MappingNode, Node, ScalarNode, plain

_OPAQUE = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas", "not"})


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Inputs that cannot fit."""
    for _, _, step in project.steps():
        if step.inputs is not None and not isinstance(step.inputs, MappingNode):
            continue  # one template, or a wrong shape that has been reported
        if step.action == "use" and project.signatures is not None:
            signature = project.signatures.get(step.name or "")
            if signature is not None:
                yield from _use(step, signature)
        elif step.action == "emit" and step.name in project.payloads:
            yield from _emit(project, step, project.payloads[step.name])


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
            span = (step.node.key("with") or step.target).span
            yield Diagnostic(code="FR305", summary=summary, span=span, help=f"add it under with: {parameter.name}: …")


def _emit(project: Declarations, step: StepDecl, payload: Payload) -> Iterator[Diagnostic]:
    outline = payload.outline
    if payload.fits_anything() or _OPAQUE & set(outline):
        return
    properties: Mapping[str, Any] = outline.get("properties", {})
    given = _given(step)
    declared = project.events[step.name or ""].node.span
    related = (Related("the event is declared here", declared),)
    for name, (key, value) in given.items():
        if name in properties:
            check = project.compiler.fragment_check(payload, properties[name])
            fault = check(plain(value)) if _is_constant(value) else None
            if fault is not None:
                summary = f'"{name}" does not fit the event: {fault.partition(": ")[2]}'
                yield Diagnostic(code="FR306", summary=summary, span=value.span, related=related)
        elif outline.get("additionalProperties") is False:
            help = did_you_mean(name, properties)
            summary = f'event "{step.name}" has no field "{name}"'
            yield Diagnostic(code="FR304", summary=summary, span=key.span, help=help, related=related)
    for name in outline.get("required", ()):
        if name not in given:
            span = (step.node.key("with") or step.target).span
            summary = f'event "{step.name}" needs the field "{name}"'
            yield Diagnostic(code="FR305", summary=summary, span=span, related=related)


def _given(step: StepDecl) -> dict[str, tuple[ScalarNode, Node]]:
    if not isinstance(step.inputs, MappingNode):
        return {}
    return {str(key.value): (key, value) for key, value in step.inputs.entries}


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
