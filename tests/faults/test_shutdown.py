"""SIGTERM under load: what is running ends, and nothing comes again that need not."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from faults.driven import DrivenSite
from faults.harness import chance, record_row, size, wait_until

STOPS = size(5, 100)
JOBS_A_SECOND = 40.0
KINDS = ("good", "slow", "good", "bad")
"""No flaky ones: their second step is called twice, whoever stops whom."""


@pytest.mark.rabbitmq
@pytest.mark.postgres
@pytest.mark.timeout(size(300, 3600))
def test_a_runner_that_is_stopped_under_load_leaves_nothing_half_done(
    rabbit_url: str, postgres_url: str, tmp_path: Path
) -> None:
    draw = chance()
    with DrivenSite(tmp_path, (rabbit_url,), postgres_url) as site:
        site.finish()
        with site.load(JOBS_A_SECOND, KINDS):
            back_s = [stop_once(site, draw) for _ in range(STOPS)]
        site.finish()

        verdict = site.verdict()

        verdict.assert_kept()
        assert calls_that_were_repeated(site) == []
        assert site.redelivered_in_vain() == []
        record_row("SIGTERM under load", STOPS, [verdict], back_s)


def stop_once(site: DrivenSite, draw: random.Random) -> float:
    """Start a runner, let it work, stop it; how long it took to get to work."""
    began = time.time()
    runner = site.start()
    works = f"SELECT 1 FROM effects WHERE step = 'note' AND at > {began} LIMIT 1"
    wait_until(lambda: bool(site.ledger(works)), "a run to finish")
    back_s = time.time() - began
    time.sleep(draw.uniform(0, 0.5))
    assert runner.terminate() == 0, runner.output()
    [(running,)] = site.query("SELECT count(*) FROM runs WHERE owner IS NOT NULL")
    assert running == 0, "it left before its runs were put down"
    return back_s


def calls_that_were_repeated(site: DrivenSite) -> list[tuple[object, ...]]:
    return site.ledger("SELECT key, count(*) FROM calls GROUP BY key HAVING count(*) > 1")
