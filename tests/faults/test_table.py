"""The table of the fault suite."""

from __future__ import annotations

from faults.table import table

ROW = {"confirmed": 12_000, "lost": 0, "doubled": 1, "stuck": 1, "unsent": 1, "note": ""}


def test_a_row_has_its_counts_and_how_long_it_took_to_get_back_to_work() -> None:
    *_, line = table([{"fault": "kill -9", "times": 3, "recovery_s": [1.0, 0.5, 4.04], **ROW}])
    assert line == "| kill -9 | 3 | 12,000 | 0 | 1 | 2 | 1.0 s | 4.0 s |  |"


def test_what_was_not_measured_is_left_empty() -> None:
    head, rule, line = table([{"fault": "poison", "times": 3, "recovery_s": [], **ROW, "note": "all kept"}])
    assert line == "| poison | 3 | 12,000 | 0 | 1 | 2 |  |  | all kept |"
    assert head.count("|") == rule.count("|") == line.count("|")
