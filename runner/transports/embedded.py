"""The embedded broker: AMQP's exchanges, queues and topic rules in the SQLite store's file.

Durable and shared by the processes of one machine. Another process's publishing is noticed by the file's
`data_version`, looked at every `POLL_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from types import TracebackType
from typing import TypeVar

import msgspec

from runner.errors import StoreError, TopologyError, TransportError
from runner.message import Delivery, Outgoing, Properties
from runner.plan import SINGLE_ACTIVE_CONSUMER, BrokerFacts, Difference, Queue, Topology
from runner.ports import Deliver
from runner.sqlite_file import SqliteFile, Work
from runner.topics import topic_matches

POLL_S = 0.02
LOOK_FOR_DEAD_S = 1.0
PAUSE_S = 1.0
PRIVATE_PREFETCH = 10

T = TypeVar("T")
_Receipt = tuple[int, int]
"""A message's id, and the how manieth delivery of it this is."""

_log = logging.getLogger("flowrun.embedded")
_encode = msgspec.json.encode
_properties = msgspec.json.Decoder(Properties).decode


class _Consumer:
    """Someone who takes a queue's messages, at most `prefetch` unsettled. `is_single`: not while others have some."""

    def __init__(self, queue: str, prefetch: int, deliver: Deliver, *, is_single: bool) -> None:
        self.queue = queue
        self.is_single = is_single
        self.free = prefetch
        self.deliver = deliver


class EmbeddedTransport:
    """`Transport` inside a `SqliteFile`."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._owner = ""
        self._consumers: list[_Consumer] = []
        self._taken: dict[_Receipt, _Consumer] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._seen_version = 0

    async def __aenter__(self) -> EmbeddedTransport:
        try:
            await self._file.__aenter__()
        except StoreError as error:
            raise TransportError(error.message, hint=error.hint) from error
        schema = files("runner.transports").joinpath("embedded_schema.sql").read_text()
        try:
            await self._file.migrate("broker", (schema,))
        except BaseException as error:
            await self._file.__aexit__()
            if isinstance(error, StoreError):
                raise TransportError(error.message, hint=error.hint) from error
            raise
        self._owner = self._file.new_owner()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._consumers.clear()
        self._taken.clear()
        # By owner, not by what we know of: what was being taken when the pump was cancelled is ours as well.
        with contextlib.suppress(StoreError):  # what is not given back now is, once this process is gone
            await self._file.write(lambda c: c.execute(_RELEASE, (self._owner,)))
        await self._file.__aexit__()

    async def declare(self, topology: Topology) -> None:
        """See `Transport.declare`."""
        await self._write(lambda connection: _declare(connection, topology))

    async def compare(self, topology: Topology) -> Sequence[Difference]:
        """See `TopologyReader.compare`."""
        return await self._read(lambda connection: list(_compare(connection, topology)))

    async def facts(self, name: str) -> BrokerFacts:
        """See `TopologyReader.facts`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self.depth([name])
        return BrokerFacts(
            product="embedded",
            version=sqlite3.sqlite_version,
            may_configure=True,
            may_publish=True,
            blocked=False,
            round_trip_s=clock() - began,
        )

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
        """See `Transport.publish`."""
        results = await self._write(lambda connection: _publish(connection, messages))
        self._wake.set()
        return results

    async def consume(self, queue: str, prefetch: int, deliver: Deliver) -> Callable[[], Awaitable[None]]:
        """See `Transport.consume`."""
        known = await self._read(lambda c: c.execute(_ARGUMENTS, (queue,)).fetchone())
        if known is None:
            raise TransportError(f'there is no queue "{queue}"')
        is_single = msgspec.json.decode(known[0]).get(SINGLE_ACTIVE_CONSUMER) is True
        consumer = _Consumer(queue, prefetch, deliver, is_single=is_single)
        self._consumers.append(consumer)
        if not self._tasks:
            rounds = (self._pump, self._watch, self._release_dead)
            self._tasks = [asyncio.create_task(self._repeat(round_)) for round_ in rounds]
        self._wake.set()

        async def cancel() -> None:
            if consumer in self._consumers:
                self._consumers.remove(consumer)

        return cancel

    @contextlib.asynccontextmanager
    async def private_queue(self, name: str, deliver: Deliver) -> AsyncIterator[str]:
        """See `ReplyQueues.private_queue`: it bears its owner's name, so that it is gone with the process."""
        values = (name, _encode({"owner": self._owner}).decode())
        await self._write(lambda c: c.execute("INSERT INTO broker_queues VALUES (?, ?)", values))
        pending: set[asyncio.Task[None]] = set()

        def taken(delivery: Delivery) -> None:
            pending.add(asyncio.create_task(self.settle([delivery])))
            deliver(delivery)

        cancel = await self.consume(name, PRIVATE_PREFETCH, taken)
        try:
            yield name
        finally:
            await cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await self._write(lambda c: _drop_queues(c, [name]))

    async def settle(self, deliveries: Sequence[Delivery], *, accept: bool = True) -> None:
        """See `Transport.settle`."""
        settled: dict[_Receipt, _Consumer] = {}
        for delivery in deliveries:
            consumer = self._taken.pop(delivery.receipt, None)
            if consumer is not None:  # else it is settled, or of a transport that is closed
                settled[delivery.receipt] = consumer
                consumer.free += 1
        if not settled:
            return
        statement = _DELETE if accept else _GIVE_BACK
        rows = [(message, self._owner) for message, _ in settled]
        try:
            await self._write(lambda c: c.executemany(statement, rows))
        except TransportError:
            self._taken.update(settled)
            for consumer in settled.values():
                consumer.free -= 1
            raise
        self._wake.set()

    async def depth(self, queues: Sequence[str]) -> int:
        """See `Transport.depth`."""
        names = _encode(list(queues)).decode()
        row = await self._read(lambda c: c.execute(_DEPTH, (names,)).fetchone())
        return int(row[0])

    async def _write(self, work: Work[T]) -> T:
        try:
            return await self._file.write(work)
        except StoreError as error:
            raise TransportError(error.message, hint=error.hint) from error

    async def _read(self, work: Work[T]) -> T:
        try:
            return await self._file.read(work)
        except StoreError as error:
            raise TransportError(error.message, hint=error.hint) from error

    # --- handing over

    async def _repeat(self, round_: Callable[[], Awaitable[None]]) -> None:
        """For ever: a file that is locked, or a full disk, is a matter of time."""
        while True:
            try:
                await round_()
            except StoreError as error:
                _log.warning("%s; trying again", error)
            except Exception:  # whatever it is, messages must be handed over
                _log.exception("internal error, please report it; trying again")
            else:
                continue
            await asyncio.sleep(PAUSE_S)
            self._wake.set()

    async def _pump(self) -> None:
        """Hand over what waits, once there may be something."""
        await self._wake.wait()
        self._wake.clear()
        hungry = [consumer for consumer in self._consumers if consumer.free > 0]
        if not hungry:
            return
        names = _encode([consumer.queue for consumer in hungry]).decode()
        waiting = await self._file.read(lambda c: {queue for (queue,) in c.execute(_WAITING, (names,))})
        wanted = [consumer for consumer in hungry if consumer.queue in waiting]
        if wanted:
            await self._hand_over(wanted)

    async def _hand_over(self, consumers: list[_Consumer]) -> None:
        demand = [(consumer.queue, consumer.free, consumer.is_single) for consumer in consumers]

        def take(connection: sqlite3.Connection) -> list[list[Delivery]]:
            return [list(_take(connection, self._owner, *each)) for each in demand]

        unwanted: list[tuple[int, str]] = []
        for consumer, deliveries in zip(consumers, await self._file.write(take), strict=True):
            if deliveries:
                self._wake.set()  # there may be more than was asked for
            if consumer not in self._consumers:  # cancelled meanwhile
                unwanted += [(delivery.receipt[0], self._owner) for delivery in deliveries]
                continue
            consumer.free -= len(deliveries)
            for delivery in deliveries:
                self._taken[delivery.receipt] = consumer
                consumer.deliver(delivery)
        if unwanted:
            await self._file.write(lambda c: c.executemany(_GIVE_BACK, unwanted))

    async def _watch(self) -> None:
        """Notice what other processes did to the file."""
        version = await self._file.read(lambda c: c.execute("PRAGMA data_version").fetchone()[0])
        if version != self._seen_version:
            self._seen_version = version
            self._wake.set()
        await asyncio.sleep(POLL_S)

    async def _release_dead(self) -> None:
        """Give back what processes that died had not settled, and drop the queues that were theirs alone."""
        holders = await self._file.read(lambda c: [name for (name,) in c.execute(_HOLDERS)])
        dead = [(name,) for name in holders if not self._file.is_alive(name)]
        if dead:
            await self._file.write(lambda c: c.executemany(_RELEASE, dead))
            self._wake.set()
        private = await self._file.read(lambda c: c.execute(_PRIVATE).fetchall())
        left = [queue for queue, owner in private if not self._file.is_alive(owner)]
        if left:
            await self._file.write(lambda c: _drop_queues(c, left))
        if any(consumer.is_single for consumer in self._consumers):
            self._wake.set()  # another of this process may have let go of the queue, which no version tells
        await asyncio.sleep(LOOK_FOR_DEAD_S)


_WAITING = """
SELECT value FROM json_each(?)
WHERE EXISTS (SELECT 1 FROM broker_messages WHERE queue = value AND consumer IS NULL)
"""
_HOLDERS = "SELECT DISTINCT consumer FROM broker_messages WHERE consumer IS NOT NULL"
_PRIVATE = "SELECT name, json_extract(arguments, '$.owner') AS owner FROM broker_queues WHERE owner IS NOT NULL"
_RELEASE = "UPDATE broker_messages SET consumer = NULL WHERE consumer = ?"
_GIVE_BACK = "UPDATE broker_messages SET consumer = NULL WHERE id = ? AND consumer = ?"
_DELETE = "DELETE FROM broker_messages WHERE id = ? AND consumer = ?"
_DEPTH = """
SELECT count(*) FROM broker_messages
WHERE consumer IS NULL AND queue IN (SELECT value FROM json_each(?))
"""
_ARGUMENTS = "SELECT arguments FROM broker_queues WHERE name = ?"
_OTHERS = "SELECT 1 FROM broker_messages WHERE queue = ? AND consumer IS NOT NULL AND consumer <> ? LIMIT 1"
_TAKE = """
UPDATE broker_messages SET consumer = ?, deliveries = deliveries + 1
WHERE id IN (SELECT id FROM broker_messages WHERE queue = ? AND consumer IS NULL ORDER BY id LIMIT ?)
RETURNING id, queue, exchange, routing_key, properties, body, deliveries
"""
_PUBLISH = "INSERT INTO broker_messages (queue, exchange, routing_key, properties, body) VALUES (?, ?, ?, ?, ?)"


def _take(connection: sqlite3.Connection, owner: str, queue: str, limit: int, is_single: bool) -> Iterator[Delivery]:
    if is_single and connection.execute(_OTHERS, (queue, owner)).fetchone() is not None:
        return
    rows = connection.execute(_TAKE, (owner, queue, limit)).fetchall()
    for message, queue_name, exchange, routing_key, properties, body, deliveries in sorted(rows):
        yield Delivery(
            queue=queue_name,
            exchange=exchange,
            routing_key=routing_key,
            body=body,
            properties=_properties(properties),
            redelivered=deliveries > 1,
            receipt=(message, deliveries),
        )


def _drop_queues(connection: sqlite3.Connection, names: list[str]) -> None:
    connection.executemany("DELETE FROM broker_queues WHERE name = ?", [(name,) for name in names])
    connection.executemany("DELETE FROM broker_messages WHERE queue = ?", [(name,) for name in names])


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
    types = dict(connection.execute("SELECT name, type FROM broker_exchanges").fetchall())
    for exchange in topology.exchanges:
        stands = {"type": types.get(exchange.name, exchange.type)}
        _refuse_drift("exchange", exchange.name, stands, {"type": exchange.type})
    queues = dict(connection.execute("SELECT name, arguments FROM broker_queues").fetchall())
    for queue in topology.queues:
        if queue.name in queues:
            _refuse_drift("queue", queue.name, msgspec.json.decode(queues[queue.name]), queue.arguments)
    connection.executemany(
        "INSERT INTO broker_exchanges VALUES (?, ?) ON CONFLICT DO NOTHING",
        [(exchange.name, exchange.type) for exchange in topology.exchanges],
    )
    connection.executemany(
        "INSERT INTO broker_queues VALUES (?, ?) ON CONFLICT DO NOTHING",
        [(queue.name, _encode(dict(queue.arguments)).decode()) for queue in topology.queues],
    )
    connection.executemany(
        "INSERT INTO broker_bindings VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(b.exchange, b.queue, b.pattern) for b in topology.bindings],
    )


def _compare(connection: sqlite3.Connection, topology: Topology) -> Iterator[Difference]:
    exchanges = dict(connection.execute("SELECT name, type FROM broker_exchanges").fetchall())
    for exchange in topology.exchanges:
        stands = exchanges.get(exchange.name)
        if stands is None:
            yield Difference(kind="exchange", name=exchange.name, change="additive", detail="it is not there")
        elif stands == exchange.type:
            yield Difference(kind="exchange", name=exchange.name, change="none")
        else:
            detail = f'it stands with type "{stands}", the plan says "{exchange.type}"'
            yield Difference(kind="exchange", name=exchange.name, change="destructive", detail=detail)
    queues = dict(connection.execute("SELECT name, arguments FROM broker_queues").fetchall())
    depths = dict(connection.execute("SELECT queue, count(*) FROM broker_messages GROUP BY queue").fetchall())
    for queue in topology.queues:
        yield _compare_queue(queue, queues.get(queue.name), depths.get(queue.name, 0))
    bindings = set(connection.execute("SELECT exchange, queue, pattern FROM broker_bindings").fetchall())
    for binding in topology.bindings:
        stands = (binding.exchange, binding.queue, binding.pattern) in bindings
        yield Difference(kind="binding", name=str(binding), change="none" if stands else "additive")


def _compare_queue(queue: Queue, stands: str | None, messages: int) -> Difference:
    if stands is None:
        return Difference(kind="queue", name=queue.name, change="additive", detail="it is not there")
    try:
        _refuse_drift("queue", queue.name, msgspec.json.decode(stands), queue.arguments)
    except TopologyError as error:
        return Difference(kind="queue", name=queue.name, change="needs drain", detail=error.message, messages=messages)
    return Difference(kind="queue", name=queue.name, change="none", messages=messages)


def _refuse_drift(what: str, name: str, stands: Mapping[str, object], planned: Mapping[str, object]) -> None:
    for argument in sorted({*stands, *planned}):
        live, plan = (f'"{side[argument]}"' if argument in side else "none" for side in (stands, planned))
        if live != plan:
            raise TopologyError(
                f'{what} "{name}" stands with {argument} {live}, the plan says {plan}',
                hint="drain and delete it, or name another project",
            )
