"""A request, read: its body within bounds, and what expressions see of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from runner.message import MAX_BODY_BYTES, decode_json
from runner.plan import Endpoint
from runner.web.refusal import Refusal

BODY_TIMEOUT_S = 30.0
HIDDEN = frozenset({"authorization", "proxy-authorization", "cookie"})
"""Headers that expressions do not see: what they hold would be stored."""
STRUCTURED = "application/cloudevents+json"

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request whose body has come whole."""

    endpoint: Endpoint
    headers: Headers
    body: bytes
    query: dict[str, Any]
    path: dict[str, str]
    client_ip: str

    def scope(self, body: Any) -> dict[str, Any]:
        """`request`, as expressions see it, with the body's JSON value."""
        names = dict.fromkeys(name for name in self.headers if name not in HIDDEN)
        headers = {name: ", ".join(self.headers.getlist(name)) for name in names}
        return {
            "body": body,
            "headers": headers,
            "query": self.query,
            "path": self.path,
            "client_ip": self.client_ip,
        }

    @property
    def content_type(self) -> str:
        """Without its parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The body's value; None if there is no body, and the endpoint can do without. Raises Refusal."""
        if not self.body and self.endpoint.data is not None:
            return None
        self.mind_the_type()
        try:
            return decode_json(self.body)
        except ValueError as error:
            message = f"the body is not JSON: {error}" if self.body else "the body is empty, and must be JSON"
            raise Refusal(400, "invalid_json", message) from None

    def mind_the_type(self) -> None:
        """Refuse a body that says that it is no JSON; one that does not say what it is, too: a browser would send
        that for any page."""
        kind = self.content_type
        charset = _parameter(self.headers.get("content-type", ""), "charset")
        if not (kind == "application/json" or kind.endswith("+json")) or charset not in ("", "utf-8", "us-ascii"):
            shown = self.headers.get("content-type") or "nothing"
            message = f"the content type must be application/json, and is {shown}"
            raise Refusal(415, "unsupported_media_type", message)
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "unsupported_media_type", "the body must not be compressed")


async def receive(request: Request, endpoint: Endpoint, trusted: Sequence[Network]) -> Received:
    """Read the whole request. Raises Refusal: 413 as soon as the body is too large, whatever its header says."""
    query: dict[str, Any] = {}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        query[name] = values[0] if len(values) == 1 else values
    return Received(
        endpoint=endpoint,
        headers=request.headers,
        body=await _body(request),
        query=query,
        path=dict(zip(endpoint.parameters, request.path_params.values(), strict=True)),
        client_ip=client_ip(
            "" if request.client is None else request.client.host,
            ",".join(request.headers.getlist("x-forwarded-for")),
            trusted,
        ),
    )


def client_ip(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Who sent a request: the peer, or, if that is a trusted proxy, the last address of X-Forwarded-For that is none.

    Whatever stands before the first untrusted address, anyone may have written.
    """
    client = address_of(peer)
    if client is None:
        return peer
    hops = [hop for hop in forwarded.split(",") if hop.strip()]
    while hops and any(client in network for network in trusted):
        before = address_of(hops.pop())
        if before is None:
            break
        client = before
    return str(client)


async def _body(request: Request) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 15 or int(announced) > MAX_BODY_BYTES):
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise Refusal(408, "timeout", f"the body did not come within {BODY_TIMEOUT_S:g} s", retryable=True) from None
    return bytes(body)


def _too_large() -> Refusal:
    return Refusal(413, "too_large", f"the body may have {MAX_BODY_BYTES} bytes", headers={"Connection": "close"})


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """An address, also with a port, as some proxies write it; IPv4 inside IPv6 is IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _parameter(header: str, name: str) -> str:
    for part in header.split(";")[1:]:
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"').lower()
    return ""
