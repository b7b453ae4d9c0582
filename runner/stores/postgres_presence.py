"""How the runners on one database know of each other who lives.

A runner renews its lease, and holds a lock on its own name for as long as its connection lives: the server frees it
when the process dies, so that nobody need wait for the lease to run out. The lease is for machines that vanish without
closing their connections, and for connections through a pooler that lends them to many, with which no lock goes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import asyncpg

from runner.message import new_id
from runner.sql import load_queries

BEAT_S = 1.0
AGAIN_S = 0.25
SILENT_S = 1.5
"""Who has lost the connection, and so the lock, and lives, has beaten anew by then."""
COME_BACK_S = 5.0
"""So long after a trouble that others may have had too, nobody is thought dead for want of a lock."""
CONNECT_TIMEOUT_S = 5.0
WITH_A_LOCK = "lock:"
"""How the names of runners begin that hold one; an older flowrun's hold none, and live by their leases alone."""
FAULTS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a connection says that was lost under a query
    OSError,
    asyncio.TimeoutError,
)

_SQL = load_queries("runner.stores", "postgres_queries.sql")
_Connection = Any  # asyncpg's stubs type pooled ones apart from others
_log = logging.getLogger("flowrun.postgres")
# While the server is away the pool tells each try with a traceback; what is wrong, our own calls say.
logging.getLogger("asyncpg").setLevel(logging.CRITICAL)


class Presence:
    """A connection of a runner's own: it holds the lock, renews the lease, and hears the bell of the schema."""

    def __init__(self, url: str, session: Mapping[str, str], *, bell: str, lease_s: float) -> None:
        self.owner = ""
        """The runner's name, once it has begun."""
        self._url = url
        self._session = dict(session)
        self._bell = bell
        self._lease_s = lease_s
        self._connection: _Connection | None = None
        self._is_locked = False
        self._wake: Callable[[], None] | None = None
        self._is_listening = False
        self._stir = asyncio.Event()
        self._trusts_locks_from = -math.inf

    async def begin(self) -> None:
        """Take a name, its lock and its lease. Raises one of `FAULTS`."""
        connection = await self._connect()
        lent = await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid()
        self.owner = new_id() if lent else f"{WITH_A_LOCK}{new_id()}"
        self._trusts_locks_from = -math.inf
        await self._beat(connection)

    async def keep(self) -> None:
        """Stay alive, for ever; a connection that breaks is made anew at once."""
        said = ""
        while True:
            try:
                await self._live()
                said = ""
            except Exception as error:  # whatever it is, the lease must be renewed next time
                if str(error) != said:
                    said = str(error)
                    _log.warning("the lease could not be renewed: %s", error or type(error).__name__)
                await asyncio.sleep(AGAIN_S)
            self._drop()

    def on_ring(self, wake: Callable[[], None]) -> None:
        """Call `wake` when the bell rings, and when it may have rung unheard."""
        self._wake = wake
        self._stir.set()
        asyncio.get_running_loop().call_later(SILENT_S, wake)  # who died just before we came is known to be dead then

    def ring(self) -> None:
        """As if the bell had rung."""
        if self._wake is not None:
            self._wake()

    @property
    def silent_by(self) -> float | None:
        """How long the lease of a runner lasts yet that has not beaten for long enough to be dead if its lock is free;
        None while a lock that is free says nothing: after a restart of the server all of them are."""
        if asyncio.get_running_loop().time() < self._trusts_locks_from:
            return None
        return self._lease_s - SILENT_S

    async def end(self) -> None:
        """Give back the lock."""
        if self._connection is not None:
            with suppress(*FAULTS):
                await self._connection.close(timeout=CONNECT_TIMEOUT_S)
        self._drop()

    async def _connect(self) -> _Connection:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            # Not one of the pool's: those forget their listeners when they are given back.
            connection = await asyncpg.connect(
                self._url, server_settings=self._session, command_timeout=CONNECT_TIMEOUT_S
            )
        connection.add_termination_listener(lambda _: self._gone(connection))
        self._connection = connection
        return connection

    def _gone(self, connection: _Connection) -> None:
        if connection is self._connection:
            self._trusts_locks_from = math.inf
            self._stir.set()

    def _drop(self) -> None:
        if self._connection is not None:
            self._trusts_locks_from = math.inf
            self._connection.terminate()
        self._connection, self._is_locked, self._is_listening = None, False, False

    async def _live(self) -> None:
        """Until the connection is gone."""
        connection = self._connection
        if connection is None:
            connection = await self._connect()
        while not connection.is_closed():
            self._stir.clear()
            await self._beat(connection)
            if self._trusts_locks_from == math.inf:
                self._trusts_locks_from = asyncio.get_running_loop().time() + COME_BACK_S
            await self._listen(connection)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(BEAT_S, self._lease_s / 3)):
                    await self._stir.wait()

    async def _beat(self, connection: _Connection) -> None:
        if not self._is_locked and self.owner.startswith(WITH_A_LOCK):
            # Not while the server has not noticed yet that the connection before is gone: then that one holds it.
            self._is_locked = await connection.fetchval(_SQL["lock_name"], self.owner)
        await connection.execute(_SQL["take_lease"], self.owner, self._lease_s)

    async def _listen(self, connection: _Connection) -> None:
        wake = self._wake
        if wake is not None and not self._is_listening:
            self._is_listening = True
            await connection.add_listener(self._bell, lambda *_: wake())
            wake()  # what was rung for before we listened
