"""Questions that many ask of a database at once, put to it together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

MOST_AT_ONCE = 1000


class Questions:
    """Which of many are there? `ask` tells it of a list; each caller gets the answer for its own.

    What is asked while an answer is under way is the next list, so that a query serves as many as there are, and nobody
    waits for a timer. An answer is never older than its question. An error of `ask` is everybody's in that list.
    """

    def __init__(self, ask: Callable[[Sequence[str]], Awaitable[Collection[str]]]) -> None:
        self._ask = ask
        self._waiting: list[tuple[str, asyncio.Future[bool]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def is_there(self, key: str) -> bool:
        """Whether that one is. Raises what `ask` raises."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._work_off())
        return await future

    async def _work_off(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            try:
                there = set(await self._ask([key for key, _ in asked]))
            except Exception as error:
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
            else:
                for key, future in asked:
                    if not future.done():  # who asked may have been cancelled
                        future.set_result(key in there)
        self._asking = None
