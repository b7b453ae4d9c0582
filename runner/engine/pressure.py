"""Feedback to producers: a handler's lag is looked at every second, and told when it crosses its bounds."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from runner.engine.status import WINDOW_S
from runner.errors import ExpressionError, StoreError, TransportError
from runner.plan import Feedback, Plan, Program
from runner.ports import Clock, GateStore, StoreReader, TrafficStore, Transport
from runner.steps.emit import Emitter, PayloadError, build
from runner.times import rfc3339

LOOK_S = 1.0
RATE_EVERY = 5
SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0

_log = logging.getLogger("flowrun.pressure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How a handler keeps up: the messages that lie before it, the runs that it begins a second, and whether its
    producers were told that it is behind."""

    lag: int = 0
    rate: float = 0.0
    is_high: bool = False


class Pressure:
    """The one task of a process that looks at lags. `poke` is called when there is something to publish."""

    def __init__(
        self,
        *,
        plan: Plan,
        traffic: TrafficStore,
        gate: GateStore,
        reader: StoreReader,
        transport: Transport,
        clock: Clock,
        poke: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._watched = [program for program in plan.programs.values() if program.feedback is not None]
        self._traffic = traffic
        self._gate = gate
        self._reader = reader
        self._transport = transport
        self._clock = clock
        self._poke = poke
        self._loads: dict[str, Load] = {}
        self._untold: set[tuple[str, bool]] = set()
        """The handlers, and whether they are behind, of which an error was logged: each second it would be the same."""
        self._looks = 0

    async def run(self) -> None:
        """For ever."""
        while self._watched:
            try:
                await self.look()
            except (StoreError, TransportError) as error:
                _log.debug("%s", error)  # who works with them says so
            except Exception:  # whatever it is, later lags must be told
                _log.exception("internal error, please report it")
            await asyncio.sleep(LOOK_S)

    def retry_after_s(self, handler: str) -> float | None:
        """After how long its producers should try again, if it is behind: when it will have caught up, at its present
        rate."""
        load, program = self._loads.get(handler), self._plan.programs.get(handler)
        if load is None or not load.is_high or program is None or program.feedback is None:
            return None
        rate = min(load.rate, _most_a_second(program))
        wait_s = (load.lag - program.feedback.below) / rate if rate else LONGEST_WAIT_S
        return float(math.ceil(min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, wait_s))))

    async def look(self) -> None:
        """Look once, and tell what has changed. Raises StoreError, TransportError."""
        high = set(await self._traffic.pressures())
        for program in self._watched:
            assert program.feedback is not None
            known = self._loads.get(program.name, Load())
            self._loads[program.name] = replace(known, lag=await self._lag(program), is_high=program.name in high)
            await self._tell(program, program.feedback)
        if self._looks % RATE_EVERY == 0:
            await self._measure(high)
        self._looks += 1

    async def _lag(self, program: Program) -> int:
        lag = await self._transport.depth([program.queue]) if program.is_served else 0
        return lag + (0 if program.gate is None else await self._gate.waiting(program.name, program.gate.most))

    async def _measure(self, high: Collection[str]) -> None:
        """The rates of those that are behind: only then they matter, and all of the last runs are counted."""
        if not self._loads.keys() & set(high):
            return
        figures = await self._reader.figures(self._clock.now() - timedelta(seconds=WINDOW_S))
        for name in figures.keys() & self._loads.keys():
            self._loads[name] = replace(self._loads[name], rate=figures[name].begun / WINDOW_S)

    async def _tell(self, program: Program, feedback: Feedback) -> None:
        """Tell its producers, if it is behind by now, or is no more."""
        was_high, lag = self._loads[program.name].is_high, self._loads[program.name].lag
        is_high = lag > feedback.above or (was_high and lag >= feedback.below)
        if is_high is was_high:
            return
        if is_high:
            await self._measure([program.name])
        load = self._loads[program.name] = replace(self._loads[program.name], is_high=is_high)
        state = "high" if is_high else "normal"
        data = {"handler": program.name, "state": state, "lag": lag, "rate": round(load.rate, 3)}
        emitter = Emitter(project=self._plan.project, source=f"/flowrun/{self._plan.project}/{program.flow}")
        try:
            event = build(self._plan.events[feedback.event], data, emitter, rfc3339(self._clock.now()))
        except (PayloadError, ExpressionError) as error:
            if (program.name, is_high) not in self._untold:
                _log.error("%s cannot be published for %s: %s", feedback.event, program.name, error)
            self._untold.add((program.name, is_high))
            return
        self._untold.discard((program.name, is_high))
        if await self._traffic.tell(program.name, is_high, *event):
            _log.warning("%s is %s: %d messages lie before it", program.name, _WORDS[is_high], lag)
            self._poke()


def _most_a_second(program: Program) -> float:
    """How many of its runs begin, whatever comes."""
    throttle = None if program.gate is None else program.gate.throttle
    return math.inf if throttle is None or throttle.key is not None else throttle.limit / throttle.period_s


_WORDS = {True: "behind", False: "no more behind"}
