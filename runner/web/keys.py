"""Who may: programs of this machine, bearer tokens, and the keys that signatures are checked with."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from starlette.requests import Request

from runner.errors import ExpressionError
from runner.expressions import Evaluate
from runner.values import as_text
from runner.web.received import Network, address_of
from runner.web.refusal import Refusal

Read = Callable[[tuple[str, ...]], Mapping[str, str]]
"""Environment variables or secrets, by name, those that are there."""

_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.ASCII | re.IGNORECASE)
_FORWARDING = ("forwarded", "x-forwarded-", "x-real-ip", "via")
_log = logging.getLogger("flowrun.http")


def is_from_here(request: Request, trusted: Sequence[Network]) -> bool:
    """Whether a program on this machine asks, and no proxy for another; nor a page of another's name, in a browser."""
    if any(name.startswith(_FORWARDING) for name in request.headers):
        return False
    if _LOCAL_HOST.fullmatch(request.headers.get("host", "")) is None:
        return False
    peer = None if request.client is None else address_of(request.client.host)
    return peer is not None and peer.is_loopback and not any(peer in network for network in trusted)


class Guarded(Protocol):
    """What is guarded by a token: an endpoint, a projection."""

    @property
    def name(self) -> str:
        """What the log calls it."""
        ...

    @property
    def bearer(self) -> Evaluate | None:
        """Gives the token that is asked for, or a list of tokens of which one is."""
        ...

    @property
    def env(self) -> tuple[str, ...]:
        """The environment variables that its expressions may read."""
        ...

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that its expressions may read."""
        ...


class Keys:
    """Read anew for each request, so that they can be changed. One that is not there lets nobody in."""

    def __init__(self, *, env: Read, secrets: Read) -> None:
        self._env = env
        self._secrets = secrets

    def of(self, guarded: Guarded, evaluate: Evaluate) -> list[str]:
        """The keys that this expression gives."""
        scope = {"secrets": self._secrets(guarded.secrets), "env": self._env(guarded.env)}
        try:
            value = evaluate(scope)
        except ExpressionError as error:
            _log.error("%s lets nobody in: %s", guarded.name, error)
            return []
        return [as_text(key) for key in (value if isinstance(value, list) else [value])]

    def mind_the_bearer(self, guarded: Guarded, header: str) -> None:
        """Raise Refusal unless the header Authorization bears the token, or none is asked for."""
        if guarded.bearer is None:
            return
        scheme, _, given = header.partition(" ")
        wanted = [token.encode() for token in self.of(guarded, guarded.bearer) if token]
        fits = sum(hmac.compare_digest(token, given.strip().encode("latin-1")) for token in wanted)
        if scheme.lower() != "bearer" or not fits:
            message = "the header Authorization must bear the token"
            raise Refusal(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
