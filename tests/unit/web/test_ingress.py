"""What a client gets for a request, and what becomes of it on the broker."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from served import Served, served

from runner.errors import StoreError, TransportError
from runner.message import Outgoing, Properties
from runner.web import replies as replies_module
from runner.web import sending

FLOW = """
flow: flow
uses: {env: [REGION], secrets: [TOKEN, OLD_TOKEN, HOOK, OLD_HOOK]}
events:
  order.placed:
    subject: "order/{{ event.id }}"
    schema:
      type: object
      required: [id]
      properties: {id: {type: string}, total: {type: number}, lines: {type: array, items: {type: integer}}}
  seen: {}
  unheard: {}
commands:
  refund:
    handler: refund
    timeout: 30s
    schema: {type: object, required: [order], properties: {order: {type: string}}}
  review: {handler: review}
  nobodys: {external: true}
ingress:
  place: {http: POST /orders, emit: order.placed}
  place_in: {http: "PUT /orders/new", emit: order.placed}
  change: {http: "PUT /orders/{id}", emit: order.placed, with: {id: "{{ request.path.id }}"}}
  forget: {http: "DELETE /orders/{order}", emit: order.placed, with: {id: "{{ request.path.order }}"}}
  see: {http: "POST /see/{what}", emit: seen, with: {got: "{{ request }}", region: "{{ env.REGION }}"}}
  twice: {http: POST /twice, emit: seen, with: {double: "{{ request.body.n * 2 }}"}}
  unheard: {http: POST /unheard, emit: unheard}
  hook: {http: POST /hook, emit: seen, verify: {standard_webhooks: ["{{ secrets.HOOK }}", "{{ secrets.OLD_HOOK }}"]}}
  git: {http: POST /git, emit: seen, verify: {github: "{{ secrets.TOKEN }}"}}
  closed: {http: POST /closed, emit: seen, auth: {bearer: ["{{ secrets.TOKEN }}", "{{ secrets.OLD_TOKEN }}"]}}
  few:
    http: POST /few
    emit: seen
    rate_limit: {limit: 2, period: 10s, burst: 3, key: "{{ request.headers['x-tenant'] }}"}
  refund: {http: "POST /orders/{id}/refund", command: refund, with: {order: "{{ request.path.id }}"}}
  refund_body: {http: POST /refund, command: refund, timeout: 50ms}
  review: {http: POST /review, command: review}
  nobodys: {http: POST /nobodys, command: nobodys}
routes:
  - {on: [order.placed, seen], to: take}
handlers:
  take: {steps: [{set: {a: 1}}]}
  refund: {steps: [{set: {a: 1}}], reply: {}}
  review: {steps: [{set: {a: 1}}], reply: {}}
"""
SECRETS = {"TOKEN": "t0ken", "OLD_TOKEN": "früher", "HOOK": "whsec_" + base64.b64encode(b"k" * 24).decode()}
SECRETS["OLD_HOOK"] = "whsec_" + base64.b64encode(b"o" * 24).decode()
CLOUD = "application/cloudevents+json"


@pytest.fixture
async def web() -> AsyncIterator[Served]:
    async with served(FLOW, secrets=SECRETS, env={"REGION": "eu"}) as each:
        yield each


@pytest.fixture
async def listening(web: Served) -> Served:
    await web.take("flow.take")
    return web


def fault(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which has its one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    [(key, error)] = response.json().items()
    assert key == "error"
    assert set(error) == {"type", "message", "retryable", "details"}
    assert error["message"]
    return dict(error)


async def data(web: Served, number: int = 1) -> list[Any]:
    return [json.loads(delivery.body) for delivery in await web.messages(number)]


# --- events


async def test_an_event_is_published_with_its_subject_and_answered_with_its_id(listening: Served) -> None:
    response = await listening.post("/orders", {"id": "A", "total": 7})
    assert response.status_code == 202
    [delivery] = await listening.messages()
    headers = delivery.properties.headers
    assert response.json() == {"id": headers["ce-id"]}
    assert (headers["ce-source"], headers["ce-type"], headers["ce-subject"]) == (
        "/flowrun/test/http",
        "order.placed",
        "order/A",
    )
    assert json.loads(delivery.body) == {"id": "A", "total": 7}


async def test_an_event_that_nobody_takes_is_published_all_the_same(web: Served) -> None:
    assert (await web.post("/unheard", {})).status_code == 202


async def test_the_idempotency_key_is_the_id(listening: Served) -> None:
    response = await listening.post("/orders", {"id": "A"}, headers={"Idempotency-Key": "try-1"})
    assert response.json() == {"id": "try-1"}
    assert [delivery.properties.message_id for delivery in await listening.messages()] == ["try-1"]


async def test_a_trace_goes_on(listening: Served) -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    await listening.post("/orders", {"id": "A"}, headers={"traceparent": parent, "tracestate": "x=1"})
    await listening.post("/orders", {"id": "B"}, headers={"traceparent": "nonsense", "tracestate": "x=1"})
    first, second = [delivery.properties.headers for delivery in await listening.messages(2)]
    assert (first["traceparent"], first["tracestate"]) == (parent, "x=1")
    assert "traceparent" not in second
    assert "tracestate" not in second


async def test_what_expressions_see_of_a_request(listening: Served) -> None:
    response = await listening.post(
        "/see/caf%C3%A9%2F1".replace("%2F", "-"),
        {"a": [1, None]},
        params=[("x", "1"), ("y", ""), ("x", "2")],
        headers={"X-Thing": "B", "Authorization": "Bearer abc", "Cookie": "a=b", "X-Forwarded-For": "6.6.6.6"},
    )
    assert response.status_code == 202
    [seen] = await data(listening)
    got = seen["got"]
    assert seen["region"] == "eu"
    assert (got["body"], got["query"], got["path"]) == (
        {"a": [1, None]},
        {"x": ["1", "2"], "y": ""},
        {"what": "café-1"},
    )
    assert got["client_ip"] == "203.0.113.9"
    assert got["headers"]["x-thing"] == "B"
    assert not {"authorization", "cookie"} & set(got["headers"])


async def test_with_may_do_without_a_body(listening: Served) -> None:
    assert (await listening.client.put("/orders/17")).status_code == 202
    assert await data(listening) == [{"id": "17"}]


async def test_what_is_written_out_goes_before_what_stands_for_anything(listening: Served) -> None:
    assert (await listening.post("/orders/new", {"id": "B"}, method="PUT")).status_code == 202
    assert (await listening.client.delete("/orders/new")).status_code == 202
    assert await data(listening, 2) == [{"id": "B"}, {"id": "new"}]


# --- CloudEvents


async def test_a_cloud_event_in_binary_mode_keeps_what_it_says_of_itself(listening: Served) -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "e-1",
        "ce-source": "/till/4",
        "ce-subject": "caf%C3%A9",
        "ce-type": "order.placed",
        "ce-time": "2026-01-02T03:04:05+01:00",
    }
    response = await listening.post("/orders", {"id": "A"}, headers=headers)
    assert response.json() == {"id": "e-1"}
    [delivery] = await listening.messages()
    kept = delivery.properties.headers
    assert (kept["ce-source"], kept["ce-subject"], kept["ce-time"]) == ("/till/4", "café", "2026-01-02T02:04:05.000Z")


async def test_a_cloud_event_in_structured_mode_keeps_what_it_says_of_itself(listening: Served) -> None:
    event = {"specversion": "1.0", "id": "e-2", "source": "/till", "type": "order.placed", "data": {"id": "A"}}
    response = await listening.post("/orders", event, headers={"content-type": f"{CLOUD}; charset=UTF-8"})
    assert response.json() == {"id": "e-2"}
    [delivery] = await listening.messages()
    assert delivery.properties.headers["ce-source"] == "/till"
    assert delivery.properties.headers["ce-subject"] == "order/A"
    assert json.loads(delivery.body) == {"id": "A"}


@pytest.mark.parametrize(
    ("headers", "status", "kind"),
    [
        ({"ce-type": "order.paid"}, 422, "invalid_input"),
        ({"ce-id": "a", "idempotency-key": "b"}, 400, "bad_envelope"),
        ({"ce-specversion": "0.3"}, 400, "bad_envelope"),
        ({"ce-time": "yesterday"}, 400, "bad_envelope"),
        ({"idempotency-key": ""}, 400, "bad_envelope"),
        ({"idempotency-key": "x" * 256}, 400, "bad_envelope"),
        ({"ce-source": "/" + "x" * 40_000}, 422, "invalid_input"),
    ],
)
async def test_an_envelope_that_cannot_be_is_refused(
    web: Served, headers: dict[str, str], status: int, kind: str
) -> None:
    assert fault(await web.post("/orders", {"id": "A"}, headers=headers), status)["type"] == kind


async def test_the_same_id_may_be_given_twice(web: Served) -> None:
    headers = {"ce-id": "a", "idempotency-key": "a"}
    assert (await web.post("/orders", {"id": "A"}, headers=headers)).json() == {"id": "a"}


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b"{}", b'{"data": {}, "id": {}}', b'{"data": \xff}', b'{"data": {}, "type": 5}']
)
async def test_a_structured_event_that_is_none_is_refused(web: Served, body: bytes) -> None:
    response = await web.post("/orders", content=body, headers={"content-type": CLOUD})
    assert fault(response, response.status_code)["type"] in ("bad_envelope", "invalid_json", "invalid_input")
    assert response.status_code in (400, 422)


async def test_a_command_is_no_cloud_event(web: Served) -> None:
    response = await web.post("/refund", {"data": {}}, headers={"content-type": CLOUD})
    assert fault(response, 415)["type"] == "unsupported_media_type"


# --- what does not fit


@pytest.mark.parametrize(
    ("value", "pointer"),
    [({}, ""), ([], ""), (None, ""), ({"id": 5}, "/id"), ({"id": "A", "lines": [1, 2, "x"]}, "/lines/2")],
)
async def test_a_payload_that_does_not_fit_is_refused_with_a_pointer(web: Served, value: Any, pointer: str) -> None:
    error = fault(await web.post("/orders", value), 422)
    assert (error["type"], error["details"], error["retryable"]) == ("invalid_input", {"pointer": pointer}, False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"id": "A"} x',
        b"\xff\xfe",
        b'{"id": "\xff"}',
        b'{"id": "\\ud800"}',
        b"NaN",
        b'{"id": "A", "total": 1e999}',
        b"[" * 200_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"\x00",
        "\ufeff{}".encode(),
    ],
)
async def test_a_body_that_is_no_json_is_refused(web: Served, body: bytes) -> None:
    response = await web.post("/orders", content=body)
    assert fault(response, response.status_code)["type"] in ("invalid_json", "invalid_input")
    assert response.status_code in (400, 422)


@pytest.mark.parametrize("depth", [100, 200, 300, 600, 900, 980])
async def test_a_body_that_is_deep_is_taken_or_refused(web: Served, depth: int) -> None:
    body = b'{"id":"A","x":' + b"[" * depth + b"]" * depth + b"}"
    for path in ("/orders", "/see/it", "/refund"):
        response = await web.post(path, content=body)
        assert response.status_code in (202, 400, 422), response.text


async def test_a_number_that_json_cannot_carry_is_refused(web: Served) -> None:
    error = fault(await web.post("/twice", {"n": 1e308}), 422)
    assert error["type"] in ("invalid_input", "expression")


async def test_an_expression_that_fails_is_refused(web: Served) -> None:
    error = fault(await web.post("/twice", {"m": 1}), 422)
    assert error["type"] == "expression"
    assert "request.body.n is missing" in error["message"]
    assert fault(await web.post("/few", {}), 422)["type"] == "expression"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=application/json"},
        {"content-type": ""},
        {"content-type": "application/json; charset=utf-16"},
        {"content-encoding": "gzip"},
    ],
)
async def test_what_says_that_it_is_no_json_is_refused(web: Served, headers: dict[str, str]) -> None:
    assert fault(await web.post("/orders", {"id": "A"}, headers=headers), 415)["type"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", "application/vnd.shop.v1+json"]
)
async def test_what_says_that_it_is_json_is_taken(web: Served, kind: str) -> None:
    assert (await web.post("/orders", {"id": "A"}, headers={"content-type": kind})).status_code == 202


async def test_a_body_may_have_a_mebibyte_and_no_more(web: Served) -> None:
    frame = len(b'{"id":""}')
    fits = b'{"id":"' + b"x" * (1024 * 1024 - frame) + b'"}'
    assert fault(await web.post("/orders", content=fits), 422)["type"] == "invalid_input"  # its subject is too long
    assert (await web.post("/unheard", content=fits)).status_code == 202
    assert fault(await web.post("/unheard", content=fits + b" "), 413)["type"] == "too_large"

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    assert fault(await web.post("/unheard", content=endless()), 413)["type"] == "too_large"
    lies = {"content-length": "10"}
    assert fault(await web.post("/unheard", content=endless(), headers=lies), 413)["type"] == "too_large"


async def test_a_path_that_there_is_not_and_a_method_that_there_is_not(web: Served) -> None:
    for path in ("/", "/order", "/orders/", "/orders/1/2", "/see/", "//orders"):
        assert fault(await web.client.post(path), 404)["type"] == "not_found"
    response = await web.client.get("/orders/17")
    assert fault(response, 405)["type"] == "method_not_allowed"
    assert set(response.headers["allow"].split(", ")) == {"PUT", "DELETE"}
    assert (await web.client.get("/orders")).headers["allow"] == "POST"


# --- who may


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic t0ken", "t0ken", "Bearer t0ken x", "Bearer t0kenß"]
)
async def test_who_does_not_bear_the_token_is_refused(web: Served, header: str) -> None:
    response = await web.post("/closed", {}, headers={b"Authorization": header.encode("latin-1")})  # type: ignore[dict-item]
    assert fault(response, 401)["type"] == "unauthorized"
    assert response.headers["www-authenticate"] == "Bearer"


async def test_who_bears_one_of_the_tokens_is_let_in(web: Served) -> None:
    assert (await web.post("/closed", {}, headers={"Authorization": "Bearer t0ken"})).status_code == 202
    assert (await web.post("/closed", {}, headers={"Authorization": "bearer  t0ken "})).status_code == 202
    token = {b"Authorization": "Bearer früher".encode()}
    assert (await web.post("/closed", {}, headers=token)).status_code == 202  # type: ignore[arg-type]


async def test_a_token_that_is_changed_counts_at_once_and_one_that_is_empty_lets_nobody_in(web: Served) -> None:
    web.secrets["TOKEN"] = "new"
    assert (await web.post("/closed", {}, headers={"Authorization": "Bearer new"})).status_code == 202
    assert (await web.post("/closed", {}, headers={"Authorization": "Bearer t0ken"})).status_code == 401
    web.secrets["TOKEN"] = ""
    assert (await web.post("/closed", {}, headers={"Authorization": "Bearer "})).status_code == 401
    del web.secrets["OLD_TOKEN"]
    assert (await web.post("/closed", {}, headers={"Authorization": "Bearer "})).status_code == 401


def signature(web: Served, body: bytes, key: bytes = b"k" * 24, ident: str = "msg_1") -> dict[str, str]:
    time = str(int(web.clock.now().timestamp()))
    digest = base64.b64encode(hmac.digest(key, f"{ident}.{time}.".encode() + body, "sha256")).decode()
    return {"webhook-id": ident, "webhook-timestamp": time, "webhook-signature": f"v1,{digest}"}


async def test_a_signed_webhook_is_taken_under_its_own_id(listening: Served) -> None:
    body = b'{"a":  1.0}'
    response = await listening.post("/hook", content=body, headers=signature(listening, body))
    assert response.json() == {"id": "msg_1"}
    old = signature(listening, body, b"o" * 24, "msg_2")
    assert (await listening.post("/hook", content=body, headers=old)).json() == {"id": "msg_2"}
    assert [delivery.properties.message_id for delivery in await listening.messages(2)] == ["msg_1", "msg_2"]


async def test_a_webhook_that_is_not_signed_is_refused_without_a_word_why(web: Served) -> None:
    body = b"{}"
    signed = signature(web, body)
    web.clock.advance(301)
    late = await web.post("/hook", content=body, headers=signed)
    wrong = await web.post("/hook", content=b"[]", headers=signature(web, body))
    none = await web.post("/hook", content=body)
    not_json = await web.post("/hook", content=b"{", headers={"content-type": "text/plain"})
    assert late.json() == wrong.json() == none.json() == not_json.json()
    assert fault(none, 401)["type"] == "unauthorized"
    other_id = {**signature(web, body), "idempotency-key": "msg_7"}
    assert fault(await web.post("/hook", content=body, headers=other_id), 400)["type"] == "bad_envelope"


async def test_a_webhook_of_github_is_verified_over_the_bytes_as_they_came(web: Served) -> None:
    body = b'{ "zen" : "\\u00e9" }'
    digest = hmac.digest(b"t0ken", body, "sha256").hex()
    headers = {"x-hub-signature-256": f"sha256={digest}"}
    assert (await web.post("/git", content=body, headers=headers)).status_code == 202
    assert (await web.post("/git", content=body + b" ", headers=headers)).status_code == 401


# --- rate limits


async def test_who_sends_too_much_is_told_when_to_come_again_and_others_are_served(web: Served) -> None:
    a, b = {"x-tenant": "a"}, {"x-tenant": "b"}
    assert [(await web.post("/few", {}, headers=a)).status_code for _ in range(4)] == [202, 202, 202, 429]
    assert (await web.post("/few", {}, headers=b)).status_code == 202
    response = await web.post("/few", {}, headers=a)
    error = fault(response, 429)
    assert (error["type"], error["retryable"], response.headers["retry-after"]) == ("rate_limited", True, "5")
    web.clock.advance(5)
    assert [(await web.post("/few", {}, headers=a)).status_code for _ in range(2)] == [202, 429]


async def test_while_a_handler_is_behind_its_producers_are_told_when_to_come_again() -> None:
    behind = {"flow.take": 17.2}
    async with served(FLOW, secrets=SECRETS, env={"REGION": "eu"}, behind=behind) as web:
        response = await web.post("/orders", {"id": "1"})
        error = fault(response, 429)
        assert (error["type"], error["retryable"], response.headers["retry-after"]) == ("rate_limited", True, "18")
        assert "flow.take is behind" in error["message"]
        assert (await web.post("/unheard", {})).status_code == 202
        behind.clear()
        assert (await web.post("/orders", {"id": "1"})).status_code == 202


async def test_while_a_circuit_is_open_commands_are_turned_away_and_events_wait() -> None:
    opened = {"flow.review": 30.0, "flow.take": 30.0}
    async with served(FLOW, secrets=SECRETS, env={"REGION": "eu"}, open_circuits=opened) as web:
        response = await web.post("/review", {})
        assert (fault(response, 503)["type"], response.headers["retry-after"]) == ("unavailable", "30")
        assert (await web.post("/orders", {"id": "1"})).status_code == 202


# --- commands


async def test_a_command_is_answered_with_its_reply(web: Served) -> None:
    await web.serve_command("flow.refund", lambda request: ({"refunded": request["order"]}, False))
    response = await web.client.post("/orders/17/refund", headers={"Idempotency-Key": "r-1"})
    assert (response.status_code, response.json()) == (200, {"refunded": "17"})
    [delivery] = web.came
    assert delivery.properties.headers["ce-id"] == "r-1"
    assert delivery.properties.headers["ce-source"] == "/flowrun/test/http"
    assert delivery.properties.headers["ce-expirytime"] == "2026-01-01T00:00:30.000Z"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("invalid_input", 422),
        ("rate_limited", 429),
        ("no_handler", 503),
        ("timeout", 504),
        ("internal", 500),
        ("card_declined", 409),
        ("http.503", 409),
    ],
)
async def test_a_command_that_fails_has_the_status_of_its_error(web: Served, kind: str, status: int) -> None:
    said = {"type": kind, "message": "no", "retryable": False, "details": {"code": 51}}
    await web.serve_command("flow.refund", lambda _: (said, True))
    response = await web.post("/orders/1/refund", None, content=b"")
    assert fault(response, status) == said
    assert ("retry-after" in response.headers) == (status in (429, 503))


async def test_no_answer_holds_a_secret(web: Served) -> None:
    said = {"type": "no.t0ken", "message": "t0ken", "retryable": False, "details": {"t0ken": ["früher"]}}
    await web.serve_command("flow.refund", lambda request: (said, request["order"] == "1"))
    for order in ("1", "2"):
        response = await web.post(f"/orders/{order}/refund", None, content=b"")
        assert response.status_code == (409 if order == "1" else 200)
        assert b"***" in response.content
        assert b"t0ken" not in response.content
        assert "früher" not in response.text


async def test_many_commands_at_once_get_each_its_own_reply(web: Served) -> None:
    await web.serve_command("flow.refund", lambda request: (request["order"], False))
    responses = await asyncio.gather(*(web.client.post(f"/orders/{n}/refund") for n in range(60)))
    assert [response.json() for response in responses] == [str(n) for n in range(60)]


async def test_two_that_send_the_same_command_at_once_both_get_the_reply(web: Served) -> None:
    await web.serve_command("flow.refund", lambda request: (request["order"], False))
    again = [web.client.post("/orders/1/refund", headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert {(r.status_code, r.text) for r in await asyncio.gather(*again)} == {(200, '"1"')}


async def test_two_commands_with_one_key_get_each_its_own_reply(web: Served) -> None:
    await web.serve_command("flow.refund", lambda _: None)
    await web.serve_command("flow.review", lambda _: ("reviewed", False))
    key = {"Idempotency-Key": "k"}
    refunding = asyncio.create_task(web.post("/orders/1/refund", headers=key))
    await web.messages(1)
    assert (await web.post("/review", {}, headers=key)).json() == "reviewed"
    assert not refunding.done()
    await web.answer(web.came[0], ("refunded", False))
    assert (await refunding).json() == "refunded"


async def test_a_reply_that_does_not_say_whose_it_is_is_taken_at_its_id(web: Served) -> None:
    await web.serve_command("flow.refund", lambda _: None)
    refunding = asyncio.create_task(web.post("/orders/1/refund"))
    [command] = await web.messages(1)
    properties = Properties(correlation_id=command.properties.correlation_id)
    queue = str(command.properties.reply_to)
    for body in (b"{", b'"late"'):
        await web.transport.publish([Outgoing(exchange="", routing_key=queue, body=body, properties=properties)])
    assert fault(await refunding, 500)["type"] == "internal"


async def test_a_command_that_nobody_answers_has_timed_out(web: Served) -> None:
    error = fault(await web.post("/refund", {"order": "1"}), 504)
    assert (error["type"], error["message"], error["retryable"]) == ("timeout", "no reply within 0.05 s", True)


async def test_a_command_that_no_queue_takes_has_no_handler(web: Served) -> None:
    response = await web.post("/nobodys", {})
    assert fault(response, 503)["type"] == "no_handler"
    assert response.headers["retry-after"] == "1"


async def test_a_command_that_does_not_fit_is_not_sent(web: Served) -> None:
    error = fault(await web.post("/refund", {"order": 1}), 422)
    assert (error["type"], error["details"]) == ("invalid_input", {"pointer": "/order"})


async def test_a_command_whose_queue_for_the_reply_is_lost_goes_out_again_and_is_answered(
    web: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies_module, "PROBE_S", 0.01)
    tries: list[str] = []

    def answer(request: Any) -> Any:
        tries.append(request["order"])
        return None if len(tries) == 1 else (len(tries), False)

    await web.serve_command("flow.refund", answer)
    asking = asyncio.create_task(web.client.post("/orders/1/refund"))
    queue = (await web.messages())[0].properties.reply_to
    await web.store._file.write(lambda c: c.execute("DELETE FROM broker_queues WHERE name = ?", (queue,)))
    assert (await asking).json() == 2
    first, second = [delivery.properties for delivery in web.came]
    assert first.headers["ce-id"] == second.headers["ce-id"]
    assert first.reply_to != second.reply_to


async def test_who_waits_when_the_process_stops_is_told_to_come_again(web: Served) -> None:
    await web.serve_command("flow.refund", lambda _: None)
    asking = asyncio.create_task(web.client.post("/orders/1/refund"))
    await web.messages()
    web.replies.give_up()
    assert fault(await asking, 503)["type"] == "unavailable"


# --- broker and store are away


async def test_while_the_broker_is_away_nothing_is_promised(web: Served, caplog: pytest.LogCaptureFixture) -> None:
    web.transport.fault = TransportError("no broker")
    for path, value in (("/orders", {"id": "A"}), ("/refund", {"order": "1"})):
        response = await web.post(path, value)
        error = fault(response, 503)
        assert (error["type"], error["retryable"], response.headers["retry-after"]) == ("unavailable", True, "1")
    web.transport.fault = None
    assert (await web.post("/orders", {"id": "A"})).status_code == 202


async def test_a_broker_that_takes_nothing_does_not_keep_requests_for_ever(
    web: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SEND_TIMEOUT_S", 0.01)
    blocked = asyncio.Event()

    async def publish(_: Any) -> Any:
        await blocked.wait()
        return []

    monkeypatch.setattr(web.transport, "publish", publish)
    assert fault(await web.post("/orders", {"id": "A"}), 503)["type"] == "unavailable"


async def test_a_fault_of_our_own_is_500_and_shows_nothing(web: Served, caplog: pytest.LogCaptureFixture) -> None:
    web.transport.fault = ZeroDivisionError("secret place")
    assert fault(await web.post("/orders", {"id": "A"}), 503)["type"] == "unavailable"
    assert "internal error, please report it" in caplog.text
    web.transport.fault = None
    assert (await web.post("/orders", {"id": "A"})).status_code == 202


async def test_while_the_store_is_away_limits_cannot_be_kept(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise StoreError("no store")

    monkeypatch.setattr(web.store, "take_token", away)
    response = await web.post("/few", {}, headers={"x-tenant": "a"})
    assert fault(response, 503)["type"] == "unavailable"
    assert response.headers["retry-after"] == "1"


# --- health


async def test_health_says_which_part_is_missing(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await web.client.get("/livez")).json() == {"alive": True}
    ready = await web.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "store": True, "broker": True, "worker": True})

    async def away(*_: Any) -> Any:
        raise TransportError("no broker")

    monkeypatch.setattr(web.transport, "depth", away, raising=False)
    ready = await web.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "store": True, "broker": False, "worker": True})
    assert (await web.client.get("/livez")).status_code == 200


async def test_a_proxy_that_is_trusted_says_who_the_client_is() -> None:
    async with served(FLOW, env={"REGION": "eu"}, trusted=["203.0.113.0/24"]) as web:
        await web.take("flow.take")
        await web.post("/see/it", {}, headers={"X-Forwarded-For": "6.6.6.6, 198.51.100.1"})
        assert (await data(web))[0]["got"]["client_ip"] == "198.51.100.1"
