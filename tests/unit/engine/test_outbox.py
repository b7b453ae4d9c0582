"""The outbox: what is committed reaches the broker, whatever fails on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from runner.engine import outbox as outbox_module
from runner.engine.outbox import Outbox
from runner.errors import StoreError, TransportError
from runner.message import Delivery, Outgoing
from runner.plan import Binding, Exchange, Queue, Topology
from runner.records import OutboxRow, RunState
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.testing.store_contract import at, begin, outgoing, the_run
from runner.transports.embedded import EmbeddedTransport

TOPOLOGY = Topology(
    exchanges=(Exchange(name="shop.events", type="topic"),),
    queues=(Queue(name="q"),),
    bindings=(Binding(exchange="shop.events", queue="q", pattern="#"),),
)


class Faulty:
    """Fails the first call of a method, then goes on as what it wraps."""

    def __init__(self, inner: Any, method: str, error: Exception) -> None:
        self._inner, self._method, self._error = inner, method, error
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self.failed == 0:
            return self._fail
        return getattr(self._inner, name)

    async def _fail(self, *_: Any, **__: Any) -> None:
        self.failed += 1
        raise self._error


class Counting:
    """Counts the calls of a method of what it wraps."""

    def __init__(self, inner: Any, method: str) -> None:
        self._inner, self._method = inner, method
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += name == self._method
        return getattr(self._inner, name)


@pytest.fixture
async def parts(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SqliteStore, EmbeddedTransport]]:
    monkeypatch.setattr(outbox_module, "PAUSE_S", 0)
    file = SqliteFile(":memory:")
    async with SqliteStore(file) as store, EmbeddedTransport(file) as transport:
        await transport.declare(TOPOLOGY)
        yield store, transport


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[None]:
    task = asyncio.create_task(outbox.run())
    try:
        async with asyncio.timeout(10):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def run_until_flushed(outbox: Outbox) -> None:
    async with running(outbox):
        await outbox.flush()


async def received(transport: EmbeddedTransport, count: int) -> Sequence[str | None]:
    inbox: asyncio.Queue[Delivery] = asyncio.Queue()
    await transport.consume("q", 100, inbox.put_nowait)
    async with asyncio.timeout(10):
        return [(await inbox.get()).properties.message_id for _ in range(count)]


async def test_messages_of_a_commit_are_published_in_order_and_gone(parts: Any) -> None:
    store, transport = parts
    await store.commit(begin(1, outgoing=tuple(outgoing(n) for n in range(3))))
    await run_until_flushed(Outbox(store, transport))
    assert await received(transport, 3) == ["m-0", "m-1", "m-2"]
    assert (await store.backlog()).outbox == 0


async def test_what_the_broker_did_not_confirm_is_sent_again_under_the_same_id(parts: Any) -> None:
    store, transport = parts
    await store.commit(begin(1, outgoing=(outgoing(1),)))
    away = Faulty(transport, "publish", TransportError("away"))
    await run_until_flushed(Outbox(store, away))
    assert away.failed == 1
    assert await received(transport, 1) == ["m-1"]


async def test_a_store_that_could_not_note_it_is_asked_again_and_nothing_is_sent_twice(parts: Any) -> None:
    store, transport = parts
    await store.commit(begin(1, outgoing=(outgoing(1),)))
    away = Faulty(store, "sent", StoreError("away"))
    await run_until_flushed(Outbox(away, transport))
    assert away.failed == 1
    assert (await store.backlog()).outbox == 0
    assert await transport.depth(["q"]) == 1


async def test_what_a_commit_hands_over_is_published_without_asking_the_store(parts: Any) -> None:
    store, transport = parts
    asked = Counting(store, "outbox")
    outbox = Outbox(asked, transport)
    store.on_outgoing(outbox.add)
    async with running(outbox):
        await outbox.flush()
        before = asked.calls
        for number in range(20):
            await store.commit(begin(number, outgoing=(outgoing(number),)))
        assert await received(transport, 20) == [f"m-{number}" for number in range(20)]
        assert asked.calls == before
        await outbox.flush()
    assert (await store.backlog()).outbox == 0


async def test_what_is_in_hand_and_in_the_store_is_published_once(parts: Any) -> None:
    store, transport = parts
    outbox = Outbox(store, transport)
    store.on_outgoing(outbox.add)
    async with running(outbox):
        for number in range(0, 60, 3):
            await asyncio.gather(*(store.commit(begin(n, outgoing=(outgoing(n),))) for n in range(number, number + 3)))
            outbox.poke()
        await outbox.flush()
    assert await received(transport, 60) == [f"m-{number}" for number in range(60)]
    assert await transport.depth(["q"]) == 0


async def test_what_was_in_hand_when_publishing_broke_is_found_in_the_store(parts: Any) -> None:
    store, transport = parts
    broken = Faulty(transport, "publish", ZeroDivisionError())
    outbox = Outbox(store, broken)
    store.on_outgoing(outbox.add)
    async with running(outbox):
        await outbox.flush()
        await store.commit(begin(1, outgoing=(outgoing(1),)))
        assert await received(transport, 1) == ["m-1"]
        await outbox.flush()
    assert broken.failed == 1
    assert (await store.backlog()).outbox == 0


async def test_a_commit_that_hands_over_later_than_the_store_was_asked_is_published_once(parts: Any) -> None:
    store, transport = parts
    outbox = Outbox(store, transport)
    late: list[OutboxRow] = []
    store.on_outgoing(late.extend)
    await store.commit(begin(1, outgoing=(outgoing(1),)))
    async with running(outbox):
        await outbox.flush()
        outbox.add(late)
        await outbox.flush()
    assert await transport.depth(["q"]) == 1


async def test_more_than_the_hand_holds_is_left_in_the_store_and_published_in_order(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MOST_IN_HAND", 3)
    monkeypatch.setattr(outbox_module, "BATCH", 4)
    store, transport = parts
    away = Faulty(transport, "publish", TransportError("away"))
    outbox = Outbox(store, away)
    store.on_outgoing(outbox.add)
    for number in range(30):
        await store.commit(begin(number, outgoing=(outgoing(number),)))
    await run_until_flushed(outbox)
    assert await received(transport, 30) == [f"m-{number}" for number in range(30)]
    assert (await store.backlog()).outbox == 0


async def test_what_no_queue_takes_stays_with_its_reason_and_goes_out_once_one_does(parts: Any) -> None:
    store, transport = parts
    lost = Outgoing(exchange="", routing_key="later", body=b"{}", properties=outgoing(1).properties, mandatory=True)
    await store.commit(begin(1, outgoing=(lost,)))
    outbox = Outbox(store, transport)
    await run_until_flushed(outbox)
    [row] = await store.outbox(10, refused=True)
    assert row.reason == 'unroutable: no queue takes "later"'

    marks: Mapping[int, str | None] = {row.position: row.reason}
    await store.sent(marks)
    await transport.declare(Topology(exchanges=(), queues=(Queue(name="later"),), bindings=()))
    await outbox.retry_refused()

    assert await transport.depth(["later"]) == 1
    assert (await store.backlog()).refused == 0


async def test_large_messages_go_out_in_batches_that_a_slow_line_can_confirm(parts: Any) -> None:
    store, transport = parts
    large = tuple(outgoing(n, body=b"x" * 1_500_000) for n in range(5))
    await store.commit(begin(1, outgoing=large))
    sizes: list[int] = []

    class Watched:
        async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
            sizes.append(sum(len(message.body) for message in messages))
            return await transport.publish(messages)

    await run_until_flushed(Outbox(store, Watched()))  # type: ignore[arg-type]
    assert sizes == [3_000_000, 3_000_000, 1_500_000]
    assert await transport.depth(["q"]) == 5


@pytest.mark.parametrize(
    ("reason", "told"), [('unroutable: no queue takes "pay"', True), ("nacked: the queue is full", False)]
)
async def test_who_sent_a_command_is_told_that_nobody_takes_it_and_of_no_other_refusal(
    parts: Any, reason: str, told: bool
) -> None:
    store, _ = parts
    command = outgoing(1)
    asks = replace(command.properties, reply_to="answers")
    waiting = begin(1, state=RunState.WAITING, due_at=at(9999), commands=("m-1",))
    sent = replace(command, properties=asks)
    await store.commit(msgspec.structs.replace(waiting, outgoing=(sent,)))

    class Refusing:
        async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
            return [reason for _ in messages]

    await run_until_flushed(Outbox(store, Refusing()))  # type: ignore[arg-type]

    answers = (await the_run(store, 1)).answers
    assert [answer.error.type for answer in answers if answer.error is not None] == (["no_handler"] if told else [])
    kept = [row.reason for row in await store.outbox(10, refused=True)]
    assert kept == ([] if told else [reason])
