"""A flow's endpoints, served without a socket: real application, broker and store (SQLite in memory), virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import httpx

from runner.engine.read_models import ReadModels
from runner.lang.compile import compile_project
from runner.lang.load import Sources
from runner.lang.projections import compile_projection
from runner.masking import Mask
from runner.message import Delivery, Outgoing, decode_json, encode_json, reply_message
from runner.plan import Plan
from runner.ports import Transport
from runner.sqlite_file import SqliteFile
from runner.stores.sqlite import SqliteStore
from runner.testing import FakeClock
from runner.transports.embedded import EmbeddedTransport
from runner.web.app import make_app
from runner.web.health import Readiness, StatusPage
from runner.web.ingress import Backpressure, Ingress
from runner.web.keys import Keys
from runner.web.projections import ProjectionPages
from runner.web.replies import Replies
from runner.web.sending import Sender

PATIENCE_S = 30.0


class Gate:
    """A transport before which a test may stand: `shut`, it says so to whoever publishes."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.fault: Exception | None = None

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[str | None]:
        if self.fault is not None:
            raise self.fault
        return await self._transport.publish(messages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@dataclass
class Served:
    """`client` sends requests from 203.0.113.9; `secrets` and `env` may be changed meanwhile."""

    plan: Plan
    client: httpx.AsyncClient
    clock: FakeClock
    transport: Any
    store: SqliteStore
    replies: Replies
    secrets: dict[str, str]
    env: dict[str, str]
    came: list[Delivery] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(self, path: str, value: Any = None, *, method: str = "POST", **options: Any) -> httpx.Response:
        """Send a JSON value, or with `content` whatever that is."""
        if "content" not in options:
            options["content"] = encode_json(value)
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return await self.client.request(method, path, headers=headers, **options)

    async def messages(self, number: int = 1) -> list[Delivery]:
        """What has come to the queues that are consumed, once it is so many."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.came) < number:
                self._news.clear()
                await self._news.wait()
        return self.came

    def _take(self, delivery: Delivery) -> None:
        self.came.append(delivery)
        self._news.set()

    async def take(self, handler: str) -> None:
        """Consume the queue of a handler."""

        def deliver(delivery: Delivery) -> None:
            self._take(delivery)
            self._settling = asyncio.create_task(self.transport.settle([delivery]))

        await self.transport.consume(f"test.{handler}", 100, deliver)

    async def serve_command(self, handler: str, answer: Any) -> None:
        """Do a command in the handler's place: `answer` gives the result and whether it failed, or None for silence."""

        def deliver(delivery: Delivery) -> None:
            self._take(delivery)
            self._answering = asyncio.create_task(self._settle_and_answer(delivery, answer(decode_json(delivery.body))))

        await self.transport.consume(f"test.{handler}", 100, deliver)

    async def _settle_and_answer(self, delivery: Delivery, said: tuple[Any, bool] | None) -> None:
        await self.transport.settle([delivery])
        await self.answer(delivery, said)

    async def answer(self, delivery: Delivery, said: tuple[Any, bool] | None) -> None:
        """Reply to a command that has come: its result, or its error and True."""
        properties = delivery.properties
        if said is not None:
            reply = reply_message(
                command=delivery.routing_key,
                reply_to=str(properties.reply_to),
                correlation_id=str(properties.correlation_id),
                body=encode_json(said[0]),
                failed=said[1],
                project="test",
            )
            await self.transport.publish([reply])


@asynccontextmanager
async def served(
    flow: str,
    *,
    secrets: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    trusted: Sequence[str] = (),
    peer: str = "203.0.113.9",
    behind: dict[str, float] | None = None,
    open_circuits: dict[str, float] | None = None,
) -> AsyncIterator[Served]:
    """Serve what a flow file says under `ingress`."""
    compilation = compile_project(Sources(None, {"flows/flow.yaml": flow}), project="test", signatures=None)
    assert compilation.plan is not None, compilation.diagnostics
    plan, clock = compilation.plan, FakeClock()
    async with AsyncExitStack() as stack:
        file = SqliteFile(":memory:")
        store = await stack.enter_async_context(SqliteStore(file))
        transport = Gate(await stack.enter_async_context(EmbeddedTransport(file)))
        await transport.declare(plan.topology)
        sender = Sender(transport)  # type: ignore[arg-type]
        replies = Replies(transport, sender, "test")  # type: ignore[arg-type]
        found = {"secrets": dict(secrets or {}), "env": dict(env or {})}

        def env_of(names: tuple[str, ...]) -> dict[str, str]:
            return {name: found["env"][name] for name in names if name in found["env"]}

        def secrets_of(names: tuple[str, ...]) -> dict[str, str]:
            return {name: found["secrets"][name] for name in names if name in found["secrets"]}

        keys = Keys(env=env_of, secrets=secrets_of)
        reads = ReadModels(plan.projections, log=store, store=store.projections, load=compile_projection)
        proxies = [ip_network(text) for text in trusted]
        ingress = Ingress(
            plan=plan,
            sender=sender,
            replies=replies,
            limits=store,
            clock=clock,
            env=env_of,
            keys=keys,
            mask=Mask((secrets or {}).values()),
            load=Backpressure(
                pressure=(behind or {}).get, circuit=lambda program: (open_circuits or {}).get(program.name)
            ),
            trusted=proxies,
        )
        readiness = Readiness(store=store, transport=transport, queue=plan.net, is_consuming=lambda: True)  # type: ignore[arg-type]
        pages = ProjectionPages(plan.projections, reads, keys, trusted=proxies)
        status = StatusPage(plan, store, transport, clock)  # type: ignore[arg-type]
        app = make_app(plan.ingress, ingress, readiness, status, pages)
        carrier = httpx.ASGITransport(app, raise_app_exceptions=True, client=(peer, 4711))
        client = await stack.enter_async_context(httpx.AsyncClient(transport=carrier, base_url="http://test"))
        tasks = [asyncio.create_task(sender.run()), asyncio.create_task(replies.run())]
        try:
            yield Served(plan, client, clock, transport, store, replies, found["secrets"], found["env"])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
