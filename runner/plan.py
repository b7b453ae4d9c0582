"""What will run: the compiled, immutable form of a project's flow files.

`lang` makes a Plan, `engine` runs it, and they know each other by nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from runner.expressions import Evaluate, Expression
from runner.source import Span

JsonObject: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[Any], str | None]
"""A compiled JSON Schema: None if a value fits it, else the first misfit with its JSON pointer."""


# --- topology: what stands on the broker -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: Literal["topic", "direct", "fanout"]


SINGLE_ACTIVE_CONSUMER = "x-single-active-consumer"
"""The argument of a queue that hands messages to one consumer at a time, in order
(https://www.rabbitmq.com/docs/consumers#single-active-consumer)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue. `arguments` are AMQP's `x-…`, and never change once declared."""

    name: str
    arguments: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Binding:
    """A queue gets what is published to `exchange` with a key that `pattern` matches (AMQP topic rules)."""

    exchange: str
    queue: str
    pattern: str

    def __str__(self) -> str:
        return f"{self.exchange} → {self.queue} ({self.pattern})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How one broker object stands, against the plan.

    `change` is what it takes: `none`; `additive`, start makes it; `needs drain`, it must be emptied, deleted and
    made anew; `destructive`, deleting it takes bindings or messages with it; `unknown`, the broker does not say.
    `messages` are those in a queue.
    """

    kind: Literal["exchange", "queue", "binding"]
    name: str
    change: Literal["none", "additive", "needs drain", "destructive", "unknown"]
    detail: str = ""
    messages: int | None = None

    @property
    def is_drift(self) -> bool:
        """It stands, and otherwise than planned: start would refuse it."""
        return self.change in ("needs drain", "destructive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """All broker objects of a project."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """What a broker says of itself, and lets us do."""

    product: str
    version: str
    may_configure: bool
    may_publish: bool
    blocked: bool
    """It takes no messages for now: it is short of memory or disk."""
    round_trip_s: float


# --- programs: what a handler does -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """A random addition to a delay: uniform in `[low_s, high_s]`."""

    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a failed attempt is repeated. Defaults: LANGUAGE, Handlers."""

    max_attempts: int | None = 3
    """Counts the first try; None is unlimited."""
    delay_s: float = 1.0
    backoff: Literal["constant", "linear", "exponential"] = "exponential"
    multiplier: float = 2.0
    max_delay_s: float = 60.0
    jitter: Literal["none", "full"] | Jitter = "full"
    max_duration_s: float | None = None
    """From the beginning of the first attempt; no attempt begins after it."""
    on: tuple[str, ...] | None = None
    """Error types that are retried, `http.*` for a family; None is all retryable ones."""
    except_: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What every step has. `id` is unique in its program; a step that has none is called by its place.

    `home` is the innermost branch of a `parallel` or round of a `foreach` around it (see `Home`); "" is the program.
    """

    id: str
    span: Span
    name: str | None = None
    when: Expression | None = None
    catches: tuple[Catch, ...] = ()
    undo: tuple[Undo, ...] = ()
    home: str = ""
    action: str = ""

    @property
    def target(self) -> str:
        """What the action names: a handler, an event, an error's type."""
        return ""

    @property
    def blocks(self) -> tuple[tuple[Step, ...], ...]:
        """The lists of steps inside it, in the order of the file; compensations are none."""
        return tuple(catch.steps for catch in self.catches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use(Step):
    """Calls a handler plugin."""

    handler: str
    inputs: Evaluate
    timeout_s: float
    retry: RetryPolicy
    irreversible: bool = False
    pivot: bool = False
    action: str = "use"

    @property
    def target(self) -> str:
        """The handler's name."""
        return self.handler


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Step):
    """Sends a command, and waits for the reply. `timeout_s` is for each time that it is sent."""

    command: str
    data: Evaluate
    timeout_s: float
    retry: RetryPolicy
    irreversible: bool = False
    pivot: bool = False
    action: str = "command"

    @property
    def target(self) -> str:
        """The command's name."""
        return self.command


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit(Step):
    """Publishes an event; with `expected_version` only if that is the version its subject is at."""

    event: str
    data: Evaluate
    expected_version: Evaluate | None = None
    pivot: bool = False
    action: str = "emit"

    @property
    def target(self) -> str:
        """The event's name."""
        return self.event


@dataclass(frozen=True, slots=True, kw_only=True)
class Set(Step):
    """Sets variables."""

    values: Evaluate
    action: str = "set"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One way of a switch; `when` is None for the default."""

    when: Expression | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch(Step):
    """Runs the first branch that holds."""

    branches: tuple[Branch, ...]
    action: str = "switch"

    @property
    def blocks(self) -> tuple[tuple[Step, ...], ...]:
        """See `Step.blocks`."""
        return (*(branch.steps for branch in self.branches), *(catch.steps for catch in self.catches))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(Step):
    """Runs branches at once, until all are through, or until the first is."""

    branches: Mapping[str, tuple[Step, ...]]
    wait: Literal["all", "any"]
    timeout_s: float | None
    action: str = "parallel"

    @property
    def blocks(self) -> tuple[tuple[Step, ...], ...]:
        """See `Step.blocks`."""
        return (*self.branches.values(), *(catch.steps for catch in self.catches))

    def home_of(self, branch: str) -> str:
        """The home of the steps of a branch."""
        return branch_home(self.id, branch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreach(Step):
    """Runs its steps once for each of `items`, of which a round sees its own as `item`; so many rounds at once."""

    items: Expression
    item: str
    concurrency: int
    until: Expression | None
    steps: tuple[Step, ...]
    timeout_s: float | None
    action: str = "foreach"

    @property
    def blocks(self) -> tuple[tuple[Step, ...], ...]:
        """See `Step.blocks`."""
        return (self.steps, *(catch.steps for catch in self.catches))

    @property
    def home_of_rounds(self) -> str:
        """The home of its steps."""
        return rounds_home(self.id)


def branch_home(parallel: str, branch: str) -> str:
    """What the home of a branch's steps is called."""
    return f"{parallel}.{branch}"


def rounds_home(foreach: str) -> str:
    """What the home of a loop's steps is called."""
    return f"{foreach}[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait(Step):
    """Waits for a while, or until a time."""

    duration_s: float | None
    until: Expression | None
    action: str = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitFor(Step):
    """Waits for events whose `fields` (dotted paths, sorted) have certain values; `match` gives them by field."""

    events: tuple[str, ...]
    fields: tuple[str, ...]
    match: Evaluate
    count: int | None
    timeout_s: float | None
    until: Expression | None
    action: str = "wait_for"

    @property
    def target(self) -> str:
        """The events' names."""
        return ", ".join(self.events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail(Step):
    """Fails the run."""

    type: str
    message: Evaluate
    action: str = "fail"

    @property
    def target(self) -> str:
        """The error's type."""
        return self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Step):
    """Ends the run as completed."""

    action: str = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch:
    """Steps that handle an error of a step; `types` None takes all."""

    types: tuple[str, ...] | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undo:
    """One compensation of a step, itself a `use`, a `command` or an `emit`. `attempted`: done also where the step was
    tried and its result is unknown."""

    step: Use | Send | Emit
    attempted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """Messages that give the same `key` begin one run; it bars others until `ttl_s` after its end."""

    key: Evaluate
    ttl_s: float
    on_duplicate: Literal["skip", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A token bucket for each value of `key`, or one for all: `limit` tokens in `period_s`, at most `burst` at once."""

    limit: int
    period_s: float
    burst: int
    key: Evaluate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """At most `limit` runs at once for each value of `key`, over all processes."""

    limit: int
    key: Evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the runs of a handler wait for, in the store, before they begin: that the one before of their `partition`
    is final, a slot, a token. Those of higher `priority` (0 to 9) pass first, else those that came first.

    At most `most` wait; more are left in the broker's queue, or refused (`rejects`).
    """

    partition: Evaluate | None = None
    slots: Slots | None = None
    throttle: RateLimit | None = None
    priority: Evaluate | None = None
    most: int
    rejects: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """Opens after so many retryable `failures` within `period_s`; after `pause_s` one attempt is let through. With
    `per_plugin`, each plugin has one, shared by all handlers that say so."""

    failures: int
    period_s: float
    pause_s: float
    per_plugin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """An event that tells producers when more than `above` messages lie before a handler, and when it is again fewer
    than `below`."""

    event: str
    above: int
    below: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOn:
    """An event whose `fields` (dotted paths, sorted) have the values of `match` cancels the run."""

    event: str
    fields: tuple[str, ...]
    match: Evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Events that lead to a handler: their names, and the condition on each message."""

    events: frozenset[str]
    when: Expression | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where names are seen: the program itself, a branch of a `parallel`, or the rounds of a `foreach` (`loop`).
    What a step or a `set` in it gives is not seen outside. `block` is the id of the `parallel` or the `foreach`,
    `outer` is the home around it, `steps` are the ids of those that live here."""

    outer: str
    block: str
    loop: Foreach | None
    steps: list[str]


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """These steps and all inside them, in the order of the file; compensations are none."""
    for step in steps:
        yield step
        for block in step.blocks:
            yield from walk(block)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A handler, compiled. `name` is `flow.handler`, which is also what its queue is called after."""

    name: str
    flow: str
    queue: str
    routes: tuple[Route, ...]
    steps: tuple[Step, ...]
    on_failure: tuple[Step, ...]
    timeout_s: float | None
    concurrency: int
    plan_hash: str
    span: Span
    command: str | None = None
    """The command that it does; then no route leads to it."""
    reply: Evaluate | None = None
    idempotency: Idempotency | None = None
    cancel_on: tuple[CancelOn, ...] = ()
    gate: Gate | None = None
    """None: its runs begin as soon as the process has room."""
    rate_limit: RateLimit | None = None
    drops: bool = False
    """What is over the rate limit is acknowledged and forgotten, not refused."""
    breaker: Breaker | None = None
    feedback: Feedback | None = None
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    every: Mapping[str, Step] = field(init=False, repr=False, compare=False)
    """All steps by id, compensations too."""
    homes: Mapping[str, Home] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        every: dict[str, Step] = {}
        homes = {"": Home(outer="", block="", loop=None, steps=[])}
        for step in walk((*self.steps, *self.on_failure)):
            every[step.id] = step
            every |= {undo.step.id: undo.step for undo in step.undo}
            homes[step.home].steps.append(step.id)
            if isinstance(step, Parallel):
                for name in step.branches:
                    homes[step.home_of(name)] = Home(outer=step.home, block=step.id, loop=None, steps=[])
            elif isinstance(step, Foreach):
                homes[step.home_of_rounds] = Home(outer=step.home, block=step.id, loop=step, steps=[])
        object.__setattr__(self, "every", every)
        object.__setattr__(self, "homes", homes)

    @property
    def is_served(self) -> bool:
        """It has a queue: a route leads to it, or it does a command."""
        return bool(self.routes) or self.command is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A declared event. `subject` gives the object that it is about, from the payload."""

    name: str
    flow: str
    check: Check
    subject: Evaluate | None
    external: bool
    routed: bool
    """Some route leads it to a handler, so that it is published mandatory."""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A declared command. `handler` is its program; None if another program does it."""

    name: str
    flow: str
    check: Check
    check_reply: Check
    handler: str | None
    timeout_s: float
    effect: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Publishes an event by the clock. `name` is `flow.schedule`; `cron` is in `timezone`, an IANA name."""

    name: str
    flow: str
    cron: str
    timezone: str
    event: str
    data: Evaluate
    catch_up: Literal["last", "all", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Whose signature a request must bear; `keys` gives a text, or a list of texts of which one must fit."""

    scheme: Literal["standard_webhooks", "github", "stripe"]
    keys: Evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """HTTP in front of one event or one command. `name` is `flow.endpoint`."""

    name: str
    flow: str
    method: str
    path: str
    """`/orders/{order_id}`; `parameters` are the names in it, in order."""
    parameters: tuple[str, ...] = ()
    event: str | None = None
    command: str | None = None
    data: Evaluate | None = None
    """Builds the payload from `request`; None: it is the request's body."""
    timeout_s: float | None = None
    """For how long the command's reply is waited; None if it has no command."""
    rate_limit: RateLimit | None = None
    bearer: Evaluate | None = None
    """Gives the token that is asked for, or a list of tokens of which one is."""
    verify: Verify | None = None
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What an event does to the entry `key`: `delete` takes it away, else its fields change, `set` first.

    Each gives an object of field names and values, from `event`, `meta` and `state`, the entry before the event.
    """

    key: Evaluate
    set: Evaluate | None = None
    increment: Evaluate | None = None
    append: Evaluate | None = None
    remove: tuple[str, ...] = ()
    delete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A read model: entries by key, folded from the events of the log. `folds` is by the event's name.

    `definition` is all that decides what its entries are, as JSON: what has another is another read model.
    """

    name: str
    flow: str
    definition: str
    folds: Mapping[str, Fold]
    bearer: Evaluate | None = None
    """Gives the token that whoever reads it over HTTP must bear, or a list of tokens of which one is."""
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A project, compiled. `sources` are the files it came from, by name: `sha256` of them is a plan's hash."""

    project: str
    events: Mapping[str, Event]
    programs: Mapping[str, Program]
    topology: Topology
    net: str
    """The queue into which the broker's own dead letters fall."""
    journal: str
    """The queue into which events come that some step waits for, or that no route leads anywhere: for the log."""
    commands: Mapping[str, Command] = field(default_factory=dict)
    replies: str | None = None
    """The queue to which replies come; None if there is no command to be sent."""
    schedules: tuple[Schedule, ...] = ()
    ingress: tuple[Endpoint, ...] = ()
    projections: Mapping[str, Projection] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, str]]
    """For each plan hash, the texts (by file name) of the flow and of the schemas it uses."""

    @property
    def emitted(self) -> frozenset[str]:
        """The events that something in the project publishes: steps, schedules, endpoints, feedback."""
        programs = self.programs.values()
        steps = {step.event for program in programs for step in program.every.values() if isinstance(step, Emit)}
        feedback = {program.feedback.event for program in programs if program.feedback is not None}
        behind = {endpoint.event for endpoint in self.ingress if endpoint.event is not None}
        return frozenset(steps | feedback | behind | {schedule.event for schedule in self.schedules})


# --- handlers, as the plan sees them -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One keyword parameter of a handler; `schema` is the JSON Schema of its annotation."""

    name: str
    required: bool
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What `validate` knows of a handler plugin."""

    name: str
    parameters: tuple[Parameter, ...]
    accepts_any: bool
    """It takes `**fields`: any name is a parameter."""
    returns: Mapping[str, Any]
    """The JSON Schema of its result; `{}` if it says nothing."""
    effect: bool
    doc: str
    location: str
    """Where it is defined: `plugins/inventory.py:12`, or a package's module."""
    definitions: Mapping[str, Any] = field(default_factory=dict)
    """`$defs` that the schemas above refer to."""
