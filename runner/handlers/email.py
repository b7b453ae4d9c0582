"""`email.send`: one message over SMTP, which retries send under the same Message-ID."""

from __future__ import annotations

import hashlib
import re
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import parse_qs, unquote, urlsplit

from runner.errors import RetryableError, TerminalError
from runner.handler import Context, handler

# smtplib, ssl and email are imported where they are used: flows without mail start without their cost.
if TYPE_CHECKING:
    import smtplib
    from collections.abc import Iterator
    from email.headerregistry import Address
    from email.message import EmailMessage

TIMEOUT_S = 30.0
"""Of each word with the server, not of the whole conversation."""

_PORTS = {"smtp": 25, "starttls": 587, "smtps": 465}
# With them half a surrogate pair, which no encoding takes.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ADDRESS = re.compile(r"([A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+)@([A-Za-z0-9_.-]+)")
_NAMED_ADDRESS = re.compile(r"(?P<name>[^<>]*)<(?P<address>[^<>]*)>")


class Sent(TypedDict):
    """What `email.send` returns."""

    message_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """Where an SMTP URL leads."""

    security: str
    """`smtp` (none), `starttls` or `smtps`."""
    host: str
    port: int
    user: str | None
    password: str


@handler("email.send")
def send(
    ctx: Context,
    *,
    to: str | list[str],
    subject: str,
    text: str | None = None,
    html: str | None = None,
    from_: str | None = None,
    url: str = "smtp://127.0.0.1:25",
) -> Sent:
    """Send a message over SMTP, to all recipients or to none.

    `to` is an address, `ada@example.org` or `Ada <ada@example.org>`, or a list of them. Of `text` and `html`
    at least one; with both, the reader's program chooses. `from` is an address; without it, the URL's user if
    that is one, else `flowrun@<this host>`. `url` is `smtp://user:password@host:port`, `smtps://…` or
    `smtp://…?starttls=true`. The Message-ID is the same for every attempt, so that receivers can tell a copy.
    """
    server = _server(url)
    recipients = [_address("to", one) for one in ([to] if isinstance(to, str) else to)]
    if not recipients:
        raise TerminalError("smtp.address", "`to` names nobody")
    sender = _sender(from_, server)
    message = _message(sender, recipients, subject, text, html)
    digest = hashlib.sha256(ctx.idempotency_key.encode()).hexdigest()
    message["Message-ID"] = f"<{digest[:32]}@{sender.domain}>"
    rendered = _rendered(message)
    with _faults_named(f"{server.host}:{server.port}"):
        connection = _connected(server)
        try:
            _hand_over(connection, rendered, sender.addr_spec, [one.addr_spec for one in recipients])
        finally:
            _hang_up(connection)
    return Sent(message_id=str(message["Message-ID"]))


def _server(url: str) -> _Server:
    """Read an SMTP URL. It may hold a password, so no message repeats it."""
    try:
        parts = urlsplit(url)
        port, options = parts.port, parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    except ValueError:
        raise TerminalError("smtp.url", "the URL cannot be read") from None
    if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
        raise TerminalError("smtp.url", "the URL must begin with smtp:// or smtps:// and name a host")
    if options not in ({}, {"starttls": ["true"]}, {"starttls": ["false"]}):
        raise TerminalError("smtp.url", "the URL may say ?starttls=true or ?starttls=false, nothing else")
    starttls = parts.scheme == "smtp" and options == {"starttls": ["true"]}
    security = "starttls" if starttls else parts.scheme
    return _Server(
        security=security,
        host=parts.hostname,
        port=_PORTS[security] if port is None else port,
        user=None if parts.username is None else unquote(parts.username),
        password=unquote(parts.password or ""),
    )


def _address(field: str, text: str) -> Address:
    """One address; a list in one text is refused, lest an event's field add recipients."""
    from email.headerregistry import Address

    _refuse_control(field, text)
    if "=?" in text:  # Some versions of Python decode it while they write it, line breaks and all.
        raise TerminalError("smtp.header", f"`{field}`: write the name as it reads, not as =?utf-8?…?=")
    named = _NAMED_ADDRESS.fullmatch(text.strip())
    name, spec = (named["name"].strip(), named["address"]) if named else ("", text)
    found = _ADDRESS.fullmatch(spec.strip())
    if found is None:
        raise TerminalError("smtp.address", f"`{field}` is not one e-mail address: {text!r}")
    quoted = len(name) > 1 and name.startswith('"') and name.endswith('"')
    return Address(name[1:-1] if quoted else name, username=found[1], domain=found[2])


def _sender(given: str | None, server: _Server) -> Address:
    if given is not None:
        return _address("from", given)
    if server.user is not None and _ADDRESS.fullmatch(server.user):
        return _address("from", server.user)
    return _address("from", f"flowrun@{socket.gethostname()}")


def _message(
    sender: Address, recipients: list[Address], subject: str, text: str | None, html: str | None
) -> EmailMessage:
    from email.message import EmailMessage
    from email.policy import SMTP

    _refuse_control("subject", subject)
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    message["From"] = sender
    message["To"] = recipients
    message["Subject"] = subject
    message["Date"] = datetime.now(UTC)
    message["Auto-Submitted"] = "auto-generated"
    # The parser decodes =?utf-8?q?…?=, so a line break may stand in a header only now.
    for field, value in message.items():
        _refuse_control(field.lower(), str(value))
    bodies = [(body, kind) for body, kind in ((text, "plain"), (html, "html")) if body is not None]
    if not bodies:
        raise TerminalError("invalid_input", "`text` or `html` must be given")
    try:
        message.set_content(bodies[0][0], subtype=bodies[0][1])
        for body, kind in bodies[1:]:
            message.add_alternative(body, subtype=kind)
    except UnicodeEncodeError:
        raise TerminalError("invalid_input", "the text holds half a surrogate pair") from None
    return message


def _rendered(message: EmailMessage) -> bytes:
    """The message as it goes out. It must have the headers that were set and no other.

    A net below the checks of what goes in; where CVE-2024-6923 is mended, Python has one too, and raises.
    """
    from email.errors import MessageError

    hidden = TerminalError("smtp.header", "an address or the subject hides a line break")
    try:
        rendered = message.as_bytes()
    except MessageError:
        raise hidden from None
    head = rendered.partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0].decode() for line in head.splitlines() if line[:1] not in (b" ", b"\t")]
    if names != message.keys():
        raise hidden
    return rendered


def _refuse_control(field: str, text: str) -> None:
    if _CONTROL.search(text):
        raise TerminalError("smtp.header", f"`{field}` holds a line break or another control character")


def _connected(server: _Server) -> smtplib.SMTP:
    import smtplib
    import ssl

    if server.security == "smtps":
        tls = ssl.create_default_context()
        connection: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=TIMEOUT_S, context=tls)
    else:
        connection = smtplib.SMTP(server.host, server.port, timeout=TIMEOUT_S)
    try:
        if server.security == "starttls":
            connection.starttls(context=ssl.create_default_context())
        if server.user is not None:
            connection.login(server.user, server.password)
    except BaseException:
        connection.close()
        raise
    return connection


def _hand_over(connection: smtplib.SMTP, message: bytes, sender: str, recipients: list[str]) -> None:
    """The conversation of RFC 5321. A refused recipient ends it before DATA: then nobody has got anything."""
    import smtplib

    connection.ehlo_or_helo_if_needed()
    _expect(connection.mail(sender), 250)
    for recipient in recipients:
        code, answer = connection.rcpt(recipient)
        if code not in (250, 251):
            raise smtplib.SMTPResponseException(code, answer)
    _expect(connection.data(message), 250)


def _expect(reply: tuple[int, bytes], code: int) -> None:
    import smtplib

    if reply[0] != code:
        raise smtplib.SMTPResponseException(*reply)


def _hang_up(connection: smtplib.SMTP) -> None:
    # The message is sent by now or refused: trouble with the farewell must not change that.
    import smtplib

    with suppress(smtplib.SMTPException, OSError):
        connection.quit()
    connection.close()


@contextmanager
def _faults_named(where: str) -> Iterator[None]:
    import smtplib

    try:
        yield
    except smtplib.SMTPResponseException as error:
        raise _refusal(where, error.smtp_code, error.smtp_error) from error
    except smtplib.SMTPServerDisconnected as error:
        raise RetryableError("smtp.connection", f"{where}: {error}") from error
    except smtplib.SMTPException as error:  # no STARTTLS there, or no way to log in that both know
        raise TerminalError("smtp.not_supported", f"{where}: {error}") from error
    except OSError as error:
        raise RetryableError("smtp.connection", f"{where}: {error}") from error


def _refusal(where: str, code: int, answer: bytes | str) -> TerminalError | RetryableError:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    message = f"{where} answered {code} {text}".rstrip()
    if not 200 <= code <= 599:
        return RetryableError("smtp.connection", f"{where} does not speak SMTP: {text}")
    if code < 500:
        return RetryableError(f"smtp.{code}", message, code=code)
    return TerminalError(f"smtp.{code}", message, code=code)
