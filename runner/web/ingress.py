"""A request → an event on the broker, or a command and its reply."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from runner.errors import ExpressionError, StoreError
from runner.expressions import Evaluate
from runner.masking import Mask
from runner.message import new_id
from runner.plan import Check, Endpoint, Event, Plan, Program, RateLimit
from runner.ports import Clock, RateLimits
from runner.steps import command as commands
from runner.steps.emit import Emitter, PayloadError, build
from runner.times import rfc3339
from runner.values import as_text
from runner.web.envelope import Envelope, open_command, open_event, trace_of
from runner.web.keys import Keys, Read
from runner.web.received import Network, Received, receive
from runner.web.refusal import Refusal, json_response
from runner.web.replies import Replies
from runner.web.sending import Sender
from runner.web.signatures import is_signed

_log = logging.getLogger("flowrun.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backpressure:
    """How handlers fare, as far as this process knows: for how many seconds who sends to one should wait, because it is
    behind (`pressure`), or because a circuit of it is open (`circuit`); None if nobody need."""

    pressure: Callable[[str], float | None]
    circuit: Callable[[Program], float | None]


class Ingress:
    """Serves the endpoints of a plan. `trusted` are the proxies that are believed who a client is; `mask` takes secrets
    out of what is answered."""

    def __init__(
        self,
        *,
        plan: Plan,
        sender: Sender,
        replies: Replies,
        limits: RateLimits,
        clock: Clock,
        env: Read,
        keys: Keys,
        mask: Mask,
        load: Backpressure,
        trusted: Sequence[Network] = (),
    ) -> None:
        self._plan = plan
        self._sender = sender
        self._replies = replies
        self._limits = limits
        self._clock = clock
        self._env = env
        self._keys = keys
        self._mask = mask
        self._load = load
        self._trusted = trusted

    async def serve(self, endpoint: Endpoint, request: Request) -> Response:
        """The response, whatever the request holds."""
        try:
            return await self._serve(endpoint, request)
        except Refusal as refusal:
            return refusal.masked(self._mask).response()
        except StoreError as error:
            _log.warning("a request is turned away: %s", error)
            return Refusal.unavailable("the store is away").response()
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        except Exception:
            _log.exception("internal error, please report it")
            return Refusal(500, "internal", "an internal error", retryable=True).response()

    async def _serve(self, endpoint: Endpoint, request: Request) -> Response:
        self._keys.mind_the_bearer(endpoint, request.headers.get("authorization", ""))
        received = await receive(request, endpoint, self._trusted)
        webhook_id = self._mind_the_signature(endpoint, received)
        envelope = (open_event if endpoint.command is None else open_command)(received, webhook_id)
        scope = {
            "request": received.scope(envelope.body),
            "env": self._env(endpoint.env),
            "now": lambda: rfc3339(self._clock.now()),
            "uuid": new_id,
        }
        if endpoint.rate_limit is not None:
            await self._mind_the_limit(endpoint.name, endpoint.rate_limit, scope)
        self._mind_the_load(endpoint)
        data = envelope.body if endpoint.data is None else _evaluated("with", endpoint.data, scope)
        if endpoint.event is not None:
            return await self._publish(self._plan.events[endpoint.event], data, envelope, received)
        return await self._call(endpoint, data, envelope, received)

    # --- who may

    def _mind_the_signature(self, endpoint: Endpoint, received: Received) -> str | None:
        """The id that is signed with the request, if its scheme has one."""
        verify = endpoint.verify
        if verify is None:
            return None
        keys = self._keys.of(endpoint, verify.keys)
        if not is_signed(verify.scheme, keys, received.headers, received.body, self._clock.now()):
            raise Refusal(401, "unauthorized", "the request is not signed as it must be")
        return received.headers["webhook-id"] if verify.scheme == "standard_webhooks" else None

    async def _mind_the_limit(self, name: str, limit: RateLimit, scope: Mapping[str, Any]) -> None:
        key = "" if limit.key is None else as_text(_evaluated("the key of the rate limit", limit.key, scope))
        digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]  # of any length, and nobody's address
        wait_s = await self._limits.take_token(
            name, digest, limit=limit.limit, period_s=limit.period_s, burst=limit.burst, now=self._clock.now()
        )
        if wait_s is not None:
            message = f"no more than {limit.limit} requests in {limit.period_s:g} s"
            raise _busy(429, "rate_limited", message, wait_s)

    def _mind_the_load(self, endpoint: Endpoint) -> None:
        """Turn it away while a handler that it leads to is behind; a command also while its circuit is open, because
        somebody waits for the answer."""
        for program in _led_to(self._plan, endpoint):
            if (wait_s := self._load.pressure(program.name)) is not None:
                raise _busy(429, "rate_limited", f"{program.name} is behind", wait_s)
            if endpoint.command is not None and (wait_s := self._load.circuit(program)) is not None:
                raise _busy(503, "unavailable", f"what {program.name} needs does not answer", wait_s)

    # --- what is done

    async def _publish(self, event: Event, data: Any, envelope: Envelope, received: Received) -> Response:
        emitter = self._emitter(envelope.source, received)
        now = envelope.time or rfc3339(self._clock.now())
        try:
            record, outgoing = build(event, data, emitter, now, ident=envelope.id, subject=envelope.subject)
        except (PayloadError, ValueError, RecursionError) as error:
            raise _misfit(event.name, event.check, data, error) from None
        except ExpressionError as error:
            raise Refusal(422, "expression", f"the subject of {event.name}: {error}") from None
        reason = await self._sender.send(outgoing)
        if reason is not None:
            _log.error("%s %s was not taken: %s", event.name, record.meta.id, reason)
            raise Refusal.unavailable("the broker would not take it")
        return json_response({"id": record.meta.id}, 202)

    async def _call(self, endpoint: Endpoint, data: Any, envelope: Envelope, received: Received) -> Response:
        declared = self._plan.commands[str(endpoint.command)]
        emitter, ident, now = self._emitter(None, received), envelope.id or new_id(), self._clock.now()
        timeout_s = declared.timeout_s if endpoint.timeout_s is None else endpoint.timeout_s
        deadline = now + timedelta(seconds=timeout_s)
        try:
            commands.build(declared, data, emitter, ident, now, deadline, "")
        except (PayloadError, ValueError, RecursionError) as error:
            raise _misfit(declared.name, declared.check, data, error) from None
        answer = await self._replies.ask(
            declared.name,
            ident,
            lambda queue: commands.build(declared, data, emitter, ident, now, deadline, queue),
            timeout_s,
        )
        if answer.error is not None:
            raise Refusal.of_command(answer.error)
        return json_response(self._mask.value(answer.result))

    def _emitter(self, source: str | None, received: Received) -> Emitter:
        project = self._plan.project
        return Emitter(project=project, source=source or f"/flowrun/{project}/http", trace=trace_of(received.headers))


def _led_to(plan: Plan, endpoint: Endpoint) -> list[Program]:
    if endpoint.command is not None:
        handler = plan.commands[endpoint.command].handler
        return [] if handler is None else [plan.programs[handler]]
    return [p for p in plan.programs.values() if any(endpoint.event in route.events for route in p.routes)]


def _busy(status: int, kind: str, message: str, wait_s: float) -> Refusal:
    return Refusal(status, kind, message, retryable=True, headers={"Retry-After": str(max(1, math.ceil(wait_s)))})


def _evaluated(what: str, evaluate: Evaluate, scope: Mapping[str, Any]) -> Any:
    try:
        return evaluate(scope)
    except ExpressionError as error:
        raise Refusal(422, "expression", f"{what}: {error}") from None


def _misfit(name: str, check: Check, data: Any, error: Exception) -> Refusal:
    """The refusal of a payload, with the JSON pointer to the misfit, if it is the schema that says so."""
    try:
        found = check(data)
    except (TypeError, ValueError, RecursionError):  # it is no JSON value, or too deep a one
        found = None
    if found is None:
        return Refusal(422, "invalid_input", str(error) or f"{name} cannot be checked")
    pointer, _, text = found.partition(": ")
    details = {"pointer": "" if pointer == "/" else pointer}
    return Refusal(422, "invalid_input", f"{name} does not fit its schema: {text}", details=details)
