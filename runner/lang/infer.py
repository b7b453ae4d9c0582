"""Expression → the type of its value, and what is wrong with it for some value that its names may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import nodes

from runner.diagnostics import Severity, did_you_mean
from runner.lang.types import ANY, Alt, Slot, Type, constant, list_of, of_kind, record, soft, union

Names = Mapping[str, Type]

_TEXT, _FLAG, _WHOLE = of_kind("string"), of_kind("boolean"), of_kind("integer")
_NUMBER = of_kind("integer", "number")
_RESULTS: Mapping[str, Type] = {
    **dict.fromkeys(
        ("capitalize", "date", "join", "lower", "minus", "plus", "replace", "title", "tojson", "trim", "truncate",
         "upper", "urlencode"),
        _TEXT,
    ),
    **dict.fromkeys(("length", "int"), _WHOLE),
    **dict.fromkeys(("abs", "float", "round"), _NUMBER),
}  # fmt: skip
_SAME_LIST = frozenset({"list", "reject", "rejectattr", "select", "selectattr", "sort", "unique"})
_ARITHMETIC: Mapping[type[nodes.Node], str] = {
    nodes.Sub: "subtracted",
    nodes.Div: "divided",
    nodes.FloorDiv: "divided",
    nodes.Mod: "divided",
}
_OTHERS = re.compile(r"steps(\.\w+)?|vars|meta|run|error")
"""What these have is said by the rule of names."""
_CALLED = {"null": "null", "boolean": "true or false", "integer": "a whole number", "number": "a number",
           "string": "a text", "array": "a list", "object": "an object"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong, and where in the scalar it stands. `known` are the words of which one may have been meant."""

    code: str
    summary: str
    offset: int
    length: int
    severity: Severity = Severity.ERROR
    help: str | None = None
    known: tuple[str, ...] = ()


class Inference:
    """Types expressions under `names`. `report` gets the faults, `visit` the places that were judged. `conditional`:
    some condition holds here, so that what hangs on another one, which may be the same, is not judged."""

    def __init__(
        self,
        names: Names,
        report: Callable[[Fault], None],
        visit: Callable[[int], None],
        *,
        conditional: bool = False,
    ) -> None:
        self.names = names
        self._report = report
        self._visit = visit
        self._conditional = conditional

    def under(self, names: Names | None) -> Inference:
        """With other knowledge; nothing is reported where nothing can be."""
        if names is None:
            return Inference(self.names, lambda _: None, lambda _: None, conditional=True)
        return Inference(names, self._report, self._visit, conditional=self._conditional)

    def type_of(self, node: nodes.Node, *, lenient: bool = False) -> Type:
        """What its value may be; in a `lenient` place it may be missing."""
        match node:
            case nodes.Const():
                return constant(node.value)
            case nodes.TemplateData():
                return _TEXT
            case nodes.Name():
                return constant(None) if node.name == "null" else self.names.get(node.name, ANY)
            case nodes.Getattr() | nodes.Getitem():
                return self._read(node, lenient)
            case nodes.Filter():
                return self._filter(node)
            case nodes.Test():
                self.type_of(node.node, lenient=node.name in ("defined", "undefined"))
                self._all(node.args)
                return _FLAG
            case nodes.Call():
                self._all(node.args)
                called = node.node.name if isinstance(node.node, nodes.Name) else ""
                return list_of(_WHOLE) if called == "range" else _TEXT
            case nodes.CondExpr():
                return self._choice(node, lenient)
            case nodes.Compare():
                return self._compare(node)
            case nodes.And() | nodes.Or():
                left = self.type_of(node.left)
                inner = self.under(assume(node.left, self.names, isinstance(node, nodes.And)))
                return union((left, inner.type_of(node.right)))
            case nodes.Not():
                self.type_of(node.node)
                return _FLAG
            case nodes.Neg() | nodes.Pos():
                self.type_of(node.node)
                return _NUMBER
            case nodes.Concat():
                self._all(node.nodes)
                return _TEXT
            case nodes.List() | nodes.Tuple():
                return list_of(union(self._all(node.items)))
            case nodes.Dict():
                return self._dict(node)
            case nodes.BinExpr():
                return self._binary(node)
        return ANY

    def _all(self, each: Iterable[nodes.Node]) -> list[Type]:
        return [self.type_of(node) for node in each]

    # --- reading

    def _read(self, node: nodes.Getattr | nodes.Getitem, lenient: bool) -> Type:
        inner = self.type_of(node.node, lenient=lenient)
        key = _key(node)
        if not isinstance(node, nodes.Getattr) and not isinstance(node.arg, nodes.Const | nodes.Slice):
            self.type_of(node.arg)
        if not isinstance(key, str):
            return _elements(inner) if isinstance(key, int) else ANY
        if not lenient:
            self._judge(node, inner, key)
        return field_of(inner, key)

    def _judge(self, node: nodes.Getattr | nodes.Getitem, inner: Type, key: str) -> None:
        """A read that fails for every value, or for some."""
        alts = [alt for alt in inner.alts if not (alt.soft and self._conditional)]
        owner, offset = _path(node.node), node.lineno + 1
        self._visit(offset)
        if inner.unknown or not alts or inner.missing or _OTHERS.fullmatch(owner):
            return  # what may be missing itself has been judged
        lacking = [alt for alt in alts if _lacks(alt, key)]
        if len(lacking) == len(alts):
            self._report(_unknown(owner, key, alts, offset))
        elif lacking or any(key in alt.fields and not alt.fields[key].required for alt in alts):
            why = f"{owner} {_why(lacking)}" if lacking else "it is optional"
            help = f"say when: {owner}.{key} is defined, or {owner}.{key} | default(…)" if owner else None
            self._say("FR332", f'"{key}" may be missing: {why}', help, offset, len(key))
        elif owner and all(alt.kind == "object" and key not in alt.fields and alt.rest is None for alt in alts):
            known = sorted({name for alt in alts for name in alt.fields})
            near = did_you_mean(key, known)
            summary = f'"{key}" is a field that the schema of {owner} does not name'
            help = near or f"it names: {', '.join(known)}"
            self._report(Fault("FR331", summary, offset, len(key), Severity.WARNING, help))

    def _say(self, code: str, summary: str, help: str | None, offset: int, length: int) -> None:
        self._report(Fault(code, summary, offset, length, help=help))

    # --- the rest

    def _filter(self, node: nodes.Filter) -> Type:
        assert node.node is not None
        others = self._all([*node.args, *(pair.value for pair in node.kwargs or ())])
        if node.name == "default":
            inner = self.type_of(node.node, lenient=True)
            if len(node.args) > 1 or any(pair.key == "boolean" for pair in node.kwargs or ()):
                inner = replace(inner, alts=tuple(alt for alt in inner.alts if alt.kind != "null"))
            return union((replace(inner, missing=False), *(others[:1] or [_TEXT])))
        inner = self.type_of(node.node)
        if node.name in _RESULTS:
            return _RESULTS[node.name]
        if node.name in _SAME_LIST and all(alt.kind == "array" for alt in inner.alts) and not inner.unknown:
            return inner
        return ANY

    def _choice(self, node: nodes.CondExpr, lenient: bool) -> Type:
        self.type_of(node.test)
        then = self.under(assume(node.test, self.names, True)).type_of(node.expr1, lenient=lenient)
        if node.expr2 is None:
            return replace(then, missing=True)
        return union((then, self.under(assume(node.test, self.names, False)).type_of(node.expr2, lenient=lenient)))

    def _compare(self, node: nodes.Compare) -> Type:
        left = self.type_of(node.expr)
        self._visit(node.expr.lineno)
        for operand in node.ops:
            right = self.type_of(operand.expr)
            if operand.op in ("eq", "ne") and _disjoint(left, right):
                always = "never" if operand.op == "eq" else "always"
                summary = f"this {always} holds: {_said(left)} is not {_said(right)}"
                length = len(_path(node.expr)) or 1
                self._report(Fault("FR336", summary, node.expr.lineno, length, Severity.WARNING, _near(left, right)))
            left = right
        return _FLAG

    def _dict(self, node: nodes.Dict) -> Type:
        fields: dict[str, Type] = {}
        for pair in node.items:
            value = self.type_of(pair.value)
            if not isinstance(pair.key, nodes.Const):
                self.type_of(pair.key)
                return ANY
            fields[str(pair.key.value)] = value
        return record(fields)

    def _binary(self, node: nodes.BinExpr) -> Type:
        sides = [self.type_of(node.left), self.type_of(node.right)]
        what = _ARITHMETIC.get(type(node))
        for side, place in zip(sides, (node.left, node.right), strict=True) if what else ():
            if side.alts and not (side.unknown or side.missing or _numbers(side, some=True)):
                summary = f"{_said(side)} cannot be {what}"
                self._report(Fault("FR335", summary, place.lineno, len(_path(place)) or 1))
        if not all(_numbers(side) for side in sides):
            return ANY
        whole = all(alt.kind == "integer" for side in sides for alt in side.alts)
        return _WHOLE if whole and isinstance(node, nodes.Add | nodes.Sub | nodes.Mul | nodes.FloorDiv) else _NUMBER


# --- what a condition says ---------------------------------------------------------------------------------


def assume(node: nodes.Node, names: Names, truth: bool) -> Names | None:
    """What is known of the names where a condition holds, or does not; None if that cannot be."""
    match node:
        case nodes.Const():
            return names if bool(node.value) is truth else None
        case nodes.Not():
            return assume(node.node, names, not truth)
        case nodes.And() if truth:
            return _in_turn(node, names, truth)
        case nodes.Or() if not truth:
            return _in_turn(node, names, truth)
        case nodes.And() | nodes.Or():
            # One side decides alone, if the other cannot be so.
            left, right = assume(node.left, names, truth), assume(node.right, names, truth)
            return right if left is None else left if right is None else names
        case nodes.Test():
            return _test(node, names, truth)
        case nodes.Compare() if len(node.ops) == 1:
            return _comparison(node.expr, node.ops[0], names, truth)
        case nodes.Name() | nodes.Getattr() | nodes.Getitem():
            return _narrowed(node, names, lambda kind: _truthy(kind, truth))
    return names


def _in_turn(node: nodes.And | nodes.Or, names: Names, truth: bool) -> Names | None:
    left = assume(node.left, names, truth)
    return None if left is None else assume(node.right, left, truth)


def _test(node: nodes.Test, names: Names, truth: bool) -> Names | None:
    match node.name:
        case "defined" | "undefined":
            wanted = truth is (node.name == "defined")
            return _narrowed(node.node, names, _present) if wanted else _absent(node.node, names)
        case "none":
            return _narrowed(node.node, names, lambda kind: _of_kinds(kind, {"null"}, truth))
        case "string":
            return _narrowed(node.node, names, lambda kind: _of_kinds(kind, {"string"}, truth))
        case "number":
            return _narrowed(node.node, names, lambda kind: _of_kinds(kind, {"integer", "number"}, truth))
        case "mapping":
            return _narrowed(node.node, names, lambda kind: _of_kinds(kind, {"object"}, truth))
        case "boolean":
            return _narrowed(node.node, names, lambda kind: _of_kinds(kind, {"boolean"}, truth))
    return names


def _comparison(left: nodes.Expr, operand: nodes.Operand, names: Names, truth: bool) -> Names | None:
    right, op = operand.expr, operand.op
    if op in ("eq", "ne") and isinstance(left, nodes.Const):
        left, right = right, left
    values = _constants(right, several=op in ("in", "notin"))
    if values is None or op not in ("eq", "ne", "in", "notin"):
        return names
    wanted = truth is (op in ("eq", "in"))
    return _narrowed(left, names, lambda kind: _of_values(kind, values, wanted))


def _constants(node: nodes.Node, *, several: bool) -> list[Any] | None:
    """The value, or the values of a list, if they are constants."""
    if several:
        items = [_constants(item, several=False) for item in getattr(node, "items", [None])]
        return None if None in items else [value for item in items if item for value in item]
    if isinstance(node, nodes.Name) and node.name == "null":
        return [None]
    is_plain = isinstance(node, nodes.Const) and (node.value is None or isinstance(node.value, str | int | bool))
    return [node.value] if isinstance(node, nodes.Const) and is_plain else None


def _narrowed(node: nodes.Node, names: Names, how: Callable[[Type], Type]) -> Names | None:
    path = _keys(node)
    if path is None or path[0] not in names:
        return names
    kind = _refined(names[path[0]], path[1:], how)
    return None if kind.is_never else {**names, path[0]: kind}


def _refined(kind: Type, keys: tuple[str, ...], how: Callable[[Type], Type]) -> Type:
    """Those alternatives that have the field, and in which it is so."""
    if not keys:
        return how(kind)
    alts: list[Alt] = []
    for alt in kind.alts:
        if _lacks(alt, keys[0]):
            continue
        inner = _refined(field_of(Type((alt,)), keys[0]), keys[1:], how)
        if inner.is_never:
            continue
        slot = Slot(_always(replace(inner, missing=False)), required=not inner.missing)
        alts.append(replace(alt, fields={**alt.fields, keys[0]: slot}))
    return Type(tuple(alts), kind.unknown)


def _always(kind: Type) -> Callable[[], Type]:
    return lambda: kind


def _absent(node: nodes.Node, names: Names) -> Names | None:
    """Where a field is missing; said only of one that is read directly."""
    path = _keys(node)
    if path is None or len(path) != 2 or path[0] not in names:
        return names
    kind, key = names[path[0]], path[1]
    left = tuple(alt for alt in kind.alts if not (key in alt.fields and alt.fields[key].required))
    kept = replace(kind, alts=left)
    return None if kept.is_never else {**names, path[0]: kept}


def _present(kind: Type) -> Type:
    return replace(kind, missing=False)


def _of_kinds(kind: Type, kinds: set[str], wanted: bool) -> Type:
    alts = tuple(alt for alt in kind.alts if (alt.kind in kinds) is wanted)
    return Type(alts, kind.unknown)


def _of_values(kind: Type, values: list[Any], wanted: bool) -> Type:
    alts: list[Alt] = []
    for alt in kind.alts:
        if alt.kind in ("array", "object"):
            alts += () if wanted else (alt,)
            continue
        if alt.kind == "null":
            alts += (alt,) if (None in values) is wanted else ()
            continue
        mine = [value for value in values if _is_of(value, alt.kind)]
        if wanted:
            kept = frozenset(mine) if alt.values is None else alt.values & frozenset(mine)
            alts += (replace(alt, values=kept),) if kept else ()
        elif alt.values is None or alt.values - frozenset(mine):
            alts.append(replace(alt, values=None if alt.values is None else alt.values - frozenset(mine)))
    return Type(tuple(alts), kind.unknown)


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int | float):
        return kind in ("integer", "number")
    return isinstance(value, str) and kind == "string"


def _truthy(kind: Type, truth: bool) -> Type:
    alts: list[Alt] = []
    for alt in kind.alts:
        if alt.kind == "null":
            alts += () if truth else (alt,)
        elif alt.values is not None:
            kept = frozenset(value for value in alt.values if bool(value) is truth)
            alts += (replace(alt, values=kept),) if kept else ()
        elif alt.kind == "object" and not truth and any(slot.required for slot in alt.fields.values()):
            continue
        else:
            alts.append(alt)
    return Type(tuple(alts), kind.unknown)


# --- small things ------------------------------------------------------------------------------------------


def field_of(kind: Type, key: str) -> Type:
    """The type of a field of a value."""
    found: list[Type] = []
    for alt in kind.alts:
        if alt.kind != "object" or (alt.closed and key not in alt.fields):
            found.append(Type((), missing=True))
        elif key in alt.fields:
            slot = alt.fields[key]
            inner = replace(slot.type(), missing=not slot.required)
            found.append(soft(inner) if alt.soft else inner)
        else:
            found.append(ANY)
    joined = union(found)
    return replace(joined, unknown=joined.unknown or kind.unknown, missing=joined.missing or kind.missing)


def _lacks(alt: Alt, key: str) -> bool:
    """It never has such a field."""
    return alt.kind != "object" or (alt.closed and key not in alt.fields)


def _elements(kind: Type) -> Type:
    items = [alt.items() for alt in kind.alts if alt.kind == "array" and alt.items is not None]
    return replace(union(items), unknown=kind.unknown or len(items) < len(kind.alts)) if items else ANY


def _key(node: nodes.Getattr | nodes.Getitem) -> object:
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) else None


def _keys(node: nodes.Node) -> tuple[str, ...] | None:
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr | nodes.Getitem):
        head, key = _keys(node.node), _key(node)
        return (*head, key) if head is not None and isinstance(key, str) else None
    return None


def _path(node: nodes.Node) -> str:
    keys = _keys(node)
    return "" if keys is None else ".".join(keys)


def _unknown(owner: str, key: str, alts: list[Alt], offset: int) -> Fault:
    kinds = {alt.kind for alt in alts}
    if "object" not in kinds:
        return Fault("FR333", f"{owner or 'this'} is {_listed(kinds)}: it has no fields", offset, len(key))
    known = sorted({name for alt in alts for name in alt.fields})
    help = did_you_mean(key, known) or f"it has: {', '.join(known) or 'nothing'}"
    summary = f'{owner or "this"} has no field "{key}"'
    return Fault("FR330", summary, offset, len(key), help=help, known=tuple(known))


def _why(lacking: list[Alt]) -> str:
    kinds = {alt.kind for alt in lacking}
    return f"may be {_listed(kinds)}" if kinds != {"object"} else "may be without it"


def _listed(kinds: Iterable[str]) -> str:
    return " or ".join(_CALLED[kind] for kind in sorted(kinds))


def _said(kind: Type) -> str:
    values = [value for alt in kind.alts for value in sorted(alt.values or (), key=str)]
    if len(values) == len(kind.alts) == 1:
        return repr(values[0])
    if values and all(alt.values is not None for alt in kind.alts):
        return f"one of {', '.join(map(str, values))}"
    return _listed({alt.kind for alt in kind.alts})


def _near(left: Type, right: Type) -> str | None:
    """Of one text that was compared with several, which was meant."""
    one, many = (left, right) if _single(left) else (right, left)
    values = {value for alt in many.alts for value in alt.values or () if isinstance(value, str)}
    said = next((value for alt in one.alts for value in alt.values or ()), None)
    return did_you_mean(said, values) if isinstance(said, str) else None


def _single(kind: Type) -> bool:
    return len(kind.alts) == 1 and len(kind.alts[0].values or ()) == 1


def _numbers(kind: Type, *, some: bool = False) -> bool:
    if kind.unknown or not kind.alts:
        return False
    are = [alt.kind in ("integer", "number", "boolean") for alt in kind.alts]
    return any(are) if some else all(are)


def _disjoint(left: Type, right: Type) -> bool:
    """No value is of both."""
    if left.unknown or right.unknown or left.missing or right.missing or not (left.alts and right.alts):
        return False
    return not any(_may_equal(a, b) for a in left.alts for b in right.alts)


def _may_equal(a: Alt, b: Alt) -> bool:
    numbers = {"integer", "number", "boolean"}  # True == 1, as expressions have it
    if a.kind != b.kind and not {a.kind, b.kind} <= numbers:
        return False
    return a.values is None or b.values is None or bool(a.values & b.values)
