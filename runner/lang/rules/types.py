"""FR330 to FR336: every expression, with what is known of the values that it will see.

A handler is walked once for each route and event that lead to it, or for its command: in such a world `event` has one
schema. What is wrong in some world is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from runner.diagnostics import Diagnostic, respelt
from runner.expressions import Expression, ExpressionSyntaxError, parse_expression, parse_template
from runner.lang import traffic
from runner.lang.declare import FoldDecl, HandlerDecl, IngressDecl, StepDecl, all_steps
from runner.lang.fitting import misfit
from runner.lang.infer import Fault, Inference, Names, assume, field_of
from runner.lang.project import Declarations
from runner.lang.types import (
    ANY,
    NEVER,
    Type,
    constant,
    list_of,
    of_kind,
    of_parameter,
    of_result,
    one_of,
    record,
    soft,
    union,
    with_field,
)
from runner.source import MappingNode, Node, ScalarNode, SequenceNode, plain

MAX_WORLDS = 50
"""A handler of very many events is looked at for so many of them."""

_TEXT = of_kind("string")
_NUMBER = of_kind("number")
_WHOLE = of_kind("integer")
_KEY = of_kind("string", "number")
_OPTIONAL_TEXT = of_kind("string", "null")
_META = {
    "id": _TEXT, "source": _TEXT, "subject": _OPTIONAL_TEXT, "time": _TEXT, "correlation_id": _TEXT,
    "causation_id": _OPTIONAL_TEXT,
}  # fmt: skip
_ERROR = record(
    {
        "type": _TEXT,
        "message": _TEXT,
        "retryable": of_kind("boolean"),
        "details": ANY,
        "step": _OPTIONAL_TEXT,
    }
)
_RUN = record({"id": _TEXT, "started_at": _TEXT})


def check(project: Declarations) -> Iterator[Diagnostic]:
    """What fails for some value that the schemas allow."""
    finds = _Finds()
    for flow in project.flows:
        for event in flow.events:
            if event.subject is not None:
                _Look(finds, {"event": _payload(project, event.name)}).template(event.subject)
        for schedule in flow.schedules:
            _Look(finds, {"slot": _TEXT}).value(schedule.inputs)
        for endpoint in flow.ingress:
            _endpoint(project, endpoint, finds)
        for projection in flow.projections:
            for fold in projection.folds:
                finds.world = str(fold.event.value)
                _fold(project, fold, finds)
        for handler in flow.handlers:
            for world, names in islice(_worlds(project, handler, finds), MAX_WORLDS):
                finds.world = world
                _keys(handler, _Look(finds, names), finds)
                _Walk(project, finds, names).handler(handler)
    yield from finds.diagnostics()


class _Finds:
    """What was found wrong, in which worlds, and in which of them each place was judged."""

    def __init__(self) -> None:
        self.world = ""
        self._looked: dict[tuple[ScalarNode, int], set[str]] = {}
        self._faults: dict[tuple[ScalarNode, int, str], dict[str, Fault]] = {}
        self._misfits: dict[Diagnostic, None] = {}

    def looked(self, node: ScalarNode, offset: int) -> None:
        """What stands there is judged in this world."""
        self._looked.setdefault((node, offset), set()).add(self.world)

    def fault(self, node: ScalarNode, fault: Fault) -> None:
        """Something is wrong with it in this world."""
        self._faults.setdefault((node, fault.offset, fault.code), {}).setdefault(self.world, fault)

    def misfit(self, summary: str, place: Node) -> None:
        """What is given there cannot be what is wanted."""
        self._misfits[Diagnostic(code="FR334", summary=summary, span=place.span)] = None

    def diagnostics(self) -> Iterator[Diagnostic]:
        """One for each place: what holds in some worlds only is said to be so."""
        yield from self._misfits
        for (node, offset, code), by_world in self._faults.items():
            fault = next(iter(by_world.values()))
            if by_world.keys() != self._looked.get((node, offset), by_world.keys()):
                if code == "FR336":
                    continue  # that is what it is for: to tell them apart
                if code == "FR330":
                    fault = _in_some(fault, by_world, str(node.value)[offset : offset + fault.length])
            yield Diagnostic(
                code=fault.code,
                summary=fault.summary,
                span=node.part(offset, fault.length),
                severity=fault.severity,
                help=fault.help,
                fix=respelt(node, str(node.value)[offset : offset + fault.length], fault.known, offset),
            )


def _in_some(fault: Fault, worlds: Iterable[str], name: str) -> Fault:
    summary = f'"{name}" may be missing: {", ".join(worlds)} has no such field'
    help = "guard it by is defined or default(…), or tell the events apart by meta.type"
    return replace(fault, code="FR332", summary=summary, help=help, known=())


def _payload(project: Declarations, name: str) -> Type:
    payload = project.payloads.get(name)
    return ANY if payload is None else project.compiler.type_of(payload)


def _endpoint(project: Declarations, endpoint: IngressDecl, finds: _Finds) -> None:
    look = _Look(finds, {})
    given = look.value(endpoint.inputs) if endpoint.inputs is not None else ANY
    name = endpoint.event if endpoint.event is not None else endpoint.command
    if name is not None:
        look.fit(endpoint.inputs, given, _payload(project, str(name.value)), str(name.value))


def _keys(handler: HandlerDecl, look: _Look, finds: _Finds) -> None:
    for what, node in traffic.keys(handler):
        found = look.template(node)
        if what == "a priority" and (reason := misfit(found, _NUMBER)) is not None:
            finds.misfit(f"a priority is a number from 0 to 9: {reason}", node)


def _fold(project: Declarations, fold: FoldDecl, finds: _Finds) -> None:
    name = str(fold.event.value)
    meta = record({**_meta(project, name), "version": of_kind("integer", "null")})
    look = _Look(finds, {"event": _payload(project, name), "meta": meta})
    if fold.key is not None and (reason := misfit(look.template(fold.key), _KEY)) is not None:
        finds.misfit(f"a key is a text or a number: {reason}", fold.key)
    look.names["state"] = ANY
    look.value(fold.body.get("set"))
    look.value(fold.body.get("append"))
    increment = fold.body.get("increment")
    if isinstance(increment, MappingNode):
        wanted = record({field: _NUMBER for field, _, _ in increment.items()})
        look.fit(increment, look.value(increment), wanted, "an increment")


def _meta(project: Declarations, name: str) -> dict[str, Type]:
    """What an event's `meta` has. One that is declared with a subject gets it at its arrival, if it brings none."""
    event = project.events.get(name)
    subject = _OPTIONAL_TEXT if event is None or event.subject is None else _TEXT
    return {**_META, "type": one_of(name), "subject": subject}


def _worlds(project: Declarations, handler: HandlerDecl, finds: _Finds) -> Iterator[tuple[str, Names]]:
    """What is known of the names where a handler begins, for each way that leads there."""
    base = {"run": _RUN, "env": ANY, "secrets": ANY}
    for command in project.commands_of(handler):
        meta = record({**_META, "type": one_of(command.name)})
        yield command.name, {**base, "command": _payload(project, command.name), "meta": meta}
    for route in project.routes_to(handler):
        for name in sorted({name for node in route.patterns for name in project.matching(str(node.value))}):
            meta = record(_meta(project, name))
            begins = {**base, "event": _payload(project, name), "meta": meta}
            finds.world = name
            held = begins if route.when is None else _Look(finds, begins).condition(route.when)
            if held is not None:
                yield name, held


class _Look:
    """Looks at the texts of one place; what is wrong is put to `finds`."""

    def __init__(self, finds: _Finds, names: Names, *, conditional: bool = False) -> None:
        self._finds = finds
        self.names = dict(names)
        self.conditional = conditional

    def template(self, node: ScalarNode) -> Type:
        """The type of what a text gives."""
        if not isinstance(node.value, str):
            return constant(node.value)
        if "{{" not in node.value:
            return constant(node.value)
        expression = _parsed(node, parse_template)
        if expression is None:
            return ANY
        kinds = [self._infer(node).type_of(piece) for piece in expression.pieces]
        return kinds[0] if len(kinds) == 1 else _TEXT

    def bare(self, node: ScalarNode) -> Type:
        """The type of a bare expression."""
        if not isinstance(node.value, str):
            return constant(node.value)
        expression = _parsed(node, parse_expression)
        return ANY if expression is None else self._infer(node).type_of(expression.pieces[0])

    def condition(self, node: ScalarNode, truth: bool = True) -> Names | None:
        """What is known where a condition holds, or does not; None if it never does so."""
        self.bare(node)
        if not isinstance(node.value, str):
            return self.names if bool(node.value) is truth else None
        expression = _parsed(node, parse_expression)
        return self.names if expression is None else assume(expression.pieces[0], self.names, truth)

    def value(self, node: Node | None) -> Type:
        """The type of a value with templates in it."""
        match node:
            case ScalarNode():
                return self.template(node)
            case SequenceNode():
                return list_of(union([self.value(item) for item in node.items]))
            case MappingNode():
                return record({name: self.value(value) for name, _, value in node.items()})
        return record({})

    def fit(self, node: Node | None, given: Type, wanted: Type, what: str) -> None:
        """FR334, where what is given for a field cannot be what is wanted, for some value."""
        if not isinstance(node, MappingNode):
            return
        for name, _, value in node.items():
            if not any("{{" in str(text.value) for text in _texts(value)):
                continue  # constants are looked at by the value, not by the type
            reason = misfit(field_of(given, name), field_of(wanted, name), conditional=self.conditional)
            if reason is not None:
                self._finds.misfit(f'"{name}" does not fit {what}: {reason}', value)

    def _infer(self, node: ScalarNode) -> Inference:
        finds = self._finds
        return Inference(
            self.names,
            lambda fault: finds.fault(node, fault),
            lambda offset: finds.looked(node, offset),
            conditional=self.conditional,
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a step's record may show, and whether the run goes on after it."""

    output: Type
    event: Type = ANY
    goes_on: bool = True


class _Walk(_Look):
    """Walks a handler's steps in one world, as a run does."""

    def __init__(self, project: Declarations, finds: _Finds, names: Names, *, conditional: bool = False) -> None:
        super().__init__(finds, {"steps": record({}), "vars": record({}), **names}, conditional=conditional)
        self._project = project

    def handler(self, handler: HandlerDecl) -> None:
        """Its steps, its reply and what it does when it fails."""
        begins = dict(self.names)
        goes_on = self.steps(handler.steps)
        if (reply := handler.body.get("reply")) is not None:
            stops = any(step.action == "stop" for step in all_steps(handler.steps))
            end = self if goes_on and not stops else self._at({**begins, "steps": ANY, "vars": ANY})
            given = end.value(reply)
            for command in self._project.commands_of(handler):
                wanted = self._project.compiler.type_of(self._project.replies[command.name])
                end.fit(reply, given, wanted, f'the reply of "{command.name}"')
        after = self._at({**begins, "steps": ANY, "vars": ANY, "error": _ERROR})
        after.steps(handler.on_failure)

    def steps(self, steps: Iterable[StepDecl]) -> bool:
        """Whether what stands after them can be reached."""
        return all(self._step(step) for step in steps)

    def _at(self, names: Names, *, conditional: bool | None = None) -> _Walk:
        under = self.conditional if conditional is None else conditional
        return _Walk(self._project, self._finds, names, conditional=under)

    def _step(self, step: StepDecl) -> bool:
        """Whether the run can go on after it."""
        holds: Names | None = self.names
        fails: Names | None = None
        if step.when is not None:
            holds, fails = self.condition(step.when), self._quietly().condition(step.when, truth=False)
        if holds is None:  # never here
            self._remember(step, [_state("skipped", of_kind("null"))])
            return True
        hangs = fails is not None
        inner = self._at(holds, conditional=self.conditional or hangs)
        outcome = inner._act(step)
        states = [_state("completed", outcome.output, event=outcome.event)] if outcome.goes_on else []
        goes_on = outcome.goes_on
        for caught in step.catches:
            output = inner._caught(caught.steps)
            if output is not None:
                goes_on = True
                states.append(soft(_state("failed", output, _ERROR)))
        if not goes_on and fails is not None:
            self.names.update(fails)  # what goes on has not been there
        variables = inner.names["vars"] if goes_on else NEVER
        if hangs:
            states.append(soft(_state("skipped", of_kind("null"))))
            self.names["vars"] = _joined(variables, self.names["vars"]) if goes_on else self.names["vars"]
        elif goes_on:
            self.names["vars"] = variables
        for undo in step.undo:
            self._undo(undo, inner.names, outcome.output)
        self._remember(step, states)
        return goes_on or hangs

    def _quietly(self) -> _Look:
        return _Look(_Finds(), self.names, conditional=self.conditional)

    def _remember(self, step: StepDecl, states: list[Type]) -> None:
        self.names["steps"] = with_field(self.names["steps"], step.id, union(states))

    def _caught(self, steps: tuple[StepDecl, ...]) -> Type | None:
        """The output of a catch; None if it does not let the run go on."""
        catching = self._at({**self.names, "error": _ERROR}, conditional=True)
        if not catching.steps(steps):
            return None
        for name in ("steps", "vars"):
            self.names[name] = _joined(catching.names[name], self.names[name])
        return field_of(field_of(catching.names["steps"], steps[-1].id), "output") if steps else of_kind("null")

    def _undo(self, undo: StepDecl, names: Names, output: Type) -> None:
        """It runs later, when more is known, and less certain: only what it was given by then is judged."""
        later = self._at({**names, "error": _ERROR, "output": replace(output, missing=False)}, conditional=True)
        if undo.when is not None:
            held = later.condition(undo.when)
            later = self._at(held if held is not None else {}, conditional=True)
        later._give(undo)

    # --- what steps do

    def _act(self, step: StepDecl) -> _Outcome:
        match step.action:
            case "use" | "command" | "emit":
                return _Outcome(self._give(step))
            case "set":
                values = self.value(step.inputs)
                names = [name for name, _, _ in step.target.items()] if isinstance(step.target, MappingNode) else []
                for name in names:
                    self.names["vars"] = with_field(self.names["vars"], name, field_of(values, name))
                return _Outcome(values)
            case "switch":
                return self._switch(step)
            case "parallel":
                return self._parallel(step)
            case "foreach":
                return self._foreach(step)
            case "wait" | "wait_for":
                return self._wait(step)
            case "fail":
                self.value(step.inputs)
                return _Outcome(NEVER, goes_on=False)
        return _Outcome(NEVER, goes_on=False)  # stop

    def _give(self, step: StepDecl) -> Type:
        """What a `use`, `command` or `emit` gives for what it is given."""
        given, name, project = self.value(step.inputs), step.name or "", self._project
        match step.action:
            case "use":
                signature = (project.signatures or {}).get(name)
                if signature is None:
                    return ANY
                wanted = record({each.name: of_parameter(each, signature) for each in signature.parameters})
                self.fit(step.inputs, given, wanted, f"{name} ({signature.location})")
                return of_result(signature)
            case "command":
                self.fit(step.inputs, given, _payload(project, name), f'command "{name}"')
                reply = project.replies.get(name)
                return ANY if reply is None else project.compiler.type_of(reply)
            case "emit":
                self.fit(step.inputs, given, _payload(project, name), f'event "{name}"')
                self._version(step)
        return record({"id": _TEXT})

    def _version(self, step: StepDecl) -> None:
        node = step.expected_version
        if node is not None and (reason := misfit(self.template(node), _WHOLE, conditional=self.conditional)):
            self._finds.misfit(f"a version is a whole number: {reason}", node)

    def _switch(self, step: StepDecl) -> _Outcome:
        ends: list[_Walk] = []
        names: Names | None = self.names
        for branch in step.branches:
            if names is None:
                break
            before = self._at(names)
            held = before.condition(branch.when) if branch.when is not None else before.names
            names = before._quietly().condition(branch.when, truth=False) if branch.when is not None else None
            if held is not None:
                taken = self._at(held, conditional=self.conditional or names is not None or bool(ends))
                if taken.steps(branch.steps):
                    ends.append(taken)
        if names is not None:  # none may have held
            ends.append(self._at(names))
        if not ends:
            return _Outcome(NEVER, goes_on=False)
        for name in ("steps", "vars"):
            joined = ends[0].names[name]
            for end in ends[1:]:
                joined = _joined(joined, end.names[name])
            self.names[name] = joined
        return _Outcome(ANY)

    def _parallel(self, step: StepDecl) -> _Outcome:
        outputs: dict[str, Type] = {}
        reached = []
        for branch in step.branches:
            inside = self._at(dict(self.names))
            reached.append(inside.steps(branch.steps))
            last = branch.steps[-1] if branch.steps else None
            output = of_kind("null") if last is None else field_of(field_of(inside.names["steps"], last.id), "output")
            if branch.name is not None:
                outputs[str(branch.name.value)] = output
        if isinstance(step.target, MappingNode) and plain(step.target.get("wait")) == "any":
            first = {name: replace(output, missing=True) for name, output in outputs.items()}
            return _Outcome(record({"winner": one_of(*outputs), **first}), goes_on=any(reached))
        return _Outcome(record(outputs), goes_on=all(reached))

    def _foreach(self, step: StepDecl) -> _Outcome:
        items = self.bare(step.items) if step.items is not None else ANY
        item = union(alt.items() for alt in items.alts if alt.kind == "array" and alt.items is not None)
        name = "item" if step.item is None else str(step.item.value)
        inside = self._at({**self.names, name: ANY if items.unknown or item.is_never else item,
                           "index": of_kind("integer")}, conditional=True)  # fmt: skip
        steps = step.branches[0].steps if step.branches else ()
        if not inside.steps(steps):
            return _Outcome(list_of(ANY))
        if step.until is not None:
            inside.bare(step.until)
        output = field_of(field_of(inside.names["steps"], steps[-1].id), "output") if steps else of_kind("null")
        return _Outcome(list_of(output))

    def _wait(self, step: StepDecl) -> _Outcome:
        if step.until is not None:
            self.bare(step.until)
        self.value(step.inputs)
        if step.action == "wait":
            return _Outcome(of_kind("null"))
        names = [str(node.value) for node in step.awaited]
        data = union(_payload(self._project, name) for name in names)
        meta = record({**_META, "type": one_of(*names)})
        several = isinstance(step.target, MappingNode) and step.target.get("count") is not None
        return _Outcome(list_of(data), list_of(meta)) if several else _Outcome(data, meta)


def _state(state: str, output: Type, error: Type | None = None, *, event: Type = ANY) -> Type:
    fields = {"state": one_of(state), "output": replace(output, missing=False), "attempts": of_kind("integer")}
    return record({**fields, "error": error or of_kind("null"), "event": event})


def _joined(one: Type, other: Type) -> Type:
    """What is in both is either; what is in one of them may not be there, which hangs on a condition."""
    names = dict.fromkeys(name for kind in (one, other) for alt in kind.alts for name in alt.fields)
    fields: dict[str, Type] = {}
    for name in names:
        kinds = [field_of(one, name), field_of(other, name)]
        joined = union(kinds)
        fields[name] = replace(joined, unknown=joined.unknown or joined.missing, missing=False)
    return record(fields)


def _texts(node: Node) -> Iterator[ScalarNode]:
    match node:
        case ScalarNode():
            yield node
        case SequenceNode():
            for item in node.items:
                yield from _texts(item)
        case MappingNode():
            for _, value in node.entries:
                yield from _texts(value)


def _parsed(node: ScalarNode, parse: Callable[[str], Expression]) -> Expression | None:
    try:
        return parse(str(node.value))
    except ExpressionSyntaxError:
        return None  # another rule's
