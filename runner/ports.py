"""What the engine asks of the world: one Protocol a port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

from runner.handler import Context
from runner.message import Delivery, Meta, Outgoing
from runner.plan import Breaker, BrokerFacts, Difference, Topology
from runner.records import (
    Answer,
    Arrival,
    AsOf,
    Backlog,
    Build,
    Caller,
    Change,
    Circuit,
    DeadLetter,
    Entry,
    EventFilter,
    EventRecord,
    Figures,
    Folded,
    GateRules,
    Intervention,
    LoggedEvent,
    OutboxRow,
    Passed,
    Patterns,
    RunSummary,
    StoredRun,
    StoreFacts,
)

Deliver = Callable[[Delivery], None]
"""Takes a delivery and returns at once."""


class Transport(AbstractAsyncContextManager["Transport"], Protocol):
    """A broker: durable queues, topic routing, at-least-once delivery. All methods are safe from many tasks.

    Entering connects and raises TransportError if that fails; leaving gives back what was not settled.
    A transport that loses its broker recovers by itself, and consumers with it.
    """

    async def declare(self, topology: Topology) -> None:
        """Make the topology stand; what stands already is left. Raises TopologyError where it differs."""
        ...

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
        """Publish, in order, and wait until the broker confirmed each.

        One result a message: None once it is safe, else the reason why the broker would not take it, such as
        `unroutable: …` for a mandatory message that no queue took. Raises TransportError if the broker is away:
        then some may have arrived all the same, so publish them again under the same ids.
        """
        ...

    async def consume(self, queue: str, prefetch: int, deliver: Deliver) -> Callable[[], Awaitable[None]]:
        """Hand over the queue's messages, at most `prefetch` unsettled, until the returned function is awaited.

        `deliver` is called on the event loop and must not block. What a dead or closed consumer had not
        settled is delivered again, marked `redelivered`.
        """
        ...

    async def settle(self, deliveries: Sequence[Delivery], *, accept: bool = True) -> None:
        """Acknowledge deliveries, or give them back to their queue. One from before a reconnection is ignored:
        it will come again."""
        ...

    async def depth(self, queues: Sequence[str]) -> int:
        """How many messages wait in these queues, those handed over but not settled not counted."""
        ...


class TopologyReader(Protocol):
    """What one may ask of a broker without changing anything in it."""

    async def compare(self, topology: Topology) -> Sequence[Difference]:
        """How each object of the topology stands, in its order. Raises TransportError."""
        ...

    async def facts(self, name: str) -> BrokerFacts:
        """What the broker says of itself. What we may do is tried out with a queue `name`, gone at once.

        Raises TransportError.
        """
        ...


class ReplyQueues(Protocol):
    """Queues for replies to a caller that is no run."""

    def private_queue(self, name: str, deliver: Deliver) -> AbstractAsyncContextManager[str]:
        """A queue of our own while it is entered, its messages handed over and taken as settled; its name."""
        ...


class AnyTransport(Transport, TopologyReader, ReplyQueues, Protocol):
    """All that flowrun asks of a transport."""

    async def __aenter__(self) -> AnyTransport:
        """See `Transport`."""
        ...


class Store(AbstractAsyncContextManager["Store"], Protocol):
    """Runs, their records, the event log, the outbox and the dead letters. Safe from many tasks.

    Entering opens it for one runner, whose runs it owns until it leaves or dies; StoreError if that fails.
    """

    async def commit(self, change: Change) -> bool:
        """Make a change durable, all of it or nothing. Concurrent commits share one transaction.

        False, and nothing done, if `change.started` begins a run that stands already, or whose key another run of
        the handler holds. Raises OwnershipError if the run is not this store's (any more), VersionConflictError if an
        event's subject is not at the version that it expects.
        """
        ...

    async def bury(self, letter: DeadLetter) -> None:
        """Make a dead letter durable; of the same id there is one, as it came last."""
        ...

    async def take(
        self, now: datetime, limit: int, *, handlers: Collection[str] | None = None, suspects: bool = False
    ) -> Sequence[StoredRun]:
        """Own and return runs that are due, and those whose runner died (their crash is counted first, up to
        `SUSPECT_CRASHES`: of a suspect, only those crashes count that it was alone in).

        With `handlers`, only runs of these. Suspects that are due are for who asks for `suspects`, and only they.
        """
        ...

    async def outbox(self, limit: int, *, refused: bool = False) -> Sequence[OutboxRow]:
        """Messages not yet confirmed, oldest first, that no other living runner is sending; with `refused`, also
        those that the broker would not take. They come again until `sent` has noted them."""
        ...

    async def sent(self, results: Mapping[int, str | None], answers: Sequence[Answer] = ()) -> None:
        """Note what the broker said of outbox rows, by position: None for what is over with, else the reason. What is
        thereby answered (see `Mailbox.answer`) is so in the same commit."""
        ...


class StoreReader(Protocol):
    """What one may ask of a store without owning anything in it."""

    async def runs(
        self, *, limit: int, state: str | None = None, handler: str | None = None, error: str | None = None
    ) -> Sequence[RunSummary]:
        """Runs, newest first; with `error`, those whose error has that type, or is of that family (`http.*`)."""
        ...

    async def run(self, run_id: str) -> StoredRun | None:
        """A run whole, by its id or an unambiguous beginning of it."""
        ...

    async def known(self, run_id: str) -> bool:
        """Whether that run stands."""
        ...

    async def holder(self, handler: str, key: str, now: datetime) -> str | None:
        """The run that holds this idempotency key of the handler, or held it last and still bars it."""
        ...

    async def figures(self, since: datetime) -> Mapping[str, Figures]:
        """The runs that are not over, and those that began since then, in numbers, by handler."""
        ...

    async def backlog(self, *, handlers: Collection[str] | None = None) -> Backlog:
        """What is left to do; with `handlers`, only their runs are counted."""
        ...


class RunControl(Protocol):
    """What persons do to runs, and what runners know of each other."""

    @property
    def owner(self) -> str:
        """The name under which this store owns its runs."""
        ...

    async def seize(self, run_id: str) -> StoredRun | None:
        """Own a run, whoever owns it, final or not: its former owner can commit nothing more to it."""
        ...

    async def request(self, run_id: str, request: Intervention) -> bool:
        """Ask whoever runs it; one that is parked becomes due. False if it is final, or not there."""
        ...

    async def requests(self) -> Mapping[str, Intervention]:
        """What is asked of the runs that this store owns, by run id."""
        ...

    async def lost(self, run_ids: Collection[str]) -> Collection[str]:
        """Which of these runs, once this store's, are not any more: a person has ended them, or another runner has
        taken them over."""
        ...

    async def woken(self, run_ids: Collection[str]) -> Collection[str]:
        """For which of these runs, all this store's, something has come since they were asked after last."""
        ...

    async def forget_dead(self, owners: Collection[str]) -> None:
        """These owners' processes are dead for certain: their runs need not wait for a lease to run out."""
        ...


class Mailbox(Protocol):
    """What runs wait for: answers to commands, and events; and callers that wait for a run's end."""

    async def answer(self, answer: Answer) -> bool:
        """Give an answer to the run that sent the command, and make it due; of several, the first counts. False if
        no run sent such a command."""
        ...

    async def arrive(self, arrivals: Sequence[Arrival]) -> None:
        """Keep events for the runs that wait for them, or will, each once a token; runs that wait become due."""
        ...

    async def forget_arrivals(self, before: datetime) -> None:
        """Forget events from before that moment that came before every run that is not final: nobody can wait for
        them any more, unless a run has begun that is not durable yet."""
        ...

    async def keep_patterns(self, patterns: Patterns) -> None:
        """What waits of this plan look at, for whoever reads the journal: it may be a process of an older plan."""
        ...

    async def patterns(self) -> Patterns:
        """What waits of any plan look at."""
        ...

    async def add_caller(self, run_id: str, caller: Caller) -> None:
        """This one waits for that run's reply as well."""
        ...

    async def served_callers(self, limit: int) -> Sequence[tuple[str, Caller]]:
        """Callers that were added to runs which are final by now, with the run's id."""
        ...

    async def drop_caller(self, run_id: str, caller: Caller) -> None:
        """It has its reply."""
        ...


class ScheduleStore(Protocol):
    """How far each schedule has come."""

    async def begin_schedule(self, name: str, now: datetime) -> datetime:
        """The last slot of a schedule; for one that is new, `now`, from which it counts."""
        ...

    async def take_slot(
        self, name: str, slot: datetime, event: EventRecord | None = None, outgoing: Outgoing | None = None
    ) -> bool:
        """Take a slot that is later than the last, and publish its event with it. False if it is taken already."""
        ...


class RateLimits(Protocol):
    """Token buckets that all processes share."""

    async def take_token(
        self, name: str, key: str, *, limit: int, period_s: float, burst: int, now: datetime
    ) -> float | None:
        """Take a token from the bucket `key` of the limit `name`: None if there is one, else the seconds until then.

        A bucket that nobody has taken from yet is full, with `burst` tokens; `limit` come in `period_s`. Of several
        that take at once, none gets another's.
        """
        ...


class GateStore(Protocol):
    """The runs that wait at their handlers' gates (see `Place`), and those that have passed and are not final: for
    all processes together."""

    async def admit(self, rules: GateRules, now: datetime, limit: int) -> Passed:
        """Let in, own and return at most `limit` runs, in one commit with the tokens that they take."""
        ...

    async def come(self, changes: Sequence[Change]) -> Sequence[bool]:
        """Commit changes that bring their runs to a gate: together, and in this order. For each what `Store.commit`
        says of it."""
        ...

    async def waiting(self, handler: str, most: int) -> int:
        """How many are queued there; of more than `most`, so many."""
        ...

    async def gates(self) -> Sequence[str]:
        """The handlers at whose gates runs are queued."""
        ...

    async def open(self, handler: str) -> None:
        """Whoever waits for a slot or a token may look again: there may be more of them than before."""
        ...


class TrafficStore(Protocol):
    """What all processes know together of failing partners, and of what producers were told."""

    async def circuits(self) -> Mapping[str, Circuit]:
        """The circuits that are not closed, by name."""
        ...

    async def failed(self, name: str, breaker: Breaker, now: datetime, opened: EventRecord) -> bool:
        """Count a failure, or note that a probe has failed; whether the circuit is open. If that opens it, `opened`
        goes to the log with it."""
        ...

    async def probe(self, name: str, now: datetime, until: datetime) -> bool:
        """Be the one attempt that is let through a circuit that was open, until that time at the latest. False if it
        is not, or somebody else is."""
        ...

    async def succeeded(self, name: str, closed: EventRecord) -> bool:
        """An attempt has succeeded: close the circuit, if it was let through, and add `closed` to the log."""
        ...

    async def pressures(self) -> Collection[str]:
        """The handlers of which producers were told that they are behind, and not yet that they are not."""
        ...

    async def tell(self, handler: str, is_high: bool, event: EventRecord, outgoing: Outgoing) -> bool:
        """Tell that a handler is behind, or is no more, by an event and its message. False, and nothing done, if that
        was told last."""
        ...


class StatusStore(StoreReader, Protocol):
    """What the figures of a project are read from."""

    @property
    def traffic(self) -> TrafficStore:
        """Its circuits and pressures."""
        ...


class Doorbell(Protocol):
    """Tells at once what polling would find out later."""

    def on_ring(self, wake: Callable[[], None]) -> None:
        """Call `wake` when another process may have left something to do; some stores never do."""
        ...

    def on_outgoing(self, hand_over: Callable[[Sequence[OutboxRow]], None]) -> None:
        """From now on, hand over what commits send, in their order, once it is durable: it is this store's own to
        publish. `Store.outbox` gives it as well, until `sent` has noted it."""
        ...


class DeadLetterStore(Protocol):
    """The messages that went nowhere: those that could not begin a run, those that the broker would not take."""

    async def dead_letters(
        self, *, limit: int, reason: str | None = None, handler: str | None = None
    ) -> Sequence[DeadLetter]:
        """Dead letters, newest first."""
        ...

    async def dead_letter(self, ident: str) -> DeadLetter | None:
        """One, by its id or an unambiguous beginning of it. Raises NotFoundError if that fits several."""
        ...

    async def drop(self, letters: Sequence[DeadLetter]) -> None:
        """Forget them, for good; one that has come again since stays."""
        ...

    async def refused(self, limit: int) -> Sequence[OutboxRow]:
        """Messages that the broker would not take, with its reason, oldest first; they stay in the outbox."""
        ...


class EventLog(Protocol):
    """All events that runs emitted or that came from outside, each once, in one order.

    Positions are committed in their order: who has read up to one has missed none before it.
    """

    async def append(self, events: Sequence[EventRecord]) -> int:
        """Add those that are not there yet, as (source, id) tells, in this order, all or nothing; how many were new."""
        ...

    async def events(
        self, wanted: EventFilter, *, limit: int, after: int = 0, newest: bool = False
    ) -> Sequence[LoggedEvent]:
        """Those behind the position `after`, in order; of more than `limit` the first, or the `newest`."""
        ...

    async def head(self) -> int:
        """The position of the last event; 0 if there is none."""
        ...

    async def old(self, before: datetime, *, but: Collection[str], after: int, up_to: int) -> Sequence[LoggedEvent]:
        """Events behind the position `after`, up to the position `up_to`, from before that time, that nobody needs any
        more: not of the types `but`, not what began a run that is not over, or came from it, and not what a dead letter
        is of."""
        ...

    async def forget(self, positions: Collection[int]) -> None:
        """Delete these events, for good. The next event about their subject is numbered on from those that are left."""
        ...

    async def types(self) -> Sequence[str]:
        """All types that some event has."""
        ...

    async def subjects_near(self, subject: str, limit: int) -> Sequence[str]:
        """Subjects that may have been meant: this one's neighbours in the order of texts, and the newest events'."""
        ...

    async def begun_by(self, event: Meta) -> Sequence[RunSummary]:
        """The runs that this event began, in the order in which they began."""
        ...


class ProjectionStore(Protocol):
    """Read models: their entries, and how far each is folded. One a projection is served, and at most one more is
    built, to take its place. What reads entries raises GivenUpError for one that was given up, in part or whole."""

    async def builds(self) -> Sequence[Build]:
        """All that are served or built, by name."""
        ...

    async def begin_build(self, name: str, definition: str, *, anew: bool = False) -> None:
        """Begin to build a read model from the beginning of the log, unless the one that is served, or built, is of
        this definition; with `anew` even then. One of another definition is built no further."""
        ...

    async def keep_only(self, names: Collection[str]) -> None:
        """Give up the read models of all other projections: nobody declares them any more."""
        ...

    async def fold(self, build: Build, folded: Folded, *, claimed_by: str, claimed_until: str) -> bool:
        """Make durable what events made of it, and who claims it. False, and nothing done, if it is not at
        `build.position` any more: another process has folded these events."""
        ...

    async def serve(self, build: Build) -> None:
        """Read it from now on, in the place of the one that was served; but not if others have folded it since."""
        ...

    async def entries(self, build: Build, keys: Collection[str]) -> tuple[int, Mapping[str, Entry]]:
        """Up to which position it is folded, and its entries under these keys, deleted ones too, both as of now."""
        ...

    async def page(self, build: Build, *, after: str = "", limit: int) -> Sequence[Entry]:
        """Its entries, without the deleted ones, in the order of their keys, those behind the key `after`."""
        ...

    async def history(self, build: Build, key: str, as_of: AsOf) -> tuple[Entry | None, Sequence[LoggedEvent]]:
        """The last snapshot of an entry from before then, if there is one, and the events up to then that changed it
        since the snapshot, or were to."""
        ...

    async def sweep(self, limit: int) -> bool:
        """Delete some entries of read models that were given up; False if nothing of them is left, or
        others are at it."""
        ...


class PlanStore(Protocol):
    """Keeps the sources of plans, so that a run can end by the plan that it began with, and what was declared by
    them; and knows itself."""

    async def keep_plan(self, plan_hash: str, sources: Mapping[str, str]) -> None:
        """Keep the texts of a plan's files, by name; the same hash once."""
        ...

    async def unfinished_plans(self) -> Mapping[str, Mapping[str, str]]:
        """The sources of all plans that some unfinished run began with."""
        ...

    async def keep_declared(self, topology: Topology) -> None:
        """Remember these objects as declared on the broker."""
        ...

    async def declared(self) -> Topology:
        """All objects that were ever declared and not forgotten."""
        ...

    async def facts(self) -> StoreFacts:
        """What the store says of itself."""
        ...


class AnyStore(
    Store,
    StoreReader,
    RunControl,
    Mailbox,
    ScheduleStore,
    RateLimits,
    Doorbell,
    DeadLetterStore,
    EventLog,
    PlanStore,
    Protocol,
):
    """All that the engine and the commands ask of a store."""

    @property
    def projections(self) -> ProjectionStore:
        """The read models that it keeps; while the store is entered."""
        ...

    @property
    def gate(self) -> GateStore:
        """The gates of its handlers; while the store is entered."""
        ...

    @property
    def traffic(self) -> TrafficStore:
        """Its circuits and pressures; while the store is entered."""
        ...

    async def __aenter__(self) -> AnyStore:
        """See `Store`."""
        ...


class Handler(Protocol):
    """A handler plugin, bound: inputs and result are JSON values.

    Raises HandlerError, or anything else for a fault of its own. May be cancelled at any await.
    """

    async def __call__(self, context: Context, inputs: Mapping[str, Any]) -> Any:
        """Call it once."""
        ...


class Clock(Protocol):
    """Time, as an argument."""

    def now(self) -> datetime:
        """The wall clock, UTC."""
        ...

    async def sleep_until(self, moment: datetime) -> None:
        """Return at that moment or soon after."""
        ...
