"""A projection's definition: all that decides what its entries are, as JSON, and compiled.

The store keeps the definition with the entries, so that entries of another definition than the files' are kept up too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runner.expressions import compile_value
from runner.lang.declare import FoldDecl, ProjectionDecl
from runner.plan import Fold, Projection
from runner.source import plain

_OPERATIONS = ("set", "increment", "append")


def definition_of(projection: ProjectionDecl) -> str:
    """The definition of what a flow file declares without faults: what each event does, by its name. In the author's
    order, which is that of the fields."""
    return json.dumps({str(fold.event.value): _fold(fold) for fold in projection.folds})


def compile_projection(name: str, definition: str) -> Projection:
    """What `definition_of` gave, ready to fold. The same text gives the same entries, whatever the files say."""
    folds: Mapping[str, Mapping[str, Any]] = json.loads(definition)
    return Projection(
        name=name, flow="", definition=definition, folds={event: _compiled(body) for event, body in folds.items()}
    )


def _fold(fold: FoldDecl) -> dict[str, object]:
    words = {name: plain(value) for name, _, value in fold.body.items() if name != "key"}
    return {"key": plain(fold.key), **words}


def _compiled(body: Mapping[str, Any]) -> Fold:
    values = {name: compile_value(body[name]) for name in _OPERATIONS if name in body}
    return Fold(
        key=compile_value(body["key"]),
        remove=tuple(body.get("remove", ())),
        delete=body.get("delete", False),
        **values,
    )
