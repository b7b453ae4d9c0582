"""Documents → Plan: reads as a table of contents. All faults of all files come in one pass; a plan only
comes without errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

from runner.diagnostics import Diagnostic
from runner.expressions import Evaluate, Expression, compile_value, parse_expression
from runner.lang import schema, traffic
from runner.lang.declare import (
    CancelDecl,
    CommandDecl,
    FlowDecl,
    HandlerDecl,
    IngressDecl,
    ProjectionDecl,
    ScheduleDecl,
    StepDecl,
    declare,
)
from runner.lang.ignores import without_ignored
from runner.lang.load import Sources, load
from runner.lang.payloads import Payloads
from runner.lang.policies import DEFAULT_REPLY_S, duration_s, retry_policy, send_policy, undo_policy
from runner.lang.project import Declarations, gather
from runner.lang.projections import compile_projection, definition_of
from runner.lang.rules import RULES, WHOLE
from runner.plan import (
    SINGLE_ACTIVE_CONSUMER,
    Binding,
    Branch,
    CancelOn,
    Catch,
    Command,
    Emit,
    Endpoint,
    Event,
    Exchange,
    Fail,
    Foreach,
    Idempotency,
    Parallel,
    Plan,
    Program,
    Projection,
    Queue,
    RetryPolicy,
    Route,
    Schedule,
    Send,
    Set,
    Signature,
    Step,
    Stop,
    Switch,
    Topology,
    Undo,
    Use,
    Verify,
    Wait,
    WaitFor,
    branch_home,
    rounds_home,
)
from runner.source import Document, MappingNode, Node, ScalarNode, Span, plain

DEFAULT_TIMEOUT_S = 300.0
DEFAULT_TTL_S = 7 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """A plan, unless there are errors, and everything that there is to say of the files."""

    plan: Plan | None
    diagnostics: tuple[Diagnostic, ...]
    documents: Mapping[str, Document]
    """The flow files and the payload schemas that were read, by name."""

    @property
    def errors(self) -> int:
        """How many of the diagnostics are errors."""
        return sum(d.is_error for d in self.diagnostics)


def compile_project(
    sources: Sources,
    *,
    project: str,
    signatures: Mapping[str, Signature] | None,
    signatures_complete: bool = True,
    files: Iterable[str] | None = None,
) -> Compilation:
    """Compile a project's flow files (or just `files`) against the handler plugins that there are.

    With `signatures` None, what flows ask of plugins is not checked and not bound. Where they are not complete,
    because a plugin is broken, a handler that is not among them is no fault of the flow's.
    """
    documents, found = _read(sources, files)
    flows = tuple(flow for document in documents.values() if (flow := declare(document)) is not None)
    payloads = Payloads(sources)
    declarations = gather(
        flows,
        payloads,
        signatures,
        project=project,
        complete=not any(documents[fault.span.filename].root is None for fault in found if fault.is_error),
        signatures_complete=signatures_complete,
    )
    misshapen = {fault.span for fault in found}
    # What has the wrong shape is not asked for its meaning: one mistake, one diagnostic.
    for faults in (payloads.diagnostics, *(rule(declarations) for rule in RULES)):
        found += (fault for fault in faults if fault.span not in misshapen)
    errors = any(fault.is_error for fault in without_ignored(found, documents, complete=False))
    if not errors:
        found += (fault for rule in WHOLE for fault in rule(declarations))
    checked_all = not errors and declarations.complete and signatures is not None and signatures_complete
    found = without_ignored(set(found), documents, complete=checked_all)
    diagnostics = tuple(sorted(found, key=lambda diagnostic: diagnostic.sort_key))
    documents |= payloads.documents
    if any(fault.is_error for fault in found):
        return Compilation(plan=None, diagnostics=diagnostics, documents=documents)
    plan = _Compiler(declarations, documents).plan()
    return Compilation(plan=plan, diagnostics=diagnostics, documents=documents)


def _read(sources: Sources, files: Iterable[str] | None) -> tuple[dict[str, Document], list[Diagnostic]]:
    """The files as documents, and what is wrong with their text and shape."""
    found: list[Diagnostic] = []
    documents: dict[str, Document] = {}
    for name in files if files is not None else sources.flow_files():
        documents[name], faults = load(sources, name)
        found += faults
        found += schema.check(documents[name])
    return documents, found


class _Common(TypedDict):
    """What every step has."""

    id: str
    span: Span
    name: str | None
    when: Expression | None
    catches: tuple[Catch, ...]
    undo: tuple[Undo, ...]
    home: str


class _Compiler:
    """Declarations without faults → Plan."""

    def __init__(self, declarations: Declarations, documents: Mapping[str, Document]) -> None:
        self.declarations = declarations
        self.project = declarations.project
        self._texts = {name: document.text for name, document in sorted(documents.items())}
        awaited = {str(node.value) for *_, step in declarations.steps() for node in step.awaited}
        awaited |= {str(c.event.value) for handler in declarations.handlers.values() for c in handler.cancel_on}
        self._awaited = sorted(awaited)
        on = [str(node.value) for flow in declarations.flows for route in flow.routes for node in route.patterns]
        self._routed = awaited.union(*(declarations.matching(pattern) for pattern in on))
        handlers = declarations.handlers.values()
        self._doers = {command.name: h.full_name for h in handlers for command in declarations.commands_of(h)}
        self._hashes = {flow.name: self._hash(flow) for flow in declarations.flows}

    def plan(self) -> Plan:
        routes = {name: tuple(self._routes_to(handler)) for name, handler in self.declarations.handlers.items()}
        programs = {
            handler.full_name: self._program(flow, handler, routes[handler.full_name])
            for flow in self.declarations.flows
            for handler in flow.handlers
        }
        return Plan(
            project=self.project,
            events={name: self._event(name) for name in self.declarations.events},
            commands={command.name: self._command(command) for command in self.declarations.commands.values()},
            replies=f"{self.project}.replies" if self.declarations.commands else None,
            schedules=tuple(_schedule(schedule) for flow in self.declarations.flows for schedule in flow.schedules),
            ingress=tuple(self._endpoint(flow, each) for flow in self.declarations.flows for each in flow.ingress),
            projections={p.name: _projection(flow, p) for flow in self.declarations.flows for p in flow.projections},
            journal=f"{self.project}.journal",
            programs=programs,
            topology=self._topology(),
            net=f"{self.project}.dlq",
            # A flow may emit what another declares: a run that is resumed needs the texts of all.
            sources=dict.fromkeys(self._hashes.values(), self._texts),
        )

    def _hash(self, flow: FlowDecl) -> str:
        """What tells one plan of a flow from another: its own text and the schemas that it uses."""
        used = self.declarations.compiler.used.get(flow.document.filename, set())
        digest = hashlib.sha256()
        for name in sorted({flow.document.filename, *used}):
            text = self._texts[name]
            digest.update(f"{name}\0{len(text)}\0{text}".encode())
        return digest.hexdigest()[:16]

    # --- topology

    def _topology(self) -> Topology:
        p = self.project
        dead, net = f"{p}.dead", f"{p}.dlq"
        handlers = self.declarations.handlers
        bindings = {
            Binding(exchange=f"{p}.events", queue=f"{p}.{name}", pattern=pattern)
            for name in handlers
            for pattern in self._patterns(name)
        }
        bindings |= {
            Binding(exchange=f"{p}.commands", queue=f"{p}.{name}", pattern=command.name)
            for name, handler in handlers.items()
            for command in self.declarations.commands_of(handler)
        }
        # An event that a handler's queue takes is logged with the run that it begins. Bound here as well, it would
        # never come back unroutable, and nobody would notice that the handler's queue is gone.
        bindings |= {
            Binding(exchange=f"{p}.events", queue=f"{p}.journal", pattern=key)
            for name, event in self.declarations.events.items()
            if name in self._awaited or name not in self._routed
            for key in (name, *(str(key.value) for key in event.keys))
        }
        served = {binding.queue for binding in bindings}
        names = [f"{p}.{name}" for name in handlers if f"{p}.{name}" in served]
        has_commands = bool(self.declarations.commands)
        names += [f"{p}.replies"] if has_commands else []
        names.append(f"{p}.journal")
        # Messages that are to be taken in their order go to one process at a time.
        ordered = {f"{p}.{name}" for name, handler in handlers.items() if handler.body.get("partition_by") is not None}
        queues = [
            Queue(
                name=name,
                arguments={
                    "x-queue-type": "quorum",
                    "x-dead-letter-exchange": dead,
                    **({SINGLE_ACTIVE_CONSUMER: True} if name in ordered else {}),
                },
            )
            for name in names
        ]
        commands = (Exchange(name=f"{p}.commands", type="direct"),) if has_commands else ()
        return Topology(
            exchanges=(Exchange(name=f"{p}.events", type="topic"), *commands, Exchange(name=dead, type="fanout")),
            queues=(*queues, Queue(name=net, arguments={"x-queue-type": "quorum"})),
            bindings=(*sorted(bindings), Binding(exchange=dead, queue=net, pattern="#")),
        )

    def _patterns(self, handler: str) -> list[str]:
        """The binding patterns of a handler's queue: as its routes write them, and the keys under which
        others publish those events."""
        found: set[str] = set()
        for route in self.declarations.routes_to(self.declarations.handlers[handler]):
            for node in route.patterns:
                pattern = str(node.value)
                found.add(pattern)
                for event in self.declarations.matching(pattern):
                    found.update(str(key.value) for key in self.declarations.events[event].keys)
        return sorted(found)

    def _routes_to(self, handler: HandlerDecl) -> Iterator[Route]:
        for route in self.declarations.routes_to(handler):
            events = (self.declarations.matching(str(node.value)) for node in route.patterns)
            yield Route(
                events=frozenset(name for names in events for name in names),
                when=_condition(route.when),
            )

    def _event(self, name: str) -> Event:
        event = self.declarations.events[name]
        return Event(
            name=name,
            flow=event.flow,
            check=self.declarations.payloads[name].check,
            subject=None if event.subject is None else compile_value(event.subject.value),
            external=event.external,
            routed=name in self._routed,
            keys=tuple(str(key.value) for key in event.keys),
        )

    def _command(self, command: CommandDecl) -> Command:
        timeout = duration_s(command.body.get("timeout"))
        handler = self._doers.get(command.name)
        return Command(
            name=command.name,
            flow=command.flow,
            check=self.declarations.payloads[command.name].check,
            check_reply=self.declarations.replies[command.name].check,
            handler=handler,
            timeout_s=DEFAULT_REPLY_S if timeout is None else timeout,
            effect=plain(command.body.get("effect")) is not False,
        )

    def _endpoint(self, flow: FlowDecl, endpoint: IngressDecl) -> Endpoint:
        body, command = endpoint.body, None
        if endpoint.command is not None:
            command = self._command(self.declarations.commands[str(endpoint.command.value)])
        timeout = duration_s(body.get("timeout"))
        return Endpoint(
            name=endpoint.name,
            flow=endpoint.flow,
            method=endpoint.method,
            path=endpoint.path,
            parameters=endpoint.parameters,
            event=None if endpoint.event is None else str(endpoint.event.value),
            command=None if command is None else command.name,
            data=None if endpoint.inputs is None else compile_value(plain(endpoint.inputs)),
            timeout_s=None if command is None else command.timeout_s if timeout is None else timeout,
            rate_limit=traffic.rate_limit(body.get("rate_limit")),
            bearer=_bearer(body.get("auth")),
            verify=_verify(body.get("verify")),
            env=tuple(flow.env),
            secrets=tuple(flow.secrets),
        )

    # --- programs

    def _program(self, flow: FlowDecl, handler: HandlerDecl, routes: tuple[Route, ...]) -> Program:
        body = handler.body
        defaults = retry_policy(RetryPolicy(), body.get("retry"))
        command = next((command.name for command in self.declarations.commands_of(handler)), None)
        return Program(
            name=handler.full_name,
            flow=flow.name,
            queue=f"{self.project}.{handler.full_name}",
            routes=routes,
            steps=self._steps(handler.steps, defaults),
            on_failure=self._steps(handler.on_failure, defaults),
            timeout_s=duration_s(body.get("timeout")),
            concurrency=traffic.concurrency(handler),
            plan_hash=self._hashes[flow.name],
            span=handler.node.span,
            command=command,
            reply=None if body.get("reply") is None else compile_value(plain(body.get("reply"))),
            idempotency=_idempotency(body.get("idempotency")),
            cancel_on=tuple(_cancel_on(cancel) for cancel in handler.cancel_on),
            gate=traffic.gate(handler),
            rate_limit=traffic.rate_limit(body.get("rate_limit")),
            drops=traffic.drops(handler),
            breaker=traffic.breaker(handler),
            feedback=traffic.feedback(handler),
            env=tuple(flow.env),
            secrets=tuple(flow.secrets),
        )

    def _steps(self, steps: tuple[StepDecl, ...], defaults: RetryPolicy, home: str = "") -> tuple[Step, ...]:
        return tuple(self._step(step, defaults, home) for step in steps)

    def _step(self, step: StepDecl, defaults: RetryPolicy, home: str) -> Step:
        common = self._common(step, defaults, home)
        match step.action:
            case "use":
                return _use(step, common, retry_policy(defaults, step.node.get("retry")))
            case "command":
                return self._send(step, common, send_policy(step.node.get("retry"), defaults))
            case "emit":
                return _emit(step, common)
            case "set":
                return Set(**common, values=compile_value(plain(step.target)))
            case "switch":
                branches = tuple(
                    Branch(when=_condition(branch.when), steps=self._steps(branch.steps, defaults, home))
                    for branch in step.branches
                )
                return Switch(**common, branches=branches)
            case "parallel":
                return self._parallel(step, common, defaults)
            case "foreach":
                return self._foreach(step, common, defaults)
            case "wait":
                until = _condition(step.until)
                return Wait(**common, duration_s=None if until is not None else duration_s(step.target), until=until)
            case "wait_for":
                return _wait_for(step, common)
            case "fail":
                assert isinstance(step.target, MappingNode)
                message = plain(step.target.get("message"))
                return Fail(**common, type=str(plain(step.target.get("type"))), message=compile_value(message or ""))
        return Stop(**common)

    def _parallel(self, step: StepDecl, common: _Common, defaults: RetryPolicy) -> Parallel:
        assert isinstance(step.target, MappingNode)
        names = [str(branch.name.value) for branch in step.branches if branch.name is not None]
        return Parallel(
            **common,
            branches={
                name: self._steps(branch.steps, defaults, branch_home(step.id, name))
                for name, branch in zip(names, step.branches, strict=True)
            },
            wait="any" if plain(step.target.get("wait")) == "any" else "all",
            timeout_s=duration_s(step.node.get("timeout")),
        )

    def _foreach(self, step: StepDecl, common: _Common, defaults: RetryPolicy) -> Foreach:
        assert isinstance(step.target, MappingNode)
        items, concurrency = _condition(step.items), plain(step.target.get("concurrency"))
        assert items is not None
        return Foreach(
            **common,
            items=items,
            item="item" if step.item is None else str(step.item.value),
            concurrency=concurrency if isinstance(concurrency, int) else 1,
            until=_condition(step.until),
            steps=self._steps(step.branches[0].steps, defaults, rounds_home(step.id)),
            timeout_s=duration_s(step.node.get("timeout")),
        )

    def _common(self, step: StepDecl, defaults: RetryPolicy, home: str) -> _Common:
        name = step.node.get("name")
        return _Common(
            id=step.id,
            span=step.node.span,
            name=str(plain(name)) if name is not None else None,
            when=_condition(step.when),
            catches=tuple(
                Catch(types=catch.types, steps=self._steps(catch.steps, defaults, home)) for catch in step.catches
            ),
            undo=tuple(
                Undo(step=self._undo(undo, defaults, home), attempted=_word(undo, "if") == "attempted")
                for undo in step.undo
            ),
            home=home,
        )

    def _send(self, step: StepDecl, common: _Common, retry: RetryPolicy) -> Send:
        timeout = duration_s(step.node.get("timeout"))
        declared = self._command(self.declarations.commands[str(step.name)])
        return Send(
            **common,
            command=declared.name,
            data=compile_value(_inputs(step.inputs)),
            timeout_s=declared.timeout_s if timeout is None else timeout,
            retry=retry,
            irreversible=_word(step, "irreversible") is True,
            pivot=_word(step, "pivot") is True,
        )

    def _undo(self, step: StepDecl, defaults: RetryPolicy, home: str) -> Use | Send | Emit:
        common = self._common(step, defaults, home)
        if step.action == "command":
            return self._send(step, common, undo_policy(step.node.get("retry")))
        if step.action == "use":
            return _use(step, common, undo_policy(step.node.get("retry")))
        return _emit(step, common)


def _use(step: StepDecl, common: _Common, retry: RetryPolicy) -> Use:
    timeout = duration_s(step.node.get("timeout"))
    return Use(
        **common,
        handler=str(step.name),
        inputs=compile_value(_inputs(step.inputs)),
        timeout_s=DEFAULT_TIMEOUT_S if timeout is None else timeout,
        retry=retry,
        irreversible=_word(step, "irreversible") is True,
        pivot=_word(step, "pivot") is True,
    )


def _emit(step: StepDecl, common: _Common) -> Emit:
    version = step.node.get("expected_version")
    return Emit(
        **common,
        event=str(step.name),
        data=compile_value(_inputs(step.inputs)),
        expected_version=None if version is None else compile_value(plain(version)),
        pivot=_word(step, "pivot") is True,
    )


def _schedule(schedule: ScheduleDecl) -> Schedule:
    assert schedule.cron is not None
    assert schedule.event is not None
    catch_up = plain(schedule.body.get("catch_up"))
    return Schedule(
        name=schedule.name,
        flow=schedule.flow,
        cron=str(schedule.cron.value),
        timezone="UTC" if schedule.timezone is None else str(schedule.timezone.value),
        event=str(schedule.event.value),
        data=compile_value(_inputs(schedule.inputs)),
        catch_up="all" if catch_up == "all" else "none" if catch_up == "none" else "last",
    )


def _projection(flow: FlowDecl, projection: ProjectionDecl) -> Projection:
    return replace(
        compile_projection(projection.name, definition_of(projection)),
        flow=flow.name,
        bearer=_bearer(projection.body.get("auth")),
        env=tuple(flow.env),
        secrets=tuple(flow.secrets),
    )


def _bearer(auth: Node | None) -> Evaluate | None:
    return compile_value(plain(auth.get("bearer"))) if isinstance(auth, MappingNode) else None


def _verify(node: Node | None) -> Verify | None:
    given = plain(node)
    if not isinstance(given, dict):
        return None
    if "github" in given:
        return Verify(scheme="github", keys=compile_value(given["github"]))
    if "stripe" in given:
        return Verify(scheme="stripe", keys=compile_value(given["stripe"]))
    return Verify(scheme="standard_webhooks", keys=compile_value(given["standard_webhooks"]))


def _cancel_on(cancel: CancelDecl) -> CancelOn:
    match = plain(cancel.match) or {}
    assert isinstance(match, dict)
    return CancelOn(event=str(cancel.event.value), fields=tuple(sorted(match)), match=compile_value(match))


def _wait_for(step: StepDecl, common: _Common) -> WaitFor:
    assert isinstance(step.target, MappingNode)
    match = plain(step.target.get("match")) or {}
    assert isinstance(match, dict)
    count = plain(step.target.get("count"))
    return WaitFor(
        **common,
        events=tuple(str(node.value) for node in step.awaited),
        fields=tuple(sorted(match)),
        match=compile_value(match),
        count=count if isinstance(count, int) else None,
        timeout_s=duration_s(step.target.get("timeout")),
        until=_condition(step.until),
    )


def _idempotency(node: Node | None) -> Idempotency | None:
    if not isinstance(node, MappingNode):
        return None
    ttl = duration_s(node.get("ttl"))
    return Idempotency(
        key=compile_value(plain(node.get("key"))),
        ttl_s=DEFAULT_TTL_S if ttl is None else ttl,
        on_duplicate="fail" if plain(node.get("on_duplicate")) == "fail" else "skip",
    )


def _word(step: StepDecl, key: str) -> object:
    """What stands under a key of a step; None if nothing does."""
    return plain(step.node.get(key))


def _inputs(node: Node | None) -> object:
    return {} if node is None else plain(node)


def _condition(node: ScalarNode | None) -> Expression | None:
    if node is None:
        return None
    text = node.value if isinstance(node.value, str) else str(node.value).lower()
    return parse_expression(text)
