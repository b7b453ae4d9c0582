"""What a handler says of its traffic: limits, order, priority, breaker, feedback."""

from __future__ import annotations

from collections.abc import Iterator

from runner.expressions import Evaluate, Scope, compile_value
from runner.lang.declare import HandlerDecl
from runner.lang.policies import duration_s
from runner.plan import Breaker, Feedback, Gate, RateLimit, Slots
from runner.source import MappingNode, Node, ScalarNode, plain

DEFAULT_CONCURRENCY = 100
DEFAULT_MOST = 10_000
DEFAULT_PERIOD_S = 60.0
DEFAULT_PAUSE_S = 30.0


def keys(handler: HandlerDecl) -> Iterator[tuple[str, ScalarNode]]:
    """The templates that are evaluated when a message arrives, and what each is called."""
    for place, what in (
        ("throttle", "the key of a throttle"),
        ("rate_limit", "the key of a rate limit"),
        ("concurrency", "the key of a concurrency"),
        ("idempotency", "an idempotency key"),
    ):
        node = _within(handler.body.get(place), "key")
        if isinstance(node, ScalarNode):
            yield what, node
    for place, what in (("partition_by", "a partition"), ("priority", "a priority")):
        node = handler.body.get(place)
        if isinstance(node, ScalarNode):
            yield what, node


def gate(handler: HandlerDecl) -> Gate | None:
    """What its runs wait for before they begin; None if nothing does."""
    body = handler.body
    slots, throttle = _slots(body.get("concurrency")), rate_limit(body.get("throttle"))
    partition, priority = _partition(body.get("partition_by")), body.get("priority")
    if all(each is None for each in (slots, throttle, partition, priority, body.get("queue"))):
        return None
    most = plain(_within(body.get("queue"), "max"))
    return Gate(
        partition=partition,
        slots=slots,
        throttle=throttle,
        priority=None if priority is None else compile_value(plain(priority)),
        most=most if isinstance(most, int) else DEFAULT_MOST,
        rejects=plain(_within(body.get("queue"), "on_full")) == "reject",
    )


def concurrency(handler: HandlerDecl) -> int:
    """How many of its runs a process has under way at once."""
    given = plain(handler.body.get("concurrency"))
    return given if isinstance(given, int) else DEFAULT_CONCURRENCY


def rate_limit(node: Node | None) -> RateLimit | None:
    """A `rate_limit` or a `throttle`."""
    if not isinstance(node, MappingNode):
        return None
    limit, burst, key = plain(node.get("limit")), plain(node.get("burst")), node.get("key")
    assert isinstance(limit, int)
    return RateLimit(
        limit=limit,
        period_s=duration_s(node.get("period")) or 1.0,
        burst=burst if isinstance(burst, int) else limit,
        key=None if key is None else compile_value(plain(key)),
    )


def drops(handler: HandlerDecl) -> bool:
    """Whether what is over its rate limit is forgotten, not refused."""
    return plain(_within(handler.body.get("rate_limit"), "on_exceed")) == "drop"


def breaker(handler: HandlerDecl) -> Breaker | None:
    """Its `circuit_breaker`."""
    node = handler.body.get("circuit_breaker")
    failures = plain(_within(node, "failures"))
    if not isinstance(failures, int):
        return None
    period_s, pause_s = duration_s(_within(node, "period")), duration_s(_within(node, "pause"))
    return Breaker(
        failures=failures,
        period_s=DEFAULT_PERIOD_S if period_s is None else period_s,
        pause_s=DEFAULT_PAUSE_S if pause_s is None else pause_s,
        per_plugin=plain(_within(node, "per")) == "plugin",
    )


def feedback(handler: HandlerDecl) -> Feedback | None:
    """Its `feedback`."""
    node = feedback_event(handler)
    above, below = lag(handler, "above"), lag(handler, "below")
    if node is None or above is None or below is None:
        return None
    return Feedback(event=str(node.value), above=int(str(above.value)), below=int(str(below.value)))


def feedback_event(handler: HandlerDecl) -> ScalarNode | None:
    """The name of the event that tells of its lag."""
    node = _within(handler.body.get("feedback"), "event")
    return node if isinstance(node, ScalarNode) else None


def lag(handler: HandlerDecl, side: str) -> ScalarNode | None:
    """The lag `above` or `below` which it is told."""
    node = _within(_within(handler.body.get("feedback"), side), "lag")
    return node if isinstance(node, ScalarNode) else None


def _within(node: Node | None, key: str) -> Node | None:
    return node.get(key) if isinstance(node, MappingNode) else None


def _slots(node: Node | None) -> Slots | None:
    limit, key = plain(_within(node, "limit")), _within(node, "key")
    if not isinstance(limit, int) or key is None:
        return None
    return Slots(limit=limit, key=compile_value(plain(key)))


def _partition(node: Node | None) -> Evaluate | None:
    if node is None:
        return None
    value = plain(node)
    return _subject if value == "subject" else compile_value(value)


def _subject(scope: Scope) -> object:
    meta = scope["meta"]
    assert isinstance(meta, dict)
    return meta["subject"]
