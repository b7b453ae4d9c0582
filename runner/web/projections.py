"""Read models over HTTP: `GET /projections/NAME` and `GET /projections/NAME/KEY`.

One without `auth` is for this machine only, whatever the address that is listened on: what it holds was never said to
be for everyone. A proxy on this machine is told by what it adds to a request, or by `trusted_proxies`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runner.engine.read_models import ReadModels
from runner.errors import NotReadyError, StoreError
from runner.plan import Projection
from runner.records import AsOf
from runner.times import parse_time, rfc3339
from runner.web.keys import Keys, is_from_here
from runner.web.received import Network
from runner.web.refusal import RETRY_AFTER, Refusal, json_response

PAGE = 100
MAX_PAGE = 1000

_log = logging.getLogger("flowrun.http")


class ProjectionPages:
    """Serves the projections of a plan."""

    def __init__(
        self, projections: Mapping[str, Projection], reads: ReadModels, keys: Keys, *, trusted: Sequence[Network] = ()
    ) -> None:
        self._projections = projections
        self._reads = reads
        self._keys = keys
        self._trusted = trusted

    async def many(self, request: Request) -> Response:
        """`GET /projections/NAME?limit=100&after=KEY`: entries in the order of their keys, as `[{key, state}, …]`."""
        return await self._guarded(request, self._many)

    async def one(self, request: Request) -> Response:
        """`GET /projections/NAME/KEY?as_of=…`: `{key, state}`."""
        return await self._guarded(request, self._one)

    async def _guarded(self, request: Request, serve: Callable[[Request, str], Awaitable[Response]]) -> Response:
        name = request.path_params["name"]
        try:
            projection = self._projections.get(name)
            if projection is None:
                raise Refusal(404, "not_found", f'there is no projection "{name}"')
            self._let_in(projection, request)
            return await serve(request, name)
        except Refusal as refusal:
            return refusal.response()
        except NotReadyError as error:
            return Refusal(503, "unavailable", error.message, retryable=True, headers=RETRY_AFTER).response()
        except StoreError as error:
            _log.warning("a request is turned away: %s", error)
            return Refusal.unavailable("the store is away").response()
        except Exception:
            _log.exception("internal error, please report it")
            return Refusal(500, "internal", "an internal error", retryable=True).response()

    def _let_in(self, projection: Projection, request: Request) -> None:
        if projection.bearer is not None:
            self._keys.mind_the_bearer(projection, request.headers.get("authorization", ""))
        elif not is_from_here(request, self._trusted):
            message = f"{projection.name} is for the machine that serves it; auth: {{bearer: …}} opens it to others"
            raise Refusal(403, "forbidden", message)

    async def _one(self, request: Request, name: str) -> Response:
        key, as_of = request.path_params["key"], _as_of(request)
        try:
            state = await (self._reads.get(name, key) if as_of is None else self._reads.get_as_of(name, key, as_of))
        except ValueError as error:
            raise Refusal(400, "invalid_input", str(error)) from None
        if state is None:
            raise Refusal(404, "not_found", f'{name} has no entry "{key}"')
        return json_response({"key": key, "state": state})

    async def _many(self, request: Request, name: str) -> Response:
        limit, after = _limit(request), request.query_params.get("after", "")
        if "\x00" in after:
            raise Refusal(400, "invalid_input", "no key has a NUL")
        if "as_of" in request.query_params:
            raise Refusal(400, "invalid_input", "as_of is of one entry: GET /projections/NAME/KEY?as_of=…")
        found: list[dict[str, Any]] = []
        async for entry in self._reads.all(name, after=after):
            found.append({"key": entry.key, "state": entry.state})
            if len(found) == limit:
                break
        return json_response(found)


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(PAGE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_PAGE:
        raise Refusal(400, "invalid_input", f"limit is a number from 1 to {MAX_PAGE}")
    return int(text[:9])


def _as_of(request: Request) -> AsOf | None:
    text = request.query_params.get("as_of")
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) < 19:
        return AsOf(position=int(text))
    try:
        return AsOf(time=rfc3339(parse_time(text)))
    except (ValueError, OverflowError):
        message = "as_of is a time like 2026-11-24T09:00:00Z, or a position of the event log"
        raise Refusal(400, "invalid_input", message) from None
