"""What the author of a handler plugin uses: the `@handler` mark and the `Context` of a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from datetime import datetime
    from logging import Logger

F = TypeVar("F", bound=Callable[..., Any])

MARK = "__flowrun_handler__"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerMark:
    """What `@handler` wrote on a function."""

    name: str
    effect: bool


def handler(name: str, *, effect: bool = True) -> Callable[[F], F]:
    """Mark a function as the handler that flows call as `use: name`.

    The function takes a `Context`, then keyword-only parameters, all annotated; `async def` runs on the event
    loop, `def` in a thread. `effect=False` says that it only reads, so that it needs no undoing.
    The mark registers nothing: flowrun finds marked functions in `plugins/*.py` and in installed packages.
    """

    if not isinstance(name, str):
        raise TypeError('a handler needs a name: write @handler("my.name")')

    def mark(function: F) -> F:
        setattr(function, MARK, HandlerMark(name=name, effect=effect))
        return function

    return mark


class ReadableProjections(Protocol):
    """The project's read models."""

    async def get(self, name: str, key: str | int | float, /) -> dict[str, Any] | None:
        """The entry of a projection under a key, as of now; None if there is none.

        Raises ValueError for what is no key, NotFoundError for a projection that nobody declares, NotReadyError while
        it is being built.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a handler may know of the call that it serves."""

    run_id: str
    step_id: str
    attempt: int
    """Counted from 1."""
    idempotency_key: str
    """The same for every attempt of this step in this run, also after a crash."""
    deadline: datetime | None
    """When this attempt's result will no longer be waited for (UTC)."""
    correlation_id: str
    logger: Logger
    projections: ReadableProjections | None = None
    """None outside of a project's runs, as in a test that calls a handler by itself."""
