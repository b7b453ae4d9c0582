"""The flows of docs/patterns.md that keep traffic in bounds, by `flowrun start`: what holds over all processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import httpx
import pytest
from patterns import FLOWS
from project import Shop, stop, wait_until
from services import free_port

PLUGIN = """
import os
from pathlib import Path
from runner import Context, RetryableError, TerminalError, handler

def note(line: str) -> None:
    fd = os.open("notes.txt", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)

@handler("bank.book")
async def book(ctx: Context, *, customer: str, number: int) -> None:
    if Path(f"{customer} is locked").exists():
        raise TerminalError("account_locked", "ask the bank")
    if number % 10 == 3:
        raise TerminalError("no_money", "nothing left")
    if number % 10 == 5 and ctx.attempt < 3:
        raise RetryableError("bank.away", "not now")
    note(f"{customer} {number}")

@handler("readings.store")
async def store(ctx: Context, *, sensor: str, value: float) -> None:
    note(f"stored {value:g}")

@handler("sensors.send_every")
async def send_every(ctx: Context, *, seconds: int) -> None:
    note(f"every {seconds}")
"""


class Partner:
    """A geocoder that answers, or with 503 while it is `down`; `asked` are the moments at which it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.down = False

    def answer(self) -> tuple[int, bytes]:
        self.asked.append(time.monotonic())
        return (503, b"") if self.down else (200, b'{"at": [52.5, 13.4]}')


@pytest.fixture
def partner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Partner]:
    partner = Partner()

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = partner.answer()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setenv("GEOCODER", f"http://127.0.0.1:{server.server_port}")
        yield partner
        server.shutdown()
        serving.join()


@pytest.fixture
def pattern(tmp_path: Path) -> Iterator[Callable[..., Shop]]:
    """A project of one of the flows, some words of which may be `changed`."""
    for folder in ("flows", "plugins"):
        (tmp_path / folder).mkdir()
    (tmp_path / "plugins/world.py").write_text(PLUGIN)
    (tmp_path / "flowrun.yaml").write_text("project: shop\n")
    with Shop(tmp_path, root=tmp_path) as shop:

        def project_of(flow: str, changed: tuple[str, str] = ("", "")) -> Shop:
            assert changed[0] in FLOWS[flow]
            (tmp_path / "flows/f.yaml").write_text(FLOWS[flow].replace(*changed))
            return shop

        yield project_of


def emit(shop: Shop, event: str, *payloads: dict[str, object]) -> None:
    shop.run("emit", event, "--file", "-", input="".join(json.dumps(payload) + "\n" for payload in payloads))


def notes(shop: Shop) -> list[str]:
    file = shop.root / "notes.txt"
    return file.read_text().splitlines() if file.exists() else []


def happened(shop: Shop, kind: str) -> int:
    return len(shop.json("events", "list", "--type", kind, "--limit", "1000"))


def test_a_partner_gets_ten_a_second_of_all_processes(pattern: Callable[..., Shop], partner: Partner) -> None:
    shop = pattern("geocoding")
    emit(shop, "address.entered", *({"address": f"{n} High Street"} for n in range(25)))
    shop.run("start", "--workers", "2", "--until-idle", "--quiet")
    assert happened(shop, "address.located") == 25
    assert partner.asked[-1] - partner.asked[0] > 2.0, "24 tenths, but for how long the first took to be asked"


def test_a_partner_who_is_down_is_left_alone_and_nothing_is_lost(
    pattern: Callable[..., Shop], partner: Partner
) -> None:
    shop = pattern("geocoding", ("pause: 30s", "pause: 1s"))
    partner.down = True
    emit(shop, "address.entered", *({"address": f"{n} High Street"} for n in range(25)))
    running = shop.start("--workers", "2", "--quiet")
    wait_until(lambda: bool(shop.json("status")["circuits"]), alive=running)
    wait_until(lambda: time.monotonic() - partner.asked[0] > 4, alive=running)
    probes = 1 + (partner.asked[-1] - partner.asked[0]) / 1.0
    assert len(partner.asked) <= 5 + 10 + probes  # the other process may go on for a second, until it hears of it
    partner.down = False
    wait_until(lambda: happened(shop, "address.located") == 25, alive=running)
    assert stop(running)[0] == 0
    assert happened(shop, "address.lost") == 0


def test_each_customers_bookings_are_in_order_and_a_locked_account_holds_up_its_own(
    pattern: Callable[..., Shop],
) -> None:
    shop = pattern("bookings")
    (shop.root / "ada is locked").touch()
    emit(shop, "booking.asked", *({"customer": who, "number": n} for n in range(10) for who in ("ada", "bob", "eve")))
    running = shop.start("--workers", "2", "--quiet")
    wait_until(lambda: len(notes(shop)) == 18, alive=running)
    assert happened(shop, "booking.held") == 1
    assert len(shop.json("runs", "list", "--state", "queued")) == 9
    (shop.root / "ada is locked").unlink()
    emit(shop, "account.unlocked", {"customer": "ada"})
    wait_until(lambda: len(notes(shop)) == 27, alive=running)
    assert stop(running)[0] == 0
    for who in ("ada", "bob", "eve"):
        numbers = [int(line.split()[1]) for line in notes(shop) if line.startswith(who)]
        assert numbers == [0, 1, 2, 4, 5, 6, 7, 8, 9], f"{who}: 3 is refused, and the next goes on"
    assert happened(shop, "booking.refused") == 3
    assert len({run["id"] for run in shop.json("runs", "list", "--state", "failed")}) == 3


def test_producers_are_turned_away_and_slowed_down_until_it_has_caught_up(pattern: Callable[..., Shop]) -> None:
    shop = pattern("readings")
    emit(shop, "reading.taken", *({"sensor": "s", "value": n} for n in range(500)))
    address = f"127.0.0.1:{free_port()}"
    running = shop.start("--workers", "2", "--http", address, "--quiet")
    answers: list[httpx.Response] = []

    def answers_with(status: int) -> bool:
        with suppress(httpx.ConnectError):  # it has yet to begin
            answers.append(httpx.post(f"http://{address}/readings", json={"sensor": "s", "value": 500}))
        return bool(answers) and answers[-1].status_code == status

    wait_until(lambda: answers_with(429), alive=running)
    assert int(answers[-1].headers["Retry-After"]) >= 1
    wait_until(lambda: answers_with(202), alive=running)
    accepted = sum(answer.status_code == 202 for answer in answers)
    wait_until(lambda: sum(line.startswith("stored") for line in notes(shop)) == 500 + accepted, alive=running)
    wait_until(lambda: "every 5" in notes(shop), alive=running)
    assert stop(running)[0] == 0
    paces = [line for line in notes(shop) if line.startswith("every")]
    assert paces[0] == "every 60"
    assert all(one != next for one, next in pairwise(paces))
