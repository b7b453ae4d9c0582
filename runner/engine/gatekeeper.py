"""Lets runs in that wait at their handlers' gates, as far as there is room for them here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from itertools import count

from msgspec.structs import replace

from runner.errors import StoreError
from runner.plan import Program
from runner.ports import Clock, GateStore
from runner.records import GateRules, StoredRun, Tokens

POLL_S = 1.0
LOOK_FOR_OTHERS_EVERY = 60
MOST_AT_ONCE = 200

_log = logging.getLogger("flowrun.gate")


class Gatekeeper:
    """The one task of a process that lets runs in. `poke` it when one has come, is parked or has ended.

    `room` says how many runs of a handler may go on here now, `is_shut` that none may begin; `take_up` gets each that
    is let in, and owned.
    With `only_these`, runs of handlers that are not in `programs` are left to other processes.
    """

    def __init__(
        self,
        *,
        programs: Collection[Program],
        only_these: bool,
        gate: GateStore,
        clock: Clock,
        room: Callable[[str], int],
        is_shut: Callable[[str], bool],
        take_up: Callable[[StoredRun], None],
    ) -> None:
        self._rules = {program.name: rules_of(program) for program in programs if program.gate is not None}
        self._only_these = None if not only_these else {program.name for program in programs}
        self._gate = gate
        self._clock = clock
        self._room = room
        self._is_shut = is_shut
        self._take_up = take_up
        self._poked = asyncio.Event()
        self._next_at: dict[str, datetime] = {}

    def poke(self) -> None:
        """Somebody may be let in."""
        self._poked.set()

    async def run(self) -> None:
        """Let runs in, for ever."""
        for number in count():
            try:
                if number % LOOK_FOR_OTHERS_EVERY == 0:
                    await self._look_for_others(is_first=number == 0)
                for rules in list(self._rules.values()):
                    await self._let_in(rules)
            except StoreError as error:
                _log.error("%s", error)
            except Exception:  # whatever it is, later runs must be let in
                _log.exception("internal error, please report it")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._poked.wait()
            self._poked.clear()

    async def _let_in(self, rules: GateRules) -> None:
        room = min(MOST_AT_ONCE, self._room(rules.handler))
        self._next_at.pop(rules.handler, None)
        if room <= 0:
            return  # whoever ends makes room, and pokes
        rules = replace(rules, is_shut=self._is_shut(rules.handler))
        passed = await self._gate.admit(rules, self._clock.now(), room)
        for run in passed.runs:
            self._take_up(run)
        if passed.next_at is not None:
            self._next_at[rules.handler] = passed.next_at

    async def _look_for_others(self, *, is_first: bool) -> None:
        """Runs wait also at gates that the files have no more; nothing holds them up there. And there may be more
        slots and tokens than before."""
        for handler in await self._gate.gates():
            if handler not in self._rules and (self._only_these is None or handler in self._only_these):
                self._rules[handler] = GateRules(handler=handler)
            if is_first:
                await self._gate.open(handler)

    def _pause_s(self) -> float:
        """Other processes make room as well, and poke nobody here."""
        now = self._clock.now()
        return min([POLL_S, *(max(0.001, (each - now).total_seconds()) for each in self._next_at.values())])


def rules_of(program: Program) -> GateRules:
    """What holds at the gate of a program."""
    gate = program.gate
    throttle, slots = (None, None) if gate is None else (gate.throttle, gate.slots)
    return GateRules(
        handler=program.name,
        tokens=None
        if throttle is None
        else Tokens(limit=throttle.limit, period_s=throttle.period_s, burst=throttle.burst),
        slots=None if slots is None else slots.limit,
    )
