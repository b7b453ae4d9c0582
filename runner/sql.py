"""SQL lives in `.sql` files, each statement under a comment with its name."""

from __future__ import annotations

import re
from importlib.resources import files


def load_queries(package: str, name: str) -> dict[str, str]:
    """The statements of a `.sql` file, by the name in the `-- name:` comment above each."""
    text = files(package).joinpath(name).read_text()
    parts = re.split(r"^-- name: (\w+).*\n", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
