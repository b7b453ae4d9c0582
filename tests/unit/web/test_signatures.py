"""The signatures of webhooks: the senders' own examples, and whatever is not quite one."""

from __future__ import annotations

import base64
import hmac
from datetime import UTC, datetime, timedelta

import pytest

from runner.web.signatures import is_signed

# https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries/python/tests/test_webhooks.py
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
NOW = datetime.fromtimestamp(1614265330, UTC)
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
OTHER = "whsec_" + base64.b64encode(b"another key").decode()


def standard(keys: list[str] | None = None, body: bytes = BODY, late_s: float = 0, **headers: str) -> bool:
    given = {**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}
    now = NOW + timedelta(seconds=late_s)
    return is_signed("standard_webhooks", [SECRET] if keys is None else keys, given, body, now)


def test_the_example_of_standard_webhooks_is_signed() -> None:
    assert standard()
    assert standard([OTHER, SECRET])
    assert standard([SECRET.removeprefix("whsec_")])
    assert standard(webhook_signature=f"v1,AAAA v2,xyz {HEADERS['webhook-signature']} v1a,abc")


@pytest.mark.parametrize("late_s", [-300, -299, 299, 300])
def test_a_clock_may_differ_by_five_minutes(late_s: float) -> None:
    assert standard(late_s=late_s)


@pytest.mark.parametrize("late_s", [-301, 301, 86400])
def test_what_was_signed_long_ago_or_will_be_is_refused(late_s: float) -> None:
    assert not standard(late_s=late_s)


@pytest.mark.parametrize(
    "headers",
    [
        {"webhook_id": "msg_other"},
        {"webhook_id": ""},
        {"webhook_id": "msg_ß"},
        {"webhook_timestamp": "1614265331"},
        {"webhook_timestamp": ""},
        {"webhook_timestamp": "soon"},
        {"webhook_timestamp": "1614265330.0"},
        {"webhook_timestamp": "-1"},
        {"webhook_timestamp": "9" * 400},
        {"webhook_signature": ""},
        {"webhook_signature": "v1,"},
        {"webhook_signature": HEADERS["webhook-signature"].removeprefix("v1,")},
        {"webhook_signature": HEADERS["webhook-signature"].replace("v1,", "v2,")},
        {"webhook_signature": HEADERS["webhook-signature"][:-2] + "A="},
        {"webhook_signature": "v1,é" + HEADERS["webhook-signature"]},
    ],
)
def test_a_header_that_is_not_as_it_was_signed_is_refused(headers: dict[str, str]) -> None:
    assert not standard(**headers)


def test_a_body_of_which_a_byte_differs_is_refused() -> None:
    for place in range(len(BODY)):
        assert not standard(body=BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :])
    assert not standard(body=BODY + b"\n")


def test_a_header_that_is_missing_is_refused() -> None:
    for name in HEADERS:
        rest = {key: value for key, value in HEADERS.items() if key != name}
        assert not is_signed("standard_webhooks", [SECRET], rest, BODY, NOW)


@pytest.mark.parametrize("keys", [[], [""], ["whsec_"], ["whsec_!"], [OTHER], ["whsec_é"]])
def test_a_key_that_is_another_or_none_at_all_signs_nothing(keys: list[str]) -> None:
    assert not standard(keys)


def test_who_signs_with_an_empty_key_is_refused() -> None:
    signed = f"{HEADERS['webhook-id']}.{HEADERS['webhook-timestamp']}.".encode() + BODY
    forged = base64.b64encode(hmac.digest(b"", signed, "sha256")).decode()
    assert not standard(["whsec_", ""], webhook_signature=f"v1,{forged}")


# --- GitHub: https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries

GITHUB = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def github(signature: str = GITHUB, body: bytes = b"Hello, World!", *keys: str) -> bool:
    return is_signed("github", keys or ["It's a Secret to Everybody"], {"x-hub-signature-256": signature}, body, NOW)


def test_the_example_of_github_is_signed() -> None:
    assert github()
    assert github(GITHUB, b"Hello, World!", "other", "It's a Secret to Everybody")


def test_what_github_did_not_sign_is_refused() -> None:
    assert not github(body=b"Hello, World?")
    assert not github(GITHUB[:-1] + "8")
    assert not github(GITHUB.removeprefix("sha256="))
    assert not github(GITHUB.replace("sha256", "sha1"))
    assert not github("")
    assert not github("sha256=é")
    assert not github(GITHUB, b"Hello, World!", "other")
    assert not is_signed("github", ["a"], {}, b"", NOW)


# --- Stripe


def stripe(header: str, late_s: float = 0, *keys: str) -> bool:
    now = NOW + timedelta(seconds=late_s)
    return is_signed("stripe", keys or ["whsec_test"], {"stripe-signature": header}, BODY, now)


V1 = hmac.digest(b"whsec_test", b"1614265330." + BODY, "sha256").hex()


def test_what_stripe_signed_is_taken_for_five_minutes() -> None:
    assert stripe(f"t=1614265330,v1={V1}")
    assert stripe(f"t=1614265330,v1={'0' * 64},v1={V1},v0=abc")
    assert stripe(f"t=1614265330, v1={V1}", 300)
    assert stripe(f"t=1614265330,v1={V1}", 0, "other", "whsec_test")


def test_what_stripe_did_not_sign_is_refused() -> None:
    assert not stripe(f"t=1614265330,v1={V1}", 301)
    assert not stripe(f"t=1614265331,v1={V1}")
    assert not stripe(f"t=1614265330,v0={V1}")
    assert not stripe(f"v1={V1}")
    assert not stripe("t=1614265330")
    assert not stripe("")
    assert not stripe(f"t=1614265330,v1={V1}", 0, "other")
