"""Two states of a project → all that changed."""

from __future__ import annotations

from collections.abc import Iterator

from runner.lang.compile import Compilation
from runner.lang.evolution.changes import Change, Side
from runner.lang.evolution.messages import changed_messages
from runner.lang.evolution.names import changed_names


def compare(old: Side, new: Side, resumed: Compilation | None = None) -> Iterator[Change]:
    """All changes: of messages, of names, and what becomes of runs that began before. `resumed` are the old files with
    the plugins of the new ones; None if plugins were not looked at."""
    yield from changed_messages(old, new)
    yield from changed_names(old, new)
    if resumed is not None:
        yield from _stuck_runs(old, new, resumed)


def _stuck_runs(old: Side, new: Side, resumed: Compilation) -> Iterator[Change]:
    """A run ends by the plan that it began with: that must still compile, or the run is put down again and again."""
    stuck = tuple(
        program.name
        for program in old.plan.programs.values()
        if program.is_served and program.plan_hash not in new.plan.sources
    )
    for fault in resumed.diagnostics if stuck else ():
        if fault.is_error:
            yield Change(
                kind="run",
                name=", ".join(stuck),
                level="breaking",
                text=f"a run that began before cannot go on: {fault.code}, {fault.summary}",
                span=fault.span,
                in_old=True,
                hits=stuck,
            )
