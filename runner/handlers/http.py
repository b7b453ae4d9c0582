"""`http.request`: one HTTP request, its failures sorted into those worth a retry and the others."""

from __future__ import annotations

import base64
import functools
import re
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import msgspec

from runner.errors import HandlerError, RetryableError, TerminalError
from runner.handler import Context, handler

# httpx and email.utils are imported where they are used: flows without HTTP start without their cost.
if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Collection, Iterator

    import httpx

MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_ERROR_BODY_BYTES = 4096
MAX_REDIRECTS = 5
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 300.0

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Scalar = str | int | float | bool | None

_RETRYABLE = frozenset({408, 425, 429})
_JSON_TYPE = re.compile(r"[\w.+-]+/([\w.+-]+\+)?json")
_TEXT_TYPE = re.compile(r"text/.+|[\w.+-]+/([\w.+-]+[+-])?(xml|yaml|javascript|ndjson|jsonl|x-www-form-urlencoded)")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")


class Response(TypedDict):
    """What `http.request` returns."""

    status: int
    headers: dict[str, str]
    """Names in lower case; a header that came several times is joined by `, `."""
    body: Any
    """The value of a JSON body, the text of a textual one, base64 of any other; null if it is empty."""


@handler("http.request")
async def request(
    ctx: Context,
    *,
    method: Method,
    url: str,
    headers: dict[str, str] | None = None,
    query: dict[str, Scalar | list[Scalar]] | None = None,
    json: Any = None,
    body: str | None = None,
    accept: list[int] | None = None,
) -> Response:
    """Send an HTTP request and return its response; from status 400 on it fails with `http.<status>`.

    `query` is added to the URL's own; a list repeats its name, null leaves it out. `json` is sent as JSON,
    `body` as UTF-8 text: at most one of the two. `accept` names statuses from 400 on that are a result all
    the same. `Idempotency-Key` is the step's unless `headers` has one. A GET or HEAD without a body follows
    redirects within its scheme; other requests return the redirect.
    """
    import httpx

    content, content_type = _content(json, body)
    given = _checked(headers or {})
    sent = {**_defaults(ctx, content_type), **given}
    # The step's deadline ends the wait, as a `timeout`: then it is known that the result is not.
    timeout = httpx.Timeout(READ_TIMEOUT_S if ctx.deadline is None else None, connect=CONNECT_TIMEOUT_S)
    with _faults_named(method):
        async with httpx.AsyncClient(verify=_tls_context(), timeout=timeout) as client:
            outgoing = client.build_request(method, _target(url, query), headers=sent, content=content)
            follow = content is None and method in ("GET", "HEAD")
            response, received = await _exchange(client, outgoing, follow=follow, private=given)
    if response.status_code >= 400 and response.status_code not in (accept or ()):
        raise _failure(response, received)
    if len(received) > MAX_BODY_BYTES:
        raise TerminalError(
            "http.too_large",
            f"{_name(response.request)} answered with more than {MAX_BODY_BYTES} bytes",
            status=response.status_code,
        )
    return Response(status=response.status_code, headers=dict(response.headers), body=_value(response, received))


def _content(json: Any, body: str | None) -> tuple[bytes | None, str | None]:
    """The bytes to send and their content type."""
    if json is not None and body is not None:
        raise TerminalError("invalid_input", "`json` and `body` exclude each other")
    try:
        if json is not None:
            return msgspec.json.encode(json), "application/json"
        if body is not None:
            return body.encode(), "text/plain; charset=utf-8"
    except UnicodeEncodeError:
        raise TerminalError("invalid_input", "the body holds half a surrogate pair") from None
    return None, None


def _defaults(ctx: Context, content_type: str | None) -> dict[str, str]:
    headers = {"user-agent": "flowrun", "idempotency-key": ctx.idempotency_key}
    return headers if content_type is None else {**headers, "content-type": content_type}


def _checked(headers: dict[str, str]) -> dict[str, str]:
    """The headers under names in lower case. A value may be a secret, so a message has only the name."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise TerminalError("invalid_input", f"no name of an HTTP header: {name!r}")
        if not _HEADER_VALUE.fullmatch(value):
            raise TerminalError("invalid_input", f"header {name!r} may hold printable ASCII and tabs only")
    return {name.lower(): value for name, value in headers.items()}


def _target(url: str, query: dict[str, Scalar | list[Scalar]] | None) -> httpx.URL:
    import httpx

    target = httpx.URL(url)
    if target.scheme not in ("http", "https") or not target.host:
        raise TerminalError("http.url", "the URL must begin with http:// or https:// and name a host")
    if target.port is not None and not 1 <= target.port <= 65535:
        raise TerminalError("http.url", f"no TCP port: {target.port}")
    lists = {name: value if isinstance(value, list) else [value] for name, value in (query or {}).items()}
    pairs: list[tuple[str, Scalar]] = [
        (name, item) for name, items in lists.items() for item in items if item is not None
    ]
    return target.copy_merge_params(httpx.QueryParams(pairs)) if pairs else target


@functools.cache
def _tls_context() -> ssl.SSLContext:
    # Reading the root certificates takes some 20 ms of the event loop: once, not once a request.
    import httpx

    return httpx.create_ssl_context()


@contextmanager
def _faults_named(method: str) -> Iterator[None]:
    """Turn httpx's exceptions into ours; their text never holds a query, a password or a header's value."""
    import httpx

    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError):
        raise TerminalError("http.url", f"{method}: the URL cannot be read") from None
    except httpx.LocalProtocolError:
        raise TerminalError("invalid_input", f"{method}: `headers` make no valid HTTP request") from None
    except httpx.RequestError as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise RetryableError("http.connection", f"{_name(error.request)}: {what}") from error


async def _exchange(
    client: httpx.AsyncClient, outgoing: httpx.Request, *, follow: bool, private: Collection[str]
) -> tuple[httpx.Response, bytes]:
    """Send, follow redirects, read the last answer up to one byte above the limit."""
    for _ in range(MAX_REDIRECTS + 1):
        response = await client.send(outgoing, stream=True)
        try:
            following = response.next_request if follow else None
            if following is None:
                return response, await _read(response)
        finally:
            await response.aclose()
        outgoing = _redirected(outgoing, following, private)
    raise TerminalError("http.redirect", f"{_name(outgoing)}: more than {MAX_REDIRECTS} redirects")


def _redirected(before: httpx.Request, following: httpx.Request, private: Collection[str]) -> httpx.Request:
    """The request that a redirect asks for: in the same scheme; to another host without `headers`."""
    if following.url.scheme != before.url.scheme:
        raise TerminalError(
            "http.redirect", f"{_name(before)} redirects from {before.url.scheme} to {following.url.scheme}"
        )
    if following.url.netloc != before.url.netloc:
        for name in private:
            if name != "host":
                following.headers.pop(name, None)
    return following


async def _read(response: httpx.Response) -> bytes:
    received = bytearray()
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as chunks:
        async for chunk in chunks:
            received += chunk
            if len(received) > MAX_BODY_BYTES:
                break
    return bytes(received[: MAX_BODY_BYTES + 1])


def _value(response: httpx.Response, received: bytes) -> Any:
    """A body as a JSON value; what is text and what is not, its content type alone decides."""
    if not received:
        return None
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = _JSON_TYPE.fullmatch(content_type) is not None
    if is_json:
        try:
            return msgspec.json.decode(received)
        except (msgspec.DecodeError, RecursionError):
            pass  # The request had its effect: the flow gets what came, rather than a failure.
    charset = response.charset_encoding
    if is_json or not content_type or charset is not None or _TEXT_TYPE.fullmatch(content_type):
        return _text(received, charset)
    return base64.b64encode(received).decode()


def _text(received: bytes, charset: str | None) -> str:
    try:
        return received.decode(charset or "utf-8", errors="replace")
    except LookupError:
        return received.decode(errors="replace")


def _failure(response: httpx.Response, received: bytes) -> HandlerError:
    status = response.status_code
    message = f"{_name(response.request)} answered {status} {response.reason_phrase}".rstrip()
    short = len(received) <= MAX_ERROR_BODY_BYTES
    details = {
        "status": status,
        "body": _value(response, received) if short else _text(received[:MAX_ERROR_BODY_BYTES], None) + "…",
    }
    if status in _RETRYABLE or 500 <= status <= 599:
        return RetryableError(f"http.{status}", message, _retry_after_s(response.headers), **details)
    return TerminalError(f"http.{status}", message, **details)


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds from a Retry-After header (RFC 9110, 10.2.3); None if there is none that can be read."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    then = _http_date(value)
    # Against the server's own clock, where it tells it: ours may differ.
    now = _http_date(headers.get("date", "")) or datetime.now(UTC)
    return None if then is None else max(0.0, (then - now).total_seconds())


def _http_date(text: str) -> datetime | None:
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _name(request: httpx.Request) -> str:
    """What messages call a request: neither its user and password nor its query, where tokens may stand."""
    url = request.url.copy_with(username=None, password=None, query=None, fragment=None)
    return f"{request.method} {url}"
