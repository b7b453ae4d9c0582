"""The cases of this folder, each as a project of its own."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"


def _cases() -> Iterator[Path]:
    projects = {path.parent for name in ("flows", "flowrun.yaml") for path in CASES.rglob(name)}
    yield from projects
    for path in CASES.rglob("*.yaml"):
        if not projects & set(path.parents):
            yield path


def _name(case: Path) -> str:
    return case.relative_to(CASES).with_suffix("").as_posix()


@pytest.fixture(params=sorted(_cases()), ids=_name)
def case(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def project(case: Path, tmp_path: Path) -> Path:
    """The case as a project of its own; its files may not be ours to write beside."""
    root = tmp_path / "project"
    if case.is_dir():
        shutil.copytree(case, root, ignore=shutil.ignore_patterns("expected.out", "__pycache__"), symlinks=True)
        for packed in root.rglob("*.gz"):
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
    else:
        (root / "flows").mkdir(parents=True)
        shutil.copy(case, root / "flows")
    return root
