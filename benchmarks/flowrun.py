"""flowrun, as its user has it: a project's files, and `flowrun start`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import amqp, orders, project
from benchmarks.servers import Servers
from benchmarks.systems import OUT, Workers
from runner.plan import SINGLE_ACTIVE_CONSUMER

PROJECT = "bench"
EXCHANGE = f"{PROJECT}.events"
QUEUE = f"{PROJECT}.orders.accept"

EVENTS = """
flow: orders
events:
  order.placed: {external: true, schema: {$ref: ../schemas/order.schema.json}}
  order.accepted: {schema: {$ref: ../schemas/order.schema.json}}
"""
HOP = f"""{EVENTS}
routes: [{{on: order.placed, to: accept}}]
handlers:
  accept:
    retry: {{delay: 100ms, jitter: none}}
    steps:
      - {{id: price, use: orders.price, with: {{order: "{{{{ event }}}}"}}}}
      - {{emit: order.accepted, with: "{{{{ steps.price.output }}}}"}}
"""
SAGA = f"""{EVENTS}
routes: [{{on: order.placed, to: accept}}]
handlers:
  accept:
    steps:
      - id: reserve
        use: orders.reserve
        with: {{order_id: "{{{{ event.order_id }}}}"}}
        compensate: {{use: orders.undo, with: {{order_id: "{{{{ event.order_id }}}}"}}}}
      - id: charge
        use: orders.charge
        with: {{order_id: "{{{{ event.order_id }}}}", total: "{{{{ event.total }}}}"}}
        compensate: {{use: orders.undo, with: {{order_id: "{{{{ event.order_id }}}}"}}}}
      - id: ship
        use: orders.ship
        with: {{order: "{{{{ event }}}}"}}
        compensate: {{use: orders.undo, with: {{order_id: "{{{{ event.order_id }}}}"}}}}
      - {{emit: order.accepted, with: "{{{{ event }}}}"}}
"""
PLUGIN = '''
import asyncio
from pathlib import Path
from typing import Any

from runner import Context, RetryableError, handler


@handler("orders.price", effect=False)
async def price(ctx: Context, *, order: dict[str, Any]) -> dict[str, Any]:
    """Total an order anew; one that says so fails when it is first tried."""
    if order["fails"] and ctx.attempt == 1:
        raise RetryableError("not at the first try")
    total = round(sum(item["quantity"] * item["price"] for item in order["items"]), 2)
    return {**order, "total": total, "status": "accepted"}


@handler("orders.reserve")
async def reserve(ctx: Context, *, order_id: str) -> dict[str, Any]:
    """Reserve what was ordered."""
    return {"reserved": True, "order": order_id}


@handler("orders.charge")
async def charge(ctx: Context, *, order_id: str, total: float) -> dict[str, Any]:
    """Charge for it."""
    return {"charged": total}


@handler("orders.ship")
async def ship(ctx: Context, *, order: dict[str, Any]) -> dict[str, Any]:
    """Send it."""
    return {"shipped": True, "body": order}


@handler("orders.undo")
async def undo(ctx: Context, *, order_id: str) -> None:
    """Take back one of these."""


@handler("orders.linger")
async def linger(ctx: Context) -> None:
    """Take a minute, unless there was a crash."""
    if not Path("crashed").exists():
        await asyncio.sleep(60)
'''


@dataclass(slots=True)
class FlowrunSession:
    """A project in a folder, its queues declared. See `systems.Session`."""

    broker: str
    folder: Path
    store: str
    processes: int
    queue: str = QUEUE

    def produce(self, count: int, *, rate: float | None = None, failing_percent: int = 0) -> None:
        """See `systems.Session.produce`."""
        amqp.publish(self.broker, EXCHANGE, "order.placed", orders.at_rate(count, rate, failing_percent))

    def start(self) -> Workers:
        """See `systems.Session.start`."""
        command = [project.FLOWRUN, "start", "--quiet", "--workers", str(self.processes)]
        where = ["--broker", self.broker, "--store", self.store]
        return Workers([[*command, *where]], self.folder, project.environment())


@dataclass(frozen=True, slots=True, kw_only=True)
class Flowrun:
    """flowrun over RabbitMQ. `store` is what it keeps its runs in, "SQLite" or "PostgreSQL": a new one, or that at
    `kept_in`. `label` tells it from others in one table."""

    store: str
    flow: str = HOP
    processes: int = 1
    kept_in: str | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """See `systems.System.name`."""
        return f"flowrun, {self.store}{self.label}"

    @property
    def guarantees(self) -> str:
        """See `systems.System.guarantees`."""
        return "each message once, no recorded step again, retries, undoing, events kept; fsync"

    @contextmanager
    def set_up(self, servers: Servers, kind: str) -> Iterator[FlowrunSession]:
        """See `systems.System.set_up`."""
        broker = servers.broker()
        with project_of(self.flow, topology="external") as folder:
            _declare(folder, broker, kind)
            store = self.kept_in or (servers.store() if self.store == "PostgreSQL" else f"sqlite:{folder}/bench.db")
            yield FlowrunSession(broker, folder, store, self.processes)


@contextmanager
def project_of(flow: str, *, topology: str = "declare") -> Iterator[Path]:
    """A project with that flow, the orders' schema and the plugins, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="flowrun-bench-") as name:
        folder = Path(name)
        files = {
            "flowrun.yaml": f"project: {PROJECT}\ntopology: {topology}\n",
            "flows/orders.yaml": flow,
            "plugins/orders.py": PLUGIN,
            "schemas/order.schema.json": json.dumps(orders.SCHEMA),
        }
        for path, text in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text)
        yield folder


def _declare(folder: Path, broker: str, kind: str) -> None:
    """What `flowrun plan` says, but with queues of that kind: flowrun itself declares quorum queues only. And `out`."""
    plan: dict[str, Any] = json.loads(project.run("plan", "--json", cwd=folder))
    amqp.declare(broker, OUT, kind=kind)
    for queue in plan["queues"]:
        ordered = {key: value for key, value in queue["arguments"].items() if key == SINGLE_ACTIVE_CONSUMER}
        amqp.declare(broker, queue["name"], kind=kind, arguments=ordered)
    for exchange in plan["exchanges"]:
        bindings = [b for b in plan["bindings"] if b["exchange"] == exchange["name"]]
        amqp.bind(broker, exchange["name"], exchange["type"], {b["queue"]: b["pattern"] for b in bindings})
    amqp.bind(broker, EXCHANGE, "topic", {OUT: "order.accepted"})
