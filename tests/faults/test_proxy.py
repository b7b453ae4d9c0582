"""The fault proxy does to a connection what each of its faults promises."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from faults.proxy import FaultProxy
from yarl import URL

SHORT_S = 0.2


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """Before a server that says again what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=echo_all, args=(server,), daemon=True).start()
        with FaultProxy(f"tcp://127.0.0.1:{server.getsockname()[1]}") as proxy:
            yield proxy
        server.shutdown(socket.SHUT_RDWR)


def echo_all(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65_536):
                connection.sendall(data)
        except OSError:
            return


def connect(proxy: FaultProxy) -> socket.socket:
    port = URL(proxy.url).port
    assert port is not None
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def is_echoed(client: socket.socket, patience_s: float = 5.0) -> bool:
    client.settimeout(patience_s)
    client.sendall(b"x")
    try:
        return client.recv(1) == b"x"
    except TimeoutError:
        return False


def test_forwards_both_ways(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert is_echoed(client)


def test_a_cut_resets_what_there_is_and_refuses_what_comes_until_healed(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert is_echoed(client)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.heal()
        with connect(proxy) as another:
            assert is_echoed(another)


def test_a_reset_lets_new_connections_in(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert is_echoed(client)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(proxy) as another:
        assert is_echoed(another)


def test_a_half_open_connection_is_silent_and_stays(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        assert is_echoed(client)
        proxy.half_open()
        assert not is_echoed(client, SHORT_S)
        with connect(proxy) as another:
            assert not is_echoed(another, SHORT_S)
        proxy.heal()
        client.settimeout(5)
        assert client.recv(1) == b"x"


@pytest.mark.parametrize("direction", ["to_server", "from_server"])
def test_one_way_answers_nothing(proxy: FaultProxy, direction: str) -> None:
    with connect(proxy) as client:
        assert is_echoed(client)
        proxy.one_way(direction)
        assert not is_echoed(client, SHORT_S)


def test_a_delay_holds_for_both_ways(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.delay(SHORT_S)
        sent = time.monotonic()
        assert is_echoed(client)
        assert time.monotonic() - sent >= 2 * SHORT_S


def test_what_is_held_stays_with_its_sender(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.half_open()
        client.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(64 * 1024 * 1024))
