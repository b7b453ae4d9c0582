"""Messages that come too often, in any order, or that no handler can take: each effect once, each misfit kept."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika
import pytest
from faults.harness import Job, Site, chance, record_row, size, wait_until
from pika.adapters.blocking_connection import BlockingChannel

COPIES = 5
EXCHANGE, QUEUE = "ledger.events", "ledger.ledger.work"
PATIENCE_S = 10.0
STRUCTURED = "application/cloudevents+json"
MIB = 1024 * 1024
SLOWEST = 0.5
"""Of the rate without poison; what was measured stands in the row."""

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgres, pytest.mark.timeout(size(300, 3600))]


@pytest.fixture
def site(rabbit_url: str, postgres_url: str, tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, (rabbit_url,), postgres_url) as site:
        site.run("start", "--until-idle", "--quiet")  # makes the queues
        yield site


@dataclass(frozen=True)
class Sent:
    """A message as a foreign program publishes it."""

    body: bytes
    properties: pika.BasicProperties
    exchange: str = EXCHANGE
    routing_key: str = "job.asked"


def publish(site: Site, messages: Iterable[Sent]) -> None:
    """Return once the broker has confirmed them all."""
    with channel(site) as open_channel:
        for message in messages:
            open_channel.basic_publish(
                message.exchange, message.routing_key, message.body, message.properties, mandatory=True
            )


@contextmanager
def channel(site: Site) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(site.brokers[0]))
    try:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened
    finally:
        connection.close()


def sent(job: Job) -> Sent:
    return Sent(job.body, properties(job.message_id))


def properties(ident: str, **more: Any) -> pika.BasicProperties:
    return pika.BasicProperties(message_id=ident, delivery_mode=2, **more)


def new_jobs(site: Site, count: int, kind: str = "good") -> list[Job]:
    jobs = [site.new_job(kind) for _ in range(count)]
    site.confirmed.update(jobs)
    return jobs


# --- too often -------------------------------------------------------------------------------------------


def test_messages_that_come_five_times_in_any_order_have_one_effect_each(site: Site) -> None:
    jobs = new_jobs(site, size(1_000, 10_000))
    copies = [sent(job) for job in jobs * COPIES]
    chance().shuffle(copies)
    runner = site.start()
    publish(site, copies)
    assert runner.terminate() == 0
    site.run("start", "--until-idle", "--quiet")

    verdict = site.verdict()

    verdict.assert_kept()
    assert site.ledger("SELECT count(*), count(DISTINCT key) FROM calls") == [(4 * len(jobs), 4 * len(jobs))]
    record_row(f"each message {COPIES} times, in any order", len(copies), [verdict], [])


# --- poison -------------------------------------------------------------------------------------------------


POISON: dict[str, tuple[str, Callable[[str], Sent]]] = {
    "not JSON": ("invalid_json", lambda i: Sent(b"n=1&kind=good", properties(i))),
    "wrong UTF-8": ("invalid_json", lambda i: Sent(b'{"n": -1, "kind": "\xff\xfe"}', properties(i))),
    "a misfit": ("schema_violation", lambda i: Sent(b'{"n": "one", "kind": "good"}', properties(i))),
    "an unknown event": (
        "unknown_event",
        lambda i: Sent(b'{"n": -1, "kind": "good"}', properties(i, type="job.forgotten"), "", QUEUE),
    ),
    "too large": ("too_large", lambda i: Sent(b'{"n": -1, "kind": "%s"}' % (b"x" * MIB), properties(i))),
    "NaN": ("invalid_json", lambda i: Sent(b'{"n": NaN, "kind": "good"}', properties(i))),
    "an infinite number": ("invalid_json", lambda i: Sent(b'{"n": 1e999, "kind": "good"}', properties(i))),
    "deep nesting": ("invalid_json", lambda i: Sent(b"[" * 100_000 + b"]" * 100_000, properties(i))),
    "a wrong time": (
        "bad_envelope",
        lambda i: Sent(b'{"n": -1, "kind": "good"}', properties(i, headers={"ce-time": "yesterday"})),
    ),
    "an envelope without data": (
        "bad_envelope",
        lambda i: Sent(b'{"specversion": "1.0", "type": "job.asked"}', properties(i, content_type=STRUCTURED)),
    ),
    "an envelope with junk": (
        "bad_envelope",
        lambda i: Sent(b'{"source": {}, "data": {"n": -1, "kind": "good"}}', properties(i, content_type=STRUCTURED)),
    ),
}
"""What it is → the reason of its dead letter, and the message with an id."""


def test_poison_is_put_aside_with_its_reason_and_does_not_hold_up_the_good(site: Site) -> None:
    pairs, jobs_a_round = size(3, 10), size(400, 1_000)
    poison_a_kind = jobs_a_round // 100
    calm, poisoned = [], []
    for pair in range(pairs):
        calm.append(rate(site, new_jobs(site, jobs_a_round), []))
        poison = [make(f"{pair} {kind} {n}") for kind, (_, make) in POISON.items() for n in range(poison_a_kind)]
        poisoned.append(rate(site, new_jobs(site, jobs_a_round), poison))

    verdict = site.settled()
    verdict.assert_kept()
    letters = site.query("SELECT reason, letter FROM dead_letters")
    reasons = Counter((json.loads(letter)["message_id"].split(" ", 1)[1].rsplit(" ", 1)[0], r) for r, letter in letters)
    assert reasons == {(kind, reason): pairs * poison_a_kind for kind, (reason, _) in POISON.items()}
    share = max(poisoned) / max(calm)  # whatever else the machine does makes rounds slower, none quicker
    note = f"good ones at {share:.0%} of their rate, {max(calm):.0f} jobs a second"
    record_row(f"{len(POISON)} kinds of poison, 1 in 10", len(letters), [verdict], [], note)
    assert share >= SLOWEST


def rate(site: Site, jobs: Sequence[Job], poison: Sequence[Sent]) -> float:
    """Good jobs a second, from a runner that finds these messages in its queue."""
    messages = [sent(job) for job in jobs]
    for place, message in enumerate(poison, 1):  # evenly among them
        messages.insert(place * len(messages) // (len(poison) + 1), message)
    publish(site, messages)
    runner = site.start()
    numbers = f"job BETWEEN {jobs[0].n} AND {jobs[-1].n}"
    count = f"SELECT count(*) FROM effects WHERE step = 'note' AND {numbers}"
    wait_until(lambda: site.ledger(count) == [(len(jobs),)], "all good jobs to be done")
    [(first, last)] = site.ledger(f"SELECT min(at), max(at) FROM effects WHERE {numbers}")
    assert runner.terminate() == 0
    return len(jobs) / float(last - first)


# --- what a client library stumbles over -----------------------------------------------------------------


class NotUtf8(str):
    """A text that goes over the wire as other programs write theirs."""

    def encode(self, *_: object, **__: object) -> bytes:
        return b"\xff\xfe"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


UNREADABLE: dict[str, dict[str, Any]] = {
    "a time after the last one": {"timestamp": 2**63 - 1},
    "an id that is not UTF-8": {"message_id": NotUtf8("id")},
    "a header's name that is not UTF-8": {"headers": {NotUtf8("name"): 1}},
    "a header's value that is not UTF-8": {"headers": {"ce-subject": NotUtf8("value")}},
    "a header of 800 lists in each other": {"headers": {"h": nested(800)}},
}


@pytest.mark.parametrize("fields", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_message_whose_properties_cannot_be_read_does_not_end_the_consumer(
    site: Site, fields: dict[str, Any]
) -> None:
    odd, good = new_jobs(site, 2)
    publish(site, [Sent(odd.body, pika.BasicProperties(**{"message_id": odd.message_id, **fields})), sent(good)])
    runner = site.start()
    wait_until(lambda: site.noted(good) or not runner.alive, "the good job to be done")
    assert runner.alive, runner.output()
    site.settled(PATIENCE_S).assert_kept()


@pytest.mark.parametrize("name", ["ce-correlationid", "ce-source", "ce-subject", "traceparent"])
def test_an_attribute_that_is_longer_than_a_property_may_be_keeps_no_event_from_leaving(site: Site, name: str) -> None:
    [job] = new_jobs(site, 1)
    publish(site, [Sent(job.body, properties(job.message_id, headers={name: "x" * 300}))])
    site.start()
    site.settled(PATIENCE_S).assert_kept()


# --- anything at all ------------------------------------------------------------------------------------------


def test_random_bodies_and_headers_are_kept_byte_for_byte(site: Site) -> None:
    draw = chance()
    count = size(2_000, 10_000)
    misfits = [Sent(random_body(draw), random_properties(draw, f"r-{n}")) for n in range(count)]
    jobs = new_jobs(site, count // 20)
    odd = [Sent(job.body, random_properties(draw, job.message_id)) for job in new_jobs(site, count // 20)]
    messages = [*misfits, *odd, *(sent(job) for job in jobs)]
    draw.shuffle(messages)
    runner = site.start()
    publish(site, messages)
    count_letters = "SELECT count(*) FROM dead_letters"
    wait_until(lambda: site.query(count_letters)[0][0] >= count, "the misfits to be put aside")

    verdict = site.settled()

    verdict.assert_kept()
    assert runner.terminate() == 0
    bodies = Counter(bytes(body) for (body,) in site.query("SELECT body FROM dead_letters"))
    assert not Counter(message.body for message in misfits) - bodies
    assert not bodies - Counter(message.body for message in [*misfits, *odd])
    assert "internal error" not in runner.output()
    assert {job.n for job in jobs} <= verdict.finished
    record_row(
        "random bodies and headers", len(messages), [verdict], [], f"{bodies.total()} dead letters, byte for byte"
    )


def random_body(draw: random.Random) -> bytes:
    """No job, whatever else it may be."""
    good = b'{"n": 1, "kind": "good"}'
    at, more = draw.randrange(1, len(good)), draw.randbytes(draw.randrange(8))
    return draw.choice(
        [
            draw.randbytes(draw.randrange(200)),
            good[:at],
            b"\xef\xbb\xbf" + good + draw.randbytes(4),
            good + b"!" + more,
            b'{"n": %d, "kind": %d}' % (draw.getrandbits(500), draw.getrandbits(70)),
            json.dumps(random_value(draw, 3)).encode(),
            b'{"specversion": "1.0", "data": %s}' % draw.choice([b"{}", b"null", more]),
        ]
    )


def random_value(draw: random.Random, depth: int) -> Any:
    """What JSON and AMQP tables both can hold."""
    simple = [None, True, "", "\x00", "ü\u2028😀", 0, -(2**63), 2**63 - 1, draw.randint(-1000, 1000), "x" * 200]
    if depth == 0:
        return draw.choice(simple)
    inner = [random_value(draw, depth - 1) for _ in range(draw.randrange(4))]
    return draw.choice([draw.choice(simple), inner, {f"k{n}": value for n, value in enumerate(inner)}])


def random_properties(draw: random.Random, ident: str) -> pika.BasicProperties:
    """An id or none, and any of the headers and properties that flowrun reads."""
    names = [
        *(f"{prefix}{name}" for prefix in ("ce-", "cloudEvents_", "cloudEvents:") for name in ATTRIBUTES),
        *("traceparent", "tracestate", "x-death", "x-delivery-count", "", "ü" * 100, "ce-", "\x00"),
    ]
    values = [draw.randbytes(20), datetime(1970, 1, 1, tzinfo=UTC), random_value(draw, 2), "2026-01-01T00:00:00Z"]
    return pika.BasicProperties(
        message_id=draw.choice([ident, ident, None]),
        delivery_mode=2,
        headers={draw.choice(names): draw.choice(values) for _ in range(draw.randrange(6))} or None,
        content_type=draw.choice([None, "", "text/plain", STRUCTURED, "application/json", "\x00"]),
        type=draw.choice([None, "", "job.asked", "job.done", "nothing\n"]),
        app_id=draw.choice([None, "", "another", "ü" * 100]),
        correlation_id=draw.choice([None, "", "c", "\x00"]),
        timestamp=draw.choice([None, 0, 2**31, 2**40]),
        reply_to=draw.choice([None, "back"]),
    )


ATTRIBUTES = ("time", "source", "subject", "type", "specversion", "correlationid", "causationid", "dataschema")
