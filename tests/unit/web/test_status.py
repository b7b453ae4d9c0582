"""`GET /status`: the figures, for programs of this machine."""

from __future__ import annotations

import httpx
import pytest
from served import served

from runner.errors import TransportError

FLOW = """
flow: f
events: {asked: {external: true}}
routes: [{on: asked, to: h}]
handlers: {h: {steps: [{use: log, with: {message: hello}}]}}
ingress: {ask: {http: POST /ask, emit: asked}}
"""


async def test_it_tells_the_lag_of_each_handler() -> None:
    async with served(FLOW, peer="127.0.0.1") as here:
        for _ in range(2):
            assert (await here.post("/ask", {})).status_code == 202
        here.client.base_url = httpx.URL("http://localhost:8080")
        told = (await here.client.get("/status")).json()
        assert [(each["handler"], each["lag"]) for each in told["handlers"]] == [("f.h", 2)]
        assert told["dead_letters"] == 0


@pytest.mark.parametrize(("peer", "host"), [("203.0.113.9", "localhost"), ("127.0.0.1", "evil.example")])
async def test_it_tells_nobody_else(peer: str, host: str) -> None:
    async with served(FLOW, peer=peer) as here:
        here.client.base_url = httpx.URL(f"http://{host}:8080")
        assert (await here.client.get("/status")).status_code == 403


async def test_while_the_broker_is_away_it_is_to_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(FLOW, peer="127.0.0.1") as here:

        async def away(queues: object) -> int:
            raise TransportError("the broker is away")

        monkeypatch.setattr(here.transport._transport, "depth", away)
        here.client.base_url = httpx.URL("http://localhost:8080")
        response = await here.client.get("/status")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
