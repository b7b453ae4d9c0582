"""How a project fares, in numbers: what lies in its queues, what its runs do, what was left lying."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from runner.plan import Plan
from runner.ports import Clock, StatusStore, Transport
from runner.records import Backlog, Circuit, Figures
from runner.times import rfc3339

WINDOW_S = 60.0
"""Of what began lately, and of what failed of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerStatus:
    """One handler: `lag` are the messages that wait in its queue; `figures` are of the last `WINDOW_S` seconds."""

    name: str
    lag: int
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A project at a moment, over all its processes."""

    at: str
    handlers: tuple[HandlerStatus, ...]
    circuits: tuple[Circuit, ...]
    """Those that are not closed."""
    pressures: tuple[str, ...]
    """The handlers of which producers were told that they are behind."""
    backlog: Backlog

    def value(self) -> dict[str, Any]:
        """As `flowrun status --json` and `GET /status` tell it."""
        return {
            "at": self.at,
            "handlers": [
                {
                    "handler": each.name,
                    "lag": each.lag,
                    "queued": each.figures.queued,
                    "running": each.figures.running,
                    "waiting": each.figures.waiting,
                    "begun_last_minute": each.figures.begun,
                    "failed_last_minute": each.figures.failed,
                }
                for each in self.handlers
            ],
            "circuits": [
                {"circuit": each.name, "state": each.state(self.at), "until": each.lets_in_at(self.at)}
                for each in self.circuits
            ],
            "pressures": list(self.pressures),
            "outbox": self.backlog.outbox,
            "refused": self.backlog.refused,
            "suspects": self.backlog.suspects,
            "dead_letters": self.backlog.dead_letters,
        }


async def look(plan: Plan, store: StatusStore, transport: Transport, clock: Clock) -> Status:
    """Ask store and broker. Raises StoreError, TransportError."""
    now = clock.now()
    figures = await store.figures(now - timedelta(seconds=WINDOW_S))
    known = {name: program.queue for name, program in plan.programs.items() if program.is_served}
    handlers = [
        HandlerStatus(name=name, lag=await transport.depth([queue]), figures=figures.get(name, Figures()))
        for name, queue in known.items()
    ]
    # Runs go on also of handlers that the files have no more.
    handlers += [HandlerStatus(name=name, lag=0, figures=figures[name]) for name in figures if name not in known]
    circuits = await store.traffic.circuits()
    return Status(
        at=rfc3339(now),
        handlers=tuple(handlers),
        circuits=tuple(circuits[name] for name in sorted(circuits)),
        pressures=tuple(sorted(await store.traffic.pressures())),
        backlog=await store.backlog(),
    )
