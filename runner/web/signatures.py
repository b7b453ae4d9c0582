"""The signatures of webhooks, over the body's bytes as they came: HMAC-SHA256, compared in constant time.

Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
GitHub: https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries
Stripe: https://docs.stripe.com/webhooks#verify-manually
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping
from datetime import datetime

TOLERANCE_S = 300.0
"""How far the time that a sender signed may lie before or after ours."""
_PREFIX = "whsec_"


def is_signed(scheme: str, keys: Iterable[str], headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    """Whether the body bears a signature with one of the keys. An empty key signs nothing."""
    given = [key for key in keys if key]
    match scheme:
        case "github":
            return _github(given, headers, body)
        case "stripe":
            return _stripe(given, headers, body, now)
    return _standard_webhooks(given, headers, body, now)


def _standard_webhooks(keys: list[str], headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    ident, time = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not ident or not _is_fresh(time, now):
        return False
    given = [text[3:] for text in headers.get("webhook-signature", "").split(" ") if text.startswith("v1,")]
    signed = f"{ident}.{time}.".encode("latin-1") + body  # a header's text is its bytes
    wanted = [base64.b64encode(_hmac(key, signed)).decode() for key in map(_decoded, keys) if key]
    return _any_equal(wanted, given)


def _github(keys: list[str], headers: Mapping[str, str], body: bytes) -> bool:
    kind, _, given = headers.get("x-hub-signature-256", "").partition("=")
    return kind == "sha256" and _any_equal([_hmac(key.encode(), body).hex() for key in keys], [given])


def _stripe(keys: list[str], headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    fields = [field.strip().partition("=") for field in headers.get("stripe-signature", "").split(",")]
    time = next((value for name, _, value in fields if name == "t"), "")
    if not _is_fresh(time, now):
        return False
    signed = f"{time}.".encode() + body
    given = [value for name, _, value in fields if name == "v1"]
    return _any_equal([_hmac(key.encode(), signed).hex() for key in keys], given)


def _is_fresh(time: str, now: datetime) -> bool:
    """Whether `time`, in seconds since 1970, is about now."""
    if not (time.isascii() and time.isdecimal()) or len(time) > 15:
        return False
    return abs(now.timestamp() - int(time)) <= TOLERANCE_S


def _decoded(key: str) -> bytes:
    """The bytes of `whsec_<base64>`; none if it is not that."""
    try:
        return base64.b64decode(key.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _hmac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, "sha256")


def _any_equal(wanted: list[str], given: list[str]) -> bool:
    """All are compared, so that how long it takes does not tell which."""
    return sum(hmac.compare_digest(one.encode(), other.encode()) for one in wanted for other in given) > 0
