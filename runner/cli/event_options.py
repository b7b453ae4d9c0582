"""Options that choose among the events of the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from runner.ports import AnyStore
from runner.records import EventFilter
from runner.times import parse_duration_s, parse_time, rfc3339
from runner.topics import topic_matches


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A time, or how long ago it was, as RFC 3339 in UTC."""
    if value is None:
        return None
    seconds = parse_duration_s(value)
    try:
        if seconds is not None:
            return rfc3339(datetime.now(UTC) - timedelta(seconds=seconds))
        return rfc3339(parse_time(value))
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f'"{value}" is neither a time like 2026-11-24T09:00:00Z nor a time ago like 1h or 7d'
        ) from None


def version_or_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """A version, or a moment."""
    if value is not None and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return moment(ctx, param, value)


_filters = [
    click.option("--type", "kind", help="Only of this type, or of those that fit a pattern like order.*"),
    click.option("--source", help="Only from this source."),
    click.option("--subject", help="Only about this subject."),
    click.option("--correlation", help="Only those that belong together by this correlation id."),
    click.option("--from", "since", callback=moment, help="Only from this time on (RFC 3339), or from 1h ago."),
    click.option("--to", "until", callback=moment, help="Only up to this time, or up to 1h ago."),
]


def filtered(function: Any) -> Any:
    """Options that choose among events."""
    for option in reversed(_filters):
        function = option(function)
    return function


def wanted_of(which: dict[str, str | None]) -> EventFilter:
    """What the options ask for; not yet the types, which may be a pattern."""
    return EventFilter(
        source=which["source"],
        subject=which["subject"],
        correlation_id=which["correlation"],
        since=which["since"],
        until=which["until"],
    )


async def types_of(store: AnyStore, kind: str | None) -> tuple[str, ...] | None:
    """The types that an option names: itself, or those in the log that fit the pattern."""
    if kind is None or not ("*" in kind or "#" in kind):
        return None if kind is None else (kind,)
    return tuple(name for name in await store.types() if topic_matches(kind, name))
