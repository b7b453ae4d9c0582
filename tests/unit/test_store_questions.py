"""Questions that many ask at once are put together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from runner.errors import StoreError
from runner.stores.questions import MOST_AT_ONCE, Questions


class Database:
    """Knows what begins with `a`; notes what it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self, keys: Sequence[str]) -> Sequence[bool]:
        self.asked.append(list(keys))
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return [key.startswith("a") for key in keys]


async def test_what_is_asked_in_one_turn_is_one_query() -> None:
    database = Database()
    database.may_answer.set()
    questions = Questions(database.ask)
    answers = await asyncio.gather(*(questions.put(key) for key in ("a1", "b1", "a2")))
    assert answers == [True, False, True]
    assert database.asked == [["a1", "b1", "a2"]]


async def test_what_is_asked_while_an_answer_is_under_way_is_not_answered_by_it() -> None:
    """It may have become true since that query began."""
    database = Database()
    questions = Questions(database.ask)
    first = asyncio.create_task(questions.put("b1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.create_task(questions.put(key)) for key in ("b1", "a1")]
    await asyncio.sleep(0)
    database.may_answer.set()
    assert await asyncio.gather(first, *later) == [False, False, True]
    assert database.asked == [["b1"], ["b1", "a1"]]


async def test_an_error_is_everybodys_who_asked_then_and_nobodys_later() -> None:
    database = Database()
    database.may_answer.set()
    database.error = StoreError("away")
    questions = Questions(database.ask)
    answers = await asyncio.gather(*(questions.put(key) for key in ("a1", "a2")), return_exceptions=True)
    assert answers == [database.error, database.error]
    database.error = None
    assert await questions.put("a3")


async def test_who_no_longer_waits_keeps_nobody_from_an_answer() -> None:
    database = Database()
    questions = Questions(database.ask)
    impatient, patient = (asyncio.create_task(questions.put(key)) for key in ("a1", "a2"))
    await asyncio.sleep(0)
    impatient.cancel()
    database.may_answer.set()
    assert await patient
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_no_query_is_longer_than_so_many() -> None:
    database = Database()
    database.may_answer.set()
    questions = Questions(database.ask)
    assert all(await asyncio.gather(*(questions.put(f"a{number}") for number in range(MOST_AT_ONCE + 1))))
    assert [len(keys) for keys in database.asked] == [MOST_AT_ONCE, 1]
