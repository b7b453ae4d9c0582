"""LANGUAGE §2 Routing, §7: what a delivery is taken for, and what becomes a dead letter."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.engine import intake
from runner.errors import EnvelopeError
from runner.handler import Context, handler
from runner.message import Delivery, Properties
from runner.records import DeadLetter, RunStarted
from runner.testing import FlowKit

FLOW = """
flow: f
uses: {env: [REGION]}
events:
  order.placed:
    external: true
    schema: {type: object, required: [n], properties: {n: {type: integer}}}
    subject: "order/{{ event.n }}"
  scanned: {external: true, schema: {}, keys: ["scan.*.belt", "legacy.#"]}
  plain: {external: true, schema: {}}
  subjected: {external: true, schema: {}, subject: "{{ event.id }}"}
routes:
  - {on: [order.placed, scanned, plain, subjected], to: h}
  - {on: plain, when: event.n > 10 and env.REGION == "north" and meta.type == "plain", to: some}
  - {on: plain, when: event.m, to: some}
  - {on: plain, when: "now() > '2025' and uuid() != ''", to: timed}
handlers:
  h: {steps: [{use: note, with: {meta: "{{ meta }}", event: "{{ event }}"}}]}
  some: {steps: []}
  timed: {steps: []}
"""
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@handler("note")
async def note(ctx: Context, *, meta: Any, event: Any) -> Any:
    return [meta, event]


@pytest.fixture
async def kit() -> AsyncIterator[FlowKit]:
    async with FlowKit(FLOW, [note], env={"REGION": "north"}) as kit:
        yield kit


PLAN = FlowKit(FLOW, [note]).plan


def delivery(key: str = "plain", body: Any = None, **properties: Any) -> Delivery:
    properties.setdefault("message_id", "m-1")
    return Delivery(
        queue="test.f.h",
        exchange="test.events",
        routing_key=key,
        body=body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode(),
        properties=Properties(**properties),
        redelivered=False,
        receipt=None,
    )


def read(delivery: Delivery, handler: str = "h", env: dict[str, str] | None = None) -> RunStarted | None:
    env = {"REGION": "north"} if env is None else env
    coming = intake.read(PLAN, PLAN.programs[f"f.{handler}"], delivery, NOW, env)
    return None if coming is None else coming.started


def begun(delivery: Delivery) -> RunStarted:
    started = read(delivery)
    assert started is not None
    return started


def refused(delivery: Delivery, handler: str = "h") -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        read(delivery, handler)
    return caught.value


def letter(delivery: Delivery, handler: str = "h") -> DeadLetter:
    fault = refused(delivery, handler)
    return intake.dead_letter(f"f.{handler}", delivery, fault, NOW)


ENVELOPE = {
    "specversion": "1.0", "id": "e-1", "source": "/shop", "type": "plain", "time": "2026-01-01T01:00:00+01:00",
    "subject": "s/1", "correlationid": "c-1", "causationid": "x-1",
}  # fmt: skip


# --- envelopes


@pytest.mark.parametrize("prefix", ["ce-", "cloudEvents_", "cloudEvents:"])
def test_binary_mode_is_read_under_each_prefix(prefix: str) -> None:
    meta = begun(delivery(headers={f"{prefix}{name}": value for name, value in ENVELOPE.items()})).trigger
    assert (meta.id, meta.type, meta.source, meta.subject) == ("e-1", "plain", "/shop", "s/1")
    assert (meta.time, meta.correlation_id, meta.causation_id) == ("2026-01-01T00:00:00.000Z", "c-1", "x-1")


def test_structured_mode_is_read() -> None:
    body = {**ENVELOPE, "data": {"n": 1}}
    started = begun(delivery("any.key", body, content_type="application/cloudevents+json; charset=utf-8"))
    assert started.trigger == begun(delivery(headers={f"ce-{n}": v for n, v in ENVELOPE.items()})).trigger
    assert json.loads(started.data) == {"n": 1}


def test_structured_data_is_kept_byte_for_byte() -> None:
    data = b'{"n" : 12345678901234567890123, "n": 1.0}'
    body = b'{"specversion":"1.0","id":"1","source":"/s","type":"plain","data": ' + data + b" }"
    assert begun(delivery("x", body, content_type="application/cloudevents+json")).data == data


def test_structured_attributes_may_be_numbers_booleans_and_null() -> None:
    body = {**ENVELOPE, "sequence": 5, "sampled": True, "subject": None, "data": {}}
    meta = begun(delivery("x", body, content_type="application/cloudevents+json")).trigger
    assert (meta.id, meta.subject) == ("e-1", None)


@pytest.mark.parametrize(
    "body", [{**ENVELOPE}, {**ENVELOPE, "id": {}, "data": 1}, {**ENVELOPE, "time": "noon", "data": 1}]
)
def test_a_broken_envelope_is_a_dead_letter(body: Any) -> None:
    assert refused(delivery("plain", body, content_type="application/cloudevents+json")).reason == "bad_envelope"


@pytest.mark.parametrize("time", ["yesterday", "2026-01-01", "2026-01-01T00:00:00", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_is_none_is_a_bad_envelope(time: str) -> None:
    assert refused(delivery(headers={"ce-time": time})).reason == "bad_envelope"


def test_plain_json_is_an_event() -> None:
    started = begun(delivery(body={"n": 1}, timestamp=NOW - timedelta(hours=1)))
    meta = started.trigger
    assert (meta.id, meta.type, meta.source, meta.subject) == ("m-1", "plain", "/amqp", None)
    assert (meta.time, meta.correlation_id, meta.causation_id) == ("2025-12-31T23:00:00.000Z", "m-1", None)
    assert started.data == b'{"n": 1}'


def test_without_any_time_it_is_the_arrival_s() -> None:
    assert begun(delivery()).trigger.time == "2026-01-01T00:00:00.000Z"


def test_a_time_in_another_zone_is_shown_in_utc() -> None:
    time = datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))
    assert begun(delivery(headers={"ce-time": time})).trigger.time == "2026-01-01T00:00:00.000Z"


def test_headers_that_are_no_text_become_text() -> None:
    meta = begun(delivery(headers={"ce-id": 17, "ce-source": b"/by\xfftes"})).trigger
    assert (meta.id, meta.source) == ("17", "/by\\xfftes")


def test_the_trace_is_kept() -> None:
    trace = {"traceparent": "00-1-2-01", "tracestate": "a=b"}
    assert begun(delivery(headers={**trace, "other": 1})).trace == trace


# --- id, source, correlation


def test_the_id_is_ce_id_else_message_id() -> None:
    assert begun(delivery(headers={"ce-id": "e-1"})).trigger.id == "e-1"
    assert begun(delivery()).trigger.id == "m-1"


def test_a_message_without_an_id_gets_one() -> None:
    one, two = (begun(delivery(message_id=None)).trigger.id for _ in range(2))
    assert one != two
    assert uuid.UUID(one).version == 7


def test_the_source_is_ce_source_else_the_apps_else_amqp() -> None:
    assert begun(delivery(headers={"ce-source": "/shop"}, app_id="web")).trigger.source == "/shop"
    assert begun(delivery(app_id="web")).trigger.source == "/amqp/web"
    assert begun(delivery()).trigger.source == "/amqp"


def test_the_correlation_is_ce_correlationid_else_correlation_id_else_its_own_id() -> None:
    assert begun(delivery(headers={"ce-correlationid": "c"}, correlation_id="p")).trigger.correlation_id == "c"
    assert begun(delivery(correlation_id="p")).trigger.correlation_id == "p"
    assert begun(delivery()).trigger.correlation_id == "m-1"


def test_the_same_handler_source_and_id_is_the_same_run() -> None:
    one = begun(delivery(headers={"ce-id": "1", "ce-source": "/a"})).run_id
    assert begun(delivery(body={"n": 2}, headers={"ce-id": "1", "ce-source": "/a"})).run_id == one
    assert begun(delivery(headers={"ce-id": "2", "ce-source": "/a"})).run_id != one
    assert begun(delivery(headers={"ce-id": "1", "ce-source": "/b"})).run_id != one
    other = read(delivery(headers={"ce-id": "1", "ce-source": "/a"}), "timed")
    assert other is not None
    assert other.run_id != one


def test_binary_and_structured_mode_of_one_event_are_one_run() -> None:
    binary = begun(delivery(headers={f"ce-{name}": value for name, value in ENVELOPE.items()}))
    structured = begun(delivery("x", {**ENVELOPE, "data": {}}, content_type="application/cloudevents+json"))
    assert binary.run_id == structured.run_id


# --- which event it is


@pytest.mark.parametrize(
    ("key", "ce_type", "amqp_type", "event"),
    [
        ("plain", "scanned", "order.placed", "plain"),
        ("else", "scanned", "plain", "scanned"),
        ("else", "else", "plain", "plain"),
        ("else", None, "plain", "plain"),
        ("", None, "plain", "plain"),
        ("scan.7.belt", None, None, "scanned"),
        ("scan.7.belt", "com.acme.Scan", "x", "scanned"),
        ("legacy", None, None, "scanned"),
        ("legacy.a.b", None, None, "scanned"),
    ],
)
def test_the_routing_key_names_the_event_else_ce_type_else_type_else_the_keys(
    key: str, ce_type: str | None, amqp_type: str | None, event: str
) -> None:
    headers = {} if ce_type is None else {"ce-type": ce_type}
    assert begun(delivery(key, headers=headers, type=amqp_type)).trigger.type == event


@pytest.mark.parametrize("key", ["nothing", "scan.belt", "scan.1.2.belt", "legacyx"])
def test_what_is_no_event_is_unknown(key: str) -> None:
    fault = refused(delivery(key))
    assert fault.reason == "unknown_event"
    assert key in str(fault)


# --- payloads


def test_a_body_over_one_mebibyte_is_too_large() -> None:
    text = "x" * (1024 * 1024 - 2)
    assert begun(delivery(body=text)) is not None
    assert refused(delivery(body=text + "x")).reason == "too_large"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"{'a': 1}", b"NaN", b"\xff", b'"\xff"', b'"\\ud800"', b"[" * 100_000, b"{} {}", b"1e999"]
)
def test_a_body_that_does_not_parse_is_invalid_json(body: bytes) -> None:
    assert refused(delivery(body=body)).reason == "invalid_json"


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"5", b"\xff", b'{"id":"1","data":{"a":\xff}}', b'{"\xff":1}', b'{"id":"\xff","data":1}']
)
def test_a_structured_message_that_does_not_parse_is_invalid_json(body: bytes) -> None:
    assert refused(delivery(body=body, content_type="application/cloudevents+json")).reason == "invalid_json"


@pytest.mark.parametrize("body", [{}, {"n": "1"}, {"n": 1.5}, [], None, 5])
def test_a_payload_that_does_not_fit_its_schema_is_a_schema_violation(body: Any) -> None:
    fault = refused(delivery("order.placed", json.dumps(body).encode()))
    assert fault.reason == "schema_violation"
    assert "order.placed" in str(fault)


def test_large_integers_are_kept_as_they_came() -> None:
    body = b'{"n": 123456789012345678901234567890}'
    assert begun(delivery("order.placed", body)).data == body


# --- subjects


def test_the_subject_is_taken_at_arrival_if_the_message_brings_none() -> None:
    assert begun(delivery("order.placed", {"n": 5})).trigger.subject == "order/5"
    assert begun(delivery("order.placed", {"n": 5}, headers={"ce-subject": "own"})).trigger.subject == "own"


@pytest.mark.parametrize(("ident", "subject"), [("a", "a"), (7, "7")])
def test_a_subject_is_text(ident: Any, subject: str) -> None:
    assert begun(delivery("subjected", {"id": ident})).trigger.subject == subject


@pytest.mark.parametrize("body", [{}, {"id": None}, {"id": {}}])
def test_a_subject_that_cannot_be_taken_is_a_dead_letter(body: Any) -> None:
    assert refused(delivery("subjected", body)).reason == "expression"


# --- routes


def test_a_message_that_no_route_wants_is_passed_over() -> None:
    assert read(delivery(body={"n": 5, "m": 0}), "some") is None
    assert read(delivery(body={"n": 50, "m": 0}), "some", {"REGION": "south"}) is None
    assert read(delivery("scanned"), "some") is None


def test_one_route_that_holds_is_enough() -> None:
    assert read(delivery(body={"n": 11}), "some") is not None
    assert read(delivery(body={"n": 1, "m": [0]}), "some") is not None


def test_an_error_in_a_routes_when_is_a_dead_letter() -> None:
    fault = refused(delivery(body={"n": "x"}), "some")
    assert fault.reason == "expression"
    assert "n > 10" in str(fault)


def test_functions_work_in_a_routes_when() -> None:
    assert read(delivery(), "timed") is not None


# --- dead letters


def test_a_dead_letter_keeps_the_message_whole() -> None:
    headers = {"ce-id": "e-1", "ce-source": "/a", "raw": b"\xff", "at": NOW, "deep": {"x": [b"y"]}, "n": 1}
    kept = letter(delivery("order.placed", b"\x00{broken", headers=headers))
    assert (kept.reason, kept.error.type, kept.handler) == ("invalid_json", "invalid_json", "f.h")
    assert (kept.body, kept.exchange, kept.routing_key) == (b"\x00{broken", "test.events", "order.placed")
    assert (kept.type, kept.source, kept.message_id) == ("order.placed", "/a", "e-1")
    assert kept.headers["n"] == 1
    assert kept.received_at == "2026-01-01T00:00:00.000Z"


def test_the_same_message_is_the_same_letter_and_another_source_is_another_message() -> None:
    one = letter(delivery(body=b"{", headers={"ce-source": "/a"}))
    assert letter(delivery(body=b"{", headers={"ce-source": "/a"})).id == one.id
    assert letter(delivery(body=b"{", headers={"ce-source": "/b"})).id != one.id
    assert letter(delivery(body=b"{", app_id="web")).id != letter(delivery(body=b"{")).id
    assert letter(delivery(body=b"{", message_id="m-2", headers={"ce-source": "/a"})).id != one.id


def test_the_id_of_a_letter_is_the_ce_id_as_of_a_run() -> None:
    one = letter(delivery(body=b"{", message_id="x", headers={"cloudEvents_id": "e-1"}))
    assert letter(delivery(body=b"{", message_id="y", headers={"ce-id": "e-1"})).id == one.id
    assert one.message_id == "e-1"


def test_letters_without_an_id_are_all_kept() -> None:
    assert letter(delivery(body=b"{", message_id=None)).id != letter(delivery(body=b"{", message_id=None)).id


async def test_dead_letters_stand_in_the_store_once_each(kit: FlowKit) -> None:
    for source in ("/a", "/a", "/b"):
        await kit.store.bury(letter(delivery(body=b"\xff\x00", headers={"ce-source": source})))
    kept = await kit.store.dead_letters(limit=10)
    assert [(one.source, one.body) for one in kept] == [("/b", b"\xff\x00"), ("/a", b"\xff\x00")]


async def test_a_run_sees_the_payload_and_meta(kit: FlowKit) -> None:
    headers = {f"ce-{name}": value for name, value in ENVELOPE.items()}
    done = await kit.send("plain", {"a": 1}, handler="f.h", properties=Properties(headers=headers))
    assert done is not None
    meta, event = done.steps["1"].output
    assert event == {"a": 1}
    assert meta == {
        "id": "e-1", "type": "plain", "source": "/shop", "subject": "s/1", "time": "2026-01-01T00:00:00.000Z",
        "correlation_id": "c-1", "causation_id": "x-1",
    }  # fmt: skip


header_values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.datetimes() | st.lists(st.text()) | st.dictionaries(st.text(), st.binary())
)  # fmt: skip
names = st.sampled_from(["id", "source", "type", "time", "subject", "correlationid", "Id", "", "dataschema"])
prefixes = st.sampled_from(["ce-", "cloudEvents_", "cloudEvents:", "x"])
structured = st.dictionaries(names | st.just("data"), st.none() | st.integers() | st.text() | st.lists(st.integers()))


@given(
    key=st.sampled_from(["plain", "order.placed", "scan.1.belt", "", "x"]) | st.text(max_size=5),
    body=st.binary(max_size=50) | structured.map(lambda value: json.dumps(value).encode()),
    headers=st.dictionaries(st.tuples(prefixes, names).map("".join), header_values, max_size=4),
    content_type=st.sampled_from([None, "", "application/json", "application/cloudevents+json", "text/plain"]),
    message_id=st.none() | st.text(),
    type=st.none() | st.text() | st.just("plain"),
    timestamp=st.none() | st.datetimes(),
)
def test_any_delivery_begins_a_run_or_is_a_dead_letter(key: str, body: bytes, **properties: Any) -> None:
    """Whatever comes ends in a run or in a letter: never in an error of ours."""
    message = delivery(key, body, **properties)
    try:
        read(message)
    except EnvelopeError as fault:
        kept = intake.dead_letter("f.h", message, fault, NOW)
        assert kept.reason in {"invalid_json", "schema_violation", "unknown_event", "bad_envelope", "expression"}
        assert kept.body == body
