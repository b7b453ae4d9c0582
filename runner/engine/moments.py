"""What an expression asks of the moment: the same after a crash, or it is known that it was asked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from runner.engine.history import History, Layer
from runner.records import RunStarted


class Moments:
    """`now()` and `uuid()` as one step of a run sees them. They derive from the run, the step and the latest recorded
    time, so that they give the same values when asked again after a crash.

    It knows nothing of the run's object: a run that nobody needs any more is freed at once, and not by the collector.
    """

    __slots__ = ("_history", "_key", "_layer", "_started", "_uuids", "clock_was_read")

    def __init__(self, started: RunStarted, history: History) -> None:
        self.clock_was_read = False
        """Some expression saw a time that a crash before the next commit would change."""
        self._started = started
        self._history = history
        self.turn_to("", history.root)

    def turn_to(self, key: str, layer: Layer) -> None:
        """From now on the step with this record id asks."""
        self._key, self._layer, self._uuids = key, layer, 0

    def now(self) -> str:
        """The latest recorded time of the step's layer."""
        self.clock_was_read = True
        history = self._history
        failed = history.failure is not None  # then each undoing counts, wherever what it undoes stands
        times = (self._layer.last_time, history.root.last_time if failed else None)
        began_at = history.let_in_at or self._started.started_at
        return max((time for time in times if time is not None), default=began_at)

    def uuid(self) -> str:
        """The step's next one."""
        self._uuids += 1
        return str(uuid.uuid5(uuid.UUID(self._started.run_id), f"{self._key}\0{self._uuids}"))


class Timed(dict[str, Any]):
    """An object of which some values are of the clock: reading one is told, as reading `now()` is."""

    __slots__ = ("_moments",)

    def __init__(self, values: Mapping[str, Any], moments: Moments) -> None:
        super().__init__(values)
        self._moments = moments

    def get(self, key: str, default: Any = None) -> Any:
        """See `dict.get`: it is how expressions read."""
        if key in ("started_at", "time"):
            self._moments.clock_was_read = True
        return super().get(key, default)
