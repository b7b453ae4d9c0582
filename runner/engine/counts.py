"""What a worker counts as it goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """What a worker has done so far."""

    begun: int = 0
    finished: int = 0
    passed_over: int = 0
    dropped: int = 0
    duplicates: int = 0
    dead_letters: int = 0
