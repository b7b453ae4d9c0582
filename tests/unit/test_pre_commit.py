"""The hook of `.pre-commit-hooks.yaml`, as pre-commit runs it: from the repository's root, by its entry and args."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
[HOOK] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
CALLED = "flow: called\nhandlers: {go: {steps: [{use: log, with: {message: x}}]}}\n"
CALLING = "flow: calling\nevents: {asked: {external: true}}\nroutes: [{on: asked, to: called.go}]\n"


@pytest.mark.parametrize(
    ("name", "is_meant"),
    [
        ("flows/orders.yaml", True),
        ("services/shop/flows/orders.yml", True),
        ("schemas/parts/order.json", True),
        ("plugins/orders.py", True),
        ("flowrun.yaml", True),
        ("shop/flowrun.yaml", True),
        ("deploy/values.yaml", False),
        ("workflows/build.yaml", False),
        ("flows/README.md", False),
    ],
)
def test_it_runs_when_a_file_of_a_project_changes(name: str, is_meant: bool) -> None:
    assert (re.search(HOOK["files"], name) is not None) is is_meant


def run(repository: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """No file names are passed: the hook says so."""
    assert HOOK["pass_filenames"] is False
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [*shlex.split(HOOK["entry"]), *args]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)


def write(project: Path) -> None:
    (project / "flows").mkdir(parents=True)
    (project / "flows" / "called.yaml").write_text(CALLED)
    (project / "flows" / "calling.yaml").write_text(CALLING)


def test_a_change_that_breaks_another_file_is_found(tmp_path: Path) -> None:
    write(tmp_path)
    assert run(tmp_path).returncode == 0
    (tmp_path / "flows" / "called.yaml").write_text(CALLED.replace("go:", "went:"))
    broken = run(tmp_path)
    assert broken.returncode == 1
    assert "flows/calling.yaml" in broken.stdout


def test_a_project_in_a_folder_is_named_by_args(tmp_path: Path) -> None:
    write(tmp_path / "services" / "shop")
    assert run(tmp_path, "-C", "services/shop").stdout == "2 files valid.\n"
    lost = run(tmp_path)
    assert lost.returncode == 2
    assert "name it with -C" in lost.stderr
