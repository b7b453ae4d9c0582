"""Circuit breakers: what keeps failing is not tried for a while, by no process; then one attempt is let through
(https://martinfowler.com/bliki/CircuitBreaker.html).

What is known of them is in the store, and looked at every second; an attempt costs nothing while all are closed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Literal

from runner.errors import StoreError
from runner.message import Meta, encode_json, new_id
from runner.outcome import Done, Failed
from runner.plan import Program, Send, Use
from runner.ports import Clock, TrafficStore
from runner.records import Circuit, EventRecord
from runner.times import format_duration, parse_time, rfc3339

OPENED, CLOSED = "flowrun.circuit.opened", "flowrun.circuit.closed"
"""The events of the log that tell of it."""
PROBE_S = 10.0
"""So much longer than its timeout a probe is waited for: its process may have died."""
MISSED_S = 10.0
"""After so long nobody is expected to try who might."""
PAUSE_S = 1.0

_log = logging.getLogger("flowrun.circuit")
State = Literal["closed", "open", "probed", "half_open"]


class Breakers:
    """The circuits of a project, as this process knows them."""

    def __init__(self, store: TrafficStore, clock: Clock, *, project: str) -> None:
        self._store = store
        self._clock = clock
        self._project = project
        self._known: Mapping[str, Circuit] = {}
        self._probed: set[str] = set()
        """The circuits that let an attempt of ours through, which is not over."""

    async def look(self) -> None:
        """Learn what other processes have met. Raises StoreError."""
        self._known = await self._store.circuits()

    def state(self, program: Program) -> State:
        """Of a program's circuits: while one is open none of its runs may try, nor while it is being probed, which may
        be over at any moment; half-open, one may."""
        now = rfc3339(self._clock.now())
        missed = rfc3339(self._clock.now() - timedelta(seconds=MISSED_S))
        known = [self._known[name] for name in circuits_of(program) if name in self._known]
        # Where nobody tries though he may, no run is at such a step; the rest need not pass one by one for that.
        found = [circuit for circuit in known if max(circuit.open_until, circuit.probe_until or "") > missed]
        if not found:
            return "closed"
        if any(circuit.open_until > now for circuit in found):
            return "open"
        return "probed" if any(circuit.lets_in_at(now) > now for circuit in found) else "half_open"

    def retry_after_s(self, program: Program) -> float | None:
        """How long one of its circuits is still open; None if none is."""
        now = self._clock.now()
        found = [self._known[name] for name in circuits_of(program) if name in self._known]
        until = max((circuit.open_until for circuit in found), default="")
        return (parse_time(until) - now).total_seconds() if until > rfc3339(now) else None

    async def closed_until(self, program: Program, step: Use | Send) -> datetime | None:
        """Until when an attempt must wait; None if it may begin. If it may as a probe, nobody else may meanwhile."""
        name = _circuit_of(program, step)
        circuit = None if name is None else self._known.get(name)
        if name is None or circuit is None:
            return None
        now = self._clock.now()
        if circuit.open_until > rfc3339(now):
            return parse_time(circuit.open_until)
        if circuit.lets_in_at(rfc3339(now)) > rfc3339(now):
            return now + timedelta(seconds=PAUSE_S)  # the probe may be over long before it must be
        probe_until = now + timedelta(seconds=step.timeout_s + PROBE_S)
        try:
            if await self._store.probe(name, now, probe_until):
                self._probed.add(name)
                _log.info("the circuit of %s lets one attempt through", name)
                await self.look()
                return None
            await self.look()
        except StoreError as error:
            _log.warning("%s", error)
        return now + timedelta(seconds=PAUSE_S)

    async def note(self, program: Program, step: Use | Send, outcome: Done | Failed) -> None:
        """An attempt is over. What is not retryable was answered all the same. One that was cut short says nothing,
        but that another must be let through in its place, if it was."""
        name = _circuit_of(program, step)
        if name is None:
            return
        was_probe = name in self._probed
        self._probed.discard(name)
        is_cut_short = isinstance(outcome, Failed) and outcome.over is not None
        if is_cut_short and not was_probe:
            return
        try:
            if isinstance(outcome, Failed) and (is_cut_short or outcome.error.retryable):
                await self._failed(name, program, outcome)
            elif name in self._known:
                await self._succeeded(name)
        except StoreError as error:  # the run's own commit will wait for it
            _log.warning("%s; an attempt is not counted", error)

    async def _failed(self, name: str, program: Program, failure: Failed) -> None:
        breaker, now = program.breaker, self._clock.now()
        assert breaker is not None
        until = rfc3339(now + timedelta(seconds=breaker.pause_s))
        told = {"circuit": name, "until": until, "error": failure.error.type}
        is_open = await self._store.failed(name, breaker, now, self._event(OPENED, name, told))
        if not is_open:
            return
        if name not in self._known:
            times = "a failure" if breaker.failures == 1 else f"{breaker.failures} failures"
            within, last = format_duration(breaker.period_s), failure.error.type
            _log.warning("the circuit of %s opens: %s within %s, the last %s", name, times, within, last)
        await self.look()

    async def _succeeded(self, name: str) -> None:
        if await self._store.succeeded(name, self._event(CLOSED, name, {"circuit": name})):
            _log.warning("the circuit of %s closes", name)
        await self.look()

    def _event(self, kind: str, name: str, data: Mapping[str, object]) -> EventRecord:
        ident = new_id()
        meta = Meta(
            id=ident,
            type=kind,
            source=f"/flowrun/{self._project}",
            subject=f"circuit/{name}",
            time=rfc3339(self._clock.now()),
            correlation_id=ident,
            causation_id=None,
        )
        return EventRecord(meta=meta, data=encode_json(data))


def circuits_of(program: Program) -> Collection[str]:
    """The names of a program's circuits: its own, or those of the plugins that its steps use."""
    if program.breaker is None:
        return ()
    if not program.breaker.per_plugin:
        return (f"handler {program.name}",)
    return {f"plugin {step.handler}": None for step in program.every.values() if isinstance(step, Use)}


def _circuit_of(program: Program, step: Use | Send) -> str | None:
    if program.breaker is None:
        return None
    if not program.breaker.per_plugin:
        return f"handler {program.name}"
    return f"plugin {step.handler}" if isinstance(step, Use) else None
