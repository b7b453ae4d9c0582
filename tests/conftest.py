"""The servers that tests ask for: started once, by the first test that needs them, and gone with the last."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import NoReturn

import pytest
from services import PostgresServer, RabbitServer, find_postgres, find_rabbitmq


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """A RabbitMQ node of the tests' own, for those that stop, kill or restart it.

    A test may leave it down: `rabbit_url` starts it again.
    """
    sbin = find_rabbitmq()
    if sbin is None:
        _absent("RabbitMQ", "FLOWRUN_TEST_RABBITMQ")
    server = RabbitServer(sbin)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the tests' own; see `rabbit_server`."""
    programs = find_postgres()
    if programs is None:
        _absent("PostgreSQL", "FLOWRUN_TEST_POSTGRES")
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def rabbit_url(request: pytest.FixtureRequest) -> str:
    """An empty vhost for this test alone; or the server that FLOWRUN_TEST_RABBITMQ names, as it is.

    There others' objects may exist: a test gives its project a name of its own.
    """
    if named := os.environ.get("FLOWRUN_TEST_RABBITMQ"):
        return named
    server: RabbitServer = request.getfixturevalue("rabbit_server")
    server.start()
    return server.new_vhost()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> str:
    """An empty database for this test alone; or the one that FLOWRUN_TEST_POSTGRES names, as it is."""
    if named := os.environ.get("FLOWRUN_TEST_POSTGRES"):
        return named
    server: PostgresServer = request.getfixturevalue("postgres_server")
    server.start()
    return server.new_database()


@pytest.fixture(
    params=["embedded", pytest.param("rabbitmq and postgres", marks=[pytest.mark.rabbitmq, pytest.mark.postgres])]
)
def place(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """Where a test runs, once each: the URLs of the broker and of the store, which is SQLite if there is none."""
    if request.param == "embedded":
        return "embedded:", None
    return request.getfixturevalue("rabbit_url"), request.getfixturevalue("postgres_url")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may hold half a character, on purpose: processes of tests could not tell each other of it."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


def _absent(service: str, variable: str) -> NoReturn:
    """Skip on a laptop, fail on CI. A server that the environment names is there, only not ours to stop."""
    if os.environ.get(variable):
        pytest.skip(f"stops and starts a {service} of its own, and its programs are not installed here")
    reason = f"{service} is not installed, and {variable} names no server"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
