"""DBOS: a workflow of three steps, with what undoes them. Plain functions in threads: quicker here than coroutines.

`python -m benchmarks.peers.dbos STORE_URL COUNT THREADS RATE` does that many and prints `begin`, and `end` with how
long each took, in ms. A rate of 0 is as fast as it goes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dbos import DBOS, DBOSConfig

from benchmarks import orders

WARM = 20


@DBOS.step()
def reserve(order_id: str) -> dict[str, object]:
    return {"reserved": True, "order": order_id}


@DBOS.step()
def charge(order_id: str, total: float) -> dict[str, object]:
    return {"charged": total}


@DBOS.step()
def ship(order: orders.Order) -> dict[str, object]:
    return {"shipped": True, "body": order}


@DBOS.step()
def undo(order_id: str) -> None:
    pass


@DBOS.workflow()
def saga(order: orders.Order) -> dict[str, object]:
    order_id = order["order_id"]
    steps: list[Callable[[], object]] = [
        lambda: reserve(order_id),
        lambda: charge(order_id, order["total"]),
        lambda: ship(order),
    ]
    done = 0
    try:
        for step in steps:
            step()
            done += 1
    except Exception:
        for _ in range(done):
            undo(order_id)
        raise
    return {"order_id": order_id}


def timed_ms(order: orders.Order) -> float:
    orders.check(order)
    saga(order)
    return (time.monotonic_ns() - order["sent_ns"]) / 1e6


def main(store: str, count: int, threads: int, rate: float) -> None:
    config = DBOSConfig(
        name="bench", system_database_url=store, sys_db_pool_size=20, log_level="ERROR", run_admin_server=False
    )
    DBOS(config=config)
    DBOS.launch()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(timed_ms, orders.at_rate(WARM, None, 0)))
        print("begin", flush=True)
        if rate:
            took = list(pool.map(timed_ms, orders.at_rate(count, rate, 0)))
        else:
            took = list(pool.map(lambda number: timed_ms(orders.order(number)), range(count)))
    print("end", json.dumps(took), flush=True)
    sys.stdin.read()  # the bench reads the meters, and ends us then
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
