"""Expressions and templates: Jinja2's grammar, read once, compiled to plain closures.

Jinja2 parses; nothing of it evaluates but its filters. The closures know only the nodes below, so there is
nothing to escape from: no attribute of a Python object can be reached, no statement, no call but the named
functions. `a.b` and `a["b"]` read a key of an object, an element or slice of a list or text, nothing else.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, nodes
from jinja2.lexer import TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runner.errors import ExpressionError
from runner.filters import FILTERS, OWN_FILTERS, TESTS
from runner.values import (
    MISSING,
    OMIT,
    ONLY_WHOLE,
    add,
    as_text,
    bounded,
    bounded_range,
    clip,
    json_value,
    multiply,
    number,
    on_numbers,
    power,
    read_item,
)

Scope: TypeAlias = Mapping[str, Any]
"""The names that an expression sees. `now` and `uuid` are functions, all else JSON values."""
Evaluate: TypeAlias = Callable[[Scope], Any]
T = TypeVar("T")

FUNCTIONS = frozenset({"now", "uuid", "range"})
_NAMED: Final = {"omit": OMIT, "null": None}
"""Constants that Jinja2 does not know."""
CACHED = 100_000
"""How many texts are kept compiled. Each rule reads all flows, and would compile those of a larger project anew."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class ExpressionSyntaxError(Exception):
    """A fault in the text itself: `offset` and `length` in characters of the whole scalar."""

    def __init__(self, message: str, offset: int, length: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.length = max(length, 1)


@dataclass(frozen=True, slots=True)
class Read:
    """A name that an expression reads: `("steps", "pay", "output")`, and where it stands in the scalar.

    `offsets` has one entry a segment; `guarded` reads may be missing. `tested`: the result hangs on its value, but has
    nothing of it: a comparison's, a test's, the condition of an `if`, the key by which something else is chosen.
    """

    path: tuple[str, ...]
    offsets: tuple[int, ...]
    guarded: bool
    tested: bool = False


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression or one template, ready to evaluate."""

    source: str
    reads: tuple[Read, ...]
    evaluate: Evaluate
    """Raises ExpressionError."""
    pieces: tuple[nodes.Node, ...] = ()
    """Jinja2's syntax tree: of one value, or the texts and values that a text is made of."""


def holds(value: object) -> bool:
    """Whether a condition's value holds: false, null, 0 and what is empty do not."""
    return bool(value)


@lru_cache(maxsize=CACHED)
def parse_expression(source: str) -> Expression:
    """A bare expression, as in `when`. Raises ExpressionSyntaxError."""
    if source.strip().startswith("{{"):
        raise ExpressionSyntaxError("a bare expression stands here: leave out {{ and }}", source.index("{{"), 2)
    compiler = _Compiler(source)
    with _faults_of(source):
        parser = Parser(_ENVIRONMENT, source, state="variable")
        tree = parser.parse_expression()
        if not parser.stream.eos:
            _fail_at(source, parser.stream.current.lineno, "this does not belong to the expression")
        evaluate = compiler.top(tree)
    return Expression(source, tuple(compiler.reads), _guard(source, compiler.reads, evaluate), (tree,))


@lru_cache(maxsize=CACHED)
def parse_template(source: str) -> Expression:
    """A template: the value itself if it is, spaces apart, one `{{ … }}`, else text.

    Raises ExpressionSyntaxError.
    """
    if "{{" not in source and "{%" not in source and "{#" not in source:
        return Expression(source, (), lambda _: source)
    compiler = _Compiler(source)
    with _faults_of(source):
        pieces: list[nodes.Node] = []
        for node in Parser(_ENVIRONMENT, source).parse().body:
            if not isinstance(node, nodes.Output):
                _fail_at(source, node.lineno, "statements are not allowed: only {{ expressions }}", length=2)
            pieces.extend(node.nodes)
        solid = [p for p in pieces if not (isinstance(p, nodes.TemplateData) and not p.data.strip())]
        if len(solid) == 1 and not isinstance(solid[0], nodes.TemplateData):
            evaluate, pieces = compiler.top(solid[0]), solid
        else:
            evaluate = _text([_piece(compiler, p) for p in pieces])
    return Expression(source, tuple(compiler.reads), _guard(source, compiler.reads, evaluate), tuple(pieces))


def compile_value(value: object) -> Evaluate:
    """Any JSON value with templates in its texts, as one function of the scope.

    Keys whose value is `omit` are left out. Raises ExpressionSyntaxError; the function ExpressionError.
    """
    match value:
        case str():
            return parse_template(value).evaluate
        case dict():
            fields = [(str(key), compile_value(item)) for key, item in value.items()]
            return lambda scope: {key: result for key, item in fields if (result := item(scope)) is not OMIT}
        case list():
            items = [compile_value(item) for item in value]
            return lambda scope: [result for item in items if (result := item(scope)) is not OMIT]
    return lambda _: value


# --- reading -----------------------------------------------------------------------------------------------


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2's parser and filters. Its tokens carry character offsets in place of line numbers, so that every
    node and every syntax error knows its column."""

    def _tokenize(
        self, source: str, name: str | None, filename: str | None = None, state: str | None = None
    ) -> TokenStream:
        return TokenStream(self.lexer.wrap(self._with_offsets(source, state), name, filename), name, filename)

    def _with_offsets(self, source: str, state: str | None) -> Iterator[tuple[int, str, str]]:
        at = 0
        try:
            for _, kind, text in self.lexer.tokeniter(source, None, None, state):
                found = source.find(text, at)
                at = found if found >= 0 else at
                yield at, kind, text
                at += len(text)
        except TemplateSyntaxError as error:
            raise TemplateSyntaxError(error.message or "syntax error", min(at, len(source))) from None

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = read_item(obj, argument)
        return self.undefined(name=str(argument)) if value is MISSING else value


@contextmanager
def _faults_of(source: str) -> Iterator[None]:
    """Whatever the parser cannot take is a fault of the text."""
    try:
        yield
    except TemplateSyntaxError as error:
        _fail_at(source, error.lineno, error.message or "syntax error")
    except RecursionError:
        _fail_at(source, 0, "the expression is nested too deeply")
    except ValueError as error:  # a number with more digits than Python reads
        _fail_at(source, 0, str(error))


def _fail_at(source: str, offset: int, message: str, length: int | None = None) -> NoReturn:
    message = re.sub(r" at \d+$", "", message).replace("print statement", "the expression")
    message = message.replace("'end of template'", "end of the expression")
    offset = min(offset, max(len(source) - 1, 0))
    word = re.match(r"\w+|\S", source[offset:])
    raise ExpressionSyntaxError(message, offset, length or (word.end() if word else 1))


def _guard(source: str, reads: Iterable[Read], evaluate: Evaluate) -> Evaluate:
    """Whatever goes wrong in an expression is an ExpressionError that names it. What goes wrong with values is told
    with the values; where one may come from a secret, no mask would know it again."""
    tells_values = not any(read.path[0] == "secrets" for read in reads)

    def guarded(scope: Scope) -> Any:
        try:
            return evaluate(scope)
        except _MissingError as error:
            what = str(error)
        except (ExpressionError, *_FAULTS) as error:
            what = str(error) or type(error).__name__ if tells_values else "it fails, and it reads a secret"
        raise ExpressionError(f"{what} (in {clip(source)})")

    return guarded


class _MissingError(ExpressionError):
    """What an expression names is not there."""


_FAULTS = (
    TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError, RecursionError, TemplateError,
)  # fmt: skip
"""What filters raise for values that they were not made for."""


def _piece(compiler: _Compiler, node: nodes.Node) -> Evaluate:
    if isinstance(node, nodes.TemplateData):
        data = node.data
        return lambda _: data
    return compiler.top(node)


def _text(pieces: list[Evaluate]) -> Evaluate:
    def evaluate(scope: Scope) -> str:
        return bounded("".join(as_text(piece(scope)) for piece in pieces))

    return evaluate


# --- compiling ---------------------------------------------------------------------------------------------


_BINARY: dict[type[nodes.BinExpr], Callable[[Any, Any], Any]] = {
    nodes.Add: add,
    nodes.Sub: on_numbers(operator.sub),
    nodes.Mul: multiply,
    nodes.Div: on_numbers(operator.truediv),
    nodes.FloorDiv: on_numbers(operator.floordiv),
    nodes.Mod: on_numbers(operator.mod),
    nodes.Pow: power,
}

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda item, container: item in container,
    "notin": lambda item, container: item not in container,
}


_CHOOSING = frozenset({"select", "reject", "selectattr", "rejectattr"})
"""Filters whose arguments say which elements are taken."""


class _Compiler:
    """Turns one Jinja2 expression tree into closures, and notes the names that it reads."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.reads: list[Read] = []
        self._testing = False

    def top(self, node: nodes.Node) -> Evaluate:
        """The whole expression; what is missing raises."""
        return self.compile(node, lenient=False)

    def compile(self, node: nodes.Node, *, lenient: bool) -> Evaluate:
        match node:
            case nodes.Const():
                return _constant(self._literal(node))
            case nodes.TemplateData():
                return _constant(node.data)
            case nodes.Name():
                return self._name(node, lenient)
            case nodes.Getattr() | nodes.Getitem():
                return self._item(node, lenient)
            case nodes.Filter():
                return self._filter(node, lenient)
            case nodes.Test():
                return self._test(node)
            case nodes.Call():
                return self._call(node)
            case nodes.CondExpr():
                return self._conditional(node, lenient)
            case nodes.Compare():
                return self._compare(node)
            case nodes.And() | nodes.Or():
                return self._logic(node)
            case nodes.Not():
                with self._tested():
                    inner = self.top(node.node)
                return lambda scope: not inner(scope)
            case nodes.Neg() | nodes.Pos():
                inner, sign = self.top(node.node), -1 if isinstance(node, nodes.Neg) else 1
                return lambda scope: sign * number(inner(scope))
            case nodes.Concat():
                return _text([self.top(part) for part in node.nodes])
            case nodes.List() | nodes.Tuple():
                items = [self.top(item) for item in node.items]
                return lambda scope: [value for item in items if (value := item(scope)) is not OMIT]
            case nodes.Dict():
                return self._dict(node)
            case nodes.BinExpr() if type(node) in _BINARY:
                apply, left, right = _BINARY[type(node)], self.top(node.left), self.top(node.right)
                return lambda scope: apply(left(scope), right(scope))
        _fail_at(self.source, node.lineno, "this is not allowed in an expression")

    def _literal(self, node: nodes.Const) -> Any:
        value = node.value
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return number(value)
            except ExpressionError as error:
                _fail_at(self.source, node.lineno, str(error))
        if isinstance(value, str) and not value.isascii() and _LONE_SURROGATE.search(value):
            _fail_at(self.source, node.lineno, "the text holds half a character (a lone surrogate)")
        return value

    def _name(self, node: nodes.Name, lenient: bool) -> Evaluate:
        name = node.name
        if name in _NAMED:
            return _constant(_NAMED[name])
        if name in FUNCTIONS:
            _fail_at(self.source, node.lineno, f"{name} is a function: write {name}()")
        self._allow(name, node.lineno)
        self.reads.append(Read((name,), (node.lineno,), lenient, self._testing))
        if lenient:
            return lambda scope: scope.get(name, MISSING)

        def read(scope: Scope) -> Any:
            try:
                return scope[name]
            except KeyError:
                raise _MissingError(f"{name} is missing") from None

        return read

    def _item(self, node: nodes.Getattr | nodes.Getitem, lenient: bool) -> Evaluate:
        if isinstance(node, nodes.Getattr):
            self._allow(node.attr, node.lineno)
            key: Evaluate = _constant(node.attr)
        elif isinstance(node.arg, nodes.Slice):
            return self._slice(node, node.arg, lenient)
        else:
            with self._tested():
                key = self.top(node.arg)
        inner = self.compile(node.node, lenient=lenient)
        self._extend_read(node)
        if lenient:
            return lambda scope: read_item(inner(scope), key(scope))
        label = self._label(node)

        def read(scope: Scope) -> Any:
            value = read_item(inner(scope), key(scope))
            if value is MISSING:
                raise _MissingError(f"{label} is missing")
            return value

        return read

    def _slice(self, node: nodes.Getitem, arg: nodes.Slice, lenient: bool) -> Evaluate:
        inner = self.compile(node.node, lenient=lenient)
        with self._tested():
            parts = [self.top(part) if part else _constant(None) for part in (arg.start, arg.stop, arg.step)]

        def read(scope: Scope) -> Any:
            value = inner(scope)
            if isinstance(value, str | list):
                return value[slice(*(part(scope) for part in parts))]
            if lenient and (value is None or value is MISSING):
                return MISSING
            raise ExpressionError("only a list or a text can be sliced")

        return read

    def _filter(self, node: nodes.Filter, lenient: bool) -> Evaluate:
        if node.node is None or node.name not in FILTERS:
            _fail_at(self.source, node.lineno, f"there is no filter {node.name!r}", length=None)
        with self._tested(node.name in _CHOOSING):
            args, kwargs = self._arguments(node)
        self._check_inner_names(node)
        if node.name == "default":
            inner = self.compile(node.node, lenient=True)
            return _default(inner, args, kwargs)
        inner = self.top(node.node)
        name, function = node.name, OWN_FILTERS.get(node.name)

        def apply(scope: Scope) -> Any:
            values = [arg(scope) for arg in args]
            named = {key: arg(scope) for key, arg in kwargs.items()}
            value = inner(scope)
            if OMIT in (value, *values, *named.values()):
                raise ExpressionError(ONLY_WHOLE)
            if function is not None:
                return function(value, *values, **named)
            result = json_value(_ENVIRONMENT.call_filter(name, value, values, named, context=_CONTEXT))
            if result is MISSING and not lenient:
                raise ExpressionError(f"{name} of nothing")
            return result

        return apply

    def _check_inner_names(self, node: nodes.Filter) -> None:
        """`map("upper")`, `select("defined")`: the names inside are filters and tests as well."""
        place = {"map": 0, "select": 0, "reject": 0, "selectattr": 1, "rejectattr": 1}.get(node.name)
        if place is None or len(node.args) <= place:
            return
        argument = node.args[place]
        known, what = (FILTERS, "filter") if node.name == "map" else (TESTS, "test")
        if not isinstance(argument, nodes.Const) or argument.value not in known:
            _fail_at(self.source, argument.lineno, f"{node.name} needs the name of a {what} here")

    def _test(self, node: nodes.Test) -> Evaluate:
        if node.name not in TESTS:
            _fail_at(self.source, node.lineno, f"there is no test {node.name!r}")
        is_of_presence = node.name in ("defined", "undefined")
        with self._tested():
            args, kwargs = self._arguments(node)
            inner = self.compile(node.node, lenient=is_of_presence)
        if kwargs:
            _fail_at(self.source, node.lineno, f"the test {node.name} takes no named arguments")
        if is_of_presence:
            wanted = node.name == "defined"
            return lambda scope: (inner(scope) is not MISSING) is wanted
        test = TESTS[node.name]
        return lambda scope: bool(test(inner(scope), *(arg(scope) for arg in args)))

    def _call(self, node: nodes.Call) -> Evaluate:
        if not isinstance(node.node, nodes.Name) or node.node.name not in FUNCTIONS:
            _fail_at(self.source, node.lineno, "only now(), uuid() and range(n) can be called")
        args, kwargs = self._arguments(node)
        name = node.node.name
        if kwargs:
            _fail_at(self.source, node.lineno, f"{name}() takes no named arguments")
        if name == "range":
            return lambda scope: bounded_range(*(arg(scope) for arg in args))
        if args:
            _fail_at(self.source, node.lineno, f"{name}() takes no arguments")
        return lambda scope: scope[name]()

    def _conditional(self, node: nodes.CondExpr, lenient: bool) -> Evaluate:
        with self._tested():
            test = self.top(node.test)
        then = self.compile(node.expr1, lenient=lenient)
        if node.expr2 is not None:
            otherwise = self.compile(node.expr2, lenient=lenient)
        elif lenient:
            otherwise = _constant(MISSING)
        else:
            otherwise = _raise("the if has no else, and its condition does not hold")
        return lambda scope: then(scope) if test(scope) else otherwise(scope)

    def _compare(self, node: nodes.Compare) -> Evaluate:
        with self._tested():
            first = self.top(node.expr)
            rest = [(_COMPARE[operand.op], self.top(operand.expr)) for operand in node.ops]

        def compare(scope: Scope) -> bool:
            left = first(scope)
            for test, right in rest:
                value = right(scope)
                if not test(left, value):
                    return False
                left = value
            return True

        return compare

    def _logic(self, node: nodes.And | nodes.Or) -> Evaluate:
        with self._tested(isinstance(node, nodes.And)):  # what `and` gives of its left is false, or empty
            left = self.top(node.left)
        right = self.top(node.right)
        if isinstance(node, nodes.And):
            return lambda scope: left(scope) and right(scope)
        return lambda scope: left(scope) or right(scope)

    def _dict(self, node: nodes.Dict) -> Evaluate:
        pairs = [(self.top(pair.key), self.top(pair.value)) for pair in node.items]

        def build(scope: Scope) -> dict[str, Any]:
            result = {}
            for key, value in pairs:
                name, item = key(scope), value(scope)
                if not isinstance(name, str):
                    raise ExpressionError("an object's keys are texts")
                if item is not OMIT:
                    result[name] = item
            return result

        return build

    def _arguments(self, node: nodes.Filter | nodes.Test | nodes.Call) -> tuple[list[Evaluate], dict[str, Evaluate]]:
        if node.dyn_args or node.dyn_kwargs:
            _fail_at(self.source, node.lineno, "* and ** are not allowed")
        return (
            [self.top(arg) for arg in node.args],
            {str(pair.key): self.top(pair.value) for pair in node.kwargs or ()},
        )

    @contextmanager
    def _tested(self, holds: bool = True) -> Iterator[None]:
        """What is read meanwhile is tested, and no part of the result."""
        before, self._testing = self._testing, self._testing or holds
        yield
        self._testing = before

    def _allow(self, name: str, offset: int) -> None:
        if name.startswith("_"):
            _fail_at(self.source, offset, "names that begin with _ are not allowed")

    def _extend_read(self, node: nodes.Getattr | nodes.Getitem) -> None:
        """A constant key lengthens the read that its parent noted."""
        key = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
        chain = _chain(node)
        if chain is None or not isinstance(key, str) or not self.reads:
            return
        last = self.reads[-1]
        if last.path == chain[:-1]:
            self.reads[-1] = replace(last, path=(*last.path, key), offsets=(*last.offsets, node.lineno + 1))

    def _label(self, node: nodes.Node) -> str:
        chain = _chain(node)
        return ".".join(chain) if chain else "the value"


def _chain(node: nodes.Node) -> tuple[str, ...] | None:
    """`("event", "a", "b")` of `event.a["b"]`; None if a key is not constant."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr):
        head = _chain(node.node)
        return head and (*head, node.attr)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        head = _chain(node.node)
        return head and (*head, str(node.arg.value))
    return None


def _constant(value: Any) -> Evaluate:
    return lambda _: value


def _raise(message: str) -> Evaluate:
    def fail(_: Scope) -> Any:
        raise ExpressionError(message)

    return fail


def _default(inner: Evaluate, args: list[Evaluate], kwargs: Mapping[str, Evaluate]) -> Evaluate:
    value = args[0] if args else kwargs.get("default_value", _constant(""))
    null_too = args[1] if len(args) > 1 else kwargs.get("boolean", _constant(False))

    def evaluate(scope: Scope) -> Any:
        result = inner(scope)
        if result is MISSING or (result is None and null_too(scope)):
            return value(scope)
        return result

    return evaluate


_ENVIRONMENT: Final = _Environment(keep_trailing_newline=True, cache_size=0, undefined=StrictUndefined)
_ENVIRONMENT.filters = dict(FILTERS)
_ENVIRONMENT.tests = dict(TESTS)
_CONTEXT: Final = Context(_ENVIRONMENT, {}, None, {})
"""Empty: filters like `map` want one, to find filters by name."""
