"""Old events as JSON lines in files, one a day of their removal; `flowrun events import` reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from runner.records import LoggedEvent, event_json


class FolderArchive:
    """Appends to `events-<date>.jsonl` below a folder. What was appended before a crash and not taken out of the log
    is appended again: an import passes over what is there already."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, events: Sequence[LoggedEvent]) -> None:
        """Append them, and return when they are safe. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"events-{datetime.now(UTC):%Y-%m-%d}.jsonl").open("ab") as file:
            file.write(b"".join(msgspec.json.encode(event_json(event)) + b"\n" for event in events))
            file.flush()
            os.fsync(file.fileno())
