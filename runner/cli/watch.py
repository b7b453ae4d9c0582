"""Do it again whenever a file of the project changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from runner.cli import output, show_error
from runner.errors import FlowrunError
from runner.settings import FILE

INTERVAL_S = 0.3
_FOLDERS = ("flows", "schemas", "plugins")


def again_and_again(
    root: Path, paths: Iterable[Path], work: Callable[[], object], sleep: Callable[[float], None] = time.sleep
) -> NoReturn:
    """Do the work now, and after each change of a file below the project's folders or of `paths`; until Ctrl-C. What
    is wrong with the project as a whole is shown, and may be mended."""
    before = None
    while True:
        now = dict(_times(root, paths))
        if now != before:
            if before is not None:
                output.echo(output.paint("--- a file has changed ---", "blue", stream=sys.stderr), err=True)
            before = now
            try:
                work()
            except FlowrunError as error:
                show_error(error)
        sleep(INTERVAL_S)


def _times(root: Path, paths: Iterable[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
    """When each file was changed, and how large it is: a change within one tick of the clock mostly changes that."""
    files = [path for folder in _FOLDERS for path in (root / folder).rglob("*") if "__pycache__" not in path.parts]
    for path in (root / FILE, *files, *paths):
        try:
            found = path.stat()
        except OSError:
            continue  # not there, or no longer
        if path.is_file():
            yield path, (found.st_mtime_ns, found.st_size)
