"""When a failed attempt is repeated. Pure: no clock, no sleeping, chance is an argument."""

from __future__ import annotations

from collections.abc import Callable

from runner.outcome import Failed
from runner.plan import Jitter, RetryPolicy

Random = Callable[[], float]
"""Uniform in [0, 1)."""

LONGEST_S = 10 * 365 * 86400.0
"""No delay is longer, so that none leaves the calendar."""


def next_delay_s(policy: RetryPolicy, attempt: int, random: Random) -> float:
    """Seconds from a failed attempt (counted from 1) to the next.

    d, d·n or d·multiplier^(n-1), at most `max_delay_s`. `full` jitter draws from 0 to it (AWS Architecture
    Blog, "Exponential Backoff and Jitter"), a Jitter adds a draw from its range.
    """
    match policy.backoff:
        case "constant":
            delay = policy.delay_s
        case "linear":
            delay = policy.delay_s * attempt
        case "exponential":
            delay = _grown(policy, attempt)
    delay = min(delay, policy.max_delay_s)
    if isinstance(policy.jitter, Jitter):
        return delay + policy.jitter.low_s + random() * (policy.jitter.high_s - policy.jitter.low_s)
    return delay * random() if policy.jitter == "full" else delay


def _grown(policy: RetryPolicy, attempt: int) -> float:
    """d·multiplier^(n-1), also where unlimited attempts would overflow a float."""
    try:
        return policy.delay_s * float(policy.multiplier) ** (attempt - 1)
    except OverflowError:
        return policy.max_delay_s if policy.delay_s else 0.0


def matches(error_type: str, patterns: tuple[str, ...]) -> bool:
    """Whether an error's type is named: exactly, or by its family (`http.*`)."""
    return any(
        error_type == pattern or (pattern.endswith(".*") and error_type.startswith(pattern[:-1]))
        for pattern in patterns
    )


def delay_before_next(
    policy: RetryPolicy, failure: Failed, attempt: int, elapsed_s: float, random: Random
) -> float | None:
    """Seconds until the next attempt, or None if there is none.

    `elapsed_s` counts from the beginning of the first attempt.
    """
    error = failure.error
    if not error.retryable or failure.over is not None:
        return None
    if policy.on is not None and not matches(error.type, policy.on):
        return None
    if matches(error.type, policy.except_):
        return None
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        return None
    delay = min(LONGEST_S, max(next_delay_s(policy, attempt, random), failure.retry_after_s or 0.0))
    if policy.max_duration_s is not None and elapsed_s + delay > policy.max_duration_s:
        return None
    return delay
