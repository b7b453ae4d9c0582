"""A thread that watches the event loop: says what blocks it, ends a process that is stuck, or whose parent died."""

from __future__ import annotations

import asyncio
import linecache
import logging
import os
import select
import sys
import threading
from pathlib import Path
from traceback import FrameSummary, StackSummary, walk_stack

TICK_S = 0.25
BLOCKED_TICKS = 4
"""By ticks and not by the clock: on a machine that is starved of time the watchdog ticks no faster than the loop."""
STUCK_S = 60.0
STUCK = 70
PARENT_GONE = 1

_log = logging.getLogger("flowrun.watchdog")
_OURS = str(Path(__file__).parent) + os.sep
_ASYNCIO = str(Path(asyncio.__file__).parent) + os.sep


class Watchdog:
    """Watches the loop that it is made on. `parent` is a pipe's end that becomes readable when the parent dies."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._answered = True
        self._missed = 0
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        while not self._loop.is_closed():
            if select.select([self._parent], [], [], TICK_S)[0]:
                os._exit(PARENT_GONE)
            self._tick()

    def _tick(self) -> None:
        if not self._answered:
            self._missed += 1
            if self._missed == BLOCKED_TICKS:
                self._report()
            if self._missed * TICK_S >= STUCK_S:
                _log.error("the event loop has been blocked for %g s: this process ends", STUCK_S)
                os._exit(STUCK)
            return
        if self._missed >= BLOCKED_TICKS:
            _log.warning("the event loop goes on, after about %.1f s", self._missed * TICK_S)
        self._missed = 0
        self._answered = False
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:
            return  # it is being closed

    def _answer(self) -> None:
        self._answered = True

    def _report(self) -> None:
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return
        linecache.checkcache()
        stack = StackSummary.extract(walk_stack(frame))
        stack.reverse()
        theirs = [entry for entry in stack if not entry.filename.startswith((_OURS, _ASYNCIO))]
        named = _named((theirs or stack)[-1])
        _log.warning(
            "the event loop is blocked by %s: nothing else runs meanwhile. Await, or write `def` for `async def`, "
            "which runs in a thread\n%s",
            named,
            "".join(StackSummary.from_list(stack[-12:]).format()).rstrip(),
        )


def _named(entry: FrameSummary) -> str:
    path = Path(entry.filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{entry.lineno}, in {entry.name}"
