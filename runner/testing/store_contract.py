# ruff: noqa: D102  a test's name says what holds
"""What every store must do: inherit `StoreContract` in a pytest class, say how to open it, run it.

    class TestMyStore(StoreContract):
        def store(self) -> AbstractAsyncContextManager[AnyStore]:
            return MyStore(self.url)

        async def events(self) -> Sequence[tuple[int, str | None, int | None]]:
            return await (await connect(self.url)).fetch("SELECT position, subject, version FROM events ORDER BY 1")

Needs pytest-asyncio in its `auto` mode.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import msgspec

from runner.errors import FlowrunError, NotFoundError, OwnershipError, StoreError, VersionConflictError
from runner.message import Meta, Outgoing, Properties
from runner.ports import AnyStore, StoreReader
from runner.records import (
    HELD,
    SUSPECT_CRASHES,
    Answer,
    Arrival,
    AttemptBegun,
    AttemptFailed,
    Backlog,
    BranchTaken,
    Caller,
    Change,
    CommandSent,
    DeadLetter,
    Error,
    ErrorCaught,
    EventFilter,
    EventRecord,
    Figures,
    Intervention,
    LoggedEvent,
    OutboxRow,
    Record,
    ReplySent,
    RunFailed,
    RunStarted,
    RunState,
    StepFinished,
    StepState,
    StoredRun,
    UndoFinished,
)
from runner.times import rfc3339

TIMEOUT_S = 30.0
START = datetime(2026, 11, 23, 5, 33, tzinfo=UTC)
UNICODE = 'ß → 漢字 🎉 \x00 \u2028 "\\'
_HOLDING = "import asyncio\nfrom runner.testing.store_contract import hold\nasyncio.run(hold(store))\n"


def run_id(number: int) -> str:
    """The id of a test's run."""
    return f"{number:08x}-0000-5000-8000-000000000000"


def at(seconds: float = 0) -> str:
    """A time of the tests, from their beginning."""
    return rfc3339(START + timedelta(seconds=seconds))


def started(number: int, *, handler: str = "orders.place", plan: str = "plan-1", data: bytes = b"{}") -> RunStarted:
    """The beginning of a run; runs of higher numbers begin later."""
    return RunStarted(
        run_id=run_id(number),
        flow=handler.partition(".")[0],
        handler=handler,
        plan_hash=plan,
        trigger=meta(number, subject=f"order-{number}"),
        data=data,
        started_at=at(number),
        trace={"traceparent": "00-1"},
    )


def begin(number: int, **fields: Any) -> Change:
    """A change that begins a run; `fields` are those of Change and, under `begun`, of `started`."""
    begun = fields.pop("begun", {})
    fields.setdefault("state", RunState.RUNNING)
    return Change(run_id=run_id(number), started=started(number, **begun), **fields)


def go_on(number: int, state: RunState = RunState.RUNNING, **fields: Any) -> Change:
    """A later change of that run."""
    return Change(run_id=run_id(number), state=state, **fields)


def meta(number: int, *, subject: str | None = None) -> Meta:
    """An event's attributes."""
    return Meta(
        id=f"m-{number}",
        type="order.placed",
        source="/flowrun/shop/orders",
        subject=subject,
        time=at(number),
        correlation_id="c-1",
        causation_id=None,
    )


def step(number: int, output: Any = None) -> StepFinished:
    """A finished step."""
    return StepFinished(
        step_id=f"step-{number}",
        action="use",
        state=StepState.COMPLETED,
        attempts=1,
        started_at=at(),
        finished_at=at(1),
        output=output,
        target="orders.check",
    )


def event(number: int, subject: str | None) -> EventRecord:
    """An event for the log."""
    return EventRecord(meta=meta(number, subject=subject), data=b"{}")


def outgoing(number: int, body: bytes = b"{}") -> Outgoing:
    """A message for the outbox."""
    return Outgoing(
        exchange="shop.events",
        routing_key=f"key-{number}",
        body=body,
        properties=Properties(message_id=f"m-{number}", timestamp=START, headers={"ce-id": f"m-{number}"}),
        mandatory=number % 2 == 1,
    )


def letter(number: int, **fields: Any) -> DeadLetter:
    """A dead letter."""
    given: dict[str, Any] = {
        "id": f"dead-{number}",
        "reason": "invalid_json",
        "error": Error(type="invalid_json", message="no", retryable=False, details={"at": 3}),
        "handler": "orders.place",
        "type": None,
        "source": None,
        "message_id": f"m-{number}",
        "received_at": at(number),
        "body": b"{",
        "headers": {"a": 1},
        "exchange": "shop.events",
        "routing_key": "order.placed",
    }
    return DeadLetter(**{**given, **fields})


async def hold(store: AnyStore) -> None:
    """In a process that is to be killed: own the runs 1 (running), 2 (taken) and the outbox, and say so."""
    async with store:
        await store.commit(begin(1, records=(step(1),), outgoing=(outgoing(1), outgoing(2))))
        await store.commit(begin(2, state=RunState.WAITING, due_at=at()))
        await store.take(START, 10)
        await store.outbox(10)
        print(f"held {store.owner}", flush=True)
        await asyncio.Event().wait()


_ERROR = Error(type="http.503", message=UNICODE, retryable=True, details={"deep": [1, {"x": None}]}, step="step-1")
_CANCEL = Intervention(action="cancel", by="ada@here", at=at(5), was=RunState.RUNNING, reason=UNICODE)
_RETRY = Intervention(action="retry", by="ada@here", at=at(2), was=RunState.FAILED, from_step="step-1")
_ALL_RECORDS: tuple[Record, ...] = (
    step(1, output={"text": UNICODE, "number": 2**63 - 1, "share": 0.1, "list": [None, True, [], {}], "": ""}),
    step(2),
    StepFinished(
        step_id="skipped", action="emit", state=StepState.SKIPPED, attempts=0, started_at=None, finished_at=at(2)
    ),
    AttemptFailed(step_id="step-3", attempt=1, started_at=at(), failed_at=at(1), retry_at=at(2), error=_ERROR),
    BranchTaken(step_id="switch", branch=0),
    BranchTaken(step_id="switch-2", branch=None),
    ErrorCaught(step_id="step-4", catch=1, error=_ERROR, attempts=3, started_at=at(), failed_at=at(1)),
    RunFailed(error=_ERROR, failed_at=at(3)),
    UndoFinished(
        step_id="step-1",
        action="use",
        state=StepState.FAILED,
        attempts=2,
        started_at=at(),
        finished_at=at(4),
        error=_ERROR,
    ),
    _CANCEL,
    _RETRY,
    AttemptBegun(step_id="step-5", attempt=2, started_at=at(), again=True),
    CommandSent(step_id="step-6", command_id="c-1", attempt=1, sent_at=at(), deadline=at(9)),
    CommandSent(step_id="step-6", command_id="c-1", attempt=2, sent_at=at(9), deadline=at(18), is_new=False),
    ReplySent(at=at(4), result={"text": UNICODE, "none": None}),
    ReplySent(at=at(5), error=_ERROR),
)


def answer(number: int, result: Any = None) -> Answer:
    """What came back for the command `c-number`."""
    return Answer(command_id=f"c-{number}", result=result)


def arrival(number: int, token: str) -> Arrival:
    """An event that bears that token, of when a run of the same number begins."""
    return Arrival(token=token, received_at=at(number), meta=meta(number), data=b'{"n":1}')


async def tokens(store: AnyStore, key: str, *, at_s: float = 0, name: str = "limit", **limit: Any) -> float | None:
    """Take a token, so many seconds after the beginning."""
    return await store.take_token(name, key, now=START + timedelta(seconds=at_s), **limit)


def caller(number: int, **fields: Any) -> Caller:
    """One that waits for a reply."""
    given: dict[str, Any] = {"command": "pay", "correlation_id": f"c-{number}", "reply_to": "answers", **fields}
    return Caller(**given)


async def the_run(store: StoreReader, number: int) -> StoredRun:
    """A test's run, which stands."""
    run = await store.run(run_id(number))
    assert run is not None
    return run


class StoreContract:
    """The tests. A new instance is made for each, on an empty store."""

    def store(self) -> AbstractAsyncContextManager[AnyStore]:
        """A new store onto the same data at each call, for a runner of its own."""
        raise NotImplementedError

    async def events(self) -> Sequence[tuple[int, str | None, int | None]]:
        """The event log: global position, subject and version, by position. A store is open."""
        raise NotImplementedError

    text: ClassVar[str] = UNICODE
    """What a subject or a reason may be; a store that cannot hold a NUL gives one without."""

    async def notice_death(self) -> None:
        """Return once a process that has just died counts as dead, e.g. when its lease has run out."""

    has_processes: ClassVar[bool] = True
    """Other processes can open the same data; if not, `in_another_process` is never called."""

    def in_another_process(self) -> str:
        """Python statements that leave a new store onto the same data, not entered, in the name `store`."""
        raise NotImplementedError

    # --- what the tests are written with

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[tuple[AnyStore, str]]:
        """A store, and the owner's name of a process that ran `hold` and was killed just now."""
        async with self.store() as store:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", self.in_another_process() + _HOLDING, stdout=asyncio.subprocess.PIPE
            )
            try:
                assert process.stdout is not None
                async with asyncio.timeout(TIMEOUT_S):
                    word, _, owner = (await process.stdout.readline()).decode().strip().partition(" ")
                assert word == "held"
                assert await store.take(START, 10) == []
                assert await store.outbox(10) == []
            finally:
                process.kill()
                await process.wait()
            yield store, owner

    @asynccontextmanager
    async def died(self) -> AsyncIterator[AnyStore]:
        """A store, after a process that ran `hold` was killed, and counts as dead."""
        async with self.killed() as (store, _):
            await self.notice_death()
            yield store

    # --- commits

    async def test_a_run_comes_back_as_it_was_committed(self) -> None:
        change = begin(1, begun={"data": b'{"a": 1.10}'}, records=_ALL_RECORDS, error=_ERROR)
        async with self.store() as store:
            assert await store.commit(change)
            run = await store.run(run_id(1))
        assert run is not None
        assert run.started == change.started
        assert run.records == _ALL_RECORDS
        assert (run.state, run.crashes, run.due_at, run.finished_at) == (RunState.RUNNING, 0, None, None)

    async def test_records_come_back_in_the_order_of_their_numbers(self) -> None:
        records = [step(number) for number in range(25)]
        async with self.store() as store:
            await store.commit(begin(1, records=tuple(records[:3])))
            await store.commit(go_on(1, first=3, records=tuple(records[3:12])))
            await store.commit(go_on(1))
            await store.commit(go_on(1, first=12, records=tuple(records[12:])))
            run = await store.run(run_id(1))
        assert run is not None
        assert list(run.records) == records

    async def test_a_commit_says_how_the_run_stands(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            await store.commit(go_on(1, RunState.WAITING, due_at=at(60)))
            waiting = await store.run(run_id(1))
            await store.take(START + timedelta(seconds=60), 10)
            await store.commit(go_on(1, RunState.FAILED, finished_at=at(70), error=_ERROR))
            failed = await store.run(run_id(1))
        assert waiting is not None
        assert failed is not None
        assert (waiting.state, waiting.due_at, waiting.finished_at) == (RunState.WAITING, at(60), None)
        assert (failed.state, failed.finished_at, failed.error) == (RunState.FAILED, at(70), _ERROR)

    async def test_a_run_may_begin_and_end_in_one_commit(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.COMPLETED, records=(step(1),), finished_at=at(1)))
            run = await store.run(run_id(1))
        assert run is not None
        assert (run.state, run.finished_at, run.records) == (RunState.COMPLETED, at(1), (step(1),))

    async def test_a_run_begins_once(self) -> None:
        async with self.store() as store:
            assert await store.commit(begin(1, records=(step(1),), events=(event(1, "s"),), outgoing=(outgoing(1),)))
            again = begin(
                1,
                begun={"handler": "other.one"},
                state=RunState.COMPLETED,
                records=(step(8), step(9)),
                events=(event(2, "s"),),
                outgoing=(outgoing(2),),
                finished_at=at(9),
            )
            assert not await store.commit(again)
            run = await store.run(run_id(1))
            assert run is not None
            assert (run.started, run.state, run.records) == (started(1), RunState.RUNNING, (step(1),))
            assert len(await self.events()) == 1
            assert [row.outgoing for row in await store.outbox(10)] == [outgoing(1)]

    async def test_of_many_that_begin_a_run_at_once_one_does(self) -> None:
        async with self.store() as one, self.store() as two:
            begun = await asyncio.gather(*(store.commit(begin(1)) for store in (one, two) * 20))
        assert sorted(begun) == [False] * 39 + [True]

    async def test_a_commit_is_all_or_nothing(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, records=(step(1),)))
            twice = go_on(
                1,
                RunState.FAILED,
                records=(step(2),),  # the number 0 is taken
                events=(event(1, "s"),),
                outgoing=(outgoing(1),),
                finished_at=at(9),
            )
            await _error_of(StoreError, store.commit(twice))
            run = await store.run(run_id(1))
            assert run is not None
            assert (run.state, run.records, run.finished_at) == (RunState.RUNNING, (step(1),), None)
            assert await self.events() == []
            assert await store.outbox(10) == []
            assert await store.commit(go_on(1, first=1, records=(step(2),)))

    async def test_a_commit_that_fails_takes_no_other_with_it(self) -> None:
        async with self.store() as store:
            await store.commit(begin(0, records=(step(1),)))
            commits = [store.commit(go_on(0, records=(step(2),)) if n % 3 == 0 else begin(n)) for n in range(1, 30)]
            results = await asyncio.gather(*commits, return_exceptions=True)
            for number, result in enumerate(results, 1):
                assert isinstance(result, StoreError) if number % 3 == 0 else result is True
                assert await store.known(run_id(number)) == (number % 3 != 0)

    async def test_concurrent_commits_are_all_durable(self) -> None:
        async with self.store() as one, self.store() as two:
            stores = (one, two)
            await asyncio.gather(*(stores[number % 2].commit(begin(number)) for number in range(300)))
            assert all([await two.known(run_id(number)) for number in range(300)])

    async def test_a_change_may_be_large(self) -> None:
        count = 10_000
        big = {"text": "ä" * 1_000_000}
        async with self.store() as store:
            await store.commit(
                begin(
                    1,
                    begun={"data": bytes(range(256)) * 4096},
                    records=(step(0, output=big), *(step(number) for number in range(1, count))),
                    events=tuple(event(number, "s") for number in range(count)),
                    outgoing=tuple(outgoing(number) for number in range(count)),
                )
            )
            run = await store.run(run_id(1))
            assert run is not None
            assert run.started.data == bytes(range(256)) * 4096
            assert run.records == (step(0, output=big), *(step(number) for number in range(1, count)))
            assert (await self.events())[-1][1:] == ("s", count)
            rows = await store.outbox(count)
            assert [row.outgoing for row in rows] == [outgoing(number) for number in range(count)]
            await store.sent({row.position: None for row in rows})
            assert (await store.backlog()).outbox == 0

    # --- the event log

    async def test_versions_count_within_a_subject_and_positions_over_all(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, events=(event(1, "a"), event(2, "b"), event(3, "a"))))
            await two.commit(begin(2, events=(event(4, None), event(5, "a"), event(6, None), event(7, self.text))))
            log = await self.events()
        assert [entry[1:] for entry in log] == [
            ("a", 1),
            ("b", 1),
            ("a", 2),
            (None, None),
            ("a", 3),
            (None, None),
            (self.text, 1),
        ]
        positions = [position for position, *_ in log]
        assert positions == sorted(set(positions))

    async def test_concurrent_commits_leave_no_gap_in_a_subject(self) -> None:
        async with self.store() as one, self.store() as two:
            stores = (one, two)
            await asyncio.gather(*(stores[n % 2].commit(begin(n, events=(event(n, "a"),))) for n in range(100)))
            log = await self.events()
        assert [version for _, _, version in log] == list(range(1, 101))

    async def test_events_are_appended_once_in_their_order_and_come_back_as_they_were(self) -> None:
        data = bytes(range(256))
        first = EventRecord(meta=meta(1, subject="a"), data=data, run_id=run_id(1))
        outside = EventRecord(meta=meta(2, subject=self.text), data=b"2")
        async with self.store() as store:
            await store.commit(begin(1))
            assert await store.append([first, outside, first]) == 2
            assert await store.append([first, event(3, "a"), outside]) == 1
            assert await store.append([]) == 0
            one, two, three = await store.events(EventFilter(), limit=10)
        assert (one.meta, one.data, one.run_id, one.handler) == (first.meta, data, run_id(1), "orders.place")
        assert (two.meta, two.data, two.run_id, two.handler) == (outside.meta, b"2", None, None)
        assert [entry.version for entry in (one, two, three)] == [1, 1, 2]
        assert one.position < two.position < three.position

    async def test_what_a_run_emitted_is_in_the_log_already_when_it_comes_through_the_journal(self) -> None:
        emitted = EventRecord(meta=meta(1, subject="a"), data=b"{}", run_id=run_id(1))
        async with self.store() as store:
            await store.commit(begin(1, events=(emitted,)))
            assert await store.append([event(1, "a"), event(2, "a")]) == 1
            await store.commit(begin(2, events=(event(2, "a"), event(3, "a"))))
            log = await store.events(EventFilter(), limit=10)
        assert [(entry.meta.id, entry.version) for entry in log] == [("m-1", 1), ("m-2", 2), ("m-3", 3)]
        assert [entry.run_id for entry in log] == [run_id(1), None, None]

    async def test_the_same_id_from_another_source_is_another_event(self) -> None:
        other = EventRecord(meta=replace(meta(1, subject="a"), source="/elsewhere"), data=b"{}")
        async with self.store() as store:
            assert await store.append([event(1, "a"), other]) == 2

    async def test_who_append_and_commit_the_same_subject_at_once_leave_neither_gap_nor_double(self) -> None:
        async with self.store() as one, self.store() as two:
            work: list[Awaitable[object]] = []
            for n in range(0, 200, 10):
                batch = [event(number, "ab"[number % 3 == 0]) for number in range(n, n + 10)]
                work += [one.append(batch), two.append(batch[::-1])]
                work.append(one.commit(begin(n, events=(event(1000 + n, "a"), event(n, "a")))))
                work.append(two.commit(begin(n + 1, events=(event(2000 + n, "a"), event(n + 1, "b")))))
            await asyncio.gather(*work)
            log = await one.events(EventFilter(), limit=1000)
        assert len({entry.meta.id for entry in log}) == len(log) == 240
        for subject in ("a", "b"):
            versions = [entry.version for entry in log if entry.meta.subject == subject]
            assert versions == list(range(1, len(versions) + 1))

    async def test_of_commits_at_once_one_that_comes_too_late_leaves_nothing_and_takes_nothing_from_the_others(
        self,
    ) -> None:
        async with self.store() as store:
            await store.commit(begin(1, events=(event(1, "a"),)))
            shared = event(2, "a")
            results = await asyncio.gather(
                store.commit(begin(1, records=(step(7),), events=(event(9, "a"), shared), outgoing=(outgoing(9),))),
                store.commit(go_on(1, records=(step(1),), events=(event(3, "a"),), outgoing=(outgoing(3),))),
                store.commit(begin(2, records=(step(1),), events=(shared, event(4, "a")), outgoing=(outgoing(4),))),
                store.commit(begin(2, records=(step(8),), events=(event(8, "a"),))),
                store.commit(begin(3, events=(shared, event(5, "b")))),
            )
            assert list(results) == [False, True, True, False, True]
            log = await store.events(EventFilter(subject="a"), limit=9)
            assert sorted(entry.meta.id for entry in log) == ["m-1", "m-2", "m-3", "m-4"]
            assert [entry.version for entry in log] == [1, 2, 3, 4]
            assert (await the_run(store, 1)).records == (step(1),)
            assert (await the_run(store, 2)).records == (step(1),)
            left = sorted(row.outgoing.properties.message_id or "" for row in await store.outbox(9))
        assert left == sorted(each.properties.message_id or "" for each in (outgoing(3), outgoing(4)))

    async def test_an_event_that_expects_another_version_of_its_subject_undoes_its_own_commit_and_no_other(
        self,
    ) -> None:
        def expecting(number: int, version: int) -> EventRecord:
            return msgspec.structs.replace(event(number, "a"), expected=version)

        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, events=(event(1, "a"),)))
            results = await asyncio.gather(
                one.commit(begin(2, events=(event(2, "b"),))),
                one.commit(begin(3, events=(expecting(3, 0),))),
                one.commit(begin(4, events=(event(4, "b"), expecting(5, 1)))),
                one.commit(begin(6, events=(event(6, "b"),))),
                return_exceptions=True,
            )
            assert [result for result in results if not isinstance(result, Exception)] == [True, True, True]
            conflict = results[1]
            assert isinstance(conflict, VersionConflictError)
            assert (conflict.subject, conflict.expected) == ("a", 0)
            assert not await one.known(run_id(3))
            log = await one.events(EventFilter(subject="a"), limit=9)
            assert [(entry.meta.id, entry.version) for entry in log] == [("m-1", 1), ("m-5", 2)]
            work = [(one, two)[n % 2].commit(begin(n, events=(expecting(n, 2),))) for n in range(10, 20)]
            raced = await asyncio.gather(*work, return_exceptions=True)
            assert [isinstance(result, VersionConflictError) for result in raced].count(False) == 1
            await one.commit(begin(30, events=(msgspec.structs.replace(event(30, "new"), expected=0),)))

    async def test_who_reads_on_from_the_last_position_misses_nothing(self) -> None:
        async with self.store() as one, self.store() as two:
            work = [
                asyncio.ensure_future(store.append([event(number, None)]))
                for number in range(100)
                for store in ((one, two)[number % 2],)
            ]
            seen: list[LoggedEvent] = []
            async with asyncio.timeout(TIMEOUT_S):
                while len(seen) < 100:
                    seen += await one.events(EventFilter(), limit=7, after=seen[-1].position if seen else 0)
            await asyncio.gather(*work)
            assert seen == await two.events(EventFilter(), limit=1000)

    async def test_events_are_found_by_what_they_are_the_first_or_the_newest(self) -> None:
        records = [
            EventRecord(
                meta=replace(
                    meta(number, subject=f"s-{number % 2}"),
                    type=("order.placed", "order.paid")[number % 3 == 0],
                    source=f"/s/{number % 4}",
                    correlation_id=f"c-{number // 5}",
                ),
                data=b"{}",
            )
            for number in range(10)
        ]
        async with self.store() as store:
            await store.append(records)

            async def found(limit: int = 10, *, newest: bool = False, **wanted: Any) -> list[int]:
                log = await store.events(EventFilter(**wanted), limit=limit, newest=newest)
                return [int(entry.meta.id.removeprefix("m-")) for entry in log]

            assert await found(3) == [0, 1, 2]
            assert await found(3, newest=True) == [7, 8, 9]
            assert await found(types=("order.paid",)) == [0, 3, 6, 9]
            assert await found(types=()) == []
            assert await found(types=("order.paid", "order.placed"), subject="s-1") == [1, 3, 5, 7, 9]
            assert await found(2, types=("order.paid",), newest=True) == [6, 9]
            both = ("order.paid", "order.placed", "order.lost")
            assert await found(4, types=both) == [0, 1, 2, 3]
            assert await found(4, types=both, newest=True) == [6, 7, 8, 9]
            assert await found(types=both, source="/s/3") == [3, 7]
            assert await found(2, types=both, since=at(3), until=at(7), newest=True) == [6, 7]
            assert await found(types=("order.paid", *(f"t.{n}" for n in range(300)))) == [0, 3, 6, 9]
            assert await found(3, types=both, since=at(2)) == [2, 3, 4]
            assert await found(3, types=both, newest=True, until=at(5)) == [3, 4, 5]
            assert await found(2, types=(*both, *(f"t-{number}" for number in range(1000)))) == [0, 1]
            assert await found(source="/s/3") == [3, 7]
            assert await found(correlation_id="c-1") == [5, 6, 7, 8, 9]
            assert await found(since=at(3), until=at(5)) == [3, 4, 5]
            assert await found(subject="s-0", up_to_version=2) == [0, 2]
            assert await found(id_begins="m-7") == [7]
            assert await found(id_begins="m-") == list(range(10))
            assert await found(id_begins="M-") == []
            assert await store.types() == ["order.paid", "order.placed"]

    async def test_a_misspelt_subject_has_its_likes_among_its_neighbours_and_the_newest(self) -> None:
        async with self.store() as store:
            assert await store.subjects_near("order/1", 2) == []
            await store.append([event(n, subject) for n, subject in enumerate(("order/1", "order/2", "x", None, "y"))])
            assert set(await store.subjects_near("order/3", 1)) == {"order/2", "x", "y"}
            assert "y" in await store.subjects_near("aaaa", 1)

    async def test_old_events_are_those_that_no_run_and_no_letter_needs_and_can_be_forgotten(self) -> None:
        def typed(number: int, kind: str = "order.placed", **fields: Any) -> EventRecord:
            return EventRecord(meta=replace(meta(number, subject="a"), type=kind), data=b"{}", **fields)

        async with self.store() as store:
            await store.commit(begin(3))
            await store.append(
                [
                    typed(1),
                    typed(2, "order.kept"),
                    typed(3),  # began a run that is not over
                    typed(4, run_id=run_id(3)),  # came from it
                    typed(5),  # a dead letter is of it
                    typed(6),
                    typed(50),  # too young
                ]
            )
            await store.bury(letter(5, message_id="m-5", source=meta(5).source))
            before, head = START + timedelta(seconds=10), await store.head()

            async def old(after: int = 0, up_to: int = head) -> list[str]:
                found = await store.old(before, but=["order.kept"], after=after, up_to=up_to)
                return [entry.meta.id for entry in found]

            assert await old() == ["m-1", "m-6"]
            first = (await store.events(EventFilter(), limit=1))[0].position
            assert await old(after=first) == ["m-6"]
            assert await old(up_to=first) == ["m-1"]
            await store.commit(go_on(3, RunState.COMPLETED, finished_at=at(60)))
            assert await old() == ["m-1", "m-3", "m-4", "m-6"]
            await store.forget([first])
            assert await old() == ["m-3", "m-4", "m-6"]
            assert await store.append([typed(1)]) == 1
            newest = await store.events(EventFilter(), limit=1, newest=True)
            assert [(entry.meta.id, entry.version) for entry in newest] == [("m-1", 8)]

    async def test_the_runs_that_an_event_began_are_known_by_its_id_and_source(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            await store.commit(begin(11))
            assert [run.id for run in await store.begun_by(meta(1))] == [run_id(1)]
            assert await store.begun_by(replace(meta(1), source="/elsewhere")) == []
            assert await store.begun_by(meta(2)) == []

    # --- taking runs up

    async def test_a_run_is_taken_when_it_is_due_and_once(self) -> None:
        due = START + timedelta(seconds=60)
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.WAITING, records=(step(1),), due_at=rfc3339(due)))
            assert await store.take(due - timedelta(milliseconds=1), 10) == []
            (run,) = await store.take(due, 10)
            assert (run.started, run.records, run.state, run.crashes) == (started(1), (step(1),), RunState.WAITING, 0)
            assert await store.take(due + timedelta(days=1), 10) == []

    async def test_only_runs_of_the_handlers_asked_for_are_taken(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, due_at=at(1), begun={"handler": "orders.place"}))
            await store.commit(begin(2, due_at=at(1), begun={"handler": "orders.pay"}))
            taken = await store.take(START + timedelta(seconds=2), 10, handlers=["orders.pay"])
            left = await store.take(START + timedelta(seconds=2), 10)
        assert [run.started.handler for run in taken] == ["orders.pay"]
        assert [run.started.handler for run in left] == ["orders.place"]

    async def test_takers_never_get_the_same_run(self) -> None:
        async with self.store() as one, self.store() as two:
            for number in range(100):
                await one.commit(begin(number, state=RunState.WAITING, due_at=at()))
            taken = await asyncio.gather(*(store.take(START, 7) for store in (one, two) * 10))
        assert all(len(runs) <= 7 for runs in taken)
        assert sorted(run.started.run_id for runs in taken for run in runs) == [run_id(n) for n in range(100)]

    async def test_the_longest_due_are_taken_first(self) -> None:
        async with self.store() as store:
            for number in (3, 1, 2):
                await store.commit(begin(number, state=RunState.WAITING, due_at=at(number)))
            taken = [run.started.run_id for _ in range(3) for run in await store.take(START + timedelta(hours=1), 1)]
        assert taken == [run_id(1), run_id(2), run_id(3)]

    async def test_a_run_that_is_parked_again_is_due_again(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.WAITING, due_at=at()))
            await store.take(START, 10)
            await store.commit(go_on(1, RunState.WAITING, due_at=at(5)))
            assert await store.take(START, 10) == []
            assert len(await store.take(START + timedelta(seconds=5), 10)) == 1

    async def test_a_final_run_is_never_taken(self) -> None:
        final = [state for state in RunState if state.is_final]
        async with self.store() as store:
            for number, state in enumerate(final):
                await store.commit(begin(number, state=state, finished_at=at(1)))
            await store.commit(begin(99))
            await store.commit(go_on(99, RunState.COMPLETED, due_at=at(), finished_at=at(1)))
            assert await store.take(START + timedelta(days=1), 10) == []
        async with self.store() as store:
            assert await store.take(START + timedelta(days=1), 10) == []

    async def test_a_living_runners_runs_are_left_to_it(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1))
            await one.commit(begin(2, state=RunState.WAITING, due_at=at()))
            await one.take(START, 10)
            assert await two.take(START + timedelta(days=1), 10) == []

    async def test_the_runs_of_a_runner_that_left_are_taken_and_no_crash_is_counted(self) -> None:
        async with self.store() as other:
            async with self.store() as store:
                await store.commit(begin(1, state=RunState.COMPENSATING, records=(step(1),)))
                await store.commit(begin(2))
                await store.commit(go_on(2, RunState.COMPLETED, finished_at=at(3)))
            (run,) = await other.take(START + timedelta(days=1), 10)
        assert (run.started.run_id, run.records, run.crashes) == (run_id(1), (step(1),), 0)
        assert run.state is RunState.COMPENSATING

    async def test_the_runs_of_a_dead_runner_are_taken_once_and_each_crash_is_counted(self) -> None:
        if not self.has_processes:
            return
        async with self.died() as store, self.store() as other:
            taken = [*await store.take(START, 10), *await other.take(START, 10)]
            assert sorted(run.started.run_id for run in taken) == [run_id(1), run_id(2)]
            assert [run.crashes for run in taken] == [1, 1]
            stored = await store.run(run_id(1))
            assert stored is not None
            assert (stored.crashes, stored.records) == (1, (step(1),))
            assert await other.take(START, 10) == []

    async def test_a_suspects_crash_is_counted_beforehand_and_forgiven_once_it_is_put_down_alive(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            for _ in range(SUSPECT_CRASHES + 2):
                await store.commit(go_on(1, suspect=True))
            assert await _crashes(store) == SUSPECT_CRASHES + 2
            await store.commit(go_on(1, RunState.WAITING, due_at=at(1)))
            assert await _crashes(store) == SUSPECT_CRASHES

    async def test_a_run_may_begin_with_a_crash_to_its_name(self) -> None:
        async with self.store() as store:
            assert await store.commit(begin(1, suspect=True))
            assert not await store.commit(begin(1, suspect=True))
            assert await _crashes(store) == 1

    async def test_suspects_are_for_who_asks_for_them_and_only_they(self) -> None:
        async with self.store() as store:
            for number in (1, 2):
                await store.commit(begin(number))
            for _ in range(SUSPECT_CRASHES):
                await store.commit(go_on(2, suspect=True))
            for number in (1, 2):
                await store.commit(go_on(number, RunState.WAITING, due_at=at(number)))
            assert (await store.backlog()).suspects == 1
            later = START + timedelta(minutes=1)
            assert [run.started.run_id for run in await store.take(later, 10)] == [run_id(1)]
            assert await store.take(later, 10, suspects=True, handlers=["of.another"]) == []
            (suspect,) = await store.take(later, 10, suspects=True)
            assert (suspect.started.run_id, suspect.crashes) == (run_id(2), SUSPECT_CRASHES)
            await store.commit(go_on(2, RunState.COMPLETED, finished_at=at(70)))
            assert (await store.backlog()).suspects == 0

    async def test_a_suspects_backlog_is_of_the_handlers_asked_for(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, begun={"handler": "mail.send"}))
            for _ in range(SUSPECT_CRASHES):
                await store.commit(go_on(1, suspect=True))
            assert (await store.backlog(handlers=["mail.send"])).suspects == 1
            assert (await store.backlog(handlers=["orders.place"])).suspects == 0

    async def test_crashes_that_are_forgiven_are_forgotten(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            for _ in range(SUSPECT_CRASHES + 1):
                await store.commit(go_on(1, suspect=True))
            await store.commit(go_on(1, due_at=at(), forgive=True))
            assert await _crashes(store) == 0
            assert len(await store.take(START, 10)) == 1

    async def test_who_died_for_certain_need_not_be_waited_for(self) -> None:
        if not self.has_processes:
            return
        async with self.killed() as (store, owner):
            await store.forget_dead([owner, "never-heard-of"])
            taken = await store.take(START, 10)
            assert [run.crashes for run in taken] == [1, 1]
            assert [row.outgoing for row in await store.outbox(10)] == [outgoing(1), outgoing(2)]

    async def test_no_more_runs_are_taken_than_asked_for(self) -> None:
        if not self.has_processes:
            return
        async with self.died() as store:
            await store.commit(begin(3, state=RunState.WAITING, due_at=at()))
            taken = [await store.take(START, 1) for _ in range(4)]
        assert [len(runs) for runs in taken] == [1, 1, 1, 0]

    # --- what persons do

    async def test_a_seized_run_is_whose_who_seized_it_and_its_former_owner_writes_nothing_more(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, records=(step(1),)))
            seized = await two.seize(run_id(1))
            assert seized is not None
            assert (seized.started, seized.records) == (started(1), (step(1),))
            for change in (
                go_on(1, first=1, records=(step(2),)),
                go_on(1, RunState.WAITING, due_at=at(1)),
                go_on(1, RunState.COMPLETED, finished_at=at(1), events=(event(1, "s"),), outgoing=(outgoing(1),)),
            ):
                await _error_of(OwnershipError, one.commit(change))
            assert await self.events() == []
            assert (await two.backlog()).outbox == 0
            assert await two.commit(go_on(1, first=1, records=(step(3),)))
            stored = await one.run(run_id(1))
        assert stored is not None
        assert stored.records == (step(1), step(3))

    async def test_of_many_that_seize_a_run_the_last_has_it(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1))
            await two.seize(run_id(1))
            await one.seize(run_id(1))
            await _error_of(OwnershipError, two.commit(go_on(1)))
            assert await one.commit(go_on(1, RunState.COMPLETED, finished_at=at(1)))

    async def test_a_parked_run_is_seized_so_that_nobody_takes_it(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, state=RunState.WAITING, due_at=at()))
            await two.seize(run_id(1))
            assert await one.take(START + timedelta(days=1), 10) == []
            await two.commit(go_on(1, RunState.WAITING, due_at=at()))
            assert len(await one.take(START, 10)) == 1

    async def test_a_final_run_is_seized_to_go_on_and_keeps_its_records(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, state=RunState.FAILED, records=(step(1),), finished_at=at(1), error=_ERROR))
            seized = await two.seize(run_id(1))
            assert seized is not None
            assert (seized.state, seized.finished_at) == (RunState.FAILED, at(1))
            await two.commit(go_on(1, first=1, records=(_RETRY,), due_at=at(2)))
            (run,) = await one.take(START + timedelta(seconds=2), 10)
        assert (run.state, run.records, run.finished_at, run.error) == (
            RunState.RUNNING,
            (step(1), _RETRY),
            None,
            None,
        )

    async def test_there_is_nothing_to_seize_where_there_is_no_run(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            assert await store.seize(run_id(2)) is None

    async def test_a_request_is_told_to_who_runs_it_and_to_no_other(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1))
            await two.commit(begin(2))
            assert await two.requests() == {}
            assert await two.request(run_id(1), _CANCEL)
            assert await one.requests() == {run_id(1): _CANCEL}
            assert await two.requests() == {}
            stored = await two.run(run_id(1))
            assert stored is not None
            assert stored.request == _CANCEL

    async def test_what_comes_for_a_run_that_is_going_on_is_told_once(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, commands=("c-1",)))
            await store.commit(begin(2))
            assert list(await store.woken([run_id(1), run_id(2)])) == []
            await store.answer(Answer(command_id="c-1", result="yes"))
            assert list(await store.woken([run_id(2)])) == []
            assert list(await store.woken([run_id(1), run_id(2)])) == [run_id(1)]
            assert list(await store.woken([run_id(1), run_id(2)])) == []

    async def test_a_parked_run_of_which_something_is_asked_is_due_at_once_and_brings_the_request(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, state=RunState.WAITING, due_at=at(3600)))
            assert await two.request(run_id(1), _CANCEL)
            (run,) = await one.take(START + timedelta(seconds=5), 10)
            assert run.request == _CANCEL
            assert await one.requests() == {run_id(1): _CANCEL}

    async def test_a_run_of_which_something_is_asked_while_it_is_going_on_is_not_put_to_sleep(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1))
            assert await two.request(run_id(1), _CANCEL)
            await one.commit(go_on(1, RunState.WAITING, due_at=at(3600)))
            (run,) = await two.take(START, 10)
            assert run.request == _CANCEL

    async def test_a_request_outlives_a_parking_and_ends_with_the_run(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            await store.request(run_id(1), _CANCEL)
            await store.commit(go_on(1, RunState.COMPENSATING, due_at=at()))
            (run,) = await store.take(START, 10)
            assert run.request == _CANCEL
            await store.commit(go_on(1, RunState.CANCELLED, finished_at=at(1)))
            assert await store.requests() == {}
            stored = await store.run(run_id(1))
            assert stored is not None
            assert stored.request is None

    async def test_nothing_is_asked_of_a_final_run_or_of_none(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.COMPLETED, finished_at=at(1)))
            assert not await store.request(run_id(1), _CANCEL)
            assert not await store.request(run_id(2), _CANCEL)
            stored = await store.run(run_id(1))
            assert stored is not None
            assert (stored.request, stored.due_at) == (None, None)

    async def test_the_name_of_an_owner_is_its_own(self) -> None:
        async with self.store() as one, self.store() as two:
            assert one.owner
            assert one.owner != two.owner

    async def test_a_bell_that_nobody_rings_calls_nobody(self) -> None:
        async with self.store() as store:
            store.on_ring(lambda: None)
            assert await store.commit(begin(1))

    # --- idempotency keys

    async def test_while_a_run_holds_a_key_no_other_of_its_handler_begins_with_it(self) -> None:
        async with self.store() as one, self.store() as two:
            assert await one.commit(_keyed(1))
            assert not await two.commit(_keyed(2, records=(step(1),), events=(event(1, "s"),)))
            assert await two.commit(_keyed(3, key="k-2"))
            assert await two.commit(_keyed(4, handler="mail.send"))
            assert await two.commit(begin(5))
            assert await self.events() == []
            assert not await two.known(run_id(2))
            for number, key in ((1, "k"), (3, "k-2")):
                assert await two.holder("orders.place", key, START) == run_id(number)
            assert await two.holder("orders.place", "k-3", START) is None
            run = await two.run(run_id(1))
        assert run is not None
        assert run.started.key == "k"

    async def test_of_many_that_claim_a_key_at_once_one_gets_it(self) -> None:
        async with self.store() as one, self.store() as two:
            stores = (one, two)
            begun = await asyncio.gather(*(stores[n % 2].commit(_keyed(n)) for n in range(40)))
            assert sorted(begun) == [False] * 39 + [True]
            assert await one.holder("orders.place", "k", START) == run_id(begun.index(True))

    async def test_a_key_is_held_until_then_and_free_from_then_on(self) -> None:
        end = START + timedelta(seconds=100)
        async with self.store() as store:
            await store.commit(_keyed(1))
            await store.commit(go_on(1, RunState.COMPLETED, finished_at=at(10), key_until=rfc3339(end)))
            assert await store.holder("orders.place", "k", end - timedelta(milliseconds=1)) == run_id(1)
            assert not await store.commit(_keyed(99))
            assert await store.holder("orders.place", "k", end) is None
            assert await store.commit(_keyed(100))
            assert await store.holder("orders.place", "k", end) == run_id(100)

    async def test_a_run_that_ends_without_saying_until_when_sets_its_key_free(self) -> None:
        async with self.store() as store:
            await store.commit(_keyed(1))
            await store.commit(go_on(1, RunState.WAITING, due_at=at()))
            assert await store.holder("orders.place", "k", START + timedelta(days=9999)) == run_id(1)
            await store.take(START, 10)
            await store.commit(go_on(1, RunState.COMPENSATED, finished_at=at(1)))
            assert await store.holder("orders.place", "k", START) is None
            assert await store.commit(_keyed(2))

    async def test_a_run_that_begins_and_ends_in_one_commit_holds_its_key_as_it_says(self) -> None:
        async with self.store() as store:
            done = {"state": RunState.COMPLETED, "finished_at": at(1)}
            await store.commit(_keyed(1, key_until=at(60), **done))
            assert not await store.commit(_keyed(2))
            await store.commit(_keyed(3, key="other", **done))
            assert await store.commit(_keyed(4, key="other"))

    async def test_a_run_without_a_key_holds_none_whatever_is_said_at_its_end(self) -> None:
        async with self.store() as store:
            for number in (1, 2):
                await store.commit(begin(number))
                await store.commit(go_on(number, RunState.COMPLETED, finished_at=at(9), key_until=at(60)))
            assert len(await store.runs(limit=10, state="completed")) == 2

    async def test_a_run_that_goes_on_takes_its_key_back_from_who_had_it_and_has_it_no_more(self) -> None:
        async with self.store() as store:
            await store.commit(_keyed(1, state=RunState.FAILED, finished_at=at(1)))
            await store.commit(_keyed(2, state=RunState.COMPLETED, finished_at=at(2), key_until=at(10)))
            await store.seize(run_id(1))
            await _error_of(StoreError, store.commit(go_on(1, due_at=at(9), key_until=HELD)))
            assert await store.commit(go_on(1, due_at=at(10), key_until=HELD))
            assert await store.holder("orders.place", "k", START + timedelta(days=9999)) == run_id(1)
            assert not await store.commit(_keyed(20))

    async def test_a_key_may_be_any_text(self) -> None:
        async with self.store() as store:
            await store.commit(_keyed(1, key=self.text))
            assert await store.holder("orders.place", self.text, START) == run_id(1)
            assert not await store.commit(_keyed(2, key=self.text))

    # --- events that runs wait for

    async def test_an_event_wakes_the_runs_that_wait_for_it_and_comes_with_them(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.WAITING, tokens=("t-1",), due_at=at(9999), asleep=True))
            await store.commit(begin(2, state=RunState.WAITING, tokens=("t-2",), due_at=at(9999), asleep=True))
            await store.arrive([arrival(9, "t-1")])
            (taken,) = await store.take(START, 10)
            assert (taken.started.run_id, taken.arrivals) == (run_id(1), (arrival(9, "t-1"),))

    async def test_an_event_that_comes_twice_is_there_once_and_still_wakes(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.WAITING, tokens=("t-1",), due_at=at(9999)))
            await store.arrive([arrival(9, "t-1")])
            await store.arrive([arrival(9, "t-1")])
            (taken,) = await store.take(START, 10)
            assert taken.arrivals == (arrival(9, "t-1"),)

    async def test_what_came_before_the_run_began_is_not_among_what_came(self) -> None:
        async with self.store() as store:
            await store.arrive([arrival(1, "t-1"), arrival(7, "t-1")])
            await store.commit(begin(5, tokens=("t-1",)))
            assert (await the_run(store, 5)).arrivals == (arrival(7, "t-1"),)

    async def test_an_event_cancels_the_runs_that_it_cancels_also_if_it_came_before_they_were_durable(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, cancel_tokens=("t-1",)))
            await store.arrive([arrival(9, "t-1")])
            await store.commit(begin(2, cancel_tokens=("t-1",)))
            for number in (1, 2):
                request = (await the_run(store, number)).request
                assert request is not None
                assert request.action == "cancel"

    async def test_no_event_cancels_a_run_that_began_after_it_or_by_it(self) -> None:
        async with self.store() as store:
            await store.arrive([arrival(1, "t-1")])
            await store.commit(begin(2, cancel_tokens=("t-1",)))
            await store.arrive([msgspec.structs.replace(arrival(9, "t-1"), meta=started(2).trigger)])
            assert (await the_run(store, 2)).request is None

    async def test_events_are_forgotten_that_no_run_of_now_or_of_the_time_before_can_wait_for(self) -> None:
        async with self.store() as store:
            await store.arrive([arrival(number, "t-1") for number in (1, 4, 6)])
            await store.forget_arrivals(START + timedelta(seconds=3))
            await store.commit(begin(3, tokens=("t-1",)))
            await store.forget_arrivals(START + timedelta(seconds=99))
            assert [each.meta.id for each in (await the_run(store, 3)).arrivals] == ["m-4", "m-6"]

    async def test_what_waits_look_at_is_known_to_all_whichever_plan_says_so(self) -> None:
        async with self.store() as one, self.store() as two:
            assert await one.patterns() == {}
            await one.keep_patterns({"paid": frozenset({("order.id",), ()})})
            await two.keep_patterns({"paid": frozenset({("order.id",), ("a", "b")}), "sent": frozenset({()})})
            known = {"paid": frozenset({("order.id",), (), ("a", "b")}), "sent": frozenset({()})}
            assert await one.patterns() == await two.patterns() == known

    # --- rate limits

    async def test_a_full_bucket_gives_exactly_its_burst_at_once(self) -> None:
        async with self.store() as store:
            waits = [await tokens(store, "a", limit=3, period_s=1.0, burst=7) for _ in range(9)]
            assert waits[:7] == [None] * 7
            assert [round(wait or 0, 6) for wait in waits[7:]] == [0.333333] * 2

    async def test_tokens_come_back_at_their_rate_and_are_never_more_than_the_burst(self) -> None:
        async with self.store() as store:

            async def taken(seconds: float) -> int:
                waits = [await tokens(store, "a", at_s=seconds, limit=10, period_s=1.0, burst=2) for _ in range(5)]
                return waits.count(None)

            assert [await taken(seconds) for seconds in (0, 0.05, 0.1, 0.1, 0.35, 0.45, 100)] == [2, 0, 1, 0, 2, 1, 2]

    async def test_a_larger_limit_is_not_held_up_by_tokens_that_were_taken_under_a_smaller_one(self) -> None:
        async with self.store() as store:
            assert await tokens(store, "a", limit=1, period_s=3600.0, burst=1) is None
            assert (await tokens(store, "a", at_s=1, limit=4, period_s=1.0, burst=1) or 9) <= 0.25
            assert await tokens(store, "a", at_s=1.5, limit=4, period_s=1.0, burst=1) is None

    async def test_who_waits_as_long_as_is_said_gets_a_token(self) -> None:
        async with self.store() as store:
            limit: dict[str, Any] = {"limit": 7, "period_s": 60.0, "burst": 1}
            at_s = 0.0
            for _ in range(20):
                assert await tokens(store, "a", at_s=at_s, **limit) is None
                wait = await tokens(store, "a", at_s=at_s, **limit)
                assert wait is not None
                at_s += wait + 1e-6  # a moment has no less than a microsecond
                assert 8.5 < wait < 8.6

    async def test_each_key_and_each_name_has_a_bucket_of_its_own(self) -> None:
        async with self.store() as store:
            for key, name in ((self.text, "one"), ("", "one"), ("b", "one"), ("b", "two")):
                assert await tokens(store, key, name=name, limit=1, period_s=1.0, burst=1) is None
                assert await tokens(store, key, name=name, limit=1, period_s=1.0, burst=1) is not None

    async def test_several_processes_together_get_no_more_than_one(self) -> None:
        async with self.store() as one, self.store() as two:
            limit: dict[str, Any] = {"limit": 50, "period_s": 1.0, "burst": 50}
            waits = await asyncio.gather(*(tokens(s, "a", **limit) for _ in range(40) for s in (one, two)))
            assert waits.count(None) == 50

    async def test_a_clock_that_is_behind_gets_no_more(self) -> None:
        async with self.store() as store:
            assert await tokens(store, "a", at_s=5, limit=1, period_s=1.0, burst=1) is None
            assert round(await tokens(store, "a", at_s=4, limit=1, period_s=1.0, burst=1) or 0, 6) == 2.0
            assert await tokens(store, "a", at_s=6, limit=1, period_s=1.0, burst=1) is None

    # --- commands: their answers, and who waits for one

    async def test_an_answer_makes_a_parked_run_due_at_once_and_comes_with_it(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.WAITING, commands=("c-1",), due_at=at(9999)))
            assert await store.take(START, 10) == []
            assert await store.answer(answer(1, {"text": UNICODE}))
            (taken,) = await store.take(START, 10)
            assert taken.answers == (answer(1, {"text": UNICODE}),)
            assert (taken.crashes, taken.state) == (0, RunState.WAITING)
            assert await store.take(START, 10) == [], "once"

    async def test_an_answer_to_a_run_that_is_going_on_makes_it_due_when_it_is_parked(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, commands=("c-1",)))
            assert await store.answer(answer(1))
            assert await store.take(START, 10) == []
            await store.commit(go_on(1, RunState.WAITING, due_at=at(9999)))
            (taken,) = await store.take(START, 10)
            assert taken.answers == (answer(1),)
            await store.commit(go_on(1, RunState.WAITING, due_at=at(9999)))
            assert await store.take(START, 10) == [], "what it has been told of wakes it no more"

    async def test_an_answer_that_comes_between_taking_and_parking_is_not_slept_through(self) -> None:
        async with self.store() as store, self.store() as other:
            await store.commit(begin(1, state=RunState.WAITING, commands=("c-1", "c-2"), due_at=at(9999)))
            await other.answer(answer(1))
            (taken,) = await store.take(START, 10)
            await other.answer(answer(2))
            assert taken.answers == (answer(1),)
            await store.commit(go_on(1, RunState.WAITING, due_at=at(9999)))
            (again,) = await other.take(START, 10)
            assert sorted(got.command_id for got in again.answers) == ["c-1", "c-2"]

    async def test_many_answers_at_once_are_all_kept(self) -> None:
        commands = tuple(f"c-{number}" for number in range(20))
        async with self.store() as store, self.store() as other:
            await store.commit(begin(1, state=RunState.WAITING, commands=commands, due_at=at(9999)))
            stores = [store, other] * 10
            given = (store.answer(answer(number)) for number, store in enumerate(stores))
            assert all(await asyncio.gather(*given))
            (taken,) = await store.take(START, 10)
            assert {got.command_id for got in taken.answers} == set(commands)

    async def test_of_several_answers_the_first_counts(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.WAITING, commands=("c-1",), due_at=at(9999)))
            for result in ("first", "second", None):
                assert await store.answer(answer(1, result))
            await store.answer(Answer(command_id="c-1", error=_ERROR))
            assert (await the_run(store, 1)).answers == (answer(1, "first"),)

    async def test_a_failed_answer_comes_back_as_it_was(self) -> None:
        failed = Answer(command_id="c-1", error=_ERROR)
        async with self.store() as store:
            await store.commit(begin(1, commands=("c-1",)))
            await store.answer(failed)
            assert (await the_run(store, 1)).answers == (failed,)

    async def test_an_answer_to_a_command_that_no_run_sent_is_nobodys(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, commands=("c-1",)))
            assert not await store.answer(answer(2))
            assert not await store.answer(Answer(command_id=f"c-1{self.text}"))
            assert (await the_run(store, 1)).answers == ()

    async def test_an_answer_is_the_run_that_sent_the_commands_and_no_others(self) -> None:
        async with self.store() as store:
            for number in (1, 2):
                await store.commit(begin(number, state=RunState.WAITING, commands=(f"c-{number}",), due_at=at(9999)))
            await store.answer(answer(2))
            assert [run.started.run_id for run in await store.take(START, 10)] == [run_id(2)]
            assert (await the_run(store, 1)).answers == ()

    async def test_answers_come_whichever_way_the_run_is_got(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.WAITING, commands=("c-1",), due_at=at(9999)))
            await store.answer(answer(1, "x"))
            assert (await the_run(store, 1)).answers == (answer(1, "x"),)
            seized = await store.seize(run_id(1))
            assert seized is not None
            assert seized.answers == (answer(1, "x"),)

    async def test_an_answer_to_a_final_run_is_kept_and_wakes_nobody(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, commands=("c-1",)))
            await store.commit(go_on(1, RunState.FAILED, finished_at=at(3)))
            assert await store.answer(answer(1))
            assert await store.take(START, 10) == []
            run = await the_run(store, 1)
            assert (run.state, run.finished_at, run.answers) == (RunState.FAILED, at(3), (answer(1),))

    async def test_a_command_that_goes_out_again_is_the_same_and_keeps_its_answer(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, commands=("c-1",), outgoing=(outgoing(1),)))
            await store.answer(answer(1, "x"))
            await store.commit(go_on(1, RunState.WAITING, commands=("c-1", "c-2"), due_at=at(9), records=(step(1),)))
            run = await the_run(store, 1)
            assert (run.answers, len(run.records)) == ((answer(1, "x"),), 1)
            assert await store.answer(answer(2))

    async def test_the_command_of_a_run_that_did_not_begin_is_nobodys(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            assert not await store.commit(begin(1, commands=("c-1",)))
            assert not await store.answer(answer(1))

    async def test_answers_outlive_a_runner_that_dies(self) -> None:
        if not self.has_processes:
            return
        async with self.killed() as (store, _):
            await store.commit(begin(3, state=RunState.WAITING, commands=("c-3",), due_at=at(9999)))
            await store.answer(answer(3))
            await self.notice_death()
            taken = {run.started.run_id: run for run in await store.take(START, 10)}
            assert taken[run_id(3)].answers == (answer(3),)

    async def test_who_sent_a_command_is_known_with_its_run(self) -> None:
        sender = caller(1, correlation_id=UNICODE, expires_at=at(30))
        async with self.store() as store:
            change = begin(1)
            assert change.started is not None
            begun = msgspec.structs.replace(change.started, caller=sender)
            await store.commit(msgspec.structs.replace(change, started=begun))
            assert (await the_run(store, 1)).started == begun

    async def test_a_caller_is_served_once_the_run_is_final_until_it_is_dropped(self) -> None:
        async with self.store() as store, self.store() as other:
            await store.commit(begin(1))
            await other.add_caller(run_id(1), caller(1, expires_at=at(30)))
            assert await store.served_callers(10) == []
            await store.commit(go_on(1, RunState.COMPLETED, finished_at=at(3)))
            for each in (store, other):
                assert list(await each.served_callers(10)) == [(run_id(1), caller(1, expires_at=at(30)))]
            await store.drop_caller(run_id(1), caller(1))
            assert await other.served_callers(10) == []

    async def test_a_caller_of_a_final_run_is_served_at_once(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.FAILED, finished_at=at(3)))
            await store.add_caller(run_id(1), caller(1))
            assert list(await store.served_callers(10)) == [(run_id(1), caller(1))]

    async def test_each_caller_is_served_and_the_same_one_once(self) -> None:
        """Two may ask under the same id, each with a queue of its own."""
        callers = [caller(1), caller(2), caller(1, reply_to="elsewhere"), caller(1), caller(1, correlation_id="c \x00")]
        async with self.store() as store:
            await store.commit(begin(1, state=RunState.COMPLETED, finished_at=at(3)))
            for each in callers:
                await store.add_caller(run_id(1), each)
            served = await store.served_callers(10)
            assert len(served) == 4
            assert len(await store.served_callers(3)) == 3, "no more than asked for"
            await store.drop_caller(run_id(1), caller(1))
            left = sorted(one.reply_to or "" for _, one in await store.served_callers(10))
            assert left == ["answers", "answers", "elsewhere"]

    # --- the outbox

    async def test_outgoing_messages_come_oldest_first_and_as_they_were(self) -> None:
        sent = [outgoing(number, body) for number, body in enumerate((b"", b"\xff\x00", b"x" * 100_000, b"{}"))]
        async with self.store() as store:
            await store.commit(begin(1, outgoing=tuple(sent[:3])))
            await store.commit(begin(2, outgoing=tuple(sent[3:])))
            rows = list(await store.outbox(3))
            assert await store.outbox(3) == rows, "they come again until they are noted as sent"
            await store.sent({row.position: None for row in rows})
            rows += await store.outbox(3)
        assert [row.outgoing for row in rows] == sent
        assert [row.reason for row in rows] == [None] * 4
        assert [row.position for row in rows] == sorted({row.position for row in rows})

    async def test_a_message_is_over_with_and_its_command_answered_in_one_commit(self) -> None:
        async with self.store() as store:
            await store.commit(
                begin(1, state=RunState.WAITING, outgoing=(outgoing(1),), commands=("c-1",), due_at=at(9999))
            )
            [row] = await store.outbox(10)
            await store.sent({row.position: None}, [answer(1, "nobody"), answer(2, "no such command")])
            assert (await store.backlog()).outbox == 0
            [woken] = await store.take(START, 10)
            assert woken.answers == (answer(1, "nobody"),)

    async def test_a_message_is_given_to_one_sender(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, outgoing=tuple(outgoing(number) for number in range(100))))
            keys: list[str] = []
            for _ in range(10):
                given = await asyncio.gather(one.outbox(7), two.outbox(7))
                keys += [row.outgoing.routing_key for rows in given for row in rows]
                for store, rows in zip((one, two), given, strict=True):
                    await store.sent({row.position: None for row in rows})
            assert sorted(keys) == sorted(f"key-{number}" for number in range(100))
            assert await one.outbox(10, refused=True) == await two.outbox(10, refused=True) == []

    async def test_a_confirmed_message_is_gone(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, outgoing=(outgoing(1), outgoing(2))))
            one, two = await store.outbox(10)
            await store.sent({one.position: None})
            assert (await store.backlog()).outbox == 1
            await store.sent({one.position: None, two.position: None})
            await store.sent({})
            assert (await store.backlog()).outbox == 0
        async with self.store() as store:
            assert await store.outbox(10, refused=True) == []

    async def test_a_refused_message_stays_with_its_reason_and_comes_when_asked_for(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1, outgoing=(outgoing(1), outgoing(2), outgoing(3))))
            one, two, three = await store.outbox(10)
            await store.sent({one.position: "unroutable", two.position: None, three.position: self.text})
            assert await store.outbox(10) == []
            await store.commit(begin(2, outgoing=(outgoing(4),)))
            assert (await store.backlog()).refused == 2
            refused = await store.outbox(10, refused=True)
            assert [(row.outgoing, row.reason) for row in refused] == [
                (outgoing(1), "unroutable"),
                (outgoing(3), self.text),
                (outgoing(4), None),
            ]
            await store.sent({row.position: None for row in refused})
            assert await store.backlog() == Backlog(runs=2, suspects=0, outbox=0, refused=0, dead_letters=0)

    async def test_refused_messages_are_looked_at_without_being_taken(self) -> None:
        async with self.store() as one, self.store() as two:
            await one.commit(begin(1, outgoing=(outgoing(1), outgoing(2), outgoing(3))))
            first, second, third = await one.outbox(10)
            await one.sent({first.position: "unroutable", second.position: self.text, third.position: None})
            for _ in range(2):
                assert [(row.outgoing, row.reason) for row in await two.refused(10)] == [
                    (outgoing(1), "unroutable"),
                    (outgoing(2), self.text),
                ]
            assert [row.outgoing for row in await two.refused(1)] == [outgoing(1)]
            assert [row.outgoing for row in await one.outbox(10, refused=True)] == [outgoing(1), outgoing(2)]

    async def test_what_a_runner_was_sending_when_it_left_comes_again(self) -> None:
        async with self.store() as other:
            async with self.store() as store:
                await store.commit(begin(1, outgoing=(outgoing(1), outgoing(2))))
                await store.sent({(await store.outbox(1))[0].position: None})
                await store.outbox(1)
            assert [row.outgoing for row in await other.outbox(10)] == [outgoing(2)]

    async def test_what_a_runner_was_sending_when_it_died_comes_again(self) -> None:
        if not self.has_processes:
            return
        async with self.died() as store, self.store() as other:
            rows = [*await store.outbox(10), *await other.outbox(10)]
            assert [row.outgoing for row in rows] == [outgoing(1), outgoing(2)]

    async def test_what_commits_send_is_handed_over_in_their_order_and_is_nobody_elses(self) -> None:
        async with self.store() as store, self.store() as other:
            rows: list[OutboxRow] = []
            store.on_outgoing(rows.extend)
            work = [store.commit(begin(n, outgoing=(outgoing(n), outgoing(n + 100)))) for n in range(50)]
            assert await asyncio.gather(*work) == [True] * 50
            assert not await store.commit(begin(1, outgoing=(outgoing(999),)))
            assert [row.outgoing for row in rows] == [outgoing(n + more) for n in range(50) for more in (0, 100)]
            assert [row.position for row in rows] == sorted({row.position for row in rows})
            assert await other.outbox(10) == []
            assert await store.outbox(200) == rows, "who lost sight of them finds them here"
            await store.sent({row.position: None for row in rows})
            assert await store.outbox(10) == []

    async def test_what_was_handed_over_to_a_runner_that_left_comes_to_others(self) -> None:
        async with self.store() as other:
            async with self.store() as store:
                store.on_outgoing(lambda rows: None)
                await store.commit(begin(1, outgoing=(outgoing(1),)))
            assert [row.outgoing for row in await other.outbox(10)] == [outgoing(1)]

    # --- dead letters

    async def test_dead_letters_come_back_byte_for_byte_and_newest_first(self) -> None:
        buried = [
            letter(1, body=bytes(range(256)), headers={UNICODE: UNICODE, "n": None, "list": [1, {"x": True}]}),
            letter(2, body=b"", type="order.placed", source="/amqp", message_id=None),
            letter(3, body=b"x" * 2_000_000),
        ]
        async with self.store() as store:
            for one in buried:
                await store.bury(one)
        async with self.store() as store:
            assert await store.dead_letters(limit=10) == buried[::-1]
            assert await store.dead_letters(limit=2) == buried[:0:-1]

    async def test_of_a_dead_letter_that_comes_again_there_is_one_as_it_came_last(self) -> None:
        async with self.store() as store:
            await store.bury(letter(1))
            again = letter(1, body=b"other", received_at=at(5))
            await asyncio.gather(*(store.bury(again) for _ in range(5)))
            assert await store.dead_letters(limit=10) == [again]
            assert (await store.backlog()).dead_letters == 1

    async def test_dead_letters_are_found_by_reason_by_handler_and_by_the_beginning_of_an_id(self) -> None:
        one, two = letter(1, reason="invalid_json"), letter(2, reason="too_large", handler="mail.send")
        async with self.store() as store:
            await store.bury(one)
            await store.bury(two)
            assert await store.dead_letters(limit=10, reason="too_large") == [two]
            assert await store.dead_letters(limit=10, handler=one.handler) == [one]
            assert await store.dead_letters(limit=10, handler=one.handler, reason="too_large") == []
            assert await store.dead_letter(one.id) == one
            assert await store.dead_letter(two.id[:-1] + "2") == two
            assert await store.dead_letter("nothing") is None
            await _error_of(NotFoundError, store.dead_letter(""))

    async def test_a_dropped_dead_letter_is_gone_unless_it_has_come_again_since(self) -> None:
        again = letter(1, received_at=at(5))
        async with self.store() as store:
            await store.bury(letter(1))
            await store.bury(letter(2))
            await store.bury(again)
            await store.drop([letter(1), letter(2)])
            assert await store.dead_letters(limit=10) == [again]

    # --- reading

    async def test_runs_are_listed_newest_first_and_by_state_and_handler(self) -> None:
        async with self.store() as store:
            await store.commit(begin(2, begun={"handler": "mail.send"}))
            await store.commit(begin(1))
            await store.commit(begin(3))
            await store.commit(go_on(1, RunState.FAILED, finished_at=at(9), error=_ERROR))
            assert await _listed(store) == [run_id(3), run_id(2), run_id(1)]
            assert await _listed(store, limit=2) == [run_id(3), run_id(2)]
            assert await _listed(store, handler="orders.place") == [run_id(3), run_id(1)]
            assert await _listed(store, state="running") == [run_id(3), run_id(2)]
            assert await _listed(store, state="running", handler="orders.place") == [run_id(3)]
            assert await _listed(store, state="waiting") == []
            (failed,) = await store.runs(limit=10, state="failed")
        assert (failed.id, failed.flow, failed.handler, failed.state) == (
            run_id(1),
            "orders",
            "orders.place",
            RunState.FAILED,
        )
        assert (failed.started_at, failed.finished_at, failed.error) == (at(1), at(9), _ERROR)
        assert failed.trigger == {
            "id": "m-1",
            "type": "order.placed",
            "source": "/flowrun/shop/orders",
            "subject": "order-1",
        }

    async def test_runs_are_listed_by_the_type_of_their_error(self) -> None:
        other = Error(type="http", message="http.503", retryable=False, details={"type": "http.503"})
        async with self.store() as store:
            for number, error in enumerate((_ERROR, other, None, _ERROR)):
                end = {"state": RunState.FAILED if error else RunState.COMPLETED, "finished_at": at(9)}
                await store.commit(begin(number, error=error, **end))
            await store.commit(begin(9, error=_ERROR, state=RunState.COMPENSATING, due_at=at()))
            assert await _listed(store, error="http.503") == [run_id(9), run_id(3), run_id(0)]
            assert await _listed(store, error="http.503", state="failed") == [run_id(3), run_id(0)]
            assert await _listed(store, error="http", handler="orders.place") == [run_id(1)]
            assert await _listed(store, error="http.*") == [run_id(9), run_id(3), run_id(0)]
            assert await _listed(store, error="ht.*") == []
            assert await _listed(store, error="none") == []

    async def test_a_run_is_found_by_an_unambiguous_beginning_of_its_id(self) -> None:
        async with self.store() as store:
            await store.commit(begin(0xABCD0000))
            await store.commit(begin(0xABCE0000))
            for beginning in (run_id(0xABCD0000), "abcd", "abcd0000-0000-5"):
                run = await store.run(beginning)
                assert run is not None
                assert run.started.run_id == run_id(0xABCD0000)
            for beginning in ("abcf", "b", run_id(0xABCD0000) + "0", "%", "_bcd", self.text):
                assert await store.run(beginning) is None
            for beginning in ("abc", "a", ""):
                await _error_of(NotFoundError, store.run(beginning))

    async def test_an_id_that_is_also_the_beginning_of_another_is_found(self) -> None:
        async with self.store() as store:
            for ident in ("run", "run-2"):
                change = begin(1)
                assert change.started is not None
                await store.commit(
                    msgspec.structs.replace(
                        change, run_id=ident, started=msgspec.structs.replace(change.started, run_id=ident)
                    )
                )
            run = await store.run("run")
            assert run is not None
            assert run.started.run_id == "run"
            await _error_of(NotFoundError, store.run("r"))

    async def test_a_run_is_known_by_its_whole_id(self) -> None:
        async with self.store() as store:
            await store.commit(begin(1))
            assert await store.known(run_id(1))
            assert not await store.known(run_id(1)[:8])
            assert not await store.known(run_id(2))

    async def test_the_figures_are_of_runs_that_are_not_over_and_of_those_that_began_since(self) -> None:
        async with self.store() as store:
            assert await store.figures(START) == {}
            for number, state in enumerate(
                (RunState.COMPLETED, RunState.FAILED, RunState.COMPENSATED, RunState.CANCELLED), 1
            ):
                await store.commit(begin(number))
                await store.commit(go_on(number, state, finished_at=at(50)))
            await store.commit(begin(5))
            await store.commit(begin(6, state=RunState.WAITING, due_at=at(99)))
            await store.commit(begin(7, begun={"handler": "orders.pay"}))
            assert await store.figures(START + timedelta(seconds=3)) == {
                "orders.place": Figures(running=1, waiting=1, begun=4, failed=1),
                "orders.pay": Figures(running=1, begun=1),
            }
            assert (await store.figures(START + timedelta(hours=1)))["orders.place"] == Figures(running=1, waiting=1)

    async def test_the_backlog_is_what_is_left_to_do(self) -> None:
        async with self.store() as store:
            assert await store.backlog() == Backlog(runs=0, suspects=0, outbox=0, refused=0, dead_letters=0)
            await store.commit(begin(1, outgoing=(outgoing(1), outgoing(2), outgoing(3))))
            await store.commit(begin(2, state=RunState.WAITING, due_at=at(60)))
            await store.commit(begin(3, state=RunState.COMPLETED, finished_at=at(4)))
            await store.bury(letter(1))
            one, two, _ = await store.outbox(10)
            await store.sent({one.position: None, two.position: "unroutable"})
            assert await store.backlog() == Backlog(runs=2, suspects=0, outbox=1, refused=1, dead_letters=1)

    # --- plans

    async def test_the_plans_of_unfinished_runs_are_kept(self) -> None:
        plans = {f"plan-{n}": {"flows/a.yaml": f"flow: {n} {UNICODE}", "schemas/b.json": "{}"} for n in (1, 2, 3)}
        async with self.store() as store:
            for plan_hash, sources in plans.items():
                await store.keep_plan(plan_hash, sources)
            await store.keep_plan("plan-1", {"flows/a.yaml": "another text"})
            await store.commit(begin(1, begun={"plan": "plan-1"}))
            await store.commit(begin(2, begun={"plan": "plan-1"}))
            await store.commit(begin(3, begun={"plan": "plan-2"}, state=RunState.WAITING, due_at=at(60)))
            await store.commit(begin(4, begun={"plan": "plan-3"}, state=RunState.COMPLETED, finished_at=at(5)))
            assert await store.unfinished_plans() == {name: plans[name] for name in ("plan-1", "plan-2")}
            await store.take(START + timedelta(seconds=60), 10)
            await store.commit(go_on(3, RunState.COMPLETED, finished_at=at(61)))
            assert set(await store.unfinished_plans()) == {"plan-1"}

    # --- opening again

    async def test_opening_again_keeps_everything(self) -> None:
        async with self.store() as store:
            await store.keep_plan("plan-1", {"flows/a.yaml": "text"})
            await store.commit(begin(1, records=_ALL_RECORDS, events=(event(1, "s"),), outgoing=(outgoing(1),)))
            await store.bury(letter(1))
            before = await _everything(store), await self.events()
        async with self.store() as store:
            assert (await _everything(store), await self.events()) == before
            (run,) = await store.take(START + timedelta(days=1), 10)
            assert run.records == _ALL_RECORDS
            assert [row.outgoing for row in await store.outbox(10)] == [outgoing(1)]
            await store.commit(begin(2, events=(event(2, "s"),)))
            assert [version for _, _, version in await self.events()] == [1, 2]


def _keyed(number: int, *, key: str = "k", handler: str = "orders.place", **fields: Any) -> Change:
    """A change that begins a run which has a key."""
    change = begin(number, begun={"handler": handler}, **fields)
    assert change.started is not None
    return msgspec.structs.replace(change, started=msgspec.structs.replace(change.started, key=key))


async def _crashes(store: StoreReader) -> int:
    """Those of run 1."""
    run = await store.run(run_id(1))
    assert run is not None
    return run.crashes


async def _listed(store: StoreReader, limit: int = 10, **filters: str) -> list[str]:
    return [summary.id for summary in await store.runs(limit=limit, **filters)]


async def _everything(store: AnyStore) -> Iterable[object]:
    run = await store.run(run_id(1))
    assert run is not None
    return (
        msgspec.structs.replace(run, due_at=None),  # who left has put it down
        await store.runs(limit=10),
        await store.dead_letters(limit=10),
        await store.backlog(),
        await store.unfinished_plans(),
    )


async def _error_of(kind: type[FlowrunError], work: Awaitable[object]) -> FlowrunError:
    try:
        await work
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")
