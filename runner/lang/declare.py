"""Document → declarations: what a flow file says, by name, with the place of every word.

Reads leniently: what has the wrong shape is left out here, `lang/schema` has reported it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from runner.source import Document, MappingNode, Node, ScalarNode, SequenceNode, Span

ACTIONS = ("use", "command", "emit", "set", "switch", "parallel", "foreach", "wait", "wait_for", "fail", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDecl:
    """An event as declared."""

    name: str
    node: ScalarNode
    flow: str
    document: Document
    schema: Node | None
    subject: ScalarNode | None
    external: bool
    keys: tuple[ScalarNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandDecl:
    """A command as declared."""

    name: str
    node: ScalarNode
    flow: str
    document: Document
    body: MappingNode
    handler: ScalarNode | None
    external: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchDecl:
    """One `catch` of a step; `types` None takes all errors."""

    types: tuple[str, ...] | None
    steps: tuple[StepDecl, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchDecl:
    """One branch of a `switch` (`when` is None for the default) or of a `parallel` (`name`); the rounds of a
    `foreach`."""

    steps: tuple[StepDecl, ...]
    when: ScalarNode | None = None
    name: ScalarNode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecl:
    """A step as declared. `id` is its own, or its place (`4`, `pay.catch.1.do.1`)."""

    id: str
    id_node: ScalarNode | None
    node: MappingNode
    action: str
    action_node: ScalarNode
    target: Node
    when: ScalarNode | None
    inputs: Node | None
    catches: tuple[CatchDecl, ...] = ()
    undo: tuple[StepDecl, ...] = ()
    branches: tuple[BranchDecl, ...] = ()

    @property
    def awaited(self) -> tuple[ScalarNode, ...]:
        """The events that a `wait_for` names."""
        is_one = self.action == "wait_for" and isinstance(self.target, MappingNode)
        return _texts(self.target.get("event")) if is_one and isinstance(self.target, MappingNode) else ()

    @property
    def until(self) -> ScalarNode | None:
        """The time that a `wait` or a `wait_for` names, or the condition of a `foreach`."""
        is_one = self.action in ("wait", "wait_for", "foreach") and isinstance(self.target, MappingNode)
        return _scalar(self.target.get("until")) if is_one and isinstance(self.target, MappingNode) else None

    @property
    def expected_version(self) -> ScalarNode | None:
        """The version that an `emit` expects."""
        return _scalar(self.node.get("expected_version")) if self.action == "emit" else None

    @property
    def items(self) -> ScalarNode | None:
        """The list that a `foreach` goes through."""
        is_one = self.action == "foreach" and isinstance(self.target, MappingNode)
        return _scalar(self.target.get("in")) if is_one and isinstance(self.target, MappingNode) else None

    @property
    def item(self) -> ScalarNode | None:
        """What a `foreach` calls an item, if it says so."""
        is_one = self.action == "foreach" and isinstance(self.target, MappingNode)
        return _scalar(self.target.get("as")) if is_one and isinstance(self.target, MappingNode) else None

    @property
    def name(self) -> str | None:
        """What the action names: a plugin, a command, an event."""
        return _text(self.target)

    def inner(self) -> Iterator[StepDecl]:
        """The steps inside, in the order of the file; compensations are none of them."""
        for branch in self.branches:
            yield from branch.steps
        for catch in self.catches:
            yield from catch.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDecl:
    """A route as declared."""

    patterns: tuple[ScalarNode, ...]
    when: ScalarNode | None
    to: tuple[ScalarNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelDecl:
    """An entry of a handler's `cancel_on`."""

    event: ScalarNode
    match: MappingNode | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerDecl:
    """A handler as declared."""

    name: str
    flow: str
    node: ScalarNode
    body: MappingNode
    steps: tuple[StepDecl, ...]
    on_failure: tuple[StepDecl, ...]
    cancel_on: tuple[CancelDecl, ...] = ()

    @property
    def full_name(self) -> str:
        """`flow.handler`."""
        return f"{self.flow}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDecl:
    """A schedule as declared."""

    name: str
    flow: str
    body: MappingNode
    cron: ScalarNode | None
    timezone: ScalarNode | None
    event: ScalarNode | None
    inputs: Node | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressDecl:
    """An endpoint as declared. `http` is `METHOD /path`."""

    name: str
    flow: str
    node: ScalarNode
    body: MappingNode
    http: ScalarNode | None
    event: ScalarNode | None
    command: ScalarNode | None
    inputs: Node | None

    @property
    def method(self) -> str:
        """`POST`, as it is written."""
        return self._http.partition(" ")[0]

    @property
    def path(self) -> str:
        """`/orders/{order_id}`, as it is written."""
        return self._http.partition(" ")[2].strip()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the path's parts that stand for any text, in order."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{") and part.endswith("}"))

    @property
    def shape(self) -> str:
        """The path with all such parts alike: two endpoints of one method and one shape are one to a request."""
        return "/".join("{}" if part[:1] == "{" else part for part in self.path.split("/"))

    @property
    def _http(self) -> str:
        return _text(self.http) or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldDecl:
    """What an event does to an entry of a projection. `key` is its own, else the projection's."""

    event: ScalarNode
    body: MappingNode
    key: ScalarNode | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionDecl:
    """A projection as declared."""

    name: str
    flow: str
    node: ScalarNode
    body: MappingNode
    folds: tuple[FoldDecl, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowDecl:
    """A flow file as declared."""

    name: str
    node: ScalarNode
    document: Document
    env: dict[str, Span] = field(default_factory=dict)
    secrets: dict[str, Span] = field(default_factory=dict)
    events: tuple[EventDecl, ...] = ()
    commands: tuple[CommandDecl, ...] = ()
    routes: tuple[RouteDecl, ...] = ()
    schedules: tuple[ScheduleDecl, ...] = ()
    ingress: tuple[IngressDecl, ...] = ()
    projections: tuple[ProjectionDecl, ...] = ()
    handlers: tuple[HandlerDecl, ...] = ()


def declare(document: Document) -> FlowDecl | None:
    """What a document declares; None if it does not even say which flow it is."""
    root = document.root
    if not isinstance(root, MappingNode):
        return None
    flow = root.get("flow")
    if not isinstance(flow, ScalarNode) or not isinstance(flow.value, str):
        return None
    uses = root.get("uses")
    return FlowDecl(
        name=flow.value,
        node=flow,
        document=document,
        env=_names(uses, "env"),
        secrets=_names(uses, "secrets"),
        events=tuple(_events(root.get("events"), flow.value, document)),
        commands=tuple(_commands(root.get("commands"), flow.value, document)),
        routes=tuple(_routes(root.get("routes"))),
        schedules=tuple(_schedules(root.get("schedules"), flow.value)),
        ingress=tuple(_ingress(root.get("ingress"), flow.value)),
        projections=tuple(_projections(root.get("projections"), flow.value)),
        handlers=tuple(_handlers(root.get("handlers"), flow.value)),
    )


def all_steps(steps: tuple[StepDecl, ...]) -> Iterator[StepDecl]:
    """These steps and all inside them, compensations included."""
    for step in steps:
        yield step
        yield from step.undo
        yield from all_steps(tuple(step.inner()))


def scalars(node: Node | None) -> Iterator[ScalarNode]:
    """Every text below a node."""
    match node:
        case ScalarNode() if isinstance(node.value, str):
            yield node
        case SequenceNode():
            for item in node.items:
                yield from scalars(item)
        case MappingNode():
            for _, value in node.entries:
                yield from scalars(value)


def _events(node: Node | None, flow: str, document: Document) -> Iterator[EventDecl]:
    for name, key, body in _mapping(node):
        if not isinstance(body, MappingNode):
            body = MappingNode(body.span, ())
        yield EventDecl(
            name=name,
            node=key,
            flow=flow,
            document=document,
            schema=body.get("schema"),
            subject=_scalar(body.get("subject")),
            external=_is_true(body.get("external")),
            keys=_texts(body.get("keys")),
        )


def _commands(node: Node | None, flow: str, document: Document) -> Iterator[CommandDecl]:
    for name, key, body in _mapping(node):
        if not isinstance(body, MappingNode):
            body = MappingNode(body.span, ())
        yield CommandDecl(
            name=name,
            node=key,
            flow=flow,
            document=document,
            body=body,
            handler=_scalar(body.get("handler")),
            external=_is_true(body.get("external")),
        )


def _routes(node: Node | None) -> Iterator[RouteDecl]:
    for item in node.items if isinstance(node, SequenceNode) else ():
        if isinstance(item, MappingNode):
            yield RouteDecl(patterns=_texts(item.get("on")), when=_scalar(item.get("when")), to=_texts(item.get("to")))


def _schedules(node: Node | None, flow: str) -> Iterator[ScheduleDecl]:
    for name, _, body in _mapping(node):
        if isinstance(body, MappingNode):
            yield ScheduleDecl(
                name=f"{flow}.{name}",
                flow=flow,
                body=body,
                cron=_scalar(body.get("cron")),
                timezone=_scalar(body.get("timezone")),
                event=_scalar(body.get("emit")),
                inputs=body.get("with"),
            )


def _ingress(node: Node | None, flow: str) -> Iterator[IngressDecl]:
    for name, key, body in _mapping(node):
        if isinstance(body, MappingNode):
            yield IngressDecl(
                name=f"{flow}.{name}",
                flow=flow,
                node=key,
                body=body,
                http=_scalar(body.get("http")),
                event=_scalar(body.get("emit")),
                command=_scalar(body.get("command")),
                inputs=body.get("with"),
            )


def _projections(node: Node | None, flow: str) -> Iterator[ProjectionDecl]:
    for name, key, body in _mapping(node):
        if isinstance(body, MappingNode):
            yield ProjectionDecl(
                name=name,
                flow=flow,
                node=key,
                body=body,
                folds=tuple(_folds(body.get("on"), _scalar(body.get("key")))),
            )


def _folds(node: Node | None, common: ScalarNode | None) -> Iterator[FoldDecl]:
    for _, event, body in _mapping(node):
        if isinstance(body, MappingNode):
            yield FoldDecl(event=event, body=body, key=_scalar(body.get("key")) or common)


def _handlers(node: Node | None, flow: str) -> Iterator[HandlerDecl]:
    for name, key, body in _mapping(node):
        if isinstance(body, MappingNode):
            yield HandlerDecl(
                name=name,
                flow=flow,
                node=key,
                body=body,
                steps=_steps(body.get("steps"), ""),
                on_failure=_steps(body.get("on_failure"), "on_failure"),
                cancel_on=tuple(_cancels(body.get("cancel_on"))),
            )


def _cancels(node: Node | None) -> Iterator[CancelDecl]:
    for item in node.items if isinstance(node, SequenceNode) else ():
        event = _scalar(item.get("event")) if isinstance(item, MappingNode) else None
        if event is not None and isinstance(item, MappingNode):
            match = item.get("match")
            yield CancelDecl(event=event, match=match if isinstance(match, MappingNode) else None)


def _steps(node: Node | None, prefix: str) -> tuple[StepDecl, ...]:
    items = node.items if isinstance(node, SequenceNode) else ()
    found = (_step(item, f"{prefix}.{n}" if prefix else str(n)) for n, item in enumerate(items, 1))
    return tuple(step for step in found if step is not None)


def _step(node: Node, place: str) -> StepDecl | None:
    if not isinstance(node, MappingNode):
        return None
    action = next((name for name in ACTIONS if node.get(name) is not None), None)
    if action is None:
        return None
    key, target = node.key(action), node.get(action)
    assert key is not None
    assert target is not None
    id_node = _scalar(node.get("id"))
    step_id = id_node.value if id_node is not None and isinstance(id_node.value, str) else place
    return StepDecl(
        id=step_id,
        id_node=id_node,
        node=node,
        action=action,
        action_node=key,
        target=target,
        when=_scalar(node.get("when")),
        inputs=_inputs(node, action, target),
        catches=tuple(_catches(node.get("catch"), step_id)),
        undo=_undo(node.get("compensate"), step_id),
        branches=tuple(_branches(node, action, target, step_id)),
    )


def _inputs(node: MappingNode, action: str, target: Node) -> Node | None:
    """The templates of a step."""
    if action in ("set", "fail"):
        return target
    if action == "wait_for":
        return target.get("match") if isinstance(target, MappingNode) else None
    return node.get("with")


def _catches(node: Node | None, step_id: str) -> Iterator[CatchDecl]:
    for n, item in enumerate(node.items if isinstance(node, SequenceNode) else (), 1):
        if isinstance(item, MappingNode):
            on = item.get("on")
            types = None if on is None else tuple(str(t.value) for t in _texts(on))
            yield CatchDecl(types=types, steps=_steps(item.get("do"), f"{step_id}.catch.{n}.do"))


def _branches(node: MappingNode, action: str, target: Node, step_id: str) -> Iterator[BranchDecl]:
    match action:
        case "switch":
            yield from _cases(node, target, step_id)
        case "parallel" if isinstance(target, MappingNode):
            for name, key, steps in _mapping(target.get("branches")):
                yield BranchDecl(name=key, steps=_steps(steps, f"{step_id}.branches.{name}"))
        case "foreach" if isinstance(target, MappingNode):
            yield BranchDecl(steps=_steps(target.get("do"), f"{step_id}.do"))


def _cases(node: MappingNode, cases: Node, step_id: str) -> Iterator[BranchDecl]:
    for n, item in enumerate(cases.items if isinstance(cases, SequenceNode) else (), 1):
        if isinstance(item, MappingNode):
            steps = _steps(item.get("do"), f"{step_id}.{n}.do")
            yield BranchDecl(when=_scalar(item.get("when")), steps=steps)
    default = node.get("default")
    if default is not None:
        yield BranchDecl(when=None, steps=_steps(default, f"{step_id}.default"))


def _undo(node: Node | None, step_id: str) -> tuple[StepDecl, ...]:
    if node is None:
        return ()
    items = node.items if isinstance(node, SequenceNode) else (node,)
    found = (_step(item, f"{step_id}.compensate.{n}") for n, item in enumerate(items, 1))
    return tuple(step for step in found if step is not None and step.action in ("use", "command", "emit"))


def _names(uses: Node | None, kind: str) -> dict[str, Span]:
    listed = uses.get(kind) if isinstance(uses, MappingNode) else None
    return {str(node.value): node.span for node in _texts(listed)}


def _mapping(node: Node | None) -> Iterator[tuple[str, ScalarNode, Node]]:
    if isinstance(node, MappingNode):
        yield from node.items()


def _is_true(node: Node | None) -> bool:
    return isinstance(node, ScalarNode) and node.value is True


def _scalar(node: Node | None) -> ScalarNode | None:
    return node if isinstance(node, ScalarNode) else None


def _text(node: Node | None) -> str | None:
    return node.value if isinstance(node, ScalarNode) and isinstance(node.value, str) else None


def _texts(node: Node | None) -> tuple[ScalarNode, ...]:
    """One text or a list of them."""
    nodes = node.items if isinstance(node, SequenceNode) else (node,)
    return tuple(n for n in nodes if isinstance(n, ScalarNode) and isinstance(n.value, str))
