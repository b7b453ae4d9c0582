"""Worker processes: forked from one that does nothing else, restarted when they crash, gone when it is gone.

A child says by its pipe what it is at; one that ends without saying `done` has crashed. With `suspect` it says
which run it is alone with: if it dies then, that run is the culprit, and the next child is told so.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NoReturn

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
LONG_ENOUGH_S = 30.0
"""Whoever lived that long did not crash at once: the pauses begin anew."""
MOST_FALSE_STARTS = 3
STOPPED_AT_ONCE = 130
NEVER_STARTED = 70

_log = logging.getLogger("flowrun")
Kind = Literal["worker", "suspects"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What a child is to be, and how it reports. `parent` becomes readable when the parent has died."""

    kind: Kind
    number: int
    of: int
    is_first: bool
    """Nobody has been ready before it: what is wrong is wrong with the start."""
    culprits: tuple[str, ...]
    """The runs that the suspects' processes before this one died with."""
    dead: tuple[str, ...]
    """The stores' names of children that died."""
    parent: int
    report: int

    def tell(self, word: str, value: object = "") -> None:
        """Report a word: `owner NAME`, `ready`, `suspects`, `suspect RUN`, `done CODE`."""
        with suppress(BrokenPipeError):  # the parent has died, and so will we
            os.write(self.report, f"{word} {value}\n".encode())


@dataclass(slots=True, eq=False)
class _Child:
    post: Post
    pid: int
    reports: int
    started_at: float
    text: bytes = b""
    owner: str = ""
    suspect: str = ""
    done: int | None = None


@dataclass(slots=True)
class _Slot:
    """A place for one child, over its restarts."""

    kind: Kind
    number: int
    child: _Child | None = None
    crashes: int = 0
    due_at: float | None = None


@dataclass(slots=True)
class Supervisor:
    """Runs `main` in `workers` children until they are done, or until a signal; a second signal ends all at once.

    `main` returns an exit code. The supervisor's is the worst of its children's.
    """

    main: Callable[[Post], int]
    workers: int
    on_stop: Callable[[], None] = lambda: None
    """Called in this process when its children are asked to stop."""
    _slots: list[_Slot] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _culprits: list[str] = field(default_factory=list)
    _dead: list[str] = field(default_factory=list)
    _code: int = 0
    _signals: int = 0
    _stopping: bool = False
    _has_been_ready: bool = False
    _life: tuple[int, int] = (-1, -1)

    def run(self) -> int:
        """Start the first; once it is ready, the others. Returns the exit code."""
        self._life = os.pipe()
        self._listen_to_signals()
        self._slots.append(_Slot("worker", 1, due_at=time.monotonic()))
        while self._slots:
            self._start_due()
            self._hear()
            if self._signals:
                self._stop()
            self._reap()
            if not any(slot.kind == "worker" for slot in self._slots):
                self._stop_children()
        return self._code

    # --- children

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is None and slot.due_at is not None and slot.due_at <= now:
                slot.due_at, slot.child = None, self._fork(slot)

    def _fork(self, slot: _Slot) -> _Child:
        reports, report = os.pipe()
        post = Post(
            kind=slot.kind,
            number=slot.number,
            of=self.workers,
            is_first=not self._has_been_ready,
            culprits=tuple(self._culprits),
            dead=tuple(self._dead),
            parent=self._life[0],
            report=report,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be_child(post)
        os.close(report)
        os.set_blocking(reports, False)
        self._selector.register(reports, selectors.EVENT_READ, slot)
        if slot.kind == "suspects":
            self._culprits.clear()
        return _Child(post, pid, reports, time.monotonic())

    def _be_child(self, post: Post) -> NoReturn:
        code = NEVER_STARTED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, lambda *_: _leave(post))  # until the child's own loop listens to it
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all; the parent passes it on, once
            os.close(self._life[1])  # so that it is closed when the parent dies
            for slot in self._slots:
                if slot.child is not None:
                    os.close(slot.child.reports)
            self._selector.close()
            code = self.main(post)
        except BaseException:  # nothing may leave: we are a copy of the parent, in the middle of its work
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            post.tell("done", code)
            os._exit(code)

    def _hear(self) -> None:
        for key, _ in self._selector.select(self._until_due()):
            if isinstance(key.data, _Slot):
                self._read(key.data)
            else:
                os.read(key.fd, 4096)

    def _until_due(self) -> float | None:
        dues = [slot.due_at for slot in self._slots if slot.due_at is not None and slot.child is None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _read(self, slot: _Slot) -> None:
        child = slot.child
        if child is None:
            return
        try:
            text = os.read(child.reports, 65_536)
        except BlockingIOError:  # it is dead, and what it had forked holds the pipe open
            return
        *lines, child.text = (child.text + text).split(b"\n")
        for line in lines:
            word, _, value = line.decode().partition(" ")
            self._heard(slot, child, word, value)

    def _heard(self, slot: _Slot, child: _Child, word: str, value: str) -> None:
        match word:
            case "owner":
                child.owner = value
            case "ready":
                self._ready()
            case "suspects":
                self._want_suspects()
            case "suspect":
                child.suspect = value
            case "done":
                child.done = int(value)

    def _ready(self) -> None:
        if not self._has_been_ready:
            self._has_been_ready = True
            now = time.monotonic()
            self._slots += [_Slot("worker", number, due_at=now) for number in range(2, self.workers + 1)]

    def _want_suspects(self) -> None:
        slot = next((slot for slot in self._slots if slot.kind == "suspects"), None)
        if slot is None and not self._stopping:
            self._slots.append(_Slot("suspects", 0, due_at=time.monotonic()))
        elif slot is not None and slot.child is not None:
            slot.crashes = 0  # the present one may be about to end
            slot.due_at = time.monotonic()

    # --- the end of a child

    def _reap(self) -> None:
        for slot in list(self._slots):
            child = slot.child
            if child is None:
                if self._stopping:
                    self._slots.remove(slot)
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid != 0:
                self._read(slot)  # what it said last
                self._selector.unregister(child.reports)
                os.close(child.reports)
                slot.child = None
                self._ended(slot, child, os.waitstatus_to_exitcode(status))

    def _ended(self, slot: _Slot, child: _Child, code: int) -> None:
        if child.done is None:
            self._crashed(slot, child, code)
        elif child.done == 0 or self._stopping or not self._has_been_ready:
            self._code = max(self._code, child.done)
            if slot.due_at is None or self._stopping:
                self._slots.remove(slot)
            if child.done and not self._has_been_ready:
                self._stopping = True
        else:
            self._restart(slot, child)  # it has said why

    def _crashed(self, slot: _Slot, child: _Child, code: int) -> None:
        if child.owner:
            self._dead.append(child.owner)
        if child.suspect:
            self._culprits.append(child.suspect)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._stopping:
            self._code = max(self._code, 75)
            self._slots.remove(slot)
            return
        _log.error("a %s process died (%s)%s; another begins", slot.kind, how, _with_what(child))
        self._restart(slot, child)
        if not self._has_been_ready and slot.crashes >= MOST_FALSE_STARTS:
            _log.error("it never came to work: is it a plugin, when it is imported?")
            self._code = NEVER_STARTED
            self._slots.remove(slot)

    def _restart(self, slot: _Slot, child: _Child) -> None:
        now = time.monotonic()
        slot.crashes = 1 if now - child.started_at > LONG_ENOUGH_S else slot.crashes + 1
        pause_s = 0.0 if slot.crashes == 1 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (slot.crashes - 2))
        slot.due_at = now + pause_s

    # --- signals

    def _listen_to_signals(self) -> None:
        heard, said = os.pipe()
        os.set_blocking(heard, False)
        os.set_blocking(said, False)
        signal.set_wakeup_fd(said, warn_on_full_buffer=False)
        self._selector.register(heard, selectors.EVENT_READ, None)

        def count(number: int, _: object) -> None:
            self._signals += number != signal.SIGCHLD

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, count)

    def _stop(self) -> None:
        if self._signals > 1:
            sys.stderr.write("stopped at once\n")
            self._send(signal.SIGKILL)
            os._exit(STOPPED_AT_ONCE)
        if not self._stopping:
            _log.info("stopping: running steps end first; a second signal stops at once")
            self._stop_children()

    def _stop_children(self) -> None:
        if not self._stopping:
            self._stopping = True
            self.on_stop()
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.child is not None:
                os.kill(slot.child.pid, number)


def _leave(post: Post) -> NoReturn:
    """Asked to stop before anything was begun, or after all was done."""
    post.tell("done", 0)
    os._exit(0)


def _with_what(child: _Child) -> str:
    return f" with run {child.suspect}" if child.suspect else ""
