"""What the broker says of a message, in whatever encoding, kept from ending the connection.

pamqp (4.0) raises for a short string that is not UTF-8, and aiormq then closes the connection. There may be one in the
reason why a channel was closed, which quotes names and is cut off after 255 bytes. `install` makes pamqp read it.
Messages do not pass pamqp: see `messages.properties_of`.
"""

from __future__ import annotations

from pamqp import decode


def install() -> None:
    """Once, before the first connection; a second call changes nothing."""
    decode.METHODS["shortstr"] = _short_str


def _short_str(value: bytes) -> tuple[int, str]:
    """As `pamqp.decode.short_str`, in whatever encoding."""
    if not value:
        raise ValueError("Could not unpack short string value")
    end = value[0] + 1
    return end, value[1:end].decode("utf-8", "backslashreplace")
