"""A flow around the steps under test, and a service that does what the test told it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from textwrap import dedent, indent
from typing import Any

from runner.errors import TerminalError
from runner.handler import Context, handler
from runner.ports import Store
from runner.records import Change
from runner.testing import FakeClock, FlowKit, KitRun

HEAD = """\
flow: f
uses: {env: [REGION], secrets: [TOKEN]}
events:
  go: {external: true, schema: {}}
  told: {schema: {}}
  counted: {schema: {type: object, required: [n], properties: {n: {type: integer}}}, subject: "n/{{ event.n }}"}
  numbered: {schema: {}, subject: "{{ event.n }}"}
  answer: {external: true, schema: {}}
  withdrawal: {external: true, schema: {}}
routes:
  - {on: go, to: h}
handlers:
  h:
"""


def flow(body: str) -> str:
    """A flow file with one handler `h` of this body; the event `go` leads to it."""
    return HEAD + indent(dedent(body).strip("\n"), "    ") + "\n"


@dataclass(frozen=True)
class Call:
    """One call of `act`."""

    what: str
    fields: dict[str, Any]
    key: str
    attempt: int


@dataclass
class Service:
    """`use: act` with `what` and any other fields returns `{what, …fields}`, unless told otherwise.

    `answers[what]` are given one a call, the last one for ever: exceptions are raised, functions called (and what
    they give awaited), other values returned.
    """

    answers: dict[str, list[Any]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers = {what: list(answers) for what, answers in self.answers.items()}

    @property
    def done(self) -> list[str]:
        """What was asked for, in order."""
        return [call.what for call in self.calls]

    def fails(self, what: str, type: str = "broken") -> None:
        """Let it fail for good."""
        self.answers[what] = [TerminalError(type)]

    def handlers(self) -> Iterable[Callable[..., Any]]:
        """`act`, bound to this service."""

        @handler("act")
        async def act(ctx: Context, *, what: str, **fields: Any) -> Any:
            self.calls.append(Call(what, fields, ctx.idempotency_key, ctx.attempt))
            answers = self.answers.get(what)
            if not answers:
                return {"what": what, **fields}
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, BaseException):
                raise answer
            given = answer() if callable(answer) else answer
            return await given if inspect.isawaitable(given) else given

        return [act]

    def kit(self, body: str, **options: Any) -> FlowKit:
        """The kit for a handler of this body."""
        options.setdefault("env", {"REGION": "north"})
        options.setdefault("secrets", {"TOKEN": "s3cret"})
        return FlowKit(flow(body), self.handlers(), **options)


@dataclass
class Gate:
    """An answer of `act` that says that it has been asked, and then keeps its caller waiting until it is opened."""

    output: Any = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self) -> Any:
        self.entered.set()
        await self.opened.wait()
        return self.output


class Crash(BaseException):
    """The process died."""


@dataclass
class CrashingStore:
    """The real store, in a process that dies at some of its commits: (number, "before" or "after")."""

    store: Store
    at: set[tuple[int, str]]
    count: int = 0

    async def commit(self, change: Change) -> bool:
        self.count += 1
        number = self.count
        if (number, "before") in self.at:
            raise Crash
        result = await self.store.commit(change)
        if (number, "after") in self.at:
            raise Crash
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def undoable(name: str, more: str = "", undo: str = "") -> str:
    """A step that does `name`, and `undo_<name>` if the run fails; `more` and `undo` are keys of the two."""
    step = f"id: {name}, use: act, with: {{what: {name}}}, {more}".rstrip(", ")
    back = f"use: act, with: {{what: undo_{name}}}, {undo}".rstrip(", ")
    return f"{{{step}, compensate: {{{back}}}}}"


async def run(body: str, payload: Any = None, service: Service | None = None, **options: Any) -> KitRun:
    """Run a handler of this body to its end, in virtual time."""
    async with (service or Service()).kit(body, **options) as kit:
        begun = await kit.send("go", {} if payload is None else payload)
        assert begun is not None
        return await kit.finish(begun.stored.started.run_id)


def since(clock: FakeClock, run: KitRun) -> float:
    """Seconds from now to when a parked run is due."""
    from runner.times import parse_time

    assert run.stored.due_at is not None
    return (parse_time(run.stored.due_at) - clock.now()).total_seconds()


async def until(condition: Callable[[], object]) -> None:
    """Return once it holds, when the other tasks have had their turns."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 a poll
            await asyncio.sleep(0)
