"""`flowrun validate --fix` and `--diff`: fixes found, shown and written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from runner.app import Project, look_again
from runner.cli import output
from runner.diagnostics import Diagnostic
from runner.errors import SettingsError
from runner.lang.fixes import Fixed, fixed
from runner.lang.report import count, printable
from runner.settings import FILE
from runner.source import Document

_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True, slots=True)
class Fixes:
    """What can be mended, the files as they were, and how many faults asked for are left."""

    fixed: Fixed
    documents: Mapping[str, Document]
    left: int


def find(root: Path, project: Project, files: Sequence[str], wanted: Callable[[Diagnostic], bool]) -> Fixes:
    """What can be mended in these flow files, each change tried before it is believed."""
    documents = {name: project.compilation.documents[name] for name in files}

    def check(texts: Mapping[str, str]) -> Sequence[Diagnostic]:
        return look_again(root, project, _whole(documents, texts), files).diagnostics

    plugins = project.registry.diagnostics if project.registry is not None else ()
    others = {d for d in project.compilation.diagnostics if d.span.filename == FILE or d in plugins}
    of_flows = [d for d in project.compilation.diagnostics if d not in others]
    done = fixed({name: document.text for name, document in documents.items()}, of_flows, check, wanted)
    return Fixes(done, documents, sum(map(wanted, (*done.left, *others))))


def told(fixes: Fixes) -> Iterable[str]:
    """A line for each fix, and one for all; nothing where there is nothing to mend."""
    mended = fixes.fixed.mended
    for d in mended:
        assert d.fix is not None
        yield f"{printable(str(d.span))}: {d.code} fixed: {printable(d.fix.message)}"
    everything = len(mended) + fixes.left
    if everything:
        yield f"Fixed {len(mended)} of {count(everything, 'fault')}."


def diff(fixes: Fixes) -> Iterable[str]:
    """The changes as `patch -p1` and `git apply` take them."""
    before = _whole(fixes.documents, {name: fixes.documents[name].text for name in fixes.fixed.texts})
    after = _whole(fixes.documents, fixes.fixed.texts)
    for name in sorted(after):
        for line in unified_diff(_lines(before[name]), _lines(after[name]), f"a/{name}", f"b/{name}"):
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[0])
            shown = line.removesuffix("\n")
            yield output.paint(shown, colour) if colour is not None else shown
            if not line.endswith("\n"):
                yield "\\ No newline at end of file"


def _lines(text: str) -> list[str]:
    """With their ends; a text that ends with a line break has no empty line after it."""
    lines = [f"{line}\n" for line in text.split("\n")]
    return [*lines[:-1], *([text.rpartition("\n")[2]] if not text.endswith("\n") else [])]


def write(root: Path, fixes: Fixes) -> None:
    """Write the files that change, each at once and with the mode that it has. Raises SettingsError."""
    texts = fixes.fixed.texts
    before = _whole(fixes.documents, {name: fixes.documents[name].text for name in texts})
    for name, text in _whole(fixes.documents, texts).items():
        path = (root / name).resolve()  # a link stays one
        try:
            if path.read_bytes() != before[name].encode():
                raise SettingsError(f"{name} has changed meanwhile", hint="try again")
            _replace(path, text.encode())
        except OSError as error:
            raise SettingsError(f"{name} cannot be written: {error.strerror}") from None


def _replace(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one."""
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        shutil.copymode(path, name)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _whole(documents: Mapping[str, Document], texts: Mapping[str, str]) -> dict[str, str]:
    """The texts as they stand in their files: some begin with a byte-order mark."""
    return {name: _BYTE_ORDER_MARK + text if documents[name].skipped_bytes else text for name, text in texts.items()}
