"""The broker's objects and the plan: drift is explained, nothing is declared that the settings forbid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest
from project import Shop
from services import RabbitServer
from yarl import URL

pytestmark = pytest.mark.rabbitmq

FLOW = """
flow: f
events: {job: {external: true}}
routes: [{on: job, to: work}]
handlers:
  work:
    steps: [{use: log, with: {message: "{{ event.n }}"}}]
"""
OLD = FLOW + "  gone:\n    steps: [{use: log, with: {message: x}}]\n"


@pytest.fixture
def shop(tmp_path: Path, rabbit_url: str) -> Iterator[Shop]:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/f.yaml").write_text(FLOW)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    with Shop(tmp_path, rabbit_url, root=tmp_path) as shop:
        yield shop


async def declare(url: str, queue: str, **arguments: str | int) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True, arguments=arguments)
        await channel.default_exchange.publish(aio_pika.Message(b"{}", message_id="m-1"), queue)


async def publish(url: str, body: bytes, ident: str) -> None:
    async with await aio_pika.connect(url) as connection:
        exchange = await (await connection.channel()).get_exchange("shop.events")
        await exchange.publish(aio_pika.Message(body, message_id=ident), "job")


def changes(shop: Shop) -> dict[str, str]:
    shown = shop.run("plan", "--diff", "--json", check=False)
    return {found["name"]: found["change"] for found in json.loads(shown.stdout)}


def test_start_refuses_drift_names_all_of_it_and_ends(shop: Shop) -> None:
    asyncio.run(declare(shop.broker, "shop.f.work", **{"x-queue-type": "classic", "x-max-length": 5}))
    refused = shop.run("start", check=False)
    assert refused.returncode == 1
    assert 'x-queue-type "classic", the plan says "quorum"' in refused.stderr
    assert "x-max-length" in refused.stderr
    assert "flowrun plan --diff" in refused.stderr
    assert "Traceback" not in refused.stderr

    diff = shop.run("plan", "--diff", check=False)
    assert diff.returncode == 1
    [line] = [line for line in diff.stdout.splitlines() if "shop.f.work " in line and "queue" in line]
    assert line.lstrip().startswith("~")
    assert "needs drain" in line
    assert "(1 messages in it)" in line
    doctor = shop.run("doctor", check=False)
    assert doctor.returncode == 1
    assert "✗ queue" in doctor.stdout


def test_plan_diff_says_what_start_adds_and_what_is_left_over(shop: Shop) -> None:
    (shop.root / "flows/f.yaml").write_text(OLD.replace("to: work", "to: [work, gone]"))
    assert set(changes(shop).values()) == {"additive"}
    shop.run("start", "--until-idle", "--quiet")
    assert set(changes(shop).values()) <= {"none", "unknown"}
    (shop.root / "flows/f.yaml").write_text(FLOW)
    after = changes(shop)
    assert after["shop.f.gone"] == "left over"
    assert after["shop.f.work"] == "none"
    assert shop.run("plan", "--diff").stdout.count("left over") >= 2


@pytest.fixture
def guest(shop: Shop, rabbit_server: RabbitServer) -> str:
    """The URL of a user who may read and write, and declare nothing."""
    url = URL(shop.broker)
    vhost = url.path.lstrip("/")
    user = f"reader-{vhost}"
    rabbit_server.ctl("add_user", user, "secret")
    rabbit_server.ctl("set_permissions", "-p", vhost, user, "^$", ".*", ".*")
    return str(url.with_user(user).with_password("secret"))


@pytest.mark.parametrize("topology", ["verify", "external"])
def test_a_user_without_the_configure_right_runs_what_the_operator_declared(
    shop: Shop, guest: str, topology: str
) -> None:
    shop.run("start", "--until-idle", "--quiet")
    (shop.root / "flowrun.yaml").write_text(f"project: shop\ntopology: {topology}\n")
    shop.run("emit", "job", "--data", '{"n": 1}', "--broker", guest)
    done = shop.run("start", "--until-idle", "--broker", guest)
    assert "1 run begun, 1 finished" in done.stderr
    assert shop.run("doctor", "--broker", guest).returncode == 0


def test_without_the_right_declare_says_which_right_is_missing(shop: Shop, guest: str) -> None:
    refused = shop.run("start", "--broker", guest, check=False)
    assert refused.returncode == 69
    assert "configure" in refused.stderr
    doctor = shop.run("doctor", "--broker", guest, check=False)
    assert doctor.returncode == 1
    assert "may not declare" in doctor.stdout
    assert "topology: verify" in doctor.stdout


def test_verify_refuses_to_start_where_something_is_missing_and_makes_nothing(shop: Shop) -> None:
    (shop.root / "flowrun.yaml").write_text("project: shop\ntopology: verify\n")
    refused = shop.run("start", check=False)
    assert refused.returncode == 1
    assert "it is not there" in refused.stderr
    assert set(changes(shop).values()) == {"additive"}


def test_what_the_broker_dead_letters_is_moved_to_the_dead_letters_and_can_be_retried(shop: Shop) -> None:
    shop.run("start", "--until-idle", "--quiet")
    asyncio.run(reject_one(shop.broker, "shop.f.work"))
    moved = shop.run("start", "--until-idle", "--quiet")
    assert "broker_rejected" in moved.stderr
    [letter] = shop.json("dlq", "list")
    assert letter["reason"] == "broker_rejected"
    assert letter["handler"] == "f.work"
    assert (letter["message_id"], letter["type"], letter["body"]) == ("m-7", "job", '{"n": 7}')
    shop.run("dlq", "retry", letter["id"])
    done = shop.run("start", "--until-idle")
    assert "1 run begun, 1 finished" in done.stderr
    assert shop.json("dlq", "list") == []


async def reject_one(url: str, queue: str) -> None:
    """Some consumer of another program refuses a message."""
    await publish(url, b'{"n": 7}', "m-7")
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        found = await channel.get_queue(queue)
        message = await found.get(timeout=10)
        assert message is not None
        await message.reject(requeue=False)
        async with asyncio.timeout(20):
            while not (await channel.declare_queue("shop.dlq", passive=True)).declaration_result.message_count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
