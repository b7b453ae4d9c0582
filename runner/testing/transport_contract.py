# ruff: noqa: D102  a test's name says what holds
"""What every transport must do: inherit `TransportContract` in a pytest class, say how to connect, run it.

    class TestMyTransport(TransportContract):
        def transport(self) -> AbstractAsyncContextManager[AnyTransport]:
            return MyTransport("my://broker")

Needs pytest-asyncio in its `auto` mode. No test sleeps: that nothing more comes is seen by a message sent
after it, or by what still waits in the queue.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import ClassVar, Literal

from runner.errors import TopologyError, TransportError
from runner.message import Delivery, Outgoing, Properties, new_id
from runner.plan import SINGLE_ACTIVE_CONSUMER, Binding, Exchange, Queue, Topology
from runner.ports import AnyTransport, Transport

TIMEOUT_S = 30.0
MANY = 10_000
"""A prefetch that nobody reaches."""
_WHOLE = Properties(
    message_id="0192-ä",
    type="order.placed",
    app_id="flowrun/shop",
    content_type="application/json",
    correlation_id="c-1",
    reply_to="answers",
    timestamp=datetime(2026, 11, 23, 5, 33, tzinfo=UTC),
    headers={
        "ce-id": "0192",
        "grüße": "ß → 漢字 🎉",
        "empty": "",
        "count": 7,
        "below": -(2**40),
        "flag": True,
        "share": 0.5,
        "nothing": None,
        "list": ["a", 1, ["b"]],
        "table": {"inner": {"deep": "x"}},
    },
)


class Inbox:
    """A `deliver` that keeps what it gets, and lets one wait for it."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._came = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._came.set()

    @property
    def bodies(self) -> list[bytes]:
        """The bodies, in the order in which they came."""
        return [delivery.body for delivery in self.deliveries]

    async def wait(self, count: int) -> list[Delivery]:
        """The first `count` deliveries, once they are there. Raises TimeoutError."""
        return await self.until(lambda: len(self.deliveries) >= count)

    async def until(self, there: Callable[[], bool]) -> list[Delivery]:
        """What has come once `there()` holds; it is asked again after each delivery. Raises TimeoutError."""
        async with asyncio.timeout(TIMEOUT_S):
            while not there():
                self._came.clear()
                await self._came.wait()
        return self.deliveries


class TransportContract:
    """The tests. A new instance is made for each, with broker objects named after `project`."""

    has_connections: ClassVar[bool] = True
    """It has connections that break; if not, `break_connections` is never called."""
    arguments: ClassVar[Mapping[str, str | int | bool]] = {}
    """Of the queues that the tests declare."""
    drifted: ClassVar[tuple[str, str | int]] = ("x-max-length", 10)
    """An argument that differs from them, and its value."""

    @cached_property
    def project(self) -> str:
        """A name that no other test has."""
        return f"contract-{new_id()}"

    def transport(self) -> AbstractAsyncContextManager[AnyTransport]:
        """A new transport onto the same broker at each call."""
        raise NotImplementedError

    async def break_connections(self) -> None:
        """Cut all connections to the broker, which itself goes on."""
        raise NotImplementedError

    # --- what the tests are written with

    def name(self, word: str) -> str:
        """The full name of a queue or an exchange."""
        return f"{self.project}.{word}"

    def topology(
        self,
        *queues: str,
        bindings: Sequence[tuple[str, str]] = (),
        kind: Literal["topic", "direct", "fanout"] = "topic",
        arguments: Mapping[str, str | int | bool] | None = None,
    ) -> Topology:
        """These queues, and the exchange `events` with the bindings (pattern, queue)."""
        given = self.arguments if arguments is None else arguments
        return Topology(
            exchanges=(Exchange(name=self.name("events"), type=kind),),
            queues=tuple(Queue(name=self.name(queue), arguments=given) for queue in queues),
            bindings=tuple(
                Binding(exchange=self.name("events"), queue=self.name(queue), pattern=pattern)
                for pattern, queue in bindings
            ),
        )

    def event(self, key: str, body: bytes = b"", *, mandatory: bool = False, ident: str | None = None) -> Outgoing:
        """A message to the exchange `events`."""
        return Outgoing(
            exchange=self.name("events"),
            routing_key=key,
            body=body,
            properties=Properties(message_id=ident or new_id()),
            mandatory=mandatory,
        )

    def to_queue(self, queue: str, body: bytes = b"", properties: Properties | None = None) -> Outgoing:
        """A message to a queue by its name, over the default exchange."""
        return Outgoing(
            exchange="",
            routing_key=self.name(queue),
            body=body,
            properties=properties or Properties(message_id=new_id()),
            mandatory=True,
        )

    async def put(self, transport: Transport, queue: str, *bodies: bytes) -> None:
        """Publish these bodies to a queue."""
        results = await transport.publish([self.to_queue(queue, body) for body in bodies])
        assert list(results) == [None] * len(bodies)

    async def waiting(self, transport: Transport, queue: str, count: int) -> None:
        """Return once exactly `count` messages wait in the queue. Raises TimeoutError."""
        seen = -1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while seen != count:
                    seen = await transport.depth([self.name(queue)])
        except TimeoutError:
            raise AssertionError(f"{seen} messages wait in {queue}, not {count}") from None

    async def drained(self, transport: Transport, queue: str) -> list[bytes]:
        """The bodies of all that waits in a queue, settled."""
        inbox = Inbox()
        end = new_id().encode()
        await self.put(transport, queue, end)
        cancel = await transport.consume(self.name(queue), MANY, inbox)
        await inbox.until(lambda: end in inbox.bodies)
        await cancel()
        await transport.settle(inbox.deliveries)
        return [body for body in inbox.bodies if body != end]

    # --- routing

    async def test_a_topic_pattern_takes_the_keys_that_amqp_says(self) -> None:
        patterns = [".".join(words) for words in _words("ab*#")]
        keys = [".".join(words) for words in _words("ab")] + ["", "a.", ".a", "a..b"]
        queues = {f"q{number}": pattern for number, pattern in enumerate(patterns)}
        inbox = Inbox()
        ends = 0

        def deliver(delivery: Delivery) -> None:
            nonlocal ends
            ends += delivery.exchange == ""
            inbox(delivery)

        async with self.transport() as transport:
            bindings = [(pattern, queue) for queue, pattern in queues.items()]
            await transport.declare(self.topology(*queues, bindings=bindings, arguments={}))
            await transport.publish([self.event(key) for key in keys])
            await transport.publish([self.to_queue(queue) for queue in queues])
            for queue in queues:
                await transport.consume(self.name(queue), MANY, deliver)
            await inbox.until(lambda: ends == len(queues))

        taken = [
            (queues[delivery.queue.removeprefix(f"{self.project}.")], delivery.routing_key)
            for delivery in inbox.deliveries
            if delivery.exchange
        ]
        expected = [
            (pattern, key) for pattern in patterns for key in keys if _takes(pattern.split("."), _words_of(key))
        ]
        wrong = {pair: taken.count(pair) for pair in set(taken) ^ set(expected)}
        assert not wrong, f"(pattern, key) → how often it was taken: {wrong}"
        assert len(taken) == len(expected)

    async def test_a_direct_exchange_takes_the_very_key(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("a.b", "q"), ("a.*", "q")], kind="direct"))
            await transport.publish([self.event(key, key.encode()) for key in ("a", "a.b", "a.b.c", "a.*", "b")])
            assert await self.drained(transport, "q") == [b"a.b", b"a.*"]

    async def test_a_fanout_exchange_takes_every_key(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("ignored", "q")], kind="fanout"))
            await transport.publish([self.event(key, key.encode()) for key in ("ignored", "x.y", "")])
            assert await self.drained(transport, "q") == [b"ignored", b"x.y", b""]

    async def test_the_default_exchange_reaches_a_queue_by_its_name(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("one", "two"))
            await self.put(transport, "two", b"x")
            assert await self.drained(transport, "one") == []
            assert await self.drained(transport, "two") == [b"x"]

    async def test_a_queue_gets_one_copy_however_many_bindings_match(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("#", "q"), ("a.*", "q"), ("a.b", "q")]))
            await transport.publish([self.event("a.b", b"x")])
            assert await self.drained(transport, "q") == [b"x"]

    async def test_every_queue_that_is_bound_gets_a_copy(self) -> None:
        queues = ("one", "two", "three")
        async with self.transport() as transport:
            await transport.declare(self.topology(*queues, bindings=[("a.*", queue) for queue in queues]))
            await transport.publish([self.event("a.b", b"x"), self.event("a.c", b"y")])
            for queue in queues:
                assert await self.drained(transport, queue) == [b"x", b"y"]

    async def test_a_delivery_says_where_it_came_from(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("a.*", "q")]))
            await transport.publish([self.event("a.b")])
            await transport.consume(self.name("q"), 1, inbox)
            (delivery,) = await inbox.wait(1)
        assert (delivery.queue, delivery.exchange, delivery.routing_key, delivery.redelivered) == (
            self.name("q"),
            self.name("events"),
            "a.b",
            False,
        )

    # --- what travels

    async def test_a_body_comes_as_the_bytes_that_it_was(self) -> None:
        bodies = [
            b"",
            b'{"a": 1.10}',
            bytes(range(256)),
            b"\xff\xfe not text",
            b"\0",
            bytes(1024 * 1024),
            b"x" * 131_072,
        ]
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", *bodies)
            assert await self.drained(transport, "q") == bodies

    async def test_properties_and_headers_come_as_they_were(self) -> None:
        sent = [_WHOLE, Properties(message_id="only-an-id")]
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await transport.publish([self.to_queue("q", b"", properties) for properties in sent])
            await transport.consume(self.name("q"), MANY, inbox)
            received = await inbox.wait(len(sent))
        assert [delivery.properties for delivery in received] == sent

    async def test_a_message_needs_no_properties(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            results = await transport.publish([self.to_queue("q", body, Properties()) for body in (b"x", b"y")])
            assert list(results) == [None, None]
            assert await self.drained(transport, "q") == [b"x", b"y"]

    # --- publishing

    async def test_published_messages_are_safe_and_in_the_order_given(self) -> None:
        bodies = [str(number).encode() for number in range(1000)]
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", *bodies[:10])
            await self.put(transport, "q", *bodies[10:11])
            await self.put(transport, "q", *bodies[11:])
        async with self.transport() as transport:
            assert await self.drained(transport, "q") == bodies

    async def test_nothing_published_is_nothing_done(self) -> None:
        async with self.transport() as transport:
            assert list(await transport.publish([])) == []

    async def test_many_tasks_may_publish_at_once(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            tasks = [self.put(transport, "q", *(f"{t}-{n}".encode() for n in range(10))) for t in range(20)]
            await asyncio.gather(*tasks)
            received = await self.drained(transport, "q")
        assert sorted(received) == sorted(f"{t}-{n}".encode() for t in range(20) for n in range(10))
        for task in range(20):
            assert [b for b in received if b.startswith(b"%d-" % task)] == [b"%d-%d" % (task, n) for n in range(10)]

    async def test_an_id_twice_in_a_batch_gives_two_results(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("taken", "q")]))
            keys = ("taken", "lost", "lost", "taken", "lost")
            messages = [
                self.event(key, str(number).encode(), mandatory=True, ident="same") for number, key in enumerate(keys)
            ]
            results = await transport.publish(messages)
            assert [reason is None for reason in results] == [True, False, False, True, False]
            assert await self.drained(transport, "q") == [b"0", b"3"]

    async def test_a_mandatory_message_that_no_queue_takes_gives_a_reason(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("taken", "q")]))
            (reason,) = await transport.publish([self.event("lost", mandatory=True)])
        assert reason is not None
        assert "unroutable" in reason
        assert "lost" in reason

    async def test_a_message_that_no_queue_need_take_is_safe(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("taken", "q")]))
            assert list(await transport.publish([self.event("lost")])) == [None]

    async def test_each_message_of_a_batch_has_its_own_result(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("taken", "q")]))
            mix = [("taken", True), ("lost", True), ("lost", False), ("taken", False)] * 25
            results = await transport.publish(
                [self.event(key, str(n).encode(), mandatory=mandatory) for n, (key, mandatory) in enumerate(mix)]
            )
            assert [reason is None for reason in results] == [(key, must) != ("lost", True) for key, must in mix]
            assert await self.drained(transport, "q") == [
                str(n).encode() for n, (key, _) in enumerate(mix) if key == "taken"
            ]

    async def test_only_the_message_to_an_unknown_exchange_is_refused(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            stray = Outgoing(exchange=self.name("nowhere"), routing_key="a", body=b"", properties=Properties())
            batch = [self.to_queue("q", b"1"), stray, self.to_queue("q", b"2"), stray, self.to_queue("q", b"3")]
            results = await transport.publish(batch)
            assert [reason is None for reason in results] == [True, False, True, False, True]
            assert self.name("nowhere") in str(results[1])
            received = await self.drained(transport, "q")
            assert sorted(set(received)) == [b"1", b"2", b"3"]  # at least once
            await self.put(transport, "q", b"4")
            assert await self.drained(transport, "q") == [b"4"]

    # --- queues for replies

    async def test_a_private_queue_gets_what_is_sent_to_its_name(self) -> None:
        inbox = Inbox()
        async with (
            self.transport() as caller,
            self.transport() as other,
            caller.private_queue(self.name("private"), inbox) as queue,
        ):
            message = Outgoing(exchange="", routing_key=queue, body=b"hello", properties=_WHOLE, mandatory=True)
            assert list(await other.publish([message, message])) == [None, None]
            await inbox.wait(2)
        assert inbox.bodies == [b"hello"] * 2
        assert inbox.deliveries[0].properties == _WHOLE
        assert inbox.deliveries[0].queue == queue

    async def test_a_private_queue_takes_more_than_any_prefetch(self) -> None:
        """What is handed over is settled: nothing holds up what comes next."""
        inbox = Inbox()
        async with self.transport() as transport, transport.private_queue(self.name("private"), inbox):
            bodies = [str(number).encode() for number in range(300)]
            await self.put(transport, "private", *bodies)
            await inbox.wait(300)
        assert inbox.bodies == bodies

    async def test_a_private_queue_is_gone_once_it_is_left(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            async with transport.private_queue(self.name("private"), inbox):
                await self.put(transport, "private", b"in time")
                await inbox.wait(1)
            (reason,) = await transport.publish([self.to_queue("private", b"late")])
            assert reason is not None
            assert "unroutable" in reason
            (lost,) = await transport.publish([replace(self.to_queue("private", b"late"), mandatory=False)])
            assert lost is None, "nobody is told of a reply that nobody waits for"
        assert inbox.bodies == [b"in time"]

    async def test_a_private_queue_is_gone_with_an_error_too_and_its_name_is_free(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            try:
                async with transport.private_queue(self.name("private"), inbox):
                    raise KeyError
            except KeyError:
                pass
            async with transport.private_queue(self.name("private"), inbox):
                await self.put(transport, "private", b"x")
                await inbox.wait(1)
        assert inbox.bodies == [b"x"]

    async def test_several_private_queues_get_each_its_own(self) -> None:
        one, two = Inbox(), Inbox()
        async with (
            self.transport() as transport,
            transport.private_queue(self.name("one"), one),
            transport.private_queue(self.name("two"), two),
        ):
            await self.put(transport, "two", b"2")
            await self.put(transport, "one", b"1")
            await one.wait(1)
            await two.wait(1)
        assert (one.bodies, two.bodies) == ([b"1"], [b"2"])

    # --- consuming

    async def test_a_queue_keeps_its_order(self) -> None:
        bodies = [str(number).encode() for number in range(300)]
        inbox = Inbox()
        settled: set[asyncio.Task[None]] = set()
        async with self.transport() as transport:

            def deliver(delivery: Delivery) -> None:
                inbox(delivery)
                settled.add(asyncio.create_task(transport.settle([delivery])))

            await transport.declare(self.topology("q"))
            await transport.consume(self.name("q"), 7, deliver)
            for start in range(0, len(bodies), 50):
                await self.put(transport, "q", *bodies[start : start + 50])
            await inbox.wait(len(bodies))
            await asyncio.gather(*settled)
        assert inbox.bodies == bodies

    async def test_consumers_of_a_queue_share_its_messages(self) -> None:
        one, two = Inbox(), Inbox()
        async with self.transport() as first, self.transport() as second:
            await first.declare(self.topology("q"))
            await first.consume(self.name("q"), 5, one)
            await second.consume(self.name("q"), 5, two)
            await self.put(first, "q", *(str(number).encode() for number in range(10)))
            await one.wait(5)
            await two.wait(5)
            assert sorted(one.bodies + two.bodies) == [str(number).encode() for number in range(10)]

    async def test_a_transport_consumes_several_queues_each_with_its_prefetch(self) -> None:
        inboxes = {"one": Inbox(), "two": Inbox()}
        async with self.transport() as transport:
            await transport.declare(self.topology(*inboxes))
            for queue, inbox in inboxes.items():
                await self.put(transport, queue, *[queue.encode()] * 4)
                await transport.consume(self.name(queue), 3, inbox)
            for queue, inbox in inboxes.items():
                await inbox.wait(3)
                await self.waiting(transport, queue, 1)
                assert inbox.bodies == [queue.encode()] * 3

    async def test_prefetch_bounds_what_is_unsettled(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", *(str(number).encode() for number in range(10)))
            await transport.consume(self.name("q"), 3, inbox)
            await inbox.wait(3)
            await self.waiting(transport, "q", 7)
            assert len(inbox.deliveries) == 3
            await transport.settle(inbox.deliveries[:2])
            await inbox.wait(5)
            await self.waiting(transport, "q", 5)
            assert inbox.bodies == [b"0", b"1", b"2", b"3", b"4"]

    async def test_a_settled_message_never_comes_again(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x", b"y")
            await transport.consume(self.name("q"), 1, inbox)
            await transport.settle(await inbox.wait(1))
            await inbox.wait(2)
        async with self.transport() as transport:
            assert await self.drained(transport, "q") == [b"y"]

    async def test_settled_together_in_any_order_takes_no_other_along(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", *(b"%d" % number for number in range(8)))
            await transport.consume(self.name("q"), 8, inbox)
            await inbox.wait(8)
            got = inbox.deliveries
            await transport.settle([got[3], got[1]])
            await transport.settle([got[2], got[0], got[1]])
            await transport.settle([got[6], got[5]])
        async with self.transport() as transport:
            assert await self.drained(transport, "q") == [b"4", b"7"]

    async def test_what_a_closed_transport_had_not_settled_comes_again_and_says_so(self) -> None:
        inbox, again = Inbox(), Inbox()
        async with self.transport() as other:
            async with self.transport() as transport:
                await transport.declare(self.topology("q"))
                await self.put(transport, "q", b"x", b"y")
                await transport.consume(self.name("q"), 2, inbox)
                await inbox.wait(2)
                await transport.settle(inbox.deliveries[:1])
            await other.consume(self.name("q"), 2, again)
            await again.wait(1)
            await self.put(other, "q", b"new")
            await again.wait(2)
        assert [(d.body, d.redelivered) for d in inbox.deliveries] == [(b"x", False), (b"y", False)]
        assert [(d.body, d.redelivered) for d in again.deliveries] == [(b"y", True), (b"new", False)]

    async def test_a_message_given_back_comes_again_and_says_so(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x")
            cancel = await transport.consume(self.name("q"), 1, inbox)
            await inbox.wait(1)
            await transport.settle(inbox.deliveries, accept=False)
            first, second = await inbox.wait(2)
            await cancel()
            await transport.settle([second])
            assert (first.redelivered, second.redelivered) == (False, True)
            assert first.body == second.body
            assert await self.drained(transport, "q") == []

    async def test_cancelling_stops_the_deliveries(self) -> None:
        inbox, other = Inbox(), Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            cancel = await transport.consume(self.name("q"), 10, inbox)
            await self.put(transport, "q", b"before")
            await inbox.wait(1)
            await cancel()
            await self.put(transport, "q", b"after")
            await self.waiting(transport, "q", 1)
            assert inbox.bodies == [b"before"]
            await cancel()  # again: nothing to do
            await transport.consume(self.name("q"), 10, other)
            await other.wait(1)
            assert (inbox.bodies, other.bodies) == ([b"before"], [b"after"])

    async def test_what_was_handed_over_can_be_settled_after_cancelling(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            cancel = await transport.consume(self.name("q"), 10, inbox)
            await self.put(transport, "q", b"done", b"not done", b"given back")
            await inbox.wait(3)
            await cancel()
            await transport.settle(inbox.deliveries[:1])
            await transport.settle(inbox.deliveries[2:], accept=False)
            await self.waiting(transport, "q", 1)
        async with self.transport() as transport:
            assert sorted(await self.drained(transport, "q")) == [b"given back", b"not done"]

    async def test_a_queue_for_a_single_consumer_hands_messages_to_one_in_order_and_then_to_the_next(self) -> None:
        first, second = Inbox(), Inbox()
        ordered = {**self.arguments, SINGLE_ACTIVE_CONSUMER: True}
        async with self.transport() as transport:
            async with self.transport() as other:
                await transport.declare(self.topology("q", arguments=ordered))
                await transport.declare(self.topology("q", arguments=ordered))  # again, as it stands
                await other.consume(self.name("q"), 3, first)
                bodies = [f"{number}".encode() for number in range(7)]
                await self.put(transport, "q", *bodies)
                await first.wait(3)
                await transport.consume(self.name("q"), 3, second)
                await other.settle(first.deliveries[:1])
                await first.wait(4)
                assert (first.bodies, second.bodies) == (bodies[:4], [])
            for number in range(6):
                await second.wait(number + 1)
                await transport.settle(second.deliveries[number : number + 1])
            assert second.bodies == bodies[1:]

    async def test_consuming_a_queue_that_is_not_there_is_an_error(self) -> None:
        async with self.transport() as transport:
            error = await _error_of(TransportError, transport.consume(self.name("nowhere"), 1, Inbox()))
            assert self.name("nowhere") in error.message
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x")
            assert await self.drained(transport, "q") == [b"x"]

    # --- receipts that are no longer good

    async def test_a_receipt_of_a_closed_transport_is_ignored(self) -> None:
        inbox, again = Inbox(), Inbox()
        async with self.transport() as other:
            async with self.transport() as transport:
                await transport.declare(self.topology("q"))
                await self.put(transport, "q", b"x")
                await transport.consume(self.name("q"), 1, inbox)
                await inbox.wait(1)
            await other.consume(self.name("q"), 1, again)
            await again.wait(1)
            await transport.settle(inbox.deliveries)
            await other.settle(inbox.deliveries)
        async with self.transport() as transport:
            assert await self.drained(transport, "q") == [b"x"]

    async def test_a_delivery_is_settled_once(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x")
            await transport.consume(self.name("q"), 1, inbox)
            (first,) = await inbox.wait(1)
            await transport.settle([first, first], accept=False)
            await inbox.wait(2)
            await transport.settle([first])  # it has come again since: that delivery is another
            await transport.settle([first], accept=False)
            await self.put(transport, "q", b"y")
            await self.waiting(transport, "q", 1)  # prefetch is 1, and the second delivery is unsettled
            await transport.settle(inbox.deliveries[1:])
            await inbox.wait(3)
        assert inbox.bodies == [b"x", b"x", b"y"]

    # --- the topology

    async def test_messages_outlive_the_transport(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("a.#", "q")]))
            await transport.publish([self.event("a.b", b"x")])
        async with self.transport() as transport:
            await transport.publish([self.event("a.c", b"y")])
            assert await self.drained(transport, "q") == [b"x", b"y"]

    async def test_declaring_again_changes_nothing(self) -> None:
        topology = self.topology("q", bindings=[("a", "q")])
        async with self.transport() as transport, self.transport() as other:
            await transport.declare(topology)
            await transport.publish([self.event("a", b"x")])
            await transport.declare(topology)
            await asyncio.gather(*(each.declare(topology) for each in (transport, other) * 3))
            assert await self.drained(other, "q") == [b"x"]

    async def test_declaring_more_adds_to_what_stands(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("a", "q")]))
            await transport.declare(self.topology("q", "r", bindings=[("b", "q"), ("b", "r")]))
            await transport.publish([self.event("a", b"a"), self.event("b", b"b")])
            assert await self.drained(transport, "q") == [b"a", b"b"]
            assert await self.drained(transport, "r") == [b"b"]

    async def test_a_queue_with_other_arguments_is_named_with_the_argument(self) -> None:
        argument, value = self.drifted
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x")
            changed = self.topology("q", arguments={**self.arguments, argument: value})
            error = await _error_of(TopologyError, transport.declare(changed))
            assert self.name("q") in error.message
            assert argument in error.message
            assert str(value) in error.message
            assert await self.drained(transport, "q") == [b"x"]

    async def test_an_exchange_of_another_type_is_named(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology(kind="topic"))
            error = await _error_of(TopologyError, transport.declare(self.topology(kind="fanout")))
            for word in (self.name("events"), "topic", "fanout"):
                assert word in error.message

    # --- looking without touching

    async def test_what_is_missing_is_additive_and_stays_missing(self) -> None:
        topology = self.topology("q", bindings=[("a", "q")])
        async with self.transport() as transport:
            for _ in range(2):
                found = await transport.compare(topology)
                assert [(d.kind, d.change) for d in found] == [
                    ("exchange", "additive"),
                    ("queue", "additive"),
                    ("binding", "additive"),
                ]
            assert not any(d.is_drift for d in found)

    async def test_what_stands_as_planned_is_no_difference_and_keeps_its_messages(self) -> None:
        topology = self.topology("q", bindings=[("a", "q")])
        async with self.transport() as transport:
            await transport.declare(topology)
            await self.put(transport, "q", b"x", b"y")
            await self.waiting(transport, "q", 2)
            exchange, queue, binding = await transport.compare(topology)
            assert (exchange.change, queue.change, queue.messages) == ("none", "none", 2)
            assert binding.change in ("none", "unknown")
            assert await self.drained(transport, "q") == [b"x", b"y"]

    async def test_a_queue_with_other_arguments_needs_a_drain_and_each_is_named(self) -> None:
        argument, value = self.drifted
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x")
            await self.waiting(transport, "q", 1)
            changed = {**self.arguments, argument: value, "x-message-ttl": 60_000}
            _, queue = await transport.compare(self.topology("q", arguments=changed))
            assert (queue.change, queue.messages) == ("needs drain", 1)
            assert argument in queue.detail
            assert await self.drained(transport, "q") == [b"x"]

    async def test_an_exchange_of_another_type_is_destructive(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology(kind="topic"))
            [exchange] = await transport.compare(self.topology(kind="fanout"))
            assert exchange.change == "destructive"
            assert "topic" in exchange.detail
            assert "fanout" in exchange.detail

    async def test_a_broker_tells_what_it_is_and_what_we_may_do(self) -> None:
        async with self.transport() as transport:
            facts = await transport.facts(self.name("tried-out"))
            assert facts.product
            assert facts.version
            assert (facts.may_configure, facts.may_publish, facts.blocked) == (True, True, False)
            assert facts.round_trip_s >= 0
            topology = self.topology("tried-out")
            assert (await transport.compare(topology))[1].change == "additive", "it left its queue behind"

    async def test_depth_counts_what_waits(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("one", "two", "three"))
            await self.put(transport, "one", b"", b"", b"")
            await self.put(transport, "two", b"", b"")
            await self.waiting(transport, "one", 3)
            await self.waiting(transport, "two", 2)
            assert await transport.depth([self.name(queue) for queue in ("one", "two", "three")]) == 5
            assert await transport.depth([]) == 0
            assert await transport.depth([self.name("nowhere")]) == 0
            await transport.consume(self.name("one"), 2, inbox)
            await inbox.wait(2)
            await self.waiting(transport, "one", 1)

    # --- connections that break

    async def test_consumers_come_back_after_a_lost_connection(self) -> None:
        if not self.has_connections:
            return
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"settled", b"held")
            await transport.consume(self.name("q"), 10, inbox)
            await inbox.wait(2)
            await transport.settle(inbox.deliveries[:1])
            held = inbox.deliveries[1]
            await self.break_connections()
            await inbox.until(lambda: any(d.redelivered and d.body == b"held" for d in inbox.deliveries))
            await transport.settle([held])  # of the lost connection: ignored
            await _patiently(lambda: self.put(transport, "q", b"new"))
            await inbox.until(lambda: b"new" in inbox.bodies)
        async with self.transport() as transport:
            left = await self.drained(transport, "q")
        assert b"held" in left

    async def test_what_is_published_while_the_connection_breaks_is_lost_only_with_an_error(self) -> None:
        if not self.has_connections:
            return
        sent = [f"{n}".encode() for n in range(300)]
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))

            async def publish(body: bytes) -> None:
                await _patiently(lambda: self.put(transport, "q", body))

            publishing = [asyncio.create_task(publish(body)) for body in sent]
            await asyncio.wait(publishing, return_when=asyncio.FIRST_COMPLETED)
            await self.break_connections()
            await asyncio.gather(*publishing)
            assert set(await self.drained(transport, "q")) == set(sent)


def _words(alphabet: str) -> list[tuple[str, ...]]:
    return [words for length in (1, 2, 3) for words in itertools.product(alphabet, repeat=length)]


def _words_of(key: str) -> list[str]:
    return key.split(".") if key else []


def _takes(pattern: list[str], key: list[str]) -> bool:
    """AMQP 0-9-1, 3.1.3.3, word by word."""
    if not pattern:
        return not key
    head, *rest = pattern
    if head == "#":
        return any(_takes(rest, key[start:]) for start in range(len(key) + 1))
    return bool(key) and head in ("*", key[0]) and _takes(rest, key[1:])


async def _error_of(kind: type[TransportError], work: Awaitable[object]) -> TransportError:
    try:
        await work
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


async def _patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Until the transport takes it."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                return await work()
            except TransportError:
                continue
