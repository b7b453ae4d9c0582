import asyncio
import email
import email.policy
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from runner.errors import HandlerError, RetryableError, TerminalError
from runner.handler import Context
from runner.handlers.email import Sent, send


class Post:
    """A real SMTP server on the loopback, which keeps what it gets; its answers can be set."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.recipients: dict[str, str] = {}
        self.data = "250 OK"
        self.url = ""

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self.recipients.get(address, "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.data.startswith("250"):
            self.envelopes.append(envelope)
        return self.data

    def message(self) -> EmailMessage:
        (envelope,) = self.envelopes
        content = envelope.content
        assert isinstance(content, bytes)
        return email.message_from_bytes(content, policy=email.policy.default)


async def serve(post: Post, **options: Any) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(post, loop=loop, **options), "127.0.0.1", 0)
    post.url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    return server


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    post = Post()
    async with await serve(post):
        yield post


def context(key: str = "run/notify", attempt: int = 1) -> Context:
    return Context(
        run_id="run",
        step_id="notify",
        attempt=attempt,
        idempotency_key=key,
        deadline=None,
        correlation_id="correlation",
        logger=logging.getLogger("test"),
    )


async def sent(post: Post, ctx: Context | None = None, **arguments: Any) -> Sent:
    """`send` in a thread, as flowrun calls it; what a test does not care about is filled in."""
    usual = {"to": "ada@example.org", "subject": "Hello", "text": "Hi.", "from_": "shop@example.com"}
    given = {**usual, "url": post.url, **arguments}
    return await asyncio.to_thread(send, ctx or context(), **given)


async def failure(post: Post, **arguments: Any) -> HandlerError:
    with pytest.raises(HandlerError) as caught:
        await sent(post, **arguments)
    return caught.value


async def test_message_arrives(post: Post) -> None:
    result = await sent(post, subject="Größe", text="Schön.\n.\nEnde")

    assert post.envelopes[0].mail_from == "shop@example.com"
    assert post.envelopes[0].rcpt_tos == ["ada@example.org"]
    assert post.message()["Subject"] == "Größe"
    assert post.message()["From"] == "shop@example.com"
    assert post.message()["Message-ID"] == result["message_id"]
    assert post.message().get_content().splitlines() == ["Schön.", ".", "Ende"]


async def test_several_recipients_get_it(post: Post) -> None:
    await sent(post, to=["Ada Lovelace <ada@example.org>", '"Müller, Bo" <bo@example.org>'])

    assert post.envelopes[0].rcpt_tos == ["ada@example.org", "bo@example.org"]
    assert [address.display_name for address in post.message()["To"].addresses] == [
        "Ada Lovelace",
        "Müller, Bo",
    ]


async def test_text_and_html_are_alternatives(post: Post) -> None:
    await sent(post, text="Hi.", html="<p>Hi.</p>")

    assert post.message().get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in post.message().iter_parts()] == ["text/plain", "text/html"]


async def test_html_may_stand_alone(post: Post) -> None:
    await sent(post, text=None, html="<p>Hi.</p>")

    assert post.message().get_content_type() == "text/html"


async def test_long_texts_that_are_not_ascii_arrive_whole(post: Post) -> None:
    await sent(post, to="Ö" * 20 + " <ada@example.org>", subject="ü " * 300, text="ä" * 3000)

    assert post.message()["To"].addresses[0].display_name == "Ö" * 20
    assert post.message()["Subject"].strip() == ("ü " * 300).strip()
    assert post.message().get_content().strip() == "ä" * 3000


async def test_message_without_a_body_is_refused(post: Post) -> None:
    assert (await failure(post, text=None)).type == "invalid_input"


async def test_message_id_is_the_same_for_every_attempt(post: Post) -> None:
    first = await sent(post, context(attempt=1))
    second = await sent(post, context(attempt=2))
    other = await sent(post, context(key="run/other"))

    assert first == second
    assert first != other


async def test_sender_is_the_user_of_the_url_or_this_host(monkeypatch: pytest.MonkeyPatch, post: Post) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "worker-1")

    await sent(post, from_=None)

    assert post.message()["From"] == "flowrun@worker-1"


@pytest.mark.parametrize("answer", ["450 4.2.1 Busy", "421 4.3.2 Closing"])
async def test_4xx_is_retryable(answer: str, post: Post) -> None:
    post.data = answer

    error = await failure(post)

    assert isinstance(error, RetryableError)
    assert error.type == f"smtp.{answer[:3]}"
    assert answer[4:] in error.message


async def test_5xx_is_terminal(post: Post) -> None:
    post.data = "554 5.7.1 Spam"

    error = await failure(post)

    assert isinstance(error, TerminalError)
    assert error.type == "smtp.554"
    assert error.details == {"code": 554}


async def test_refused_recipient_keeps_the_message_from_all(post: Post) -> None:
    post.recipients = {"bo@example.org": "550 5.1.1 No such user"}

    error = await failure(post, to=["ada@example.org", "bo@example.org"])

    assert isinstance(error, TerminalError)
    assert error.type == "smtp.550"
    assert post.envelopes == []


async def test_refused_connection_is_retryable(post: Post) -> None:
    error = await failure(post, url="smtp://127.0.0.1:1")

    assert isinstance(error, RetryableError)
    assert error.type == "smtp.connection"


async def test_server_that_hangs_up_is_retryable(post: Post) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(post, url=f"smtp://127.0.0.1:{port}")

    assert isinstance(error, RetryableError)
    assert error.type == "smtp.connection"


async def test_server_that_is_none_is_retryable(post: Post) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(post, url=f"smtp://127.0.0.1:{port}")

    assert isinstance(error, RetryableError)
    assert error.type == "smtp.connection"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject", "Hello\r\nBcc: eve@example.org"),
        ("subject", "=?utf-8?q?Hello=0ABcc:_eve@example.org?="),
        ("to", "ada@example.org\nBcc: eve@example.org"),
        ("to", "=?utf-8?q?Ada=0ABcc:_eve@example.org=0A?= <ada@example.org>"),
        ("to", '"=?utf-8?q?Ada=0A=0AHello?=" <ada@example.org>'),
        ("from_", "shop@example.com\r\nBcc: eve@example.org"),
        ("from_", "=?utf-8?b?CkJjYzogZXZlQGV4YW1wbGUub3JnCg==?= <shop@example.com>"),
        ("subject", "=?utf-8?q?=3D=3Futf-8=3Fq=3FHello=3D0ABcc:_eve=3F=3D=0A?="),
        ("subject", "\ud800"),
    ],
)
async def test_header_cannot_be_injected(field: str, value: str, post: Post) -> None:
    error = await failure(post, **{field: value})

    assert isinstance(error, TerminalError)
    assert error.type == "smtp.header"
    assert post.envelopes == []


@pytest.mark.parametrize(
    "to",
    [
        "",
        "ada",
        "ada@example.org, eve@example.org",
        "Ada <ada@example.org> <eve@example.org>",
        "a b@c",
        "ä@c.de",
        [],
    ],
)
async def test_what_is_not_one_address_is_refused(to: Any, post: Post) -> None:
    error = await failure(post, to=to)

    assert isinstance(error, TerminalError)
    assert error.type == "smtp.address"
    assert post.envelopes == []


@pytest.mark.parametrize(
    "url",
    [
        "http://ada:s3cret@host",
        "smtp://",
        "s3cret",
        "smtp://ada:s3cret@host:s3cret",
        "smtp://ada:s3cret@[host",
        "smtp://ada:s3cret@host?starttls=maybe",
        "smtp://ada:s3cret@host?s3cret",
    ],
)
async def test_bad_url_is_terminal_and_not_repeated(url: str, post: Post) -> None:
    error = await failure(post, url=url)

    assert isinstance(error, TerminalError)
    assert error.type == "smtp.url"
    assert "s3cret" not in error.message


UNSAFE = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=data == LoginPassword(b"ada@example.net", b"p@ss"), handled=False)


@UNSAFE
async def test_login_is_taken_from_the_url(post: Post) -> None:
    async with await serve(post, authenticator=authenticate, auth_require_tls=False, auth_required=True):
        await sent(post, from_=None, url=post.url.replace("//", "//ada%40example.net:p%40ss@"))

    assert post.message()["From"] == "ada@example.net"


@UNSAFE
async def test_refused_login_is_terminal_without_the_password(post: Post) -> None:
    async with await serve(post, authenticator=authenticate, auth_require_tls=False, auth_required=True):
        error = await failure(post, url=post.url.replace("//", "//ada:s3cret@"))

    assert isinstance(error, TerminalError)
    assert error.type == "smtp.535"
    assert "s3cret" not in error.message


@pytest.mark.parametrize("url", ["{}?starttls=true", "{}"], ids=["starttls", "login"])
async def test_what_the_server_cannot_do_is_terminal(url: str, post: Post) -> None:
    plain = url == "{}"
    error = await failure(post, url=url.format(post.url.replace("//", "//a:b@") if plain else post.url))

    assert isinstance(error, TerminalError)
    assert error.type == "smtp.not_supported"
    assert post.envelopes == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for the loopback that nobody has signed, and a server's TLS with it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl command here")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
        " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem".split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return folder / "cert.pem", tls


async def test_starttls_encrypts(
    post: Post, certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tls = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with await serve(post, tls_context=tls, require_starttls=True):
        await sent(post, url=f"{post.url}?starttls=true")

    assert post.message()["Subject"] == "Hello"


async def test_certificate_that_nobody_signed_is_refused(post: Post, certificate: tuple[Path, ssl.SSLContext]) -> None:
    async with await serve(post, tls_context=certificate[1], require_starttls=True):
        error = await failure(post, url=f"{post.url}?starttls=true")

    assert error.type == "smtp.connection"
    assert post.envelopes == []
