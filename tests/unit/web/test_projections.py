"""Read models over HTTP: what is told, and to whom."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from served import Served, served

from runner.engine import read_models
from runner.message import Meta, encode_json
from runner.records import EventRecord

FLOW = """
flow: flow
uses: {secrets: [TOKEN]}
events: {placed: {external: true}}
projections:
  orders: {key: "{{ event.id }}", on: {placed: {increment: {n: 1}}}}
  guarded: {key: "{{ event.id }}", on: {placed: {increment: {n: 1}}}, auth: {bearer: "{{ secrets.TOKEN }}"}}
"""


async def log(here: Served, *ids: str) -> None:
    events = []
    for number, ident in enumerate(ids, 1):
        time = f"2026-11-23T00:00:{number:02}.000Z"
        meta = Meta(
            id=f"e-{number}", type="placed", source="/t", subject=None, time=time, correlation_id="c", causation_id=None
        )
        events.append(EventRecord(meta=meta, data=encode_json({"id": ident})))
    await here.store.append(events)


def local(here: Served) -> httpx.AsyncClient:
    """From this machine, by a name of this machine."""
    here.client.base_url = httpx.URL("http://127.0.0.1:8080")
    return here.client


async def test_an_entry_and_all_entries_are_told_as_of_now_and_as_of_then() -> None:
    async with served(FLOW, peer="127.0.0.1") as here:
        await log(here, "a", "b/c", "a", "ö")
        client = local(here)
        assert (await client.get("/projections/orders/a")).json() == {"key": "a", "state": {"n": 2}}
        assert (await client.get("/projections/orders/b/c")).json() == {"key": "b/c", "state": {"n": 1}}
        assert (await client.get("/projections/orders/%C3%B6")).json() == {"key": "ö", "state": {"n": 1}}
        for as_of in ("1", "2026-11-23T00:00:02Z"):
            response = await client.get("/projections/orders/a", params={"as_of": as_of})
            assert response.json() == {"key": "a", "state": {"n": 1}}
        everything = (await client.get("/projections/orders")).json()
        assert [each["key"] for each in everything] == ["a", "b/c", "ö"]
        page = (await client.get("/projections/orders", params={"limit": 1, "after": "a"})).json()
        assert page == [{"key": "b/c", "state": {"n": 1}}]


@pytest.mark.parametrize(
    ("path", "status", "kind", "message"),
    [
        ("/projections/order", 404, "not_found", 'there is no projection "order"'),
        ("/projections/orders/x", 404, "not_found", 'orders has no entry "x"'),
        ("/projections/orders?limit=0", 400, "invalid_input", "limit is a number from 1 to 1000"),
        ("/projections/orders?limit=many", 400, "invalid_input", "limit is a number from 1 to 1000"),
        ("/projections/orders?after=%00", 400, "invalid_input", "no key has a NUL"),
        ("/projections/orders?as_of=1", 400, "invalid_input", "as_of is of one entry"),
        ("/projections/orders/a?as_of=soon", 400, "invalid_input", "as_of is a time like"),
        ("/projections/orders/" + "k" * 600, 400, "invalid_input", "a key has 1 to 512 bytes"),
    ],
)
async def test_what_cannot_be_told_is_refused_with_a_reason(path: str, status: int, kind: str, message: str) -> None:
    async with served(FLOW, peer="127.0.0.1") as here:
        await log(here, "a")
        response = await local(here).get(path)
        assert response.status_code == status
        assert response.json()["error"]["type"] == kind
        assert message in response.json()["error"]["message"]


async def test_one_that_is_still_being_built_is_to_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_models, "MAX_TAIL", 1)
    async with served(FLOW, peer="127.0.0.1") as here:
        await log(here, "a", "a")
        response = await local(here).get("/projections/orders/a")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "is being built" in response.json()["error"]["message"]


async def test_with_auth_whoever_bears_the_token_may_read_from_anywhere() -> None:
    async with served(FLOW, secrets={"TOKEN": "t0ken"}) as here:
        await log(here, "a")
        assert (await here.client.get("/projections/guarded/a")).status_code == 401
        for token, status in (("t0ken", 200), ("other", 401)):
            response = await here.client.get("/projections/guarded/a", headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == status


@pytest.mark.parametrize(
    ("peer", "url", "headers"),
    [
        ("203.0.113.9", "http://127.0.0.1:8080", {}),
        ("127.0.0.1", "http://127.0.0.1:8080", {"X-Forwarded-For": "203.0.113.9"}),
        ("127.0.0.1", "http://127.0.0.1:8080", {"Forwarded": "for=203.0.113.9"}),
        ("127.0.0.1", "http://127.0.0.1:8080", {"X-Forwarded-Proto": "https"}),
        ("127.0.0.1", "http://127.0.0.1:8080", {"Host": "evil.example:"}),
        ("127.0.0.1", "http://127.0.0.1:8080", {"Host": "evil.example:99999"}),
        ("127.0.0.1", "http://127.0.0.1:8080", {"Host": "evil.example/@localhost"}),
        ("127.0.0.1", "http://127.0.0.1:8080", {"Host": ""}),
        ("127.0.0.1", "http://evil.example:8080", {}),  # a page in a browser here, whose name leads here as well
    ],
)
async def test_without_auth_only_programs_of_this_machine_may_read(
    peer: str, url: str, headers: dict[str, Any]
) -> None:
    async with served(FLOW, peer=peer) as here:
        await log(here, "a")
        here.client.base_url = httpx.URL(url)
        response = await here.client.get("/projections/orders/a", headers=headers)
        assert response.status_code == 403
        assert "auth:" in response.json()["error"]["message"]


async def test_who_is_named_as_a_proxy_asks_for_others_whatever_it_says_of_them() -> None:
    async with served(FLOW, peer="127.0.0.1", trusted=["127.0.0.1/32"]) as here:
        await log(here, "a")
        assert (await local(here).get("/projections/orders/a")).status_code == 403


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("url", ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:9000", "http://LOCALHOST"])
async def test_this_machine_may_be_called_by_each_of_its_names(peer: str, url: str) -> None:
    async with served(FLOW, peer=peer) as here:
        await log(here, "a")
        here.client.base_url = httpx.URL(url)
        assert (await here.client.get("/projections/orders/a")).status_code == 200
