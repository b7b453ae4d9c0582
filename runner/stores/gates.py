"""Who passes a gate: the same decision for every store, of what it has read in a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from runner.records import GateRules
from runner.stores.rows import Bucket

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A run that stands at the gate. `bucket` is "" if all of the handler share one, None if it needs no token."""

    run_id: str
    line: str | None
    is_ordered: bool
    slot: str | None
    bucket: str | None


@dataclass(slots=True)
class Decision:
    """What becomes of candidates. Those that are in none of the lists stay where they are, because nobody passes until
    `closed_until` (nanoseconds since 1970)."""

    let_in: list[Candidate] = field(default_factory=list)
    full: list[str] = field(default_factory=list)
    """Runs for whose slot there is no room."""
    timed: list[tuple[int, str]] = field(default_factory=list)
    """Runs that wait for a token, and until when."""
    left: list[str] = field(default_factory=list)
    """Slots that such runs leave to others."""
    buckets: dict[str, int] = field(default_factory=dict)
    """The buckets that tokens were taken from, as `full_at` (see `Bucket`)."""
    closed_until: int | None = None

    @property
    def has_opened(self) -> bool:
        """Others may step forward."""
        return bool(self.opened or self.left)

    @property
    def opened(self) -> list[str]:
        """Lines whose next may step forward: the one before has passed, and need not be final."""
        return [each.line for each in self.let_in if each.line is not None and not each.is_ordered]


def decide(
    candidates: Iterable[Candidate],
    rules: GateRules,
    now: datetime,
    *,
    running: Mapping[str, int],
    full_at: Mapping[str, int],
) -> Decision:
    """In the order of the candidates. `running` counts the runs by slot, `full_at` are the buckets that are there."""
    decision, taken = Decision(), dict(running)
    tokens = rules.tokens
    bucket = None if tokens is None else Bucket(tokens.limit, tokens.period_s, tokens.burst, now)
    for each in candidates:
        if each.slot is not None and rules.slots is not None and taken.get(each.slot, 0) >= rules.slots:
            decision.full.append(each.run_id)
            continue
        if each.bucket is not None and bucket is not None:
            known = decision.buckets.get(each.bucket, full_at.get(each.bucket, 0))
            before = bucket.bounded(known)
            after = bucket.take(before)
            if before != known:
                decision.buckets[each.bucket] = before
            if after is None and each.bucket == "":
                decision.closed_until = bucket.opens_at(before)
                break
            if after is None:
                decision.timed.append((bucket.opens_at(before), each.run_id))
                decision.left += [] if each.slot is None else [each.slot]
                continue
            decision.buckets[each.bucket] = after
        if each.slot is not None:
            taken[each.slot] = taken.get(each.slot, 0) + 1
        decision.let_in.append(each)
    return decision


def bucket_name(handler: str) -> str:
    """What the buckets of a handler's throttle are kept under."""
    return f"throttle {handler}"


def moment(nanoseconds: int) -> datetime:
    """Nanoseconds since 1970, as a time that is not before them."""
    return _EPOCH + timedelta(microseconds=-(-nanoseconds // 1000))
