"""Messages whose AMQP properties pamqp cannot decode, kept from ending the connection.

pamqp (4.0) raises for a text that is not UTF-8, a time after the year 9999, or tables in tables without end, and
aiormq then closes the connection: such a message, which any producer can send, would come again with the next
connection and end that as well, for ever, and nothing behind it would be served. `install` makes pamqp decode
what it can; a message of which it cannot says so in the header `UNREADABLE`, and becomes a dead letter.
"""

from __future__ import annotations

import struct

from pamqp import decode, header
from pamqp.commands import Basic

from runner.message import UNREADABLE

_unmarshal = header.ContentHeader.unmarshal


def install() -> None:
    """Once, before the first connection; a second call changes nothing."""
    decode.METHODS["shortstr"] = _short_str
    header.ContentHeader.unmarshal = _tolerant  # type: ignore[method-assign]


def _short_str(value: bytes) -> tuple[int, str]:
    """As `pamqp.decode.short_str`, for routing keys and ids in whatever encoding."""
    if not value:
        raise ValueError("Could not unpack short string value")
    end = value[0] + 1
    return end, value[1:end].decode("utf-8", "backslashreplace")


def _tolerant(self: header.ContentHeader, data: bytes) -> None:
    try:
        _unmarshal(self, data)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error) as error:
        self.properties = Basic.Properties(headers={UNREADABLE: str(error)[:200]})
