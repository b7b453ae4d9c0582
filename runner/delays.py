"""What a retry policy comes to: the delay after each attempt, and when attempts happen, told before any does. Pure:
chance is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt, in seconds from the beginning of the first: the delay before it and its beginning, each at least and
    at most, and its latest end."""

    number: int
    delay_s: tuple[float, float]
    begins_s: tuple[float, float]
    ends_s: float


def attempts(policy: RetryPolicy, timeout_s: float) -> Iterator[Attempt]:
    """The attempts of a step whose every attempt fails in a way that is retried; without end if they are unlimited.

    The earliest: each fails at once, and the draws of jitter are the lowest. The latest: each fails by its timeout, and
    the draws are the highest. A plugin's `retry_after_s` can only prolong a delay.
    """
    last = Attempt(number=1, delay_s=(0.0, 0.0), begins_s=(0.0, 0.0), ends_s=timeout_s)
    limit_s = math.inf if policy.max_duration_s is None else policy.max_duration_s
    while True:
        yield last
        if policy.max_attempts is not None and last.number >= policy.max_attempts:
            return
        low, high = _delay_s(policy, last.number, 0.0), _delay_s(policy, last.number, 1.0)
        earliest, latest = last.begins_s[0] + low, min(last.ends_s + high, limit_s)
        if earliest > limit_s:
            return
        last = Attempt(
            number=last.number + 1, delay_s=(low, high), begins_s=(earliest, latest), ends_s=latest + timeout_s
        )


def _delay_s(policy: RetryPolicy, attempt: int, draw: float) -> float:
    return min(LONGEST_S, next_delay_s(policy, attempt, lambda: draw))
