"""`flowrun explain retry HANDLER`: the timetable is that of the engine."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.explain import command
from runner.delays import attempts
from runner.engine.retry import delay_before_next
from runner.errors import NotFoundError
from runner.outcome import Failed
from runner.plan import Jitter, RetryPolicy
from runner.records import Error

FLOW = """\
flow: shop
events: {placed: {external: true}, paid: {external: true}}
commands: {charge: {external: true}}
routes: [{on: placed, to: fulfil}]
handlers:
  fulfil:
    timeout: 2h
    retry: {max_attempts: 3, delay: 2s, jitter: none}
    steps:
      - id: reserve
        use: log
        with: {message: reserve}
        timeout: 10s
        compensate: {use: log, with: {message: release}, timeout: 1s, retry: {max_attempts: unlimited}}
      - {id: charge, command: charge, timeout: 30s, irreversible: true}
      - {id: nap, wait: 1m}
      - {id: money, wait_for: {event: paid}}
      - id: both
        parallel:
          branches:
            long: [{use: log, with: {message: a}, timeout: 1m, retry: {max_attempts: 1}}]
            short: [{use: log, with: {message: b}, timeout: 1s, retry: {max_attempts: 1}}]
  other: {steps: [{stop: true}]}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "a.yaml").write_text(FLOW)
    return tmp_path


def explain(root: Path, *words: str) -> Result:
    return CliRunner().invoke(command, ["retry", *words, "-C", str(root)])


def test_each_attempt_has_its_earliest_and_latest_time() -> None:
    policy = RetryPolicy(max_attempts=3, delay_s=1.0, jitter=Jitter(low_s=1.0, high_s=3.0))
    assert [(a.number, a.delay_s, a.begins_s, a.ends_s) for a in attempts(policy, 10.0)] == [
        (1, (0.0, 0.0), (0.0, 0.0), 10.0),
        (2, (2.0, 4.0), (2.0, 14.0), 24.0),
        (3, (3.0, 5.0), (5.0, 29.0), 39.0),
    ]


def test_none_begins_after_max_duration() -> None:
    policy = RetryPolicy(max_attempts=None, delay_s=4.0, backoff="constant", jitter="none", max_duration_s=9.0)
    assert [(a.begins_s, a.ends_s) for a in attempts(policy, 3.0)] == [
        ((0.0, 0.0), 3.0),
        ((4.0, 7.0), 10.0),
        ((8.0, 9.0), 12.0),
    ]


POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.one_of(st.none(), st.integers(1, 6)),
    delay_s=st.floats(0, 10),
    backoff=st.sampled_from(["constant", "linear", "exponential"]),
    multiplier=st.floats(1, 5),
    max_delay_s=st.floats(0, 60),
    jitter=st.one_of(st.sampled_from(["none", "full"]), st.just(Jitter(low_s=1, high_s=2))),
    max_duration_s=st.one_of(st.none(), st.floats(0, 100)),
)


@given(policy=POLICIES, takes=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.999)), min_size=6, max_size=6))
def test_whatever_the_engine_does_is_within_the_timetable(
    policy: RetryPolicy, takes: list[tuple[float, float]]
) -> None:
    timeout_s, now, number = 20.0, 0.0, 1
    failure = Failed(error=Error(type="timeout", message="", retryable=True))
    table = list(islice(attempts(policy, timeout_s), 7))
    for share, draw in takes:
        attempt = table[number - 1]
        assert attempt.number == number
        assert attempt.begins_s[0] <= now + 1e-6
        assert now <= attempt.begins_s[1] + 1e-6
        now += share * timeout_s
        assert now <= attempt.ends_s + 1e-6
        delay = delay_before_next(policy, failure, number, now, lambda draw=draw: draw)
        if delay is None:
            return
        now, number = now + delay, number + 1


def test_the_text_shows_steps_undoing_and_the_whole(shop: Path) -> None:
    said = explain(shop, "fulfil").stdout
    assert (
        "reserve  use log\n  at most 3 attempts, exponential ×2 from 2 s, capped at 1m 00s, jitter none; each" in said
    )
    assert "  2        2 s               2 s              12 s     22 s\n" in said
    assert "reserve.compensate.1  undo of reserve: use log\n  tried without end" in said
    assert "… without end" in said
    assert "charge  command charge\n  once; each attempt within 30 s\n" in said
    assert "All steps, at the worst: 3m 06s.\n" in said  # 36 s of reserve, 30 s, 1m of nap, 1m of the longer branch
    assert "  money: wait_for paid has no length that is known beforehand\n" in said
    assert "The handler's timeout is 2h 00m, which is longer.\n" in said
    assert "Then undoing all of it, at the worst: without end.\n" in said


def test_json_says_the_same(shop: Path) -> None:
    said = json.loads(explain(shop, "shop.fulfil", "--json").stdout)
    assert said["worst_s"] == 186.0
    assert said["undoing_s"] is None
    assert said["not_counted"] == ["money"]
    assert said["steps"][0]["attempts"][1] == {
        "attempt": 2, "delay_s": [2.0, 2.0], "begins_s": [2.0, 12.0], "ends_s": 22.0
    }  # fmt: skip
    assert not math.isinf(said["timeout_s"])


def test_a_handler_that_there_is_not_is_answered_with_the_nearest(shop: Path) -> None:
    result = explain(shop, "shop.fulfill")
    assert isinstance(result.exception, NotFoundError)
    assert result.exception.hint == 'did you mean "shop.fulfil"?'
    assert explain(shop).exit_code == 2
