"""Where a run is: on its lines, each a sequence of steps that goes on by itself, and in which frame a step stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from runner.outcome import Failed
from runner.plan import Foreach, Parallel, Step
from runner.records import Error


@dataclass(slots=True)
class Cut:
    """How many of some lines a dead process may have been in the midst of an effect on."""

    left: int = 0


@dataclass(slots=True, eq=False)
class Line:
    """A sequence of steps that goes on by itself: the run's own, a branch of a `parallel`, a round of a `foreach`.

    It is over once its block (`block` is its record's id) is out of time at `deadline`, or decided (`ended`); and once
    that is so of a line around it (`outer`). What undoes the losers of a `parallel` is never `over` (`is_undoing`).
    """

    outer: Line | None = None
    block: str = ""
    deadline: datetime | None = None
    ended: Failed | None = None
    is_undoing: bool = False
    cut: Cut = field(default_factory=Cut)
    _has_asked: bool = False

    def over(self, now: datetime) -> Failed | None:
        """Why it goes no further; the outermost reason counts."""
        if self.outer is not None and (outer := self.outer.over(now)) is not None:
            return outer
        if self.ended is not None or self.deadline is None or now < self.deadline:
            return self.ended
        text = f"{self.block} took longer than its timeout"
        return Failed(Error(type="timeout", message=text, retryable=True, step=self.block), over=self.block)

    @property
    def limit(self) -> datetime | None:
        """When time is over, here or on a line around it."""
        limits = (self.deadline, self.outer.limit if self.outer is not None else None)
        return min((limit for limit in limits if limit is not None), default=None)

    def end(self, why: str) -> None:
        """Go no further: another line of the block has decided."""
        self.ended = Failed(Error(type="cancelled", message=why, retryable=False, step=self.block), over=self.block)

    def is_within(self, line: Line) -> bool:
        """Whether it is that line, or inside of it."""
        return self is line or (self.outer is not None and self.outer.is_within(line))

    def was_cut_short(self) -> bool:
        """Whether a process may have died in the midst of the effect that comes next. True at most once: what comes
        after that was not begun."""
        if self._has_asked or self.cut.left == 0:
            return False
        self._has_asked = True
        self.cut.left -= 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a step stands when it runs: in which rounds (`[2][0]`, the outermost first) of which home, and the names
    that are seen there beside those of every step: `item`, `index`, `error`."""

    line: Line
    home: str = ""
    rounds: str = ""
    names: Mapping[str, Any] = field(default_factory=dict)

    def key(self, step: Step) -> str:
        """The id of the step's records: its own, and its rounds."""
        return step.id + self.rounds

    def seeing(self, **names: Any) -> Frame:
        """With more names."""
        return replace(self, names={**self.names, **names})

    def in_branch(self, step: Parallel, branch: str, line: Line) -> Frame:
        """Inside a branch of a `parallel`."""
        return replace(self, line=line, home=step.home_of(branch))

    def in_round(self, step: Foreach, index: int, item: Any, line: Line) -> Frame:
        """Inside a round of a `foreach`."""
        names = {**self.names, step.item: item, "index": index}
        return Frame(line=line, home=step.home_of_rounds, rounds=f"{self.rounds}[{index}]", names=names)
