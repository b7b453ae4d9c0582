import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runner.errors import HandlerError, RetryableError, TerminalError
from runner.handler import Context
from runner.handlers.http import MAX_BODY_BYTES, request


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    hang_up: bool = False


Answering = Callable[[Seen], Answer]


class Site:
    """A real HTTP server on the loopback, which answers by a function and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Answering = lambda seen: Answer()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def serve(self) -> None:
                length = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, self.rfile.read(length))
                site.seen.append(seen)
                answer = site.answer(seen)
                self.close_connection = True
                if answer.hang_up:
                    return
                self.send_response(answer.status)
                for name, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    with suppress(OSError):  # The client may have seen enough.
                        self.wfile.write(answer.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def answers(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        fixed = Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
        self.answer = lambda seen: fixed

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def other_site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def ctx() -> Context:
    return Context(
        run_id="run",
        step_id="ask",
        attempt=1,
        idempotency_key="run/ask",
        deadline=None,
        correlation_id="correlation",
        logger=logging.getLogger("test"),
    )


async def failure(ctx: Context, **arguments: Any) -> HandlerError:
    with pytest.raises(HandlerError) as caught:
        await request(ctx, **arguments)
    return caught.value


async def test_json_answer_is_parsed(ctx: Context, site: Site) -> None:
    site.answers(201, b'{"id": 7}', content_type="application/json; charset=utf-8", x_trace="t")

    response = await request(ctx, method="POST", url=f"{site.url}/charges", json={"amount": 5})

    assert response["status"] == 201
    assert response["body"] == {"id": 7}
    assert response["headers"]["x-trace"] == "t"
    assert site.seen[0].method == "POST"
    assert site.seen[0].path == "/charges"
    assert site.seen[0].headers["content-type"] == "application/json"
    assert json.loads(site.seen[0].body) == {"amount": 5}


@pytest.mark.parametrize(
    ("content_type", "body", "value"),
    [
        ("application/problem+json", b"[1]", [1]),
        ("application/json", b"{broken", "{broken"),
        ("application/json", b"NaN", "NaN"),
        ("application/json", b"", None),
        ("text/plain", "größer".encode(), "größer"),
        ("text/plain; charset=latin-1", "größer".encode("latin-1"), "größer"),
        ("text/plain; charset=nonsense", b"a", "a"),
        ("text/plain", b"a\xff", "a\ufffd"),
        ("application/xml", b"<a/>", "<a/>"),
        ("image/png", b"plain text", "cGxhaW4gdGV4dA=="),
        ("application/octet-stream", b"\xff\x00", "/wA="),
    ],
)
async def test_content_type_decides_what_the_body_is(
    content_type: str, body: bytes, value: Any, ctx: Context, site: Site
) -> None:
    site.answers(200, body, content_type=content_type)

    assert (await request(ctx, method="GET", url=site.url))["body"] == value


async def test_body_without_a_content_type_is_text(ctx: Context, site: Site) -> None:
    site.answers(200, b"plain")

    assert (await request(ctx, method="GET", url=site.url))["body"] == "plain"


async def test_text_body_is_sent_as_it_stands(ctx: Context, site: Site) -> None:
    await request(ctx, method="PUT", url=site.url, body="größer", headers={"Content-Type": "text/csv"})

    assert site.seen[0].body == "größer".encode()
    assert site.seen[0].headers["content-type"] == "text/csv"


async def test_query_is_added_to_the_urls_own(ctx: Context, site: Site) -> None:
    query: dict[str, Any] = {"tag": ["a", "b"], "exact": True, "none": None, "text": "x&y"}

    await request(ctx, method="GET", url=f"{site.url}/find?page=2", query=query)

    assert site.seen[0].path == "/find?page=2&tag=a&tag=b&exact=true&text=x%26y"


async def test_idempotency_key_is_the_steps(ctx: Context, site: Site) -> None:
    await request(ctx, method="POST", url=site.url)

    assert site.seen[0].headers["idempotency-key"] == "run/ask"


async def test_idempotency_key_of_the_flow_wins(ctx: Context, site: Site) -> None:
    await request(ctx, method="POST", url=site.url, headers={"Idempotency-Key": "mine"})

    assert site.seen[0].headers["idempotency-key"] == "mine"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 503, 599])
async def test_passing_trouble_is_retryable(status: int, ctx: Context, site: Site) -> None:
    site.answers(status)

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, RetryableError)
    assert error.type == f"http.{status}"


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422])
async def test_refusal_is_terminal(status: int, ctx: Context, site: Site) -> None:
    site.answers(status)

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, TerminalError)
    assert error.type == f"http.{status}"


async def test_failure_carries_status_and_body(ctx: Context, site: Site) -> None:
    site.answers(422, b'{"code": "card_declined"}', content_type="application/json")

    error = await failure(ctx, method="POST", url=f"{site.url}/charges?token=s3cret")

    assert error.details == {"status": 422, "body": {"code": "card_declined"}}
    assert error.message.startswith(f"POST {site.url}/charges answered 422 Unprocessable")


async def test_long_body_of_a_failure_is_clipped(ctx: Context, site: Site) -> None:
    site.answers(500, b"x" * (MAX_BODY_BYTES + 1), content_type="text/plain")

    error = await failure(ctx, method="GET", url=site.url)

    assert error.type == "http.500"
    assert error.details["body"] == "x" * 4096 + "…"


async def test_accepted_status_is_a_result(ctx: Context, site: Site) -> None:
    site.answers(404, b"nothing")

    response = await request(ctx, method="GET", url=site.url, accept=[404, 410])

    assert (response["status"], response["body"]) == (404, "nothing")


async def test_retry_after_in_seconds_delays_the_next_attempt(ctx: Context, site: Site) -> None:
    site.answers(429, retry_after="120")

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, RetryableError)
    assert error.retry_after_s == 120.0


async def test_retry_after_as_a_date_delays_the_next_attempt(ctx: Context, site: Site) -> None:
    then = datetime.now(UTC) + timedelta(minutes=2)
    site.answers(503, retry_after=format_datetime(then, usegmt=True))

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, RetryableError)
    assert error.retry_after_s == pytest.approx(120, abs=3)


@pytest.mark.parametrize(
    ("value", "delay_s"), [("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("9" * 400, None)]
)
async def test_retry_after_that_does_not_help_is_harmless(
    value: str, delay_s: float | None, ctx: Context, site: Site
) -> None:
    site.answers(503, retry_after=value)

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, RetryableError)
    assert error.retry_after_s == delay_s


async def test_refused_connection_is_retryable(ctx: Context) -> None:
    site = Site()
    site.close()

    error = await failure(ctx, method="GET", url=f"{site.url}/?token=s3cret")

    assert isinstance(error, RetryableError)
    assert error.type == "http.connection"
    assert "s3cret" not in error.message


async def test_connection_lost_before_the_answer_is_retryable(ctx: Context, site: Site) -> None:
    site.answer = lambda seen: Answer(hang_up=True)

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, RetryableError)
    assert error.type == "http.connection"


async def test_connection_lost_within_the_answer_is_retryable(ctx: Context, site: Site) -> None:
    site.answers(200, b"half", content_length="8")

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, RetryableError)
    assert error.type == "http.connection"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/path",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://",
        "http://user:s3cret@127.0.0.1:s3cret/",
        "http://127.0.0.1:99999/s3cret",
        "http://exa\nmple/s3cret",
    ],
)
async def test_bad_url_is_terminal_and_not_repeated(url: str, ctx: Context) -> None:
    error = await failure(ctx, method="GET", url=url)

    assert isinstance(error, TerminalError)
    assert error.type == "http.url"
    assert "s3cret" not in error.message


async def test_password_of_the_url_is_not_in_a_message(ctx: Context, site: Site) -> None:
    site.answers(500)

    error = await failure(ctx, method="GET", url=f"http://ada:s3cret@{site.address}/")

    assert site.seen[0].headers["authorization"].startswith("Basic ")
    assert "ada" not in error.message
    assert "s3cret" not in error.message


@pytest.mark.parametrize("headers", [{"X-Token": "s3cret\r\nX-Evil: 1"}, {"X Token": "s3cret"}, {"X-Token": "s3crét"}])
async def test_bad_header_is_refused_by_name(headers: dict[str, str], ctx: Context, site: Site) -> None:
    error = await failure(ctx, method="GET", url=site.url, headers=headers)

    assert isinstance(error, TerminalError)
    assert error.type == "invalid_input"
    assert next(iter(headers)) in error.message
    assert "s3cr" not in error.message
    assert site.seen == []


async def test_json_and_body_exclude_each_other(ctx: Context, site: Site) -> None:
    error = await failure(ctx, method="POST", url=site.url, json={}, body="x")

    assert error.type == "invalid_input"
    assert site.seen == []


async def test_answer_above_the_limit_is_refused(ctx: Context, site: Site) -> None:
    site.answers(200, b"x" * (MAX_BODY_BYTES + 1))

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, TerminalError)
    assert error.type == "http.too_large"


async def test_answer_at_the_limit_is_taken(ctx: Context, site: Site) -> None:
    site.answers(200, b"x" * MAX_BODY_BYTES)

    assert len((await request(ctx, method="GET", url=site.url))["body"]) == MAX_BODY_BYTES


async def test_get_follows_a_redirect(ctx: Context, site: Site) -> None:
    site.answer = lambda seen: Answer(302, {"location": "/b"}) if seen.path == "/a" else Answer(body=b"here")

    assert (await request(ctx, method="GET", url=f"{site.url}/a"))["body"] == "here"


async def test_headers_of_the_flow_do_not_follow_to_another_host(ctx: Context, site: Site, other_site: Site) -> None:
    site.answers(302, location=f"{other_site.url}/b")

    await request(ctx, method="GET", url=site.url, headers={"X-Token": "s3cret", "Authorization": "Bearer s"})

    assert site.seen[0].headers["x-token"] == "s3cret"
    assert not {"x-token", "authorization"} & other_site.seen[0].headers.keys()


async def test_post_returns_the_redirect(ctx: Context, site: Site) -> None:
    site.answers(307, location="/b")

    response = await request(ctx, method="POST", url=f"{site.url}/a", json={"amount": 5})

    assert (response["status"], response["headers"]["location"]) == (307, "/b")
    assert len(site.seen) == 1


@pytest.mark.parametrize("location", ["https://127.0.0.1:1/", "file:///etc/passwd"])
async def test_redirect_to_another_scheme_is_refused(location: str, ctx: Context, site: Site) -> None:
    site.answers(302, location=location)

    error = await failure(ctx, method="GET", url=site.url)

    assert isinstance(error, TerminalError)
    assert error.type == "http.redirect"


async def test_circle_of_redirects_ends(ctx: Context, site: Site) -> None:
    site.answers(302, location="/again")

    error = await failure(ctx, method="GET", url=site.url)

    assert error.type == "http.redirect"
    assert len(site.seen) == 6


async def test_head_has_no_body(ctx: Context, site: Site) -> None:
    site.answers(200, b"body", content_type="text/plain")

    response = await request(ctx, method="HEAD", url=site.url)

    assert (response["status"], response["body"]) == (200, None)
