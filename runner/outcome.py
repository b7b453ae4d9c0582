"""What became of a step, a block of steps or an attempt: decisions are values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from runner.records import Error


@dataclass(frozen=True, slots=True)
class Done:
    """It went through; a block's output is its last step's. `event`: the meta of what was waited for."""

    output: Any = None
    event: Any = None


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed for good, or for this attempt. `unknown`: nobody can tell whether it had its effect.

    `over` is the block, by its record's id, that is out of time, or decided: no step inside of it can catch this.
    "" is the run."""

    error: Error
    retry_after_s: float | None = None
    over: str | None = None
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Parked:
    """The run goes on at `due_at`, from the store; nothing is held until then. `asleep`: by the flow's own wish."""

    due_at: datetime
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """A `stop` step was reached: the run is completed."""


Outcome: TypeAlias = Done | Failed | Parked | Stopped
