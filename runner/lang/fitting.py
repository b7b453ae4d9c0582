"""Whether what is given fits what is wanted: for every value that it may be."""

from __future__ import annotations

from runner.lang.types import Alt, Type

_CALLED = {
    "null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a text",
    "array": "a list", "object": "an object",
}  # fmt: skip
MAX_DEPTH = 6


def misfit(given: Type, wanted: Type, *, conditional: bool = False, depth: int = 0) -> str | None:
    """Why a value of the one type is not always of the other; None if it is, or if that is not known.

    What hangs on a condition is left out where another one holds already.
    """
    if given.unknown or wanted.unknown or not wanted.alts or depth > MAX_DEPTH:
        return None
    for alt in given.alts:
        if alt.soft and conditional:
            continue
        near = [other for other in wanted.alts if _is_near(alt, other)]
        if not near:
            may = "is" if len(given.alts) == 1 else "may be"
            return f"it {may} {_said(alt)}, and must be {_listed(wanted)}"
        reasons = [_inside(alt, other, conditional, depth) for other in near]
        if all(reason is not None for reason in reasons):
            return reasons[0]
    return None


def _is_near(alt: Alt, wanted: Alt) -> bool:
    if alt.kind != wanted.kind and (alt.kind, wanted.kind) != ("integer", "number"):
        return False
    return alt.values is None or wanted.values is None or alt.values <= wanted.values


def _inside(alt: Alt, wanted: Alt, conditional: bool, depth: int) -> str | None:
    if alt.kind == "array" and alt.items is not None and wanted.items is not None:
        reason = misfit(alt.items(), wanted.items(), conditional=conditional, depth=depth + 1)
        return None if reason is None else f"of its items, {reason}"
    if alt.kind != "object":
        return None
    for name, slot in wanted.fields.items():
        mine = alt.fields.get(name)
        if mine is None:
            if slot.required and alt.closed:
                return f'it has no field "{name}"'
            continue
        if slot.required and not mine.required:
            return f'its field "{name}" may be missing'
        reason = misfit(mine.type(), slot.type(), conditional=conditional, depth=depth + 1)
        if reason is not None:
            return f'its field "{name}": {reason}'
    return None


def _said(alt: Alt) -> str:
    if alt.values is not None and len(alt.values) <= 3:
        return " or ".join(sorted(map(repr, alt.values)))
    return _CALLED[alt.kind]


def _listed(wanted: Type) -> str:
    said = []
    for alt in wanted.alts:
        values = alt.values
        said.append(_CALLED[alt.kind] if values is None else ", ".join(sorted(map(repr, values))))
    return " or ".join(dict.fromkeys(said))
