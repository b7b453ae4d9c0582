"""Time that goes on only when it is told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """`Clock` for tests. Nobody sleeps: who would sleep until a moment makes it that moment."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start

    def now(self) -> datetime:
        """See `Clock.now`."""
        return self._now

    async def sleep_until(self, moment: datetime) -> None:
        """See `Clock.sleep_until`: at once."""
        self._now = max(self._now, moment)

    def advance(self, seconds: float) -> None:
        """Let time go on."""
        self._now += timedelta(seconds=seconds)
