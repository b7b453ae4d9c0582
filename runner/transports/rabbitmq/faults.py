"""The broker's and the library's errors in plain words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from aiormq import exceptions as amqp
from yarl import URL

from runner.errors import TopologyError, TransportError

CONNECT_TIMEOUT_S = 5.0
TLS_FILES = ("cafile", "capath", "certfile", "keyfile")


_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<arg>[^']+)' for (?P<what>\w+) '(?P<name>[^']+)'.*?: "
    r"received (?P<plan>.+?)(?: of type '\w+')? but current is (?P<live>.+?)(?: of type '\w+')?$"
)
LOST = (
    amqp.AMQPConnectionError,
    ConnectionError,
    OSError,
    asyncio.TimeoutError,
    amqp.ChannelInvalidStateError,
)


@contextlib.contextmanager
def faults(what: str) -> Iterator[None]:
    """Turn the library's errors into TransportError."""
    try:
        yield
    except (*LOST, amqp.AMQPError, RuntimeError) as error:
        raise TransportError(f"{what}: {reason(error)}") from error
    except asyncio.CancelledError:
        # aiormq cancels whoever waits on a connection that it gives up for dead.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise TransportError(f"{what}: the connection to the broker was lost") from None


def reason(error: BaseException) -> str:
    """What the broker said, without the library's frame around it."""
    text = str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)
    return text or type(error).__name__


def drift(error: BaseException) -> TopologyError:
    """What stands otherwise than planned, as the broker's PRECONDITION_FAILED names it."""
    text = reason(error)
    match = _INEQUIVALENT.search(text)
    if match is None:
        return TopologyError(f"the broker's objects differ from the plan: {text}")
    live, plan = (match[side].replace("the value ", "").replace("'", '"') for side in ("live", "plan"))
    return TopologyError(
        f'{match["what"]} "{match["name"]}" stands with {match["arg"]} {live}, the plan says {plan}',
        hint="drain and delete it, or name another project",
    )


def take_over(arguments: dict[str, Any], error: BaseException) -> bool:
    """Make an argument what the broker says that it is, so that it names the next one; False if that is unclear."""
    match = _INEQUIVALENT.search(reason(error))
    if match is None or not match["arg"].startswith("x-"):
        return False
    live = match["live"]
    if live == "none":
        return arguments.pop(match["arg"], None) is not None
    value = live.removeprefix("the value ").strip("'")
    words = {"true": True, "false": False}
    arguments[match["arg"]] = int(value) if value.lstrip("-").isdigit() else words.get(value, value)
    return True


def connect_fault(url: URL, error: BaseException) -> TransportError:
    """Why there is no connection, and what to do; never with the password."""
    where = f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"
    user = url.user or "guest"
    if isinstance(error.__cause__, ssl.SSLError):  # an alert of TLS 1.3 comes after the handshake, and aiormq wraps it
        error = error.__cause__
    text = reason(error)
    if isinstance(error, amqp.AuthenticationError | amqp.ProbableAuthenticationError):
        return TransportError(f'the broker at {where} refused user "{user}": wrong name or password')
    # aiormq does not say why the broker closed instead of answering Connection.Open.
    if isinstance(error, amqp.ConnectionClosed) or "Connection.OpenOk" in text:
        vhost = unquote(url.path[1:]) or "/"
        return TransportError(
            f'the broker at {where} has no vhost "{vhost}", or does not let user "{user}" use it',
            hint="the vhost / is written %2F, or left out",
        )
    if isinstance(error, amqp.AMQPError) and (not isinstance(error, OSError) or error.errno is None):
        # Over TLS 1.3 who refuses a client's certificate says so after the handshake, and the reset of the connection
        # that follows may overtake it.
        if url.scheme == "amqps":
            return TransportError(
                f"TLS failed after the handshake with {where}: what answers there ends the connection, or does not "
                "speak AMQP 0-9-1",
                hint="does it ask for a client certificate? Name it in the URL: ?certfile=FILE&keyfile=FILE",
            )
        return TransportError(
            f"what answers at {where} ends the connection, or does not speak AMQP 0-9-1",
            hint="is it RabbitMQ's port? amqps:// is for its TLS port, amqp:// for the other",
        )
    files = [url.query[name] for name in TLS_FILES if name in url.query]
    if files and isinstance(error, FileNotFoundError | PermissionError):
        return TransportError(f"no TLS with the broker at {where}: {error.strerror} ({', '.join(files)})")
    return TransportError(
        f"no broker can be reached at {where}: {_why_unreachable(error, text)}",
        hint="is RabbitMQ running? To run without one: --broker embedded:",
    )


def _why_unreachable(error: BaseException, text: str) -> str:
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer within {CONNECT_TIMEOUT_S:g} s"
    if not isinstance(error, OSError) or error.strerror is None:
        return text
    if "ssl" in error.strerror.lower():
        return f"TLS failed: {error.strerror}"
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror.lower()
