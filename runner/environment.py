"""`env.X` and `secrets.X`: from environment variables and files, checked before a start; what was read as a secret is
masked from then on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from runner.errors import SettingsError
from runner.masking import Mask
from runner.plan import Endpoint, Program, Projection


def read_env(names: tuple[str, ...]) -> dict[str, str]:
    """Environment variables, those that are set."""
    return {name: os.environ[name] for name in names if name in os.environ}


def read_secrets(names: tuple[str, ...]) -> dict[str, str]:
    """Secrets: the variable `X`, or the file that `X_FILE` names; those that are there and can be read."""
    found = {}
    for name in names:
        value = os.environ.get(name)
        path = os.environ.get(f"{name}_FILE")
        if value is None and path is not None:
            with suppress(OSError, UnicodeDecodeError):
                value = Path(path).read_text().rstrip("\n")
        if value is not None:
            found[name] = value
    return found


def check_environment(programs: Iterable[Program | Endpoint | Projection]) -> None:
    """Raise SettingsError that lists every variable and secret that these need and that is not there."""
    missing: dict[str, str] = {}
    for program in programs:
        have = {**read_env(program.env), **read_secrets(program.secrets)}
        for name in program.env:
            if name not in have:
                missing.setdefault(name, f"{name} ({program.flow})")
        for name in program.secrets:
            if name not in have:
                unreadable = os.environ.get(f"{name}_FILE")
                what = f"{name}_FILE={unreadable}, which cannot be read" if unreadable else f"{name} or {name}_FILE"
                missing.setdefault(name, f"{what} ({program.flow})")
    if missing:
        raise SettingsError(f"not set: {', '.join(missing.values())}", hint="the flows say so under uses:")


def masked_by(mask: Mask) -> Callable[[tuple[str, ...]], dict[str, str]]:
    """`read_secrets`, by which the mask learns every value before anybody has it."""

    def read(names: tuple[str, ...]) -> dict[str, str]:
        found = read_secrets(names)
        mask.learn(found.values())
        return found

    return read
