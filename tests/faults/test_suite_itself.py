"""A suite that cannot fail proves nothing: a product that breaks its word, on purpose, is caught."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.crashing import Point
from faults.driven import DrivenSite
from faults.harness import Verdict

FIRST_COMMIT = 1


def after_a_crash(folder: Path, breaks: str, moment: str) -> Verdict:
    """One job, a crash at its run's first commit, and a start that works off what is left."""
    point = Point(moment, "commit", FIRST_COMMIT)
    with DrivenSite(folder, breaks=breaks) as site:
        site.finish()  # makes the queues
        site.emit(1, ["good"])
        site.arm()
        site.wait_for_death(site.start(point=point), point)
        site.finish()
        return site.verdict()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_product_keeps_its_word(tmp_path: Path, moment: str) -> None:
    verdict = after_a_crash(tmp_path, "", moment)
    verdict.assert_kept()
    assert verdict.finished == {1}


def test_a_product_that_ignores_its_inbox_is_seen_to_do_things_twice(tmp_path: Path) -> None:
    verdict = after_a_crash(tmp_path, "inbox", "after")
    assert verdict.doubled
    assert not verdict.lost


def test_a_product_that_acknowledges_before_it_commits_is_seen_to_lose(tmp_path: Path) -> None:
    verdict = after_a_crash(tmp_path, "ack", "before")
    assert verdict.lost == {1}
    assert not verdict.doubled


def test_an_acknowledgement_that_did_not_get_through_is_seen(tmp_path: Path) -> None:
    point = Point("before", "settle", 1)
    with DrivenSite(tmp_path) as site:
        site.finish()
        site.emit(1, ["good"])
        site.arm()
        site.wait_for_death(site.start(point=point), point)
        site.finish()
        assert [handed.message_id for handed in site.redelivered_in_vain()]
        site.verdict().assert_kept()
