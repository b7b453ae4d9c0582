"""`log`: one line into flowrun's own log."""

from __future__ import annotations

import logging
import re
from typing import Any, Literal

import msgspec

from runner.handler import Context, handler

Level = Literal["debug", "info", "warning", "error", "critical"]

# Line breaks and terminal codes: an event's text must not forge a line of the log.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@handler("log", effect=False)
async def log(ctx: Context, *, message: Any, level: Level = "info", **fields: Any) -> None:
    """Write one line to the log: the message, then each field as `name=value`.

    `message` is text; any other value stands as JSON, as field values do. Control characters are escaped.
    The fields also stand as `fields` on the log record, for a formatter that wants them apart.
    """
    text = message if isinstance(message, str) else _json(message)
    line = " ".join([text, *(f"{name}={_json(value)}" for name, value in fields.items())])
    escaped = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
    ctx.logger.log(logging.getLevelNamesMapping()[level.upper()], "%s", escaped, extra={"fields": fields})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
