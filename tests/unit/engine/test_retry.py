"""LANGUAGE §4, Retry: when a failed attempt is repeated."""

from __future__ import annotations

import math

import pytest
from acting import Service, run, since
from hypothesis import given
from hypothesis import strategies as st

from runner.delays import next_delay_s
from runner.engine.retry import delay_before_next, matches
from runner.errors import RetryableError, TerminalError
from runner.outcome import Failed
from runner.plan import Jitter, RetryPolicy
from runner.records import AttemptFailed, Error, RunState
from runner.testing import FakeClock


def policy(**changes: object) -> RetryPolicy:
    return RetryPolicy(**{"delay_s": 1.0, "max_delay_s": 60.0, "jitter": "none", **changes})  # type: ignore[arg-type]


def failure(type: str = "http.503", *, retryable: bool = True, after_s: float | None = None) -> Failed:
    return Failed(Error(type=type, message="", retryable=retryable), after_s)


def never() -> float:
    raise AssertionError("no chance is drawn")


def delays(policy: RetryPolicy, count: int) -> list[float]:
    return [next_delay_s(policy, attempt, never) for attempt in range(1, count + 1)]


def test_constant_backoff_waits_d_each_time() -> None:
    assert delays(policy(backoff="constant", delay_s=2.0), 4) == [2, 2, 2, 2]


def test_linear_backoff_waits_d_times_n() -> None:
    assert delays(policy(backoff="linear", delay_s=2.0), 4) == [2, 4, 6, 8]


def test_exponential_backoff_waits_d_times_multiplier_to_the_n_minus_one() -> None:
    assert delays(policy(backoff="exponential", multiplier=3.0), 4) == [1, 3, 9, 27]


def test_backoff_is_exponential_by_two_with_full_jitter_by_default() -> None:
    assert [next_delay_s(RetryPolicy(), n, lambda: 1.0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("backoff", ["constant", "linear", "exponential"])
def test_no_delay_is_above_max_delay(backoff: str) -> None:
    assert next_delay_s(policy(backoff=backoff, delay_s=7.0, max_delay_s=5.0), 9, never) == 5


def test_full_jitter_draws_from_zero_to_the_delay() -> None:
    full = policy(backoff="constant", delay_s=8.0, jitter="full")
    assert [next_delay_s(full, 1, lambda r=r: r) for r in (0.0, 0.25, 1.0)] == [0, 2, 8]


def test_full_jitter_draws_below_max_delay() -> None:
    assert next_delay_s(policy(delay_s=100.0, max_delay_s=10.0, jitter="full"), 1, lambda: 0.5) == 5


def test_ranged_jitter_is_added_above_max_delay_too() -> None:
    ranged = policy(backoff="constant", delay_s=100.0, max_delay_s=10.0, jitter=Jitter(low_s=1.0, high_s=3.0))
    assert [next_delay_s(ranged, 1, lambda r=r: r) for r in (0.0, 0.5, 1.0)] == [11, 12, 13]


def test_first_try_counts_among_the_attempts() -> None:
    three = policy(max_attempts=3)
    assert [delay_before_next(three, failure(), n, 0, never) for n in (1, 2, 3)] == [1, 2, None]


def test_one_attempt_is_never_repeated() -> None:
    assert delay_before_next(policy(max_attempts=1), failure(), 1, 0, never) is None


def test_unlimited_attempts_go_on_and_do_not_overflow() -> None:
    unlimited = policy(max_attempts=None, multiplier=10.0)
    assert delay_before_next(unlimited, failure(), 1_000_000, 1e9, never) == 60


def test_no_attempt_begins_after_max_duration() -> None:
    timed = policy(backoff="constant", delay_s=10.0, max_duration_s=30.0)
    assert delay_before_next(timed, failure(), 1, 20.0, never) == 10
    assert delay_before_next(timed, failure(), 1, 20.1, never) is None


def test_errors_that_are_not_retryable_are_not_repeated() -> None:
    assert delay_before_next(policy(), failure(retryable=False), 1, 0, never) is None


def test_on_narrows_what_is_retried() -> None:
    only = policy(on=("timeout", "http.*"))
    assert delay_before_next(only, failure("http.503"), 1, 0, never) == 1
    assert delay_before_next(only, failure("timeout"), 1, 0, never) == 1
    assert delay_before_next(only, failure("internal"), 1, 0, never) is None


def test_on_does_not_make_an_error_retryable() -> None:
    assert delay_before_next(policy(on=("http.*",)), failure(retryable=False), 1, 0, never) is None


def test_except_takes_out_of_what_on_names() -> None:
    narrowed = policy(on=("http.*",), except_=("http.429",))
    assert delay_before_next(narrowed, failure("http.503"), 1, 0, never) == 1
    assert delay_before_next(narrowed, failure("http.429"), 1, 0, never) is None


@pytest.mark.parametrize(
    ("type", "pattern", "fits"),
    [
        ("timeout", "timeout", True),
        ("timeouts", "timeout", False),
        ("http.503", "http.*", True),
        ("http.connection.reset", "http.*", True),
        ("http", "http.*", False),
        ("https.503", "http.*", False),
        ("http.503", "http", False),
    ],
)
def test_types_match_exactly_or_by_family(type: str, pattern: str, fits: bool) -> None:
    assert matches(type, (pattern,)) is fits


def test_retry_after_is_the_least_delay() -> None:
    assert delay_before_next(policy(), failure(after_s=30.0), 1, 0, never) == 30
    assert delay_before_next(policy(delay_s=40.0), failure(after_s=30.0), 1, 0, never) == 40


def test_retry_after_may_be_longer_than_max_delay() -> None:
    assert delay_before_next(policy(max_delay_s=5.0), failure(after_s=600.0), 1, 0, never) == 600


def test_a_retry_after_beyond_max_duration_ends_the_retries() -> None:
    assert delay_before_next(policy(max_duration_s=60.0), failure(after_s=61.0), 1, 0, never) is None


policies = st.builds(
    RetryPolicy,
    max_attempts=st.none() | st.integers(1, 100),
    delay_s=st.floats(0, 1e12),
    backoff=st.sampled_from(["constant", "linear", "exponential"]),
    multiplier=st.floats(1, 1e308) | st.integers(1, 10**400).map(lambda n: min(n, 10**300)),
    max_delay_s=st.floats(0, 1e15),
    jitter=st.sampled_from(["none", "full"]) | st.builds(Jitter, low_s=st.floats(0, 10), high_s=st.floats(10, 100)),
    max_duration_s=st.none() | st.floats(0, 1e9),
)


@given(policies, st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_every_delay_lies_between_zero_and_max_delay_and_its_jitter(p: RetryPolicy, attempt: int, r: float) -> None:
    delay = next_delay_s(p, attempt, lambda: r)
    assert math.isfinite(delay)
    top = p.jitter.high_s if isinstance(p.jitter, Jitter) else 0
    assert 0 <= delay <= p.max_delay_s + top


@given(policies, st.integers(1, 10**6))
def test_delays_never_shrink_without_jitter(p: RetryPolicy, attempt: int) -> None:
    still = RetryPolicy(
        delay_s=p.delay_s, backoff=p.backoff, multiplier=p.multiplier, max_delay_s=p.max_delay_s, jitter="none"
    )
    assert next_delay_s(still, attempt, never) <= next_delay_s(still, attempt + 1, never)


@given(policies, st.integers(1, 200), st.floats(0, 1e9), st.none() | st.floats(0, 1e300))
def test_a_decision_keeps_every_limit_of_its_policy(p: RetryPolicy, n: int, elapsed: float, after: float) -> None:
    delay = delay_before_next(p, failure(after_s=after), n, elapsed, lambda: 0.5)
    if delay is None:
        return
    assert 0 <= delay <= 20 * 365 * 86400, "a moment that the calendar has"
    assert p.max_attempts is None or n < p.max_attempts
    assert p.max_duration_s is None or elapsed + delay <= p.max_duration_s


# --- in a run


async def test_a_retryable_error_is_repeated_under_one_key_with_the_same_values() -> None:
    service = Service({"pay": [RetryableError("busy"), RetryableError("busy"), {"paid": True}]})
    done = await run(
        """
        steps:
          - {id: pay, use: act, with: {what: pay, at: "{{ now() }}", id: "{{ uuid() }}", of: "{{ event.id }}"}}
        """,
        {"id": 7},
        service,
    )
    assert done.state is RunState.COMPLETED
    assert [call.attempt for call in service.calls] == [1, 2, 3]
    assert len({call.key for call in service.calls}) == 1
    assert all(call.fields == service.calls[0].fields for call in service.calls)
    assert (done.steps["pay"].attempts, done.steps["pay"].output) == (3, {"paid": True})


async def test_a_waiting_retry_is_parked_in_the_store_until_it_is_due() -> None:
    clock = FakeClock()
    service = Service({"pay": [RetryableError("busy"), None]})
    async with service.kit("steps: [{use: act, with: {what: pay}, retry: {delay: 90s, max_delay: 5m}}]",
                           clock=clock) as kit:  # fmt: skip
        parked = await kit.send("go", {})
        assert parked is not None
        assert parked.state is RunState.WAITING
        assert since(clock, parked) == 90
        attempt = parked.stored.records[0]
        assert isinstance(attempt, AttemptFailed)
        assert (attempt.attempt, attempt.error.type, attempt.retry_at) == (1, "busy", parked.stored.due_at)
        assert (await kit.finish(parked.stored.started.run_id)).state is RunState.COMPLETED


async def test_the_last_attempt_fails_the_step_with_its_error() -> None:
    service = Service({"pay": [RetryableError("busy", "come again", None, queue=4)]})
    done = await run("steps: [{id: pay, use: act, with: {what: pay}}]", None, service)
    assert done.state is RunState.FAILED
    assert service.done == ["pay"] * 3, "three attempts by default"
    error = done.stored.error
    assert error is not None
    assert (error.type, error.message, error.retryable, error.details, error.step) == (
        "busy", "come again", True, {"queue": 4}, "pay",
    )  # fmt: skip


async def test_a_steps_retry_overrides_the_handlers_key_by_key() -> None:
    clock = FakeClock()
    body = """
        retry: {max_attempts: 2, delay: 7s, backoff: constant, jitter: none}
        steps:
          - {use: act, with: {what: a}, retry: {max_attempts: 3}, catch: [{do: []}]}
          - {use: act, with: {what: b}}
        """
    service = Service({"a": [RetryableError("busy")], "b": [RetryableError("busy")]})
    start = clock.now()
    await run(body, None, service, clock=clock)
    assert service.done == ["a"] * 3 + ["b"] * 2
    assert (clock.now() - start).total_seconds() == 21


async def test_a_retry_repeats_only_its_step() -> None:
    service = Service({"b": [RetryableError("busy"), None]})
    await run(
        "steps: [{use: act, with: {what: a}}, {use: act, with: {what: b}}, {use: act, with: {what: c}}]", None, service
    )
    assert service.done == ["a", "b", "b", "c"]


async def test_when_is_asked_once_not_again_before_a_retry() -> None:
    body = """
        steps:
          - set: {open: true}
          - {id: pay, use: act, when: "vars.open and now() < run.started_at | plus('1h')", with: {what: pay},
             retry: {delay: 2h, max_delay: 2h, jitter: none}}
        """
    service = Service({"pay": [RetryableError("busy"), None]})
    assert (await run(body, None, service)).steps["pay"].attempts == 2


async def test_unlimited_attempts_end_only_with_success() -> None:
    service = Service({"pay": [RetryableError("busy") for _ in range(40)] + [None]})
    done = await run("steps: [{use: act, with: {what: pay}, retry: {max_attempts: unlimited}}]", None, service)
    assert done.state is RunState.COMPLETED
    assert len(service.calls) == 41


async def test_max_duration_counts_from_the_first_attempt() -> None:
    clock = FakeClock()
    service = Service({"pay": [RetryableError("busy")]})
    start = clock.now()
    await run(
        """
        steps:
          - use: act
            with: {what: pay}
            retry: {max_attempts: unlimited, delay: 10s, backoff: constant, jitter: none, max_duration: 35s}
        """,
        None, service, clock=clock,
    )  # fmt: skip
    assert len(service.calls) == 4, "at 0, 10, 20 and 30 s"
    assert (clock.now() - start).total_seconds() == 30


@pytest.mark.parametrize("after_s", [1e18, math.inf, math.nan, -5.0, "soon"])
async def test_an_absurd_retry_after_does_no_harm(after_s: float) -> None:
    service = Service({"pay": [RetryableError("busy", "", after_s), None]})
    async with service.kit("steps: [{use: act, with: {what: pay}}]") as kit:
        parked = await kit.send("go", {})
        assert parked is not None
        assert parked.state is RunState.WAITING


async def test_terminal_errors_are_never_retried() -> None:
    service = Service({"pay": [TerminalError("no_money")]})
    await run("steps: [{use: act, with: {what: pay}, retry: {max_attempts: unlimited}}]", None, service)
    assert service.done == ["pay"]
