"""The ingress as its clients and its operator have it: `flowrun start --http`, asked over a socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from project import FLOWRUN, PATIENCE_S, Shop, stop, wait_for_line, wait_until
from services import RabbitServer

FLOW = """
flow: shop
uses: {secrets: [REFUND_TOKEN]}
events:
  order.placed:
    schema: {type: object, required: [id], properties: {id: {type: string}}}
    subject: "order/{{ event.id }}"
commands:
  payment.refund: {handler: refund, timeout: 30s, schema: {type: object, required: [order]}}
ingress:
  place: {http: POST /orders, emit: order.placed}
  few: {http: POST /few, emit: order.placed, rate_limit: {limit: 100, period: 1h, key: "{{ request.client_ip }}"}}
  refund:
    http: "POST /orders/{order}/refund"
    command: payment.refund
    with: {order: "{{ request.path.order }}"}
    auth: {bearer: "{{ secrets.REFUND_TOKEN }}"}
routes: [{on: order.placed, to: take}]
handlers:
  take: {steps: [{set: {id: "{{ event.id }}"}}]}
  refund:
    steps:
      - {use: work.do, with: {name: "{{ command.order }}"}}
    reply: {refunded: "{{ command.order }}", by: "{{ uuid() }}"}
"""
PLUGIN = """
import asyncio, os
from pathlib import Path
from runner import Context, TerminalError, handler

HERE = Path(os.environ["SHOP_DATA"])

@handler("work.do")
async def do(ctx: Context, *, name: str) -> None:
    with (HERE / "notes").open("a") as file:
        file.write(name + "\\n")
    if name == "declined":
        raise TerminalError("card_declined", "no credit")
    if name == "hang":
        while not (HERE / "go on").exists():
            await asyncio.sleep(0.01)
"""
BEARER = {"Authorization": "Bearer t0ken"}


class Web(Shop):
    """The project above, in a folder of the test's own."""

    secrets: dict[str, str] = {"REFUND_TOKEN": "t0ken"}  # noqa: RUF012  a test may give an instance others

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.secrets}

    def serve(self, *arguments: str, http: str = "127.0.0.1:0") -> tuple[subprocess.Popen[str], httpx.Client]:
        """Start, and return once requests are served."""
        start = self.start("--http", http, *arguments)
        url = wait_for_line(start, "HTTP on")[-1].split("HTTP on ")[1].split(": ")[0]
        return start, httpx.Client(base_url=url, timeout=PATIENCE_S)

    def notes(self) -> list[str]:
        path = self.folder / "data" / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def go_on(self) -> None:
        (self.folder / "data" / "go on").touch()

    def trigger_ids(self, handler: str) -> list[str]:
        return [
            json.loads(text)["id"]
            for (text,) in self.query("shop", f"SELECT trigger FROM runs WHERE handler = '{handler}'")
        ]


@pytest.fixture
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Web]:
    """On the embedded broker, unless a test says where."""
    texts = {"flows/shop.yaml": FLOW, "plugins/work.py": PLUGIN, "flowrun.yaml": "project: shop\n"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "data").mkdir()
    on_rabbit = getattr(request, "param", "embedded") == "rabbitmq"
    with Web(tmp_path, request.getfixturevalue("rabbit_url") if on_rabbit else "embedded:", root=tmp_path) as web:
        yield web


everywhere = pytest.mark.parametrize(
    "web", ["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)], indirect=True
)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# --- requests


@everywhere
def test_requests_become_events_and_commands(web: Web) -> None:
    start, client = web.serve()
    with client:
        placed = client.post("/orders", json={"id": "A"}, headers={"Idempotency-Key": "k-1"})
        assert (placed.status_code, placed.json()) == (202, {"id": "k-1"})
        assert client.post("/orders", json={"id": "A"}, headers={"Idempotency-Key": "k-1"}).status_code == 202
        refund = client.post("/orders/A/refund", headers={**BEARER, "Idempotency-Key": "r-1"})
        assert refund.status_code == 200
        assert refund.json()["refunded"] == "A"
        again = client.post("/orders/A/refund", headers={**BEARER, "Idempotency-Key": "r-1"})
        assert again.json() == refund.json()
        declined = client.post("/orders/declined/refund", headers=BEARER)
        assert declined.status_code == 409
        assert declined.json()["error"]["type"] == "card_declined"
        assert client.post("/orders/A/refund").status_code == 401
        assert client.get("/readyz").json() == {"ready": True, "store": True, "broker": True, "worker": True}
    wait_until(lambda: web.trigger_ids("shop.take") == ["k-1"], alive=start)
    assert web.notes() == ["A", "declined"]
    code, output = stop(start)
    assert code == 0
    assert "Traceback" not in output
    assert "t0ken" not in output


def test_what_is_no_request_at_all_harms_nobody(web: Web) -> None:
    start, client = web.serve()
    port = client.base_url.port
    big = b"1" * 70_000
    for said in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"nonsense\r\n\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: [\r\nContent-Length: 0\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: [\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"POST /orders HTTP/1.1\r\nHost: x\r\nX: " + big + b"\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /ord\xff%ff%00%0aers HTTP/1.1\r\nHost: \xff\r\nContent-Length: 0\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            with suppress(ConnectionResetError):
                while chunk := connection.recv(4096):
                    answer += chunk
            assert b" 500 " not in answer.partition(b"\r\n")[0]
    with client:
        assert client.post("/orders", json={"id": "A"}).status_code == 202
        too_large = client.post(
            "/orders", content=(b" " * 65_536 for _ in range(20)), headers={"content-type": "application/json"}
        )
        assert too_large.status_code == 413
    code, output = stop(start)
    assert code == 0
    assert "Traceback" not in output
    assert "error" not in output


# --- several processes


def test_a_rate_limit_is_one_for_all_processes(web: Web) -> None:
    start, client = web.serve("--workers", "2")
    url = str(client.base_url)
    wait_until(lambda: len(os.listdir(web.folder / "shop.db-sessions")) == 2, alive=start)

    def place(number: int) -> tuple[int, str | None]:
        # A connection for each, so that both processes get some.
        response = httpx.post(f"{url}/few", json={"id": str(number)}, timeout=PATIENCE_S)
        return response.status_code, response.headers.get("retry-after")

    with client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(place, range(160)))
    assert Counter(status for status, _ in answers) == {202: 100, 429: 60}
    assert {after for status, after in answers if status == 429} <= {str(seconds) for seconds in range(1, 37)}


def test_what_was_answered_with_202_is_done_whichever_process_is_killed(web: Web) -> None:
    start, client = web.serve("--workers", "2")
    url, over = str(client.base_url), Event()
    client.close()

    def place(sender: int) -> list[str]:
        taken, number = [], 0
        while not over.is_set():
            number += 1
            with suppress(httpx.TransportError):
                response = httpx.post(f"{url}/orders", json={"id": f"{sender}-{number}"}, timeout=PATIENCE_S)
                assert response.status_code == 202, response.text
                taken.append(response.json()["id"])
        return taken

    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(place, number) for number in range(4)]
        try:
            for _ in range(4):
                before = len(web.trigger_ids("shop.take"))
                wait_until(lambda before=before: len(web.trigger_ids("shop.take")) > before + 20, alive=start)  # type: ignore[misc]
                killed = children(start.pid)[0]
                os.kill(killed, signal.SIGKILL)
                wait_until(lambda killed=killed: killed not in children(start.pid), alive=start)  # type: ignore[misc]
        finally:
            over.set()
        taken = [ident for sender in senders for ident in sender.result()]
    assert len(taken) > 80
    code, output = stop(start)
    assert (code, output.count("another begins")) == (0, 4), output
    web.run("start", "--until-idle")
    done = Counter(web.trigger_ids("shop.take"))
    assert set(taken) <= set(done)
    assert set(done.values()) == {1}
    assert web.query("shop", "SELECT count(*) FROM runs WHERE finished_at IS NULL") == [(0,)]


# --- the end


def test_a_request_in_hand_is_answered_before_the_end_and_no_new_one_is_accepted(web: Web) -> None:
    start, client = web.serve()
    with client, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.post, "/orders/hang/refund", headers=BEARER)
        wait_until(lambda: web.notes() == ["hang"], alive=start)
        start.send_signal(signal.SIGTERM)
        wait_until(lambda: _is_refused(client), alive=start)
        web.go_on()
        response = asking.result(PATIENCE_S)
        assert (response.status_code, response.json()["refunded"]) == (200, "hang")
    assert start.wait(PATIENCE_S) == 0


def test_who_waits_for_what_does_not_end_is_told_to_come_again(web: Web) -> None:
    start, client = web.serve("--grace", "1s")
    with client, ThreadPoolExecutor(1) as pool:
        headers = {**BEARER, "Idempotency-Key": "r-1"}
        asking = pool.submit(client.post, "/orders/hang/refund", headers=headers)
        wait_until(lambda: web.notes() == ["hang"], alive=start)
        start.send_signal(signal.SIGTERM)
        response = asking.result(PATIENCE_S)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert start.wait(PATIENCE_S) == 75
    web.go_on()
    start, client = web.serve()
    with client:
        assert client.post("/orders/hang/refund", headers=headers).json()["refunded"] == "hang"


def _is_refused(client: httpx.Client) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=1):
            return False
    except OSError:
        return True


# --- what an operator gets wrong


def failed(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    return done.stderr


def test_a_port_that_is_taken_is_one_error_for_all_processes(web: Web) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = failed(web.run("start", "--workers", "3", "--http", address, check=False))
    assert f"HTTP cannot be served on {address}: address already in use" in said


@pytest.mark.parametrize(
    "address",
    ["8080", "localhost", "127.0.0.1:", ":8080", "127.0.0.1:http", "127.0.0.1:70000", "nowhere.invalid:80", " "],
)
def test_an_address_that_is_none_is_a_usage_error(web: Web, address: str) -> None:
    said = failed(web.run("start", "--http", address, check=False))
    assert "is no address to serve on" in said or "HTTP cannot be served on" in said or "--http is empty" in said


def test_a_proxy_that_is_no_network_is_a_settings_error(web: Web) -> None:
    (web.folder / "flowrun.yaml").write_text(
        "project: shop\nhttp: {listen: 127.0.0.1:0, trusted_proxies: [10.0.0.0/8, home]}\n"
    )
    assert '"home" is no address and no network' in failed(web.run("start", "--until-idle", check=False))


def test_secrets_that_are_missing_are_listed(web: Web) -> None:
    web.secrets = {}  # type: ignore[misc]
    assert "REFUND_TOKEN or REFUND_TOKEN_FILE (shop)" in failed(web.run("start", "--http", "127.0.0.1:0", check=False))


def test_the_file_says_where_and_the_flag_wins(web: Web) -> None:
    (web.folder / "flowrun.yaml").write_text("project: shop\nhttp: {listen: '[::1]:${PORT:-0}'}\n")
    assert "HTTP on http://[::1]:" in web.run("start", "--until-idle").stderr
    assert "HTTP on http://127.0.0.1:" in web.run("start", "--until-idle", "--http", "127.0.0.1:0").stderr


@pytest.mark.parametrize("command", [["--version"], ["validate"], ["start", "--until-idle"]])
def test_who_serves_no_http_does_not_wait_for_it(web: Web, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", FLOWRUN, *command],
        cwd=web.root,
        env=web.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert " runner.cli" in done.stderr
    assert "starlette" not in done.stderr
    assert "uvicorn" not in done.stderr
    assert ("3 endpoints not served: say where, with --http" in done.stderr) == (command[0] == "start")


# --- RabbitMQ goes away


@pytest.mark.rabbitmq
def test_while_the_broker_is_away_requests_are_turned_away_and_then_served_again(
    rabbit_server: RabbitServer, tmp_path: Path, web: Web
) -> None:
    rabbit_server.start()
    with Web(web.folder, rabbit_server.new_vhost(), root=web.folder) as web:
        start, client = web.serve()
        with client:
            assert client.post("/orders/A/refund", headers=BEARER).status_code == 200
            rabbit_server.stop()
            wait_until(lambda: client.get("/readyz").status_code == 503, alive=start)
            assert client.get("/readyz").json()["broker"] is False
            assert client.get("/livez").status_code == 200
            response = client.post("/orders", json={"id": "A"})
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            rabbit_server.start()
            wait_until(lambda: client.get("/readyz").status_code == 200, alive=start)
            wait_until(lambda: _refund(client).get("refunded") == "B", alive=start)
        code, output = stop(start)
        assert code == 0
        assert "Traceback" not in output


def _refund(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.post("/orders/B/refund", headers=BEARER).json()
    return found
