"""`--watch`: the work is done again after each change, and after nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.cli.watch import again_and_again
from runner.errors import SettingsError


def done(root: Path, *between: Callable[[], object], work: Callable[[], object] = lambda: None) -> int:
    """How often the work was done, with these things happening while the command sleeps."""
    times, left = [], list(between)

    def once() -> None:
        times.append(1)
        work()

    def sleep(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    with pytest.raises(KeyboardInterrupt):
        again_and_again(root, [], once, sleep)
    return len(times)


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    (tmp_path / "flows").mkdir()
    path = tmp_path / "flows" / "a.yaml"
    path.write_text("flow: a\n")
    return path


def test_a_changed_a_new_and_a_deleted_file_count_and_quiet_does_not(tmp_path: Path, flow: Path) -> None:
    changes = (
        lambda: flow.write_text("flow: b  # longer\n"),
        lambda: None,
        lambda: (tmp_path / "flowrun.yaml").write_text("project: shop\n"),
        flow.unlink,
        lambda: (tmp_path / "other.txt").write_text("no file of the project's\n"),
    )
    assert done(tmp_path, *changes) == 4


def test_a_project_that_is_not_right_yet_does_not_end_it(tmp_path: Path, flow: Path) -> None:
    def work() -> None:
        raise SettingsError("no flow files found")

    assert done(tmp_path, flow.unlink, work=work) == 2


def test_validate_reports_anew_after_each_change(tmp_path: Path, flow: Path) -> None:
    words = [sys.executable, "-m", "runner", "validate", "--watch", "--output-format", "concise", "-C", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == "1 file valid.\n"
        flow.write_text("flow: a\nhandler: {}\n")
        assert "unknown key" in watching.stdout.readline()
        assert watching.stdout.readline().startswith("Found 1 error")
        watching.terminate()
