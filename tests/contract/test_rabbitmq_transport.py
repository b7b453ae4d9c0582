"""RabbitMQ keeps the transports' contract, and what is its own: its recovery, and its faults in plain words."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType

import aio_pika
import pytest
from services import RabbitServer, free_port
from yarl import URL

from runner.errors import FlowrunError, SettingsError, TopologyError, TransportError
from runner.message import Delivery, Outgoing, Properties, new_id
from runner.plan import Queue, Topology
from runner.ports import AnyTransport
from runner.testing.transport_contract import Inbox, TransportContract
from runner.transports.rabbitmq import RabbitTransport

pytestmark = pytest.mark.rabbitmq
SECRET = "s3cret-do-not-show"


class Proxy:
    """A TCP port before the broker, whose connections can be cut."""

    def __init__(self, broker: URL) -> None:
        self._broker = broker
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.accepted: list[asyncio.StreamWriter] = []
        self._pumps: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        assert self._server is not None
        return str(self._broker.with_host("127.0.0.1").with_port(self._server.sockets[0].getsockname()[1]))

    async def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._broker.host, self._broker.port or 5672)
        self._writers |= {writer, there[1]}
        self.accepted.append(writer)
        for source, target in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pump(source, target))
            self._pumps.add(task)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()


class TestRabbitTransport(TransportContract):
    arguments = MappingProxyType({"x-queue-type": "quorum"})

    @pytest.fixture(autouse=True)
    async def _broker(self, rabbit_url: str) -> AsyncIterator[None]:
        self.url = rabbit_url
        async with Proxy(URL(rabbit_url)) as self.proxy:
            yield

    def transport(self) -> AbstractAsyncContextManager[AnyTransport]:
        return RabbitTransport([self.proxy.url])

    async def break_connections(self) -> None:
        await self.proxy.cut()

    # --- recovery

    async def test_consumes_again_after_the_broker_was_down(self, rabbit_server: RabbitServer) -> None:
        url = rabbit_server.new_vhost()
        inbox = Inbox()
        async with RabbitTransport([url]) as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"settled", b"held")
            await transport.consume(self.name("q"), 10, inbox)
            await inbox.wait(2)
            await transport.settle(inbox.deliveries[:1])
            await asyncio.to_thread(rabbit_server.stop_app)
            with pytest.raises(TransportError):
                await self.put(transport, "q", b"lost")
            await asyncio.to_thread(rabbit_server.start_app)
            await inbox.until(lambda: any(d.redelivered for d in inbox.deliveries))
            await self.put(transport, "q", b"new")
            await inbox.until(lambda: b"new" in inbox.bodies)
        assert [d.body for d in inbox.deliveries if d.redelivered and d.body != b"new"] == [b"held"]

    async def test_a_queue_deleted_by_hand_comes_back_with_its_consumer(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport, await aio_pika.connect(self.url) as connection:
            await transport.declare(self.topology("q", bindings=[("a", "q")]))
            await transport.consume(self.name("q"), 10, inbox)
            channel = await connection.channel()
            await channel.queue_delete(self.name("q"))
            while (await transport.publish([self.event("a", b"x", mandatory=True)]))[0] is not None:
                pass
            await inbox.wait(1)
        assert inbox.bodies == [b"x"]

    async def test_a_queue_that_cannot_come_back_keeps_no_other_from_it(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport, await aio_pika.connect(self.url) as connection:
            await transport.declare(self.topology("drifted", "sound"))
            await transport.consume(self.name("drifted"), 10, Inbox())
            await transport.consume(self.name("sound"), 10, inbox)
            channel = await connection.channel()
            await channel.queue_delete(self.name("drifted"))
            await channel.declare_queue(self.name("drifted"), durable=True)
            await self.proxy.cut()
            async with RabbitTransport([self.url]) as other:
                await self.put(other, "sound", b"x")
            await inbox.wait(1)

    async def test_a_consumer_cancelled_while_the_broker_is_away_stays_cancelled(self) -> None:
        first, second = Inbox(), Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("one", "two"))
            cancel = await transport.consume(self.name("one"), 10, first)
            await transport.consume(self.name("two"), 10, second)
            await self.proxy.cut()
            await cancel()
            async with RabbitTransport([self.url]) as other:
                await self.put(other, "one", b"x")
                await self.put(other, "two", b"x")
                await second.wait(1)
                await self.waiting(other, "one", 1)
        assert first.deliveries == []

    async def test_a_second_broker_of_the_list_is_taken_when_the_first_is_away(self) -> None:
        async with RabbitTransport([f"amqp://127.0.0.1:{free_port()}", self.url]) as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x")

    async def test_a_refused_message_does_not_cost_the_connection(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            connections = len(self.proxy.accepted)
            for _ in range(10):
                nowhere = Outgoing(exchange="no such", routing_key="q", body=b"", properties=Properties())
                after = [self.to_queue("q") for _ in range(20)]
                results = await transport.publish([nowhere, *after])
                assert "no exchange" in str(results[0])
                assert results[1:] == [None] * 20
            assert len(self.proxy.accepted) == connections

    async def test_a_receiver_that_fails_costs_neither_the_connection_nor_the_next_message(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        inbox = Inbox()

        def deliver(delivery: Delivery) -> None:
            if delivery.body == b"bad":
                raise LookupError
            inbox(delivery)

        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"bad", b"good")
            await transport.consume(self.name("q"), 10, deliver)
            await inbox.wait(1)
        assert inbox.bodies == [b"good"]
        assert "internal error" in caplog.text

    async def test_what_a_private_queue_handed_over_is_settled_already(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport, transport.private_queue(self.name("p"), inbox):
            await self.put(transport, "p", b"1")
            await transport.settle(await inbox.wait(1))
            assert await transport.depth([self.name("p")]) == 0  # the broker has read what came before this question
            await self.put(transport, "p", b"2")
            await inbox.wait(2)

    async def test_a_mandatory_message_needs_no_id_to_be_missed(self) -> None:
        def event(key: str) -> Outgoing:
            exchange = self.name("events")
            return Outgoing(exchange=exchange, routing_key=key, body=b"", properties=Properties(), mandatory=True)

        async with self.transport() as transport:
            await transport.declare(self.topology("q", bindings=[("a", "q")]))
            results = await transport.publish([event("a"), event("b"), event("c"), event("a")])
        assert results == [None, 'unroutable: no queue takes "b"', 'unroutable: no queue takes "c"', None]

    # --- what AMQP cannot carry

    @pytest.mark.parametrize(
        "bad",
        [
            Outgoing(exchange="", routing_key="ä" * 200, body=b"", properties=Properties()),
            Outgoing(exchange="", routing_key="q", body=b"", properties=Properties(message_id="x" * 300)),
            Outgoing(exchange="", routing_key="q", body=b"", properties=Properties(headers={"k": object()})),
            Outgoing(exchange="", routing_key="q", body=b"", properties=Properties(headers={"k": 2**70})),
        ],
        ids=["long key", "long id", "odd header", "huge number"],
    )
    async def test_what_amqp_cannot_carry_gives_a_reason_and_harms_no_other(self, bad: Outgoing) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            results = await transport.publish([self.to_queue("q", b"1"), bad, self.to_queue("q", b"2")])
            assert [reason is None for reason in results] == [True, False, True]
            assert "AMQP cannot carry it" in str(results[1])
            assert await self.drained(transport, "q") == [b"1", b"2"]

    # --- faults, in plain words

    async def test_drift_is_explained(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q", arguments={"x-queue-type": "classic"}))
            with pytest.raises(TopologyError) as caught:
                await transport.declare(self.topology("q", arguments={"x-queue-type": "quorum"}))
        assert (
            str(caught.value) == f'queue "{self.name("q")}" stands with x-queue-type "classic", the plan says "quorum"'
        )

    async def test_a_wrong_password_is_said_to_be_one(self) -> None:
        url = URL(self.url)
        error = await _refusal(str(url.with_user("guest").with_password(SECRET)))
        assert str(error) == f'the broker at 127.0.0.1:{url.port} refused user "guest": wrong name or password'

    async def test_a_missing_vhost_is_named(self) -> None:
        url = URL(self.url).with_path("/no such vhost")
        error = await _refusal(str(url))
        assert str(error) == (
            f'the broker at 127.0.0.1:{url.port} has no vhost "no such vhost", or does not let user "guest" use it'
        )

    async def test_a_broker_that_comes_and_goes_is_a_transport_error(self) -> None:
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.proxy.__aexit__()
            for work in (
                transport.publish([self.to_queue("q")]),
                transport.depth([self.name("q")]),
                transport.consume(self.name("q"), 1, Inbox()),
                transport.declare(self.topology("q")),
            ):
                with pytest.raises(TransportError):
                    await work


async def test_a_refused_port_is_named() -> None:
    port = free_port()
    error = await _refusal(f"amqp://guest:{SECRET}@127.0.0.1:{port}/")
    assert str(error) == f"no broker can be reached at 127.0.0.1:{port}: connection refused"
    assert "embedded:" in str(error.hint)


async def test_a_port_that_speaks_no_amqp_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await _refusal(f"amqp://guest:{SECRET}@127.0.0.1:{port}/")
    assert str(error) == f"what answers at 127.0.0.1:{port} ends the connection, or does not speak AMQP 0-9-1"


async def test_a_port_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("link", "faults"):
        monkeypatch.setattr(f"runner.transports.rabbitmq.{room}.CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await _refusal(f"amqp://guest:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/")
    assert "no answer within 0.1 s" in str(error)


async def test_the_channel_of_a_cancelled_consumer_is_closed_once_all_is_settled(rabbit_url: str) -> None:
    queue = f"{new_id()}.q"
    inbox = Inbox()
    async with RabbitTransport([rabbit_url]) as transport:
        await transport.declare(Topology(exchanges=(), queues=(Queue(name=queue),), bindings=()))
        cancel = await transport.consume(queue, 2, inbox)
        outgoing = Outgoing(exchange="", routing_key=queue, body=b"x", properties=Properties())
        await transport.publish([outgoing, outgoing])
        await inbox.wait(2)
        await cancel()
        for delivery in inbox.deliveries:
            assert not delivery.receipt.channel.is_closed
            await transport.settle([delivery])
        assert inbox.deliveries[0].receipt.channel.is_closed
        idle = await transport.consume(queue, 2, Inbox())
        await idle()
        assert await transport.depth([queue]) == 0


@pytest.mark.parametrize(
    ("url", "word"),
    [
        (f"ampq://guest:{SECRET}@localhost/", "is not a broker's URL"),
        (f"amqp//guest:{SECRET}@localhost/", "is not a broker's URL"),
        (f"amqp://guest:a/{SECRET}@localhost/", "%2F"),
        (f"amqp://guest:#{SECRET}@localhost/", "%2F"),
        (f"amqp://guest:{SECRET}@localhost:port/", "cannot be read"),
        (f"amqp://guest:{SECRET}@localhost:15672/", "management page"),
        ("localhost:5672", '"localhost:5672" is not'),
        ("", "is not a broker's URL"),
    ],
)
def test_a_misspelt_url_is_a_settings_error_without_the_password(url: str, word: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RabbitTransport([url])
    assert word in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.hint is not None


async def _refusal(url: str) -> FlowrunError:
    """The one error of connecting there; nothing that it brings with it shows the password."""
    with pytest.raises(TransportError) as caught:
        async with RabbitTransport([url]):
            pass
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value
