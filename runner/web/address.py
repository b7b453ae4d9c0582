"""The address that HTTP is served on. Bound before worker processes are forked, so that all accept from one socket."""

from __future__ import annotations

import socket

from runner.errors import SettingsError

BACKLOG = 2048


def bind(address: str) -> socket.socket:
    """A socket that listens on `host:port`; port 0 is any free one. Raises SettingsError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f'"{address}" is no address to serve on', hint="host:port, for example 127.0.0.1:8080")
    host = host.removeprefix("[").removesuffix("]")
    try:
        [(family, kind, number, _, name), *_] = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(name)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise SettingsError(
            f"HTTP cannot be served on {address}: {reason}", hint="choose another with --http"
        ) from None
    listener.setblocking(False)
    return listener


def shown(listener: socket.socket) -> str:
    """Where it listens, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
