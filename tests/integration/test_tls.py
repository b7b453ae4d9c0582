"""`amqps://` as a user writes it: an authority of one's own, a client certificate, and what goes wrong in one line."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority, Certificate
from project import ROOT, Shop
from services import RabbitServer, find_rabbitmq, free_port

pytestmark = pytest.mark.rabbitmq

ORDERS = str(ROOT / "flows" / "demo-orders.jsonl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def tls_server(authority: Authority, *, certificate_wanted: bool) -> Iterator[str]:
    """A broker's URL, without a query. Its certificate is for `localhost`."""
    server, port = authority.issue("localhost"), free_port()
    settings = {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": authority.ca,
        "ssl_options.certfile": server.cert,
        "ssl_options.keyfile": server.key,
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": str(certificate_wanted).lower(),
    }
    sbin = find_rabbitmq()
    assert sbin is not None
    node = RabbitServer(sbin, settings="".join(f"{name} = {value}\n" for name, value in settings.items()))
    try:
        node.start()
        yield f"amqps://guest:guest@localhost:{port}/"
    finally:
        node.close()


@pytest.fixture(scope="module")
def broker(rabbit_server: RabbitServer, authority: Authority) -> Iterator[str]:
    """Asks nobody for a certificate. `rabbit_server` skips where there is no RabbitMQ."""
    with tls_server(authority, certificate_wanted=False) as url:
        yield url


@pytest.fixture(scope="module")
def strict_broker(rabbit_server: RabbitServer, authority: Authority) -> Iterator[str]:
    """Lets in only who has a certificate of the authority's."""
    with tls_server(authority, certificate_wanted=True) as url:
        yield url


@pytest.fixture
def client(authority: Authority) -> Certificate:
    return authority.issue("flowrun-client")


def assert_works(broker: str, folder: Path) -> None:
    (folder / "data").mkdir()
    with Shop(folder, broker) as shop:
        shop.run("emit", "order.requested", "--file", ORDERS)
        shop.run("start", "--until-idle", "--quiet")
        states = dict(shop.query("shop", "SELECT state, count(*) FROM runs GROUP BY state"))
    assert states["completed"] > 0


def refusals(broker: str, folder: Path) -> list[str]:
    """What `emit` and `start` say, which have to end with 69 and in few words."""
    with Shop(folder, broker) as shop:
        done = [
            shop.run("emit", "order.requested", "--file", ORDERS, check=False),
            shop.run("start", "--until-idle", check=False),
        ]
    return [one_line(process) for process in done]


def one_line(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 69, process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert len(process.stderr.splitlines()) <= 2, process.stderr  # the error, and a hint
    return errors[0]


def test_an_authority_of_ones_own(broker: str, authority: Authority, tmp_path: Path) -> None:
    assert_works(f"{broker}?cafile={authority.ca}", tmp_path)


def test_a_client_certificate(strict_broker: str, authority: Authority, client: Certificate, tmp_path: Path) -> None:
    query = f"cafile={authority.ca}&certfile={client.cert}&keyfile={client.key}"
    assert_works(f"{strict_broker}?{query}", tmp_path)


def test_a_client_certificate_that_is_missing(strict_broker: str, authority: Authority, tmp_path: Path) -> None:
    for line in refusals(f"{strict_broker}?cafile={authority.ca}", tmp_path):
        assert "TLS failed" in line


def test_a_refusal_after_the_handshake_that_the_reset_of_the_connection_overtakes(
    authority: Authority, tmp_path: Path
) -> None:
    with resetting_server(authority) as port:
        for line in refusals(f"amqps://guest:guest@localhost:{port}/?cafile={authority.ca}", tmp_path):
            assert "TLS failed" in line


@contextmanager
def resetting_server(authority: Authority) -> Iterator[int]:
    """The port of a TLS server that resets each connection once the handshake is over."""
    server = authority.issue("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.cert, server.key)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed: the test is over
                return
            with context.wrap_socket(connection, server_side=True) as secured:
                secured.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, args=(listener,))
        serving.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def test_an_unknown_authority(broker: str, tmp_path: Path) -> None:
    for line in refusals(broker, tmp_path):
        assert "TLS failed" in line
        assert "certificate" in line


def test_another_authority(broker: str, tmp_path: Path) -> None:
    another = Authority(tmp_path / "another")
    for line in refusals(f"{broker}?cafile={another.ca}", tmp_path):
        assert "TLS failed" in line


def test_a_wrong_host_name(broker: str, authority: Authority, tmp_path: Path) -> None:
    for line in refusals(f"{broker.replace('localhost', '127.0.0.1')}?cafile={authority.ca}", tmp_path):
        assert "TLS failed" in line
        assert "127.0.0.1" in line


def test_an_authority_file_that_is_not_there(broker: str, tmp_path: Path) -> None:
    for line in refusals(f"{broker}?cafile={tmp_path}/no-such.pem", tmp_path):
        assert "no-such.pem" in line
