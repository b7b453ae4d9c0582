"""The endpoints, served inside a worker's own loop: uvicorn, without its signals and its logs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from runner.app import App, read_models
from runner.clock import SystemClock
from runner.engine.worker import Worker
from runner.environment import masked_by, read_env
from runner.masking import Mask
from runner.plan import Endpoint, Plan
from runner.web.app import make_app
from runner.web.health import Readiness, StatusPage
from runner.web.ingress import Backpressure, Ingress
from runner.web.keys import Keys
from runner.web.projections import ProjectionPages
from runner.web.replies import Replies
from runner.web.sending import Sender

KEEP_ALIVE_S = 75
"""Longer than the proxies in front keep their connections: who closes first must be the proxy."""
LAST_WORDS_S = 1.0

_log = logging.getLogger("flowrun.http")


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the worker's."""
        yield


class HttpServer:
    """Serves an application on a socket that listens already; others may accept from it as well."""

    def __init__(
        self, app: ASGIApp, listener: socket.socket, background: Sequence[asyncio.Task[None]], replies: Replies
    ):
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",
            access_log=False,
            http="h11",
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config = config
        self._replies = replies
        self._background = background
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._serving.add_done_callback(_say_why_it_ended)

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, and end what is in hand, within the grace; who waits longer is told to come again."""
        self._config.timeout_graceful_shutdown = max(1, round(grace_s + LAST_WORDS_S))
        self._server.should_exit = True
        await asyncio.wait({self._serving}, timeout=grace_s)
        self._replies.give_up()
        await asyncio.wait({self._serving}, timeout=LAST_WORDS_S)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


async def serve(
    app: App, plan: Plan, endpoints: Sequence[Endpoint], worker: Worker, listener: socket.socket, mask: Mask
) -> HttpServer:
    """Begin to serve these endpoints of the plan on that socket."""
    sender = Sender(app.transport)
    replies = Replies(app.transport, sender, plan.project)
    keys = Keys(env=read_env, secrets=masked_by(mask))
    ingress = Ingress(
        plan=plan,
        sender=sender,
        replies=replies,
        limits=app.store,
        clock=SystemClock(),
        env=read_env,
        keys=keys,
        mask=mask,
        load=Backpressure(pressure=worker.pressure.retry_after_s, circuit=worker.breakers.retry_after_s),
        trusted=app.settings.trusted_proxies,
    )
    readiness = Readiness(
        store=app.store, transport=app.transport, queue=plan.net, is_consuming=lambda: worker.is_consuming
    )
    background = [asyncio.create_task(sender.run())]
    if any(endpoint.command is not None for endpoint in endpoints):
        background.append(asyncio.create_task(replies.run()))
    pages = ProjectionPages(plan.projections, read_models(plan, app.store), keys, trusted=app.settings.trusted_proxies)
    status = StatusPage(plan, app.store, app.transport, SystemClock(), app.settings.trusted_proxies)
    return HttpServer(make_app(endpoints, ingress, readiness, status, pages), listener, background, replies)


def _say_why_it_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("HTTP is served no more", exc_info=task.exception())
