"""The real clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime


class SystemClock:
    """`Clock` by the machine's own."""

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)

    async def sleep_until(self, moment: datetime) -> None:
        """See `Clock.sleep_until`."""
        await asyncio.sleep(max(0.0, (moment - self.now()).total_seconds()))
