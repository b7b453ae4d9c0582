"""The store goes away under a working runner, or finds no room: work pauses, and goes on by itself."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from faults.driven import DrivenSite
from faults.harness import record_row, size, wait_until
from services import PostgresServer, find_postgres

OUTAGES, LONG_OUTAGES = size(2, 20), size(1, 3)
FULL_DISKS = size(1, 3)
JOBS_A_SECOND = 60.0
DOWN_S, LEASE_S = 2.0, 15.0
BACK_AT_WORK_S = 10.0
PREFETCH = 100
MIB = 1024 * 1024

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(size(300, 3600))]

Fault = Callable[[PostgresServer, str], None]


# --- PostgreSQL goes away -----------------------------------------------------------------------------------


def execute(url: str, sql: str) -> None:
    async def execute_it() -> None:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            await connection.execute(sql, timeout=5)
        finally:
            connection.terminate()

    asyncio.run(execute_it())


def restarted(server: PostgresServer, _: str) -> None:
    server.stop()
    time.sleep(DOWN_S)
    server.start()


def killed(server: PostgresServer, _: str) -> None:
    server.kill()
    time.sleep(DOWN_S)
    server.start()


def long_away(server: PostgresServer, _: str) -> None:
    """The runner's lease runs out meanwhile, and nobody else is there to take its runs."""
    server.kill()
    time.sleep(LEASE_S + DOWN_S)
    server.start()


def cut_off(_: PostgresServer, url: str) -> None:
    """All its connections end, and new ones are taken at once."""

    async def cut() -> None:
        connection = await asyncpg.connect(url)
        await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flowrun'"
        )
        await connection.close()

    asyncio.run(cut())


FAULTS: dict[str, Fault] = {
    "PostgreSQL restarts": restarted,
    "PostgreSQL is killed": killed,
    "PostgreSQL ends all connections": cut_off,
    "PostgreSQL is away for longer than a lease": long_away,
}


@pytest.mark.postgres
@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_goes_away_pauses_the_work_and_loses_nothing(
    fault: str, rabbit_url: str, postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    outages = LONG_OUTAGES if FAULTS[fault] is long_away else OUTAGES
    with DrivenSite(tmp_path, (rabbit_url,), postgres_url) as site:
        site.finish()
        runner = site.start()
        back_s = []
        with site.load(JOBS_A_SECOND):
            for _ in range(outages):
                goes_on(site, time.time())
                FAULTS[fault](postgres_server, postgres_url)
                back_s.append(goes_on(site, time.time()))

        verdict = site.settled()

        verdict.assert_kept()
        assert not verdict.dead, "a store that is away is no fault of a message"
        assert runner.alive, "it went on by itself"
        assert "internal error" not in runner.output()
        assert "Traceback" not in runner.output()
        assert called_again(site) == []
        again = Counter(handed.queue for handed in site.deliveries() if handed.redelivered)
        per_outage = max(again.values(), default=0) / outages
        record_row(
            fault, outages, [verdict], back_s, f"{per_outage:.0f} redeliveries each, of a prefetch of {PREFETCH}"
        )
        assert statistics.median(back_s) <= BACK_AT_WORK_S
        assert per_outage <= PREFETCH


def called_again(site: DrivenSite) -> list[tuple[object, ...]]:
    """Steps that were called twice although their runner lived; the second of a flaky job is, whatever happens."""
    return site.ledger("SELECT job, step FROM calls GROUP BY key HAVING count(*) > 1 AND step != 'two'")


def goes_on(site: DrivenSite, since: float) -> float:
    """Seconds until a job comes to its end, from `since` on."""
    works = f"SELECT 1 FROM effects WHERE step = 'note' AND at > {since} LIMIT 1"
    wait_until(lambda: bool(site.ledger(works)), "a run to finish")
    return time.time() - since


# --- no room ----------------------------------------------------------------------------------------------


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Path]:
    """A file system of its own, as small as that; skips the test where nobody may mount one."""
    path = Path(tempfile.mkdtemp(prefix="flowrun-disk-"))
    options = ["-t", "tmpfs", "-o", f"size={mebibytes}m"]
    try:
        if subprocess.run(["mount", *options, "tmpfs", path], capture_output=True, check=False).returncode != 0:
            pytest.skip("only root may mount a small disk")
        try:
            yield path
        finally:
            subprocess.run(["umount", "-l", path], check=True)
    finally:
        path.rmdir()


@contextmanager
def no_room(disk: Path) -> Iterator[None]:
    """Whatever is left of the disk is taken; given back at the end."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * MIB):
                pass
        yield
    finally:
        ballast.unlink()


def test_a_full_disk_below_sqlite_pauses_the_work_and_harms_nothing(rabbit_url: str, tmp_path: Path) -> None:
    with small_disk(24) as disk, site_on(disk, rabbit_url, tmp_path) as site:
        site.finish()
        runner = site.start()
        back_s = []
        with site.load(JOBS_A_SECOND):
            for number in range(1, FULL_DISKS + 1):
                goes_on(site, time.time())
                with no_room(disk):
                    complaints = runner.output().count("disk is full")
                    wait_until(lambda c=complaints: runner.output().count("disk is full") > c, "the disk to be missed")
                    time.sleep(DOWN_S)
                back_s.append(goes_on(site, time.time()))
                print(f"full disk {number}: at work again after {back_s[-1]:.1f} s")

        verdict = site.settled()

        verdict.assert_kept()
        assert not verdict.dead, "a store that is away is no fault of a message"
        assert runner.terminate() == 0
        with closing(sqlite3.connect(disk / "store.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        record_row("the disk below SQLite is full", FULL_DISKS, [verdict], back_s)


@contextmanager
def site_on(disk: Path, rabbit_url: str, folder: Path) -> Iterator[DrivenSite]:
    """The store is on the small disk; ledger and logs are not."""
    with DrivenSite(folder / "site", (rabbit_url,), f"sqlite:{disk}/store.db") as site:
        yield site


@pytest.mark.postgres
def test_a_full_disk_below_postgresql_loses_nothing(
    rabbit_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with small_disk(256) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        server = PostgresServer(programs)
        try:
            server.start()
            fill_postgres(server, disk, rabbit_url, tmp_path / "site")
        finally:
            server.close()


def fill_postgres(server: PostgresServer, disk: Path, rabbit_url: str, folder: Path) -> None:
    with DrivenSite(folder, (rabbit_url,), server.new_database()) as site:
        site.finish()
        runner = site.start()
        back_s, ended = [], 0
        with site.load(JOBS_A_SECOND):
            for _ in range(FULL_DISKS):
                goes_on(site, time.time())
                with no_room(disk):
                    said = len(runner.output())
                    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                        execute(server.url, "SELECT pg_switch_wal()")  # else there is room in the log for long
                    wait_until(lambda s=said: len(runner.output()) > s, "the disk to be missed")
                    time.sleep(DOWN_S)
                ended += server.pid is None
                if server.pid is None:  # it ends itself when there is no room for its log
                    server.restart()
                back_s.append(goes_on(site, time.time()))

        verdict = site.settled()

        verdict.assert_kept()
        assert not verdict.dead, "a store that is away is no fault of a message"
        assert runner.alive
        record_row("the disk below PostgreSQL is full", FULL_DISKS, [verdict], back_s, f"it ended itself {ended} times")
