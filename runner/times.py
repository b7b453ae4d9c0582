"""Durations as flow files write them, and times as messages do (RFC 3339, UTC)."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SHORT = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+", re.ASCII)
_SHORT_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)
_ISO = re.compile(
    r"P(?:(?P<w>\d+)W)?(?:(?P<d>\d+(?:\.\d+)?)D)?"
    r"(?:T(?=\d)(?:(?P<h>\d+(?:\.\d+)?)H)?(?:(?P<m>\d+(?:\.\d+)?)M)?(?:(?P<s>\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)


def parse_duration_s(text: str) -> float | None:
    """Seconds of `200ms`, `5s`, `1h30m`, `7d` or ISO 8601 `PT1H30M`; None if it is no duration."""
    if _SHORT.fullmatch(text):
        return sum(float(number) * _UNIT_S[unit] for number, unit in _SHORT_PART.findall(text))
    match = _ISO.fullmatch(text)
    if match is None or not any(match.groupdict().values()):
        return None
    return sum(float(number) * _UNIT_S[unit] for unit, number in match.groupdict().items() if number)


def format_duration(seconds: float) -> str:
    """A duration for people: `850 ms`, `1.5 s`, `2m 10s`, `3h 05m`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m"


def rfc3339(moment: datetime) -> str:
    """`2026-11-23T05:33:00.123Z`: UTC, milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """The UTC datetime of an RFC 3339 text. Raises ValueError if it is none or bears no offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f'"{text}" has no time zone')
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f'"{text}" lies before the year 1 or after the year 9999') from None
