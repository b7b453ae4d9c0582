"""Plan → graph: who tells whom what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from runner.plan import Emit, Event, Plan, Program, Send, Step, Use, Wait, WaitFor
from runner.times import format_duration

SENDERS = "outside.senders"
TAKERS = "outside.takers"
DEAD = "dead.letters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Something that sends or gets messages. `flow` is the flow that it belongs to, if any; `notes` say of a handler
    what goes on inside."""

    key: str
    label: str
    kind: Literal["handler", "event", "schedule", "ingress", "projection", "outside", "dead"]
    flow: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Messages from one node to another; `labels` say which, none where the event is a node itself. `after_failure`:
    only if a step fails. Dead letters come from a flow as a whole: then the source is `flow.<its name>`."""

    source: str
    target: str
    labels: tuple[str, ...] = ()
    kind: Literal["event", "command", "dead"]
    after_failure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What is to be drawn. Only nodes that an edge touches, handlers and declared events are in it."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def of_flow(self, flow: str | None) -> list[Node]:
        """The nodes of a flow; with None those of no flow."""
        return [node for node in self.nodes if node.flow == flow]

    @property
    def flows(self) -> list[str]:
        """The flows that have nodes, in the order of the plan."""
        return list(dict.fromkeys(node.flow for node in self.nodes if node.flow is not None))


@dataclass(slots=True)
class _Traffic:
    """Of one event: who publishes it (and whether only after a failure), and who takes it (and how)."""

    makers: dict[str, bool] = field(default_factory=dict)
    takers: dict[str, str] = field(default_factory=dict)

    def made_by(self, key: str, after_failure: bool) -> None:
        self.makers[key] = self.makers.get(key, True) and after_failure


def draw(plan: Plan, flows: Collection[str], *, failures: bool) -> Graph:
    """The graph of a project, or of some of its flows and whom they have to do with; without `failures`, of what
    happens if there are none."""
    nodes = {node.key: node for node in _nodes(plan, failures=failures)}
    shown = {key for key, node in nodes.items() if not flows or node.flow in flows}
    shown |= {f"flow.{flow}" for flow in flows}
    edges = [
        edge
        for edge in _merged([*_event_edges(plan), *_command_edges(plan), *_dead_edges(plan)])
        if (failures or not edge.after_failure) and (not flows or edge.source in shown or edge.target in shown)
    ]
    touched = {key for edge in edges for key in (edge.source, edge.target)}
    kept = [node for key, node in nodes.items() if key in touched or (node.kind == "handler" and key in shown)]
    return Graph(nodes=tuple(kept), edges=tuple(edges))


def _merged(edges: Iterable[Edge]) -> list[Edge]:
    """Several messages of one kind between the same two are one line with several labels."""
    merged: dict[Edge, tuple[str, ...]] = {}
    for edge in edges:
        bare = replace(edge, labels=())
        merged[bare] = (*merged.get(bare, ()), *edge.labels)
    return [replace(edge, labels=labels) for edge, labels in merged.items()]


def _nodes(plan: Plan, *, failures: bool) -> Iterator[Node]:
    for endpoint in plan.ingress:
        label = f"{endpoint.method} {endpoint.path}"
        yield Node(key=f"ingress.{endpoint.name}", label=label, kind="ingress", flow=endpoint.flow)
    for schedule in plan.schedules:
        label = f"{schedule.name.partition('.')[2]}\n{schedule.cron} {schedule.timezone}"
        yield Node(key=f"schedule.{schedule.name}", label=label, kind="schedule", flow=schedule.flow)
    for program in plan.programs.values():
        label = program.name.partition(".")[2]
        notes = tuple(_notes(program, failures=failures))
        yield Node(key=_key(program), label=label, kind="handler", flow=program.flow, notes=notes)
    for projection in plan.projections.values():
        yield Node(key=f"projection.{projection.name}", label=projection.name, kind="projection", flow=projection.flow)
    for event in plan.events.values():
        yield Node(key=_event_key(event.name), label=event.name, kind="event")
    yield Node(key=SENDERS, label="other programs", kind="outside")
    yield Node(key=TAKERS, label="other programs", kind="outside")
    yield Node(key=DEAD, label="dead letters", kind="dead")


def _key(program: Program) -> str:
    return f"handler.{program.name}"


def _event_key(event: str) -> str:
    return f"event.{event}"


def _notes(program: Program, *, failures: bool) -> Iterator[str]:
    """What plugins undo, and for how long the program sleeps; what commands and events undo is drawn as such."""
    steps = [step for step, _ in _all(program)]
    undone = dict.fromkeys(_name(s) for s in steps if any(isinstance(undo.step, Use) for undo in s.undo))
    if undone and failures:
        yield f"↶ {', '.join(undone)}"
    for step in steps:
        if isinstance(step, Wait):
            until = f"until {step.until.source}" if step.until is not None else ""
            yield f"⏱ {until if step.duration_s is None else format_duration(step.duration_s)}"


def _name(step: Step) -> str:
    """A step that has no id of its own goes by what it does."""
    return step.target if step.id[:1].isdigit() or "." in step.id else step.id


def _all(program: Program) -> Iterator[tuple[Step, bool]]:
    """Every step of a program, compensations too, and whether it only runs after a failure."""
    yield from _inside(program.steps, after_failure=False)
    yield from _inside(program.on_failure, after_failure=True)


def _inside(steps: Iterable[Step], *, after_failure: bool) -> Iterator[tuple[Step, bool]]:
    for step in steps:
        yield step, after_failure
        for undo in step.undo:
            yield undo.step, True
        for block in step.blocks:
            caught = any(block is catch.steps for catch in step.catches)
            yield from _inside(block, after_failure=after_failure or caught)


def _event_edges(plan: Plan) -> Iterator[Edge]:
    traffic = _traffic(plan)
    for name, event in plan.events.items():
        yield from _edges_of(event, traffic[name])


def _traffic(plan: Plan) -> Mapping[str, _Traffic]:
    traffic = {name: _Traffic() for name in plan.events}
    for endpoint in plan.ingress:
        if endpoint.event is not None:
            traffic[endpoint.event].made_by(f"ingress.{endpoint.name}", after_failure=False)
    for schedule in plan.schedules:
        traffic[schedule.event].made_by(f"schedule.{schedule.name}", after_failure=False)
    for program in plan.programs.values():
        key = _key(program)
        for cancel in program.cancel_on:
            traffic[cancel.event].takers[key] = "cancels"
        if program.feedback is not None:
            traffic[program.feedback.event].made_by(key, after_failure=False)
        for step, after_failure in _all(program):
            if isinstance(step, Emit):
                traffic[step.event].made_by(key, after_failure)
            elif isinstance(step, WaitFor):
                for name in step.events:
                    traffic[name].takers[key] = "awaited"
        for route in program.routes:
            for name in route.events:
                traffic[name].takers[key] = ""
    for projection in plan.projections.values():
        for name in projection.folds:
            traffic[name].takers[f"projection.{projection.name}"] = ""
    return traffic


def _edges_of(event: Event, traffic: _Traffic) -> Iterator[Edge]:
    """An event is the label of its edges, unless many publish it and many take it: then it is a node between them, as
    it is where nobody publishes it, or takes it."""
    makers, takers = dict(traffic.makers), dict(traffic.takers)
    if event.external and not makers:
        makers[SENDERS] = False
    if event.external and not takers:
        takers[TAKERS] = ""
    if makers and takers and (len(makers) == 1 or len(takers) == 1):
        for maker, after_failure in makers.items():
            for taker, how in takers.items():
                label = f"{event.name}, {how}" if how else event.name
                yield Edge(source=maker, target=taker, labels=(label,), kind="event", after_failure=after_failure)
        return
    key = _event_key(event.name)
    for maker, after_failure in makers.items():
        yield Edge(source=maker, target=key, kind="event", after_failure=after_failure)
    for taker, how in takers.items():
        yield Edge(source=key, target=taker, labels=(how,) if how else (), kind="event")


def _command_edges(plan: Plan) -> Iterator[Edge]:
    sent: dict[tuple[str, str], bool] = {}
    for endpoint in plan.ingress:
        if endpoint.command is not None:
            sent[f"ingress.{endpoint.name}", endpoint.command] = False
    for program in plan.programs.values():
        for step, after_failure in _all(program):
            if isinstance(step, Send):
                place = (_key(program), step.command)
                sent[place] = sent.get(place, True) and after_failure
    for (source, name), after_failure in sent.items():
        handler = plan.commands[name].handler
        target = TAKERS if handler is None else f"handler.{handler}"
        yield Edge(source=source, target=target, labels=(name,), kind="command", after_failure=after_failure)
    asked = {name for _, name in sent}
    for command in plan.commands.values():
        if command.handler is not None and command.name not in asked:
            target = f"handler.{command.handler}"
            yield Edge(source=SENDERS, target=target, labels=(command.name,), kind="command")


def _dead_edges(plan: Plan) -> Iterator[Edge]:
    """What gets messages can get one that cannot begin a run."""
    for flow in dict.fromkeys(program.flow for program in plan.programs.values() if program.is_served):
        yield Edge(source=f"flow.{flow}", target=DEAD, kind="dead", after_failure=True)
