"""FR109, FR110: a schedule's cron expression and time zone are ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from runner.diagnostics import Diagnostic, did_you_mean, respelt
from runner.lang.declare import ScheduleDecl
from runner.lang.project import Declarations

_ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def check(project: Declarations) -> Iterator[Diagnostic]:
    """Times that never come, or that are none."""
    # What only they need is imported below, for them: most projects have none.
    for flow in project.flows:
        for schedule in flow.schedules:
            yield from _cron(schedule)
            yield from _timezone(schedule)


def _cron(schedule: ScheduleDecl) -> Iterator[Diagnostic]:
    from cronsim import CronSim, CronSimError

    node = schedule.cron
    if node is None or not isinstance(node.value, str):
        return
    help = 'five fields: minute, hour, day of the month, month, day of the week; for example "0 2 * * *"'
    if len(node.value.split()) != 5:
        summary = f'"{node.value}" is no cron expression'
        yield Diagnostic(code="FR109", summary=summary, span=node.span, help=help)
        return
    try:
        next(CronSim(node.value, _ANY_TIME))
    except CronSimError as error:
        summary = f'"{node.value}" is no cron expression: {str(error).lower()}'
        yield Diagnostic(code="FR109", summary=summary, span=node.span, help=help)
    except StopIteration:
        yield Diagnostic(code="FR109", summary=f'"{node.value}" never comes', span=node.span)


def _timezone(schedule: ScheduleDecl) -> Iterator[Diagnostic]:
    from zoneinfo import ZoneInfo, available_timezones

    node = schedule.timezone
    if node is None or not isinstance(node.value, str):
        return
    try:
        ZoneInfo(node.value)
    except (KeyError, ValueError, OSError):
        help = did_you_mean(node.value, available_timezones()) or "an IANA name, for example Europe/Berlin"
        summary = f'there is no time zone "{node.value}"'
        fix = respelt(node, node.value, available_timezones())
        yield Diagnostic(code="FR110", summary=summary, span=node.span, help=help, fix=fix)
