"""Restate: a service with three `ctx.run`, its server from npm, and a client that calls it over HTTP.

`python -m benchmarks.peers.restate serve PORT` is the service; `… call INGRESS ADMIN SERVICE COUNT AT_ONCE RATE` tells
the server of it, calls it that often, and prints `begin`, and `end` with how long each call took, in ms.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp
import hypercorn.asyncio
import hypercorn.config
import restate
import uvloop

from benchmarks import orders

WARM = 20
PATIENCE_S = 30.0

service = restate.Service("Saga")


@service.handler()
async def run(ctx: restate.Context, order: orders.Order) -> dict[str, object]:
    orders.check(order)
    order_id = order["order_id"]
    await ctx.run("reserve", lambda: {"reserved": True, "order": order_id})
    await ctx.run("charge", lambda: {"charged": order["total"]})
    await ctx.run("ship", lambda: {"shipped": True, "body": order})
    return {"order_id": order_id}


def serve(port: int) -> None:
    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = None
    uvloop.run(hypercorn.asyncio.serve(restate.app(services=[service]), config))


async def call(ingress: str, admin: str, service_url: str, count: int, at_once: int, rate: float) -> None:
    took: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await register(client, admin, service_url)

        async def one(order: orders.Order) -> None:
            async with client.post(f"{ingress}/Saga/run", json=order) as answer:
                answer.raise_for_status()
                await answer.read()
            took.append((time.monotonic_ns() - order["sent_ns"]) / 1e6)

        for number in range(WARM):
            await one(orders.order(number))
        took.clear()
        print("begin", flush=True)
        if rate:
            begun = time.monotonic()
            for number in range(count):
                await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                await one(orders.order(number))
        else:
            numbers = iter(range(count))

            async def caller() -> None:
                for number in numbers:
                    await one(orders.order(number))

            await asyncio.gather(*(caller() for _ in range(at_once)))
    print("end", json.dumps(took), flush=True)
    sys.stdin.read()  # the bench reads the meters, and ends us then


async def register(client: aiohttp.ClientSession, admin: str, service_url: str) -> None:
    """Once server and service are there."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            async with client.post(f"{admin}/deployments", json={"uri": service_url}) as answer:
                answer.raise_for_status()
                return
        except aiohttp.ClientError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port]:
            serve(int(port))
        case ["call", ingress, admin, service_url, count, at_once, rate]:
            uvloop.run(call(ingress, admin, service_url, int(count), int(at_once), float(rate)))
