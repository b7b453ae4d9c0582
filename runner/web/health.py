"""How a process fares: `/livez` while its loop lives, `/readyz` while it can do its work. `/status`: the project."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from runner.engine.status import look
from runner.errors import StoreError, TransportError
from runner.plan import Plan
from runner.ports import Clock, StatusStore, StoreReader, Transport
from runner.web.keys import is_from_here
from runner.web.received import Network
from runner.web.refusal import Refusal, json_response

ANSWER_WITHIN_S = 2.0


async def livez(_: Request) -> Response:
    """200, always: it asks neither broker nor store."""
    return json_response({"alive": True})


class Readiness:
    """Asks store and broker whether they answer, and the worker whether it consumes. `queue` is any of the plan's."""

    def __init__(
        self, *, store: StoreReader, transport: Transport, queue: str, is_consuming: Callable[[], bool]
    ) -> None:
        self._store = store
        self._transport = transport
        self._queue = queue
        self._is_consuming = is_consuming

    async def readyz(self, _: Request) -> Response:
        """200, or 503 with the part that is missing."""
        store, broker = await asyncio.gather(
            _answers(self._store.known("")), _answers(self._transport.depth([self._queue]))
        )
        parts = {"store": store, "broker": broker, "worker": self._is_consuming()}
        ready = all(parts.values())
        return json_response({"ready": ready, **parts}, 200 if ready else 503)


class StatusPage:
    """Tells how the project fares, over all processes, to programs of this machine."""

    def __init__(
        self, plan: Plan, store: StatusStore, transport: Transport, clock: Clock, trusted: Sequence[Network] = ()
    ) -> None:
        self._plan = plan
        self._store = store
        self._transport = transport
        self._clock = clock
        self._trusted = trusted

    async def status(self, request: Request) -> Response:
        """As `flowrun status --json`."""
        if not is_from_here(request, self._trusted):
            return Refusal(403, "forbidden", "/status is for the machine that serves it").response()
        try:
            found = await look(self._plan, self._store, self._transport, self._clock)
        except (StoreError, TransportError) as error:
            return Refusal.unavailable(error.message).response()
        return json_response(found.value())


async def _answers(question: Awaitable[object]) -> bool:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await question
    except (StoreError, TransportError, TimeoutError):
        return False
    return True
