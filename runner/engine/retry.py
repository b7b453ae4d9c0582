"""Whether a failed attempt is repeated, and after which delay. Pure: no clock, no sleeping, chance is an argument."""

from __future__ import annotations

from runner.delays import LONGEST_S, Random, next_delay_s
from runner.outcome import Failed
from runner.plan import RetryPolicy


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
