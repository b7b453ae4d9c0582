"""Several lines of one run at once. One that waits holds up no other: it goes on here, while they go on, and from the
store once all wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from runner.engine.line import Frame
from runner.engine.results import commit
from runner.engine.run import Run
from runner.outcome import Done, Failed, Outcome, Parked, Stopped
from runner.plan import Step
from runner.ports import Clock

LOOK_S = 1.0
"""How long a line that waits sleeps at most, before it looks whether the process drains."""


@dataclass(slots=True, eq=False)
class Strand:
    """What runs on one line: a branch of a `parallel`, or a round of a `foreach`."""

    index: int
    steps: tuple[Step, ...]
    frame: Frame


@dataclass(frozen=True, slots=True)
class Hands:
    """How strands are run: `block` runs a list of steps, `draining` says that the process is to stop."""

    block: Callable[[Run, tuple[Step, ...], Frame], Coroutine[Any, Any, Outcome]]
    clock: Clock
    draining: Callable[[], bool]


class Together:
    """Runs strands, at most `limit` at once, in their order. `judge` is told how each ended, and says why all others
    are to end then, if they are."""

    def __init__(
        self, run: Run, strands: Iterator[Strand], limit: int, judge: Callable[[Strand, Done | Failed | Stopped], str]
    ) -> None:
        self._run = run
        self._coming = strands
        self._limit = limit
        self._judge = judge
        self._going: dict[asyncio.Task[Outcome], Strand] = {}
        self._waiting: dict[Strand, Parked] = {}
        self._told: set[Strand] = set()
        """Those that know that they are over: one may have to wait all the same, to undo what it did."""
        self._is_decided = False

    async def go(self, hands: Hands) -> Parked | None:
        """Until all have ended (None), or until all that have not are parked. Raises what a strand raises."""
        try:
            self._begin(hands)
            while self._going:
                looked_at = self._run.news
                for task in await self._next(hands, looked_at):
                    self._take(task)
                if self._going and self._run.must_commit:
                    await commit(self._run)  # what a strand did, sends or waits for must not wait for the others
                self._wake(hands, everyone=looked_at.is_set())
                self._begin(hands)
        except BaseException:
            await self._abort()
            raise
        if not self._waiting:
            return None
        waits = self._waiting.values()
        return Parked(min(wait.due_at for wait in waits), asleep=all(wait.asleep for wait in waits))

    def _begin(self, hands: Hands) -> None:
        while not self._is_decided and len(self._going) + len(self._waiting) < self._limit:
            strand = next(self._coming, None)
            if strand is None:
                return
            self._start(strand, hands)

    def _start(self, strand: Strand, hands: Hands) -> None:
        self._going[asyncio.create_task(hands.block(self._run, strand.steps, strand.frame))] = strand

    async def _next(self, hands: Hands, news: asyncio.Event) -> list[asyncio.Task[Outcome]]:
        """Those that have ended, or been parked, since, in the order in which they began; none when it is time for one
        that waits to look."""
        if not self._waiting:
            await asyncio.wait(self._going, return_when=asyncio.FIRST_COMPLETED)
            return [task for task in self._going if task.done()]
        self._run.listening += 1
        told = asyncio.create_task(news.wait())
        try:
            due_in_s = (min(wait.due_at for wait in self._waiting.values()) - hands.clock.now()).total_seconds()
            look_in_s = LOOK_S if hands.draining() else min(max(due_in_s, 0.0), LOOK_S)
            await asyncio.wait([*self._going, told], timeout=look_in_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            self._run.listening -= 1
        return [task for task in self._going if task.done()]

    def _take(self, task: asyncio.Task[Outcome]) -> None:
        strand, outcome = self._going.pop(task), task.result()
        if isinstance(outcome, Parked):
            self._waiting[strand] = outcome
        elif (why := self._judge(strand, outcome)) and not self._is_decided:
            self._is_decided = True
            for other in (*self._going.values(), *self._waiting):
                self._run.end(other.frame.line, why)

    def _wake(self, hands: Hands, *, everyone: bool) -> None:
        """Where none goes on any more, the store wakes the run: it knows also what came before a wait began."""
        if hands.draining():
            return
        now, others_go_on = hands.clock.now(), bool(self._going)
        for strand, wait in list(self._waiting.items()):
            is_due = others_go_on and (everyone or wait.due_at <= now)
            is_over = strand not in self._told and strand.frame.line.over(now) is not None
            if is_over:
                self._told.add(strand)
            if is_due or is_over:
                del self._waiting[strand]
                self._start(strand, hands)

    async def _abort(self) -> None:
        for task in self._going:
            task.cancel()
        if self._going:
            await asyncio.gather(*self._going, return_exceptions=True)
