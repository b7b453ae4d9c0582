"""The order system on a real RabbitMQ, fed by clients that are not flowrun."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import aio_pika
import pika
import pytest
from cloudevents.core.bindings.rabbitmq import (
    RabbitMQMessage,
    from_rabbitmq_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from project import Shop, stop, wait_for_line, wait_until
from services import RabbitServer

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def shop(rabbit_url: str, tmp_path: Path) -> Iterator[Shop]:
    with Shop(tmp_path, rabbit_url) as shop:
        yield shop


@pytest.fixture
def channel(shop: Shop) -> Iterator[Any]:
    """A plain client's channel: pika, which knows nothing of flowrun."""
    connection = pika.BlockingConnection(pika.URLParameters(shop.broker))
    yield connection.channel()
    connection.close()


def order(order_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "customer": "alice",
        "email": "alice@example.com",
        "sku": "widget",
        "quantity": 2,
        "unit_price": 1999,
        **changes,
    }


def publish(channel: Any, body: bytes, key: str = "order.requested", **properties: Any) -> None:
    channel.basic_publish("shop.events", key, body, pika.BasicProperties(delivery_mode=2, **properties))


def statuses(shop: Shop) -> dict[str, str]:
    return dict(shop.query("orders", "SELECT order_id, status FROM orders"))


def test_orders_of_plain_clients_end_in_the_right_states(shop: Shop, channel: Any) -> None:
    worker = shop.start()
    wait_for_line(worker, "ready")

    publish(channel, json.dumps(order("plain")).encode(), content_type="application/json", message_id="m-1")
    publish(channel, json.dumps(order("bare")).encode())
    for order_id, convert in (("binary", to_binary_event), ("structured", to_structured_event)):
        event = CloudEvent(
            {"type": "order.requested", "source": "/shop/web", "id": order_id, "specversion": "1.0"},
            order(order_id, quantity=50, sku="gadget"),
        )
        message = convert(event)
        publish(channel, message.body, headers=message.headers, content_type=message.content_type)
    publish(channel, json.dumps(order("poor", customer="bob")).encode(), message_id="m-3", app_id="till")
    wait_until(lambda: len(statuses(shop)) == 5 and not {"placed", "billed"} & {*statuses(shop).values()}, alive=worker)
    code, output = stop(worker)

    assert code == 0
    assert output.count("orders.place gets messages without an id") == 1, "said once, of the bare one"
    assert statuses(shop) == {
        "plain": "confirmed",
        "bare": "confirmed",
        "binary": "rejected",
        "structured": "rejected",
        "poor": "rejected",
    }
    shop.run("start", "--until-idle")
    runs = shop.json("runs", "list", "--handler", "orders.place")
    triggers = {run["trigger"]["subject"]: run["trigger"] for run in runs}
    assert triggers["order/plain"]["id"] == "m-1"
    assert triggers["order/plain"]["source"] == "/amqp"
    assert triggers["order/poor"]["source"] == "/amqp/till"
    assert triggers["order/binary"] == {
        "id": "binary",
        "type": "order.requested",
        "source": "/shop/web",
        "subject": "order/binary",
    }


def test_the_same_message_twice_is_one_run(shop: Shop, channel: Any) -> None:
    shop.run("start", "--until-idle")
    for _ in range(3):
        publish(channel, json.dumps(order("again")).encode(), message_id="m-1")
    shop.run("start", "--until-idle")

    assert len(shop.json("runs", "list", "--handler", "orders.place")) == 1
    assert shop.query("payment", "SELECT count(*) FROM payments") == [(1,)]


def test_what_cannot_begin_a_run_is_kept_and_harms_nothing_else(shop: Shop, channel: Any) -> None:
    shop.run("start", "--until-idle")
    publish(channel, b"\xff not json", message_id="d-1")
    publish(channel, json.dumps({"order_id": "short"}).encode(), message_id="d-2")
    publish(channel, json.dumps(order("fine")).encode())
    done = shop.run("start", "--until-idle")

    assert "2 dead letters" in done.stderr
    letters = shop.query("shop", "SELECT body, letter FROM dead_letters ORDER BY position")
    assert sorted(json.loads(letter)["reason"] for _, letter in letters) == ["invalid_json", "schema_violation"]
    assert b"\xff not json" in [body for body, _ in letters]
    assert statuses(shop) == {"fine": "confirmed"}


def test_dead_letters_are_shown_retried_and_dropped(shop: Shop, channel: Any) -> None:
    shop.run("start", "--until-idle")
    channel.queue_bind("shop.orders.place", "shop.events", "order.unheard")
    publish(
        channel, json.dumps(order("mended")).encode(), key="order.unheard", type="order.requested", message_id="d-2"
    )
    publish(channel, json.dumps(order("never")).encode(), key="order.unheard", message_id="d-3")
    publish(channel, b"nonsense", message_id="d-4")
    shop.run("start", "--until-idle")
    assert statuses(shop) == {"mended": "confirmed"}, "the AMQP type names the event where the routing key does not"

    listed = shop.run("dlq", "list").stdout
    assert "1      unknown_event  orders.place" in listed
    letters = {letter["message_id"]: letter for letter in shop.json("dlq", "list")}
    assert letters["d-4"]["reason"] == "invalid_json"
    assert letters["d-4"]["body"] == "nonsense"
    assert "nonsense" in shop.run("dlq", "show", letters["d-4"]["id"][:8]).stdout

    assert shop.run("dlq", "retry", "--all", "--dry-run").stdout == "would retry 2 dead letters\n"
    assert shop.run("dlq", "retry", "--reason", "invalid_json").stdout == "retried 1 dead letter\n"
    assert [letter["message_id"] for letter in shop.json("dlq", "list")] == ["d-3"]
    shop.run("start", "--until-idle")
    assert {letter["message_id"] for letter in shop.json("dlq", "list")} == {"d-3", "d-4"}, "it failed again"

    assert shop.run("dlq", "drop", letters["d-3"]["id"], input="n\n", check=False).returncode != 0
    assert shop.run("dlq", "drop", "--all", "--yes").stdout == "dropped 2 dead letters\n"
    assert shop.json("dlq", "list") == []
    assert shop.run("dlq", "retry", check=False).returncode == 2


def test_a_dead_letter_that_is_mended_runs_at_its_own_handler_only(shop: Shop, channel: Any) -> None:
    shop.run("start", "--until-idle")
    publish(channel, json.dumps(order("again")).encode(), message_id="m-1")
    shop.run("start", "--until-idle")
    unpaid = {"order_id": "again", "email": "alice@example.com", "reservation_id": 1, "reason": "not_paid"}
    publish(channel, json.dumps(unpaid).encode() + b" oops", key="order.unpaid", message_id="c-1")
    shop.run("start", "--until-idle")
    [letter] = shop.json("dlq", "list")
    assert letter["handler"] == "orders.undo"
    before = len(shop.json("runs", "list", "--limit", "100"))

    shop.run("dlq", "retry", letter["id"])
    shop.run("start", "--until-idle")

    assert len(shop.json("runs", "list", "--limit", "100")) == before
    assert [again["id"] for again in shop.json("dlq", "list")] == [letter["id"]]


def test_published_events_are_cloudevents_for_others(shop: Shop, channel: Any) -> None:
    shop.run("start", "--until-idle")
    channel.queue_declare("audit")
    channel.queue_bind("audit", "shop.events", "order.confirmed")
    publish(channel, json.dumps(order("seen")).encode(), message_id="m-1", correlation_id="basket-7")
    shop.run("start", "--until-idle")

    method, properties, body = channel.basic_get("audit", auto_ack=True)
    event = from_rabbitmq_event(RabbitMQMessage(properties.headers, properties.content_type, body))

    assert method.routing_key == "order.confirmed"
    assert event.get_type() == "order.confirmed"
    assert event.get_source() == "/flowrun/shop/orders"
    assert event.get_subject() == "order/seen"
    assert event.get_data()["order_id"] == "seen"
    assert event.get_extension("correlationid") == "basket-7"
    assert event.get_extension("causationid") is not None
    assert properties.message_id == event.get_id()
    assert properties.type == "order.confirmed"
    assert properties.app_id == "flowrun/shop"
    assert properties.correlation_id == "basket-7"
    assert properties.delivery_mode == 2


def test_the_broker_has_the_bindings_that_plan_printed(rabbit_server: RabbitServer, tmp_path: Path) -> None:
    shop = Shop(tmp_path, rabbit_server.new_vhost())
    shop.run("start", "--until-idle")
    vhost = unquote(urlsplit(shop.broker).path[1:])
    lines = rabbit_server.ctl("list_bindings", "-p", vhost, "source_name", "destination_name", "routing_key")
    live = {tuple(line.split("\t")) for line in lines.splitlines() if not line.startswith("\t")}

    plan = shop.json("plan")

    printed = {(b["exchange"], b["queue"], b["pattern"]) for b in plan["bindings"]}
    assert {binding for binding in live if binding[0].startswith("shop.")} == printed
    queues = rabbit_server.ctl("list_queues", "-p", vhost, "name", "type").splitlines()
    declared = {f"{queue['name']}\t{queue['arguments']['x-queue-type']}" for queue in plan["queues"]}
    assert {line for line in queues if line.startswith("shop.")} == declared


def test_a_queue_with_other_arguments_stops_start_with_an_explanation(shop: Shop, channel: Any) -> None:
    channel.queue_declare("shop.orders.place", durable=True)

    done = shop.run("start", "--until-idle", check=False)

    assert done.returncode == 1
    assert 'queue "shop.orders.place" stands with' in done.stderr
    assert "x-queue-type" in done.stderr or "x-dead-letter-exchange" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_event_that_no_queue_takes_stays_visible_and_goes_out_later(shop: Shop, channel: Any) -> None:
    shop.run("start", "--until-idle")
    channel.queue_delete("shop.orders.pay")
    publish(channel, json.dumps(order("patient")).encode())
    worker = shop.start()
    # `start` declares what is missing; the queue is deleted again once it stands, before the event is sent.
    wait_for_line(worker, "ready")
    wait_until(lambda: "patient" in statuses(shop), alive=worker)
    stop(worker)
    shop.run("start", "--until-idle")
    assert statuses(shop) == {"patient": "confirmed"}


def test_a_broker_that_restarts_is_found_again(rabbit_server: RabbitServer, tmp_path: Path) -> None:
    with Shop(tmp_path, rabbit_server.new_vhost()) as shop:
        worker = shop.start()
        wait_for_line(worker, "ready")

        rabbit_server.restart()
        asyncio.run(publish_order(shop.broker, order("after-restart")))

        wait_until(lambda: statuses(shop).get("after-restart") == "confirmed", alive=worker)
        code, output = stop(worker)
    assert code == 0
    assert "Traceback" not in output


async def publish_order(url: str, payload: dict[str, Any]) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("shop.events")
        await exchange.publish(aio_pika.Message(json.dumps(payload).encode(), message_id="r-1"), "order.requested")
