"""The bench, at a size that measures nothing: cases keep running as flowrun changes."""

from __future__ import annotations

import importlib

import pytest
from services import PostgresServer, RabbitServer

from benchmarks.rounds import Scale
from benchmarks.servers import Servers

TINY = Scale(rounds=1, part=0.001, peers=False)


@pytest.mark.rabbitmq
@pytest.mark.postgres
@pytest.mark.parametrize("name", ["hop", "saga_latency", "embedded", "traffic"])
def test_a_case_runs_and_prints_a_row_for_each_flowrun(
    name: str, rabbit_server: RabbitServer, postgres_server: PostgresServer
) -> None:
    rabbit_server.start()
    postgres_server.start()
    lines = list(importlib.import_module(f"benchmarks.{name}").compare(Servers(rabbit_server, postgres_server), TINY))
    rows = [line for line in lines if line.startswith("| flowrun")]
    assert len(rows) >= 2
    assert not [row for row in rows if "failed" in row], lines
