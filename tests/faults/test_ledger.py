"""The judge of the fault tests is not blind: what is taken away is lost, what is added is doubled."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faults.harness import Site

JOBS = 20


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site where all kinds of jobs came to their end."""
    folder = tmp_path_factory.mktemp("ledger")
    with Site(folder) as site:
        site.emit(JOBS, ["good", "bad", "flaky", "slow"])
        site.emit(2, ["wide", "torn"])
        site.run("start", "--until-idle", "--quiet")
    return folder


@pytest.fixture
def site(settled: Path, tmp_path: Path) -> Iterator[Site]:
    """A copy of it to spoil."""
    for database in ("store.db", "calls.db"):
        with (
            closing(sqlite3.connect(settled / database)) as there,
            closing(sqlite3.connect(tmp_path / database)) as here,
        ):
            there.backup(here)
    with Site(tmp_path) as site:
        for kind in ("good", "bad", "flaky", "slow") * (JOBS // 4):
            site.confirmed.add(site.new_job(kind))
        site.confirmed |= {site.new_job("wide"), site.new_job("torn")}
        yield site


def spoil(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(sql).rowcount > 0
        connection.commit()


def test_all_kinds_of_jobs_come_to_their_end(site: Site) -> None:
    verdict = site.verdict()
    verdict.assert_kept()
    assert len(verdict.confirmed) == len(verdict.finished) == JOBS + 2
    states = dict(site.query("SELECT state, count(*) FROM runs WHERE handler = 'ledger.work' GROUP BY state"))
    assert states == {"completed": 16, "compensated": 6}
    flaky = site.ledger("SELECT count(*), count(DISTINCT key) FROM calls WHERE job = 3 AND step = 'two'")
    assert flaky == [(2, 1)]


def test_a_run_that_is_not_there_is_lost(site: Site) -> None:
    spoil(site.folder / "store.db", "DELETE FROM runs WHERE handler = 'ledger.work' AND json_extract(data, '$.n') = 1")
    spoil(site.folder / "store.db", "DELETE FROM runs WHERE handler = 'ledger.note' AND json_extract(data, '$.n') = 2")
    assert site.verdict().lost == {1, 2}


def test_a_run_that_does_not_end_is_stuck(site: Site) -> None:
    spoil(site.folder / "store.db", "UPDATE runs SET finished_at = NULL WHERE json_extract(data, '$.n') = 4")
    assert len(site.verdict().stuck) == 2


def test_a_second_key_for_a_step_is_a_doubled_effect(site: Site) -> None:
    spoil(site.folder / "calls.db", "INSERT INTO effects VALUES ('another', 7, 'two', 0)")
    assert site.verdict().doubled == ('job 7 did "two" 2 times',)


def test_an_entry_that_was_not_struck_out_is_seen(site: Site) -> None:
    spoil(site.folder / "calls.db", "DELETE FROM effects WHERE job = 2 AND step = 'undo one'")
    assert len(site.verdict().broken) == 1


@pytest.mark.rabbitmq
@pytest.mark.postgres
def test_jobs_under_load_survive_a_kill(rabbit_url: str, postgres_url: str, tmp_path: Path) -> None:
    with Site(tmp_path, brokers=(rabbit_url,), store=postgres_url) as site:
        first = site.start()
        with site.load(rate=50):
            site.probe(time.time())
            first.kill()
            killed = time.time()
            second = site.start()
            print(f"back after {site.probe(killed):.1f} s")
        verdict = site.settled()
        assert second.terminate() == 0
    verdict.assert_kept()
    assert len(verdict.confirmed) > 20
