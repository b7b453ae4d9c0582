"""What a mask hides of a secret, and what it lets stand."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from runner.masking import Mask, is_maskable
from runner.values import clip

TOKEN = 'p@ss "wörd"/+1'
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----"


@pytest.mark.parametrize(
    "form",
    [
        TOKEN,
        json.dumps(TOKEN),
        json.dumps(TOKEN, ensure_ascii=False),
        repr(TOKEN),
        quote(TOKEN),
        quote(TOKEN, safe=""),
        quote_plus(TOKEN),
        f"Bearer {TOKEN}",
    ],
)
def test_a_value_is_hidden_in_every_form_that_it_is_written_in(form: str) -> None:
    shown = Mask([TOKEN]).text(f"it is {form}.")
    assert shown.startswith("it is ")
    assert "***" in shown
    assert "rd" not in shown


@pytest.mark.parametrize("user", ["", "a", "ab", "abc", "abcd"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_value_is_hidden_inside_of_base64_wherever_it_stands(user: str, encode: object) -> None:
    text = base64.b64encode(f"{user}:hunter2/hunter2?:x".encode()).decode()
    shown = Mask(["hunter2/hunter2?"]).text(f"Basic {text}")
    plain = base64.b64decode(shown.removeprefix("Basic ").partition("***")[0] + "====")
    assert "***" in shown
    assert plain in f"{user}:".encode() + b"hu"


@pytest.mark.parametrize("value", ["", "1", "abc", "true", "False"])
def test_what_is_too_short_or_a_plain_word_stays(value: str) -> None:
    assert not is_maskable(value)
    assert Mask([value]).text("1 abc true False") == "1 abc true False"


def test_of_several_lines_each_is_hidden_and_so_is_the_whole() -> None:
    mask = Mask([KEY])
    assert mask.text(f"<{KEY}>") == "<***>"
    assert mask.text(f"line 3 is {KEY.splitlines()[2]}") == "line 3 is ***"
    assert mask.text(f"got {KEY!r}") == "got '***'"
    assert Mask(["short\nlines\nstay"]).text("lines") == "lines"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://shop:hunter2hunter2@mq/shop", "password hunter2hunter2 is wrong"),
        ("amqp://shop:hunter2%40hunter2@mq/shop", "password hunter2@hunter2 is wrong"),
        ("https://bob:pw@hooks.example/T01/B02?key=1", "POST https://hooks.example/T01/B02 answered 500"),
        ("https://hooks.example/T01/B02", "POST https://hooks.example/T01/B02 answered 500"),
    ],
)
def test_what_messages_show_of_a_url_is_hidden(url: str, shown: str) -> None:
    masked = Mask([url]).text(shown)
    assert "***" in masked
    assert "hunter2" not in masked
    assert "T01" not in masked


def test_the_rest_of_a_url_stays() -> None:
    mask = Mask(["https://api.example/v1/charges", "postgresql://postgres:postgres@db/shop"])
    text = "https://api.example/v1/orders of postgresql://db"
    assert mask.text(text) == text


def test_the_beginning_of_a_value_that_a_message_was_cut_in_is_hidden() -> None:
    mask = Mask([KEY])
    text = clip(f"{'x' * 40} {KEY!r} is not a number")
    assert "BEGIN" in text
    assert mask.text(text) == f"{'x' * 40} '***\\n***…"
    assert mask.text("-----BEGIN KEY----- is how a key begins …") == "*** is how a key begins …"
    assert Mask(["https://api.example/hook/1"]).text("https://api.example/v1 …") == "https://api.example/v1 …"


def test_values_lose_it_in_keys_lists_and_numbers_as_well() -> None:
    mask = Mask(["s3cret", "123456"])
    value = {"s3cret": [1, True, None, "a s3cret", 123456, 1234567, {"deep": "s3cret"}]}
    assert mask.value(value) == {"***": [1, True, None, "a ***", "***", 1234567, {"deep": "***"}]}


def test_a_mask_of_nothing_gives_back_what_it_got() -> None:
    value = {"a": ["…"]}
    assert Mask().value(value) is value
    assert Mask(["s3cret"]).value(value) == value


def test_a_value_that_was_replaced_stays_hidden() -> None:
    mask = Mask(["old-one"])
    mask.learn(["new-one"])
    assert mask.text("old-one new-one") == "*** ***"


def test_of_two_values_the_longer_one_is_hidden_whole() -> None:
    assert Mask(["hunter", "hunter2"]).text("hunter2") == "***"
