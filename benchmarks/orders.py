"""The order that every contestant takes, checks, prices anew and sends on: 255 bytes of JSON, and what is done with it.

Imported by peers in an environment of their own: nothing of flowrun may be needed here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec

Order = dict[str, Any]

SCHEMA: dict[str, Any] = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "additionalProperties": False,
    "required": ["order_id", "customer_id", "currency", "total", "status", "sent_ns", "fails", "items"],
    "properties": {
        "order_id": {"type": "string", "minLength": 8, "maxLength": 64},
        "customer_id": {"type": "string", "pattern": "^c-[0-9]+$"},
        "currency": {"type": "string", "enum": ["EUR", "USD", "GBP"]},
        "total": {"type": "number", "minimum": 0},
        "status": {"type": "string", "enum": ["new", "accepted", "rejected"]},
        "email": {"type": "string", "maxLength": 254},
        "sent_ns": {"type": "integer"},
        "fails": {"type": "boolean"},
        "items": {
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["sku", "quantity", "price"],
                "properties": {
                    "sku": {"type": "string"},
                    "quantity": {"type": "integer", "minimum": 1},
                    "price": {"type": "number", "minimum": 0},
                },
            },
        },
    },
}
_SENT = re.compile(rb'sent_ns\\*":\s*(\d+)')
_validator = jsonschema_rs.validator_for(SCHEMA)

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


class FirstTryError(Exception):
    """What an order that `fails` raises when it is tried first."""


def order(number: int, *, failing_percent: int = 0) -> Order:
    """The order of that number, as it is now; of a hundred in a row, so many fail when first tried."""
    return {
        "order_id": f"order-{number:012d}",
        "customer_id": "c-12345",
        "currency": "EUR",
        "total": 0.0,
        "status": "new",
        "email": "someone@example.com",
        "sent_ns": time.monotonic_ns(),
        "fails": number % 100 < failing_percent,
        "items": [
            {"sku": "SKU-0001", "quantity": 2, "price": 9.95},
            {"sku": "SKU-0002", "quantity": 4, "price": 9.95},
        ],
    }


def at_rate(count: int, rate: float | None, failing_percent: int) -> Iterator[Order]:
    """So many orders, each made when it is due; without a rate, at once."""
    begun = time.monotonic()
    for number in range(count):
        if rate is not None:
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        yield order(number, failing_percent=failing_percent)


def check(order: Order) -> None:
    """Raise ValueError unless it fits the schema."""
    if not _validator.is_valid(order):
        raise ValueError("no order")


def priced(order: Order) -> Order:
    """What the handler makes of it."""
    total = round(sum(item["quantity"] * item["price"] for item in order["items"]), 2)
    return {**order, "total": total, "status": "accepted"}


def sent_ns(body: bytes) -> int:
    """When the order in a message was sent, on the clock of `time.monotonic_ns`, whatever it is wrapped into."""
    found = _SENT.search(body)
    assert found is not None, body
    return int(found[1])
