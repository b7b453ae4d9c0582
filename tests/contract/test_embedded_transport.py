"""The embedded broker keeps the transports' contract, and what is its own: other processes, and dead ones."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from runner import sqlite_file
from runner.errors import StoreError, TopologyError, TransportError
from runner.plan import Queue, Topology
from runner.ports import Transport
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.testing.transport_contract import TIMEOUT_S, Inbox, TransportContract
from runner.transports.embedded import EmbeddedTransport

HOLD_PRIVATE = """
import asyncio, sys
from runner.sqlite_file import SqliteFile
from runner.transports.embedded import EmbeddedTransport

async def main():
    async with EmbeddedTransport(SqliteFile(sys.argv[1])) as transport:
        async with transport.private_queue(sys.argv[2], lambda _: None):
            print("held", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""
HOLD = """
import asyncio, sys
from runner.sqlite_file import SqliteFile
from runner.transports.embedded import EmbeddedTransport

async def hold(path, queue):
    async with EmbeddedTransport(SqliteFile(path)) as transport:
        await transport.consume(queue, 1, lambda delivery: print(delivery.body.decode(), flush=True))
        await asyncio.Event().wait()

asyncio.run(hold(*sys.argv[1:]))
"""


class TestEmbeddedTransport(TransportContract):
    """A `SqliteFile` for each transport, as two processes have them."""

    has_connections = False

    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "flowrun.db")

    def transport(self) -> AbstractAsyncContextManager[Transport]:
        return EmbeddedTransport(SqliteFile(self.path))

    # --- several processes

    async def test_what_another_process_publishes_comes_within_100_ms(self) -> None:
        inbox = Inbox()
        loop = asyncio.get_running_loop()
        async with self.transport() as here, self.transport() as there:
            await here.declare(self.topology("q"))
            await here.consume(self.name("q"), 100, inbox)
            delays = []
            for number in range(1, 11):
                await self.put(there, "q", b"x")
                published = loop.time()
                await inbox.wait(number)
                delays.append(loop.time() - published)
        assert sorted(delays)[len(delays) // 2] < 0.1, delays

    async def test_a_killed_process_gives_its_messages_back(self) -> None:
        inbox = Inbox()
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"held")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", HOLD, self.path, self.name("q"), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            async with asyncio.timeout(TIMEOUT_S):
                assert await process.stdout.readline() == b"held\n"
            await transport.consume(self.name("q"), 1, inbox)
            assert await transport.depth([self.name("q")]) == 0
            process.kill()
            await process.wait()
            (delivery,) = await inbox.wait(1)
        assert (delivery.body, delivery.redelivered) == (b"held", True)

    async def test_a_killed_process_takes_its_private_queue_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runner.transports.embedded.LOOK_FOR_DEAD_S", 0)
        async with self.transport() as transport, transport.private_queue(self.name("mine"), Inbox()):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", HOLD_PRIVATE, self.path, self.name("private"), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            async with asyncio.timeout(TIMEOUT_S):
                assert await process.stdout.readline() == b"held\n"
            await transport._release_dead()
            await self.put(transport, "private", b"a reply")
            process.kill()
            await process.wait()
            await transport._release_dead()
            with sqlite3.connect(self.path) as connection:
                [(queue,)] = connection.execute("SELECT name FROM broker_queues").fetchall()
                assert queue == self.name("mine")
                assert connection.execute("SELECT count(*) FROM broker_messages").fetchone() == (0,)
            connection.close()

    async def test_a_living_process_keeps_its_messages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("runner.transports.embedded.LOOK_FOR_DEAD_S", 0)
        inbox, other = Inbox(), Inbox()
        async with self.transport() as first, self.transport() as second:
            await first.declare(self.topology("q"))
            await self.put(first, "q", b"held")
            await first.consume(self.name("q"), 1, inbox)
            await inbox.wait(1)
            await second.consume(self.name("q"), 1, other)
            await second._release_dead()
            await self.put(second, "q", b"new")
            await other.wait(1)
        assert other.bodies == [b"new"]

    async def test_many_may_open_a_new_file_at_once(self) -> None:
        async def declare() -> None:
            async with self.transport() as transport:
                await transport.declare(self.topology("q"))

        await asyncio.gather(*(declare() for _ in range(8)))

    async def test_a_consumer_outlives_a_locked_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.01)
        monkeypatch.setattr("runner.transports.embedded.PAUSE_S", 0.01)
        inbox, lock = Inbox(), sqlite3.connect(self.path, isolation_level=None)
        async with self.transport() as transport:
            await transport.declare(self.topology("q"))
            await self.put(transport, "q", b"x", b"y")
            await transport.consume(self.name("q"), 1, inbox)
            await inbox.wait(1)
            lock.execute("BEGIN IMMEDIATE")
            with pytest.raises(TransportError, match="locked by another program"):
                await self.put(transport, "q", b"z")
            with pytest.raises(TransportError, match="locked by another program"):
                await transport.settle(inbox.deliveries)
            lock.execute("ROLLBACK")
            lock.close()
            await transport.settle(inbox.deliveries)
            await inbox.wait(2)
        assert inbox.bodies == [b"x", b"y"]

    # --- the file

    async def test_what_is_no_database_is_a_transport_error(self, tmp_path: Path) -> None:
        (tmp_path / "flowrun.db").write_text("once upon a time, there was no database, only text")
        with pytest.raises(TransportError, match="is not a SQLite database"):
            async with self.transport():
                pass

    async def test_a_newer_file_is_refused(self) -> None:
        async with self.transport():
            pass
        with sqlite3.connect(self.path) as connection:
            connection.execute("UPDATE schema_version SET version = 99")
        connection.close()
        file = SqliteFile(self.path)
        with pytest.raises(TransportError, match="newer flowrun"):
            async with EmbeddedTransport(file):
                pass
        with pytest.raises(StoreError, match="is closed"):
            await file.read(lambda connection: None)

    async def test_a_drifted_queue_is_explained(self) -> None:
        def topology(arguments: dict[str, str | int | bool]) -> Topology:
            return Topology(exchanges=(), queues=(Queue(name="shop.q", arguments=arguments),), bindings=())

        async with self.transport() as transport:
            await transport.declare(topology({"x-queue-type": "classic"}))
            with pytest.raises(TopologyError) as caught:
                await transport.declare(topology({"x-queue-type": "quorum"}))
        assert str(caught.value) == 'queue "shop.q" stands with x-queue-type "classic", the plan says "quorum"'


class TestEmbeddedTransportInOneProcess(TransportContract):
    """All transports in one file object, in memory, as `flowrun dev` and tests have them."""

    has_connections = False

    @pytest.fixture(autouse=True)
    async def _file(self) -> AsyncIterator[None]:
        async with SqliteFile(":memory:") as self.file:
            yield

    def transport(self) -> AbstractAsyncContextManager[Transport]:
        return EmbeddedTransport(self.file)


async def test_store_and_broker_share_a_file_and_either_may_leave_first(tmp_path: Path) -> None:
    for leave_first in ("store", "broker"):
        file = SqliteFile(str(tmp_path / "flowrun.db"))
        store, broker = SqliteStore(file), EmbeddedTransport(file)
        await asyncio.gather(store.__aenter__(), broker.__aenter__())
        first, last = (store, broker) if leave_first == "store" else (broker, store)
        await first.__aexit__(None, None, None)
        if last is store:
            assert not await store.known("x")
        else:
            assert await broker.depth(["x"]) == 0
        await last.__aexit__(None, None, None)
        assert list((tmp_path / "flowrun.db-sessions").iterdir()) == []
