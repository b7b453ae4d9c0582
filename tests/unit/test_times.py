"""Durations of flow files, and times of messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.times import format_duration, parse_duration_s, parse_time, rfc3339


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("5s", 5), ("1h30m", 5400), ("7d", 604800), ("2w", 1209600), ("1.5s", 1.5), ("0s", 0), ("1d12h",
     129600),
     ("1m500ms", 60.5), ("PT1H30M", 5400), ("PT0.5S", 0.5), ("P1D", 86400), ("P1DT2H", 93600), ("P2W", 1209600),
     ("PT0S", 0)],
)  # fmt: skip
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "5 s", " 5s", "5s ", "-5s", "1x", "1h30", "P", "PT", "P1DT", "P1H", "P1Y", "P1M",
    "PT5S1M", "pt5s",
             "5S", "1e3s", "5s\n", "5,5s", "１s"],
)  # fmt: skip
def test_what_is_no_duration_is_none(text: str) -> None:
    assert parse_duration_s(text) is None


@given(st.text("PTWDHMS0123456789.hmsdw", max_size=12) | st.text(max_size=5))
def test_any_text_is_a_duration_or_none(text: str) -> None:
    seconds = parse_duration_s(text)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.85, "850 ms"),
        (1.5, "1.5 s"),
        (130, "2m 10s"),
        (11100, "3h 05m"),
        (60, "1m 00s"),
        (3599, "59m 59s"),
    ],
)
def test_a_duration_is_shown_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_moment_is_shown_in_utc_with_milliseconds() -> None:
    moment = datetime(2026, 1, 1, 2, 3, 4, 567891, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(moment) == "2026-01-01T00:03:04.567Z"


@pytest.mark.parametrize(
    "text",
    ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000Z", "2026-01-01T02:00:00+02:00", "2025-12-31T23:00:00-01:00",
     "2026-01-01T00:00:00.000000001Z"],
)  # fmt: skip
def test_an_rfc_3339_time_is_read_as_utc(text: str) -> None:
    moment = parse_time(text)
    assert moment == datetime(2026, 1, 1, tzinfo=UTC)
    assert moment.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-01", "2026-01-01T00:00:00", "noon", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
     "9999-12-31T23:59:59-14:00"],
)  # fmt: skip
def test_what_is_no_time_or_bears_no_offset_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text)


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)))
def test_what_is_shown_is_read_back(moment: datetime) -> None:
    assert abs((parse_time(rfc3339(moment)) - moment).total_seconds()) < 0.001
