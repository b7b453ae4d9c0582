"""The tests' own servers: they answer, keep what they confirmed, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aio_pika
import asyncpg
import pytest
from services import Daemon, PostgresServer, RabbitServer
from yarl import URL

TESTS = Path(__file__).parents[1]
QUORUM = {"x-queue-type": "quorum"}


@pytest.mark.rabbitmq
async def test_rabbitmq_answers(rabbit_url: str) -> None:
    async with await aio_pika.connect(rabbit_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("orders", durable=True, arguments=QUORUM)
        await channel.default_exchange.publish(aio_pika.Message(b"one"), queue.name)
        received = await queue.get()
        assert received.body == b"one"
        await received.ack()
        await queue.delete(if_unused=False, if_empty=False)


@pytest.mark.rabbitmq
async def test_each_test_gets_a_vhost_of_its_own(rabbit_server: RabbitServer) -> None:
    first, second = rabbit_server.new_vhost(), rabbit_server.new_vhost()
    async with await aio_pika.connect(first) as connection:
        await (await connection.channel()).declare_queue("orders", durable=True)
    async with await aio_pika.connect(second) as connection:
        channel = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await channel.declare_queue("orders", passive=True)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("down", [RabbitServer.stop, RabbitServer.kill, RabbitServer.stop_app])
async def test_a_confirmed_message_survives_the_node_going_down(rabbit_server: RabbitServer, down) -> None:
    url = rabbit_server.new_vhost()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("orders", durable=True, arguments=QUORUM)
        message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue.name)

    await asyncio.to_thread(rabbit_server.flush)
    await asyncio.to_thread(down, rabbit_server)
    # Not `aio_pika.connect`: a connection that it failed to make is closed by `__del__`, in whatever test runs by then.
    async with aio_pika.Connection(URL(url)) as refused:
        with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
            await refused.connect()
    await asyncio.to_thread(rabbit_server.start)

    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).declare_queue("orders", passive=True)
        assert (await queue.get(no_ack=True)).body == b"kept"


@pytest.mark.postgres
async def test_postgres_answers(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval("select 1") == 1
    assert await connection.fetchval("show fsync") == "on"
    await connection.close()


@pytest.mark.postgres
@pytest.mark.parametrize("down", [PostgresServer.stop, PostgresServer.kill])
async def test_a_commit_survives_the_server_going_down(postgres_server: PostgresServer, down) -> None:
    url = postgres_server.new_database()
    connection = await asyncpg.connect(url)
    await connection.execute("create table orders (id int); insert into orders values (7)")

    await asyncio.to_thread(down, postgres_server)
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(url)
    connection.terminate()
    await asyncio.to_thread(postgres_server.start)

    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select id from orders") == 7
    await connection.close()


async def test_a_server_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    daemon = await asyncio.to_thread(_sleeper, tmp_path)
    await asyncio.get_running_loop().shutdown_default_executor()
    try:
        assert daemon.running
    finally:
        daemon.kill()


def test_a_server_dies_with_a_killed_test_process(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom services import Daemon\n"
        "d = Daemon(['/bin/sleep', '600'], environment={}, log=Path(sys.argv[1]))\n"
        "print(d.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "log"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        text=True,
    ) as test_process:
        pid = int(test_process.stdout.readline())
        assert _alive(pid)
        test_process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped=2"), ("true", "errors=2")])
def test_absent_services_skip_on_a_laptop_and_fail_on_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    done = _run_probe(tmp_path, CI=ci)
    assert outcome in done, done
    assert "RabbitMQ is not installed, and FLOWRUN_TEST_RABBITMQ names no server" in done
    assert "PostgreSQL is not installed, and FLOWRUN_TEST_POSTGRES names no server" in done


def test_named_services_are_used_as_they_are(tmp_path: Path) -> None:
    named = {"FLOWRUN_TEST_RABBITMQ": "amqp://there/", "FLOWRUN_TEST_POSTGRES": "postgresql://there/x"}
    assert "passed=2" in _run_probe(tmp_path, CI="true", **named)


def _run_probe(folder: Path, **environment: str) -> str:
    """What pytest prints for two tests that take the fixtures, on a machine where nothing is found."""
    (folder / "nothing_found.py").write_text(
        "import services\nservices.find_rabbitmq = services.find_postgres = lambda: None\n"
        "def pytest_terminal_summary(terminalreporter):\n"
        "    counts = {'passed': 'passed', 'skipped': 'skipped', 'error': 'errors'}\n"
        "    for key, name in counts.items():\n"
        "        print(f'{name}={len(terminalreporter.stats.get(key, []))}')\n"
    )
    (folder / "test_probe.py").write_text(
        "def test_rabbit(rabbit_url): assert 'there' in rabbit_url\n"
        "def test_postgres(postgres_url): assert 'there' in postgres_url\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\n")
    ours = ("FLOWRUN_", "PYTEST_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "nothing_found", "-p", "conftest", "test_probe.py"],
        env={**clean, **environment, "PYTHONPATH": f"{folder}{os.pathsep}{TESTS}"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def _sleeper(folder: Path) -> Daemon:
    return Daemon(["/bin/sleep", "600"], environment={}, log=folder / "log")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
