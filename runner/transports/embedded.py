"""The embedded broker: AMQP's exchanges, queues and topic rules in the SQLite store's file.

Durable and shared by the processes of one machine. Another process's publishing is noticed by the file's
`data_version`, looked at every `POLL_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.resources import files
from types import TracebackType

import msgspec

from runner.errors import StoreError, TopologyError, TransportError
from runner.message import Delivery, Outgoing, Properties
from runner.plan import Topology
from runner.ports import Deliver
from runner.sqlite_file import SqliteFile
from runner.topics import topic_matches

POLL_S = 0.02
LOOK_FOR_DEAD_S = 1.0

_encode = msgspec.json.encode
_properties = msgspec.json.Decoder(Properties).decode


class _Consumer:
    """Someone who takes a queue's messages, at most `prefetch` unsettled."""

    def __init__(self, queue: str, prefetch: int, deliver: Deliver) -> None:
        self.queue = queue
        self.free = prefetch
        self.deliver = deliver


class EmbeddedTransport:
    """`Transport` inside a `SqliteFile`."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._consumers: list[_Consumer] = []
        self._taken: dict[int, _Consumer] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> EmbeddedTransport:
        await self._file.__aenter__()
        schema = files("runner.transports").joinpath("embedded_schema.sql").read_text()
        await self._file.migrate("broker", (schema,))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._consumers.clear()
        taken = [(message,) for message in self._taken]
        with contextlib.suppress(StoreError):  # what is not given back now is, once this session is gone
            await self._file.write(lambda c: c.executemany(_GIVE_BACK, taken))
        await self._file.__aexit__()

    async def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        await self._file.write(lambda connection: _declare(connection, topology))

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
        """See `Transport.publish`."""
        try:
            results = await self._file.write(lambda connection: _publish(connection, messages))
        except StoreError as error:
            raise TransportError(str(error)) from error
        self._wake.set()
        return results

    async def consume(self, queue: str, prefetch: int, deliver: Deliver) -> Callable[[], Awaitable[None]]:
        """See `Transport.consume`."""
        known = await self._file.read(
            lambda c: c.execute("SELECT 1 FROM broker_queues WHERE name = ?", (queue,)).fetchone()
        )
        if known is None:
            raise TransportError(f'there is no queue "{queue}"')
        consumer = _Consumer(queue, prefetch, deliver)
        self._consumers.append(consumer)
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._pump()),
                asyncio.create_task(self._watch()),
                asyncio.create_task(self._release_dead()),
            ]
        self._wake.set()

        async def cancel() -> None:
            self._consumers.remove(consumer)

        return cancel

    async def settle(self, deliveries: Sequence[Delivery], *, accept: bool = True) -> None:
        """See `Transport.settle`."""
        ids = [delivery.receipt for delivery in deliveries if delivery.receipt in self._taken]
        statement = "DELETE FROM broker_messages WHERE id = ?" if accept else _GIVE_BACK
        await self._file.write(lambda c: c.executemany(statement, [(message,) for message in ids]))
        for message in ids:
            self._taken.pop(message).free += 1
        self._wake.set()

    async def depth(self, queues: Sequence[str]) -> int:
        """See `Transport.depth`."""
        names = _encode(list(queues)).decode()
        row = await self._file.read(lambda c: c.execute(_DEPTH, (names,)).fetchone())
        return int(row[0])

    # --- handing over

    async def _pump(self) -> None:
        """Hand over what waits, whenever there may be something."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            hungry = [consumer for consumer in self._consumers if consumer.free > 0]
            waiting = await self._file.read(lambda c: {queue for (queue,) in c.execute(_WAITING)})
            wanted = [consumer for consumer in hungry if consumer.queue in waiting]
            if wanted:
                await self._hand_over(wanted)

    async def _hand_over(self, consumers: list[_Consumer]) -> None:
        session = self._file.session
        demand = [(consumer.queue, consumer.free) for consumer in consumers]

        def take(connection: sqlite3.Connection) -> list[list[Delivery]]:
            return [list(_take(connection, session, queue, free)) for queue, free in demand]

        for consumer, deliveries in zip(consumers, await self._file.write(take), strict=True):
            consumer.free -= len(deliveries)
            for delivery in deliveries:
                self._taken[delivery.receipt] = consumer
                consumer.deliver(delivery)
            if deliveries:
                self._wake.set()  # there may be more than was asked for

    async def _watch(self) -> None:
        """Notice what other processes did to the file."""
        seen = None
        while True:
            version = await self._file.read(lambda c: c.execute("PRAGMA data_version").fetchone()[0])
            if version != seen:
                seen = version
                self._wake.set()
            await asyncio.sleep(POLL_S)

    async def _release_dead(self) -> None:
        """Give back what processes that died had not settled."""
        while True:
            live = self._file.live_sessions()
            holders = await self._file.read(lambda c: [name for (name,) in c.execute(_HOLDERS)])
            dead = [(name,) for name in holders if name not in live]
            if dead:
                await self._file.write(lambda c, dead=dead: c.executemany(_RELEASE, dead))  # type: ignore[misc]
                self._wake.set()
            await asyncio.sleep(LOOK_FOR_DEAD_S)


_WAITING = "SELECT DISTINCT queue FROM broker_messages WHERE consumer IS NULL"
_HOLDERS = "SELECT DISTINCT consumer FROM broker_messages WHERE consumer IS NOT NULL"
_RELEASE = "UPDATE broker_messages SET consumer = NULL WHERE consumer = ?"
_GIVE_BACK = "UPDATE broker_messages SET consumer = NULL WHERE id = ?"
_DEPTH = """
SELECT count(*) FROM broker_messages
WHERE consumer IS NULL AND queue IN (SELECT value FROM json_each(?))
"""
_TAKE = """
UPDATE broker_messages SET consumer = ?, deliveries = deliveries + 1
WHERE id IN (SELECT id FROM broker_messages WHERE queue = ? AND consumer IS NULL ORDER BY id LIMIT ?)
RETURNING id, queue, exchange, routing_key, properties, body, deliveries
"""
_PUBLISH = "INSERT INTO broker_messages (queue, exchange, routing_key, properties, body) VALUES (?, ?, ?, ?, ?)"


def _take(connection: sqlite3.Connection, session: str, queue: str, limit: int) -> Iterator[Delivery]:
    rows = connection.execute(_TAKE, (session, queue, limit)).fetchall()
    for message, queue_name, exchange, routing_key, properties, body, deliveries in sorted(rows):
        yield Delivery(
            queue=queue_name,
            exchange=exchange,
            routing_key=routing_key,
            body=body,
            properties=_properties(properties),
            redelivered=deliveries > 1,
            receipt=message,
        )


def _publish(connection: sqlite3.Connection, messages: Sequence[Outgoing]) -> list[str | None]:
    types = dict(connection.execute("SELECT name, type FROM broker_exchanges").fetchall())
    bindings = connection.execute("SELECT exchange, queue, pattern FROM broker_bindings").fetchall()
    queues = {name for (name,) in connection.execute("SELECT name FROM broker_queues")}
    results: list[str | None] = []
    for message in messages:
        if message.exchange and message.exchange not in types:
            results.append(f'there is no exchange "{message.exchange}"')
            continue
        targets = _targets(message, types.get(message.exchange), bindings, queues)
        properties = _encode(message.properties).decode()
        for queue in targets:
            values = (queue, message.exchange, message.routing_key, properties, message.body)
            connection.execute(_PUBLISH, values)
        unroutable = message.mandatory and not targets
        results.append(f'unroutable: no queue takes "{message.routing_key}"' if unroutable else None)
    return results


def _targets(message: Outgoing, kind: str | None, bindings: list[tuple[str, str, str]], queues: set[str]) -> list[str]:
    key = message.routing_key
    if kind is None:
        return [key] if key in queues else []
    found = {
        queue
        for exchange, queue, pattern in bindings
        if exchange == message.exchange
        and (kind == "fanout" or (pattern == key if kind == "direct" else topic_matches(pattern, key)))
    }
    return sorted(found)


def _declare(connection: sqlite3.Connection, topology: Topology) -> None:
    for exchange in topology.exchanges:
        _declare_one(connection, "broker_exchanges", "type", "exchange", exchange.name, exchange.type)
    for queue in topology.queues:
        arguments = _encode(dict(sorted(queue.arguments.items()))).decode()
        _declare_one(connection, "broker_queues", "arguments", "queue", queue.name, arguments)
    connection.executemany(
        "INSERT INTO broker_bindings VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(b.exchange, b.queue, b.pattern) for b in topology.bindings],
    )


def _declare_one(connection: sqlite3.Connection, table: str, column: str, what: str, name: str, value: str) -> None:
    row = connection.execute(f"SELECT {column} FROM {table} WHERE name = ?", (name,)).fetchone()  # noqa: S608 constants
    if row is None:
        connection.execute(f"INSERT INTO {table} VALUES (?, ?)", (name, value))  # noqa: S608 constants
    elif row[0] != value:
        raise TopologyError(f'{what} "{name}" stands with {column} {row[0]}, the plan says {value}')
