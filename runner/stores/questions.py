"""Questions that many ask of a database at once, put to it together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

MOST_AT_ONCE = 1000

Q = TypeVar("Q")
A = TypeVar("A")


class Questions(Generic[Q, A]):
    """`ask` answers a list of questions, in their order; each caller gets the answer to its own.

    What is asked while an answer is under way is the next list, so that a query serves as many as there are, and nobody
    waits for a timer. An answer is never older than its question. An error of `ask` is everybody's in that list.
    """

    def __init__(self, ask: Callable[[Sequence[Q]], Awaitable[Sequence[A]]]) -> None:
        self._ask = ask
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def put(self, question: Q) -> A:
        """The answer. Raises what `ask` raises."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._work_off())
        return await future

    async def _work_off(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            try:
                answers = await self._ask([question for question, _ in asked])
            except Exception as error:
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), answer in zip(asked, answers, strict=True):
                    if not future.done():  # who asked may have been cancelled
                        future.set_result(answer)
        self._asking = None
