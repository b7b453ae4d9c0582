"""The last line of a terminal on which `flowrun start` runs: how the project fares, below what is logged."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

from runner.cli.status import summary
from runner.clock import SystemClock
from runner.engine.status import look
from runner.errors import StoreError, TransportError
from runner.plan import Plan
from runner.ports import StatusStore, Transport

EVERY_S = 2.0
CLEAR = "\r\x1b[K"


class AboveTheLine(logging.StreamHandler[Any]):
    """Takes the line away before it logs; it comes again by itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self.stream.write(CLEAR)
        super().emit(record)


async def draw(plan: Plan, store: StatusStore, transport: Transport) -> None:
    """For ever. While store or broker is away nothing is drawn: the log says so."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            text = summary(await look(plan, store, transport, SystemClock()))
        except (StoreError, TransportError):
            text = ""
        sys.stderr.write(f"{CLEAR}\x1b[2m{text}\x1b[0m")
        sys.stderr.flush()
