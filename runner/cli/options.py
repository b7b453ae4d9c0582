"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

project_dir = click.option(
    "-C",
    "--project-dir",
    "root",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="the current folder",
    help="The project's folder.",
)
broker = click.option("--broker", metavar="URL", help="embedded: or amqp(s)://user:password@host/vhost")
store = click.option("--store", metavar="URL", help="sqlite:PATH, relative to the project")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout, nothing else.")


def settings(function: F) -> F:
    """`-C`, `--broker` and `--store`."""
    return project_dir(broker(store(function)))
