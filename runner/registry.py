"""Names → handler plugins: bundled and installed ones by entry points, the project's own by path.

Nothing registers itself: modules are loaded, and functions that bear `@handler` are found in them.
"""

from __future__ import annotations

import importlib
import inspect
import keyword
import re
import sys
import threading
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from runner.diagnostics import Diagnostic, Related
from runner.errors import TerminalError
from runner.handler import MARK, Context, HandlerMark
from runner.plan import Parameter, Signature
from runner.ports import Handler
from runner.source import Document, Lines, Position, Span

_PACKAGE = "flowrun_plugins"
_REFERENCE = "#/$defs/{name}"
_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Registry:
    """The handlers that there are, and what is wrong with the plugins they were looked for in."""

    handlers: Mapping[str, Handler]
    signatures: Mapping[str, Signature]
    diagnostics: tuple[Diagnostic, ...] = ()
    documents: Mapping[str, Document] = field(default_factory=dict)
    """The project's plugin files, by name, for pointing into them."""


@dataclass(slots=True)
class _Found:
    handlers: dict[str, Handler] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    places: dict[str, Span] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)

    def place(self, filename: str, line: int) -> Span:
        """A line of a plugin, as it is to be pointed at."""
        document = self.documents.get(filename)
        if document is not None:
            return Lines(document.text).line(filename, line)
        return Span(filename, Position(0, line, 1), Position(0, line, 1))

    def registry(self) -> Registry:
        return Registry(self.handlers, self.signatures, tuple(self.diagnostics), self.documents)


def discover(root: Path | None) -> Registry:
    """Load the bundled and installed handlers, and those of the project at `root`."""
    found = _Found()
    for entry in sorted(entry_points(group="flowrun.handlers"), key=lambda e: (e.value, e.name)):
        _load_entry(entry, found)
    if root is not None:
        _open_package(root / "plugins")
        for path in sorted((root / "plugins").glob("*.py")):
            _load_file(path, root, found)
    return found.registry()


def bind(functions: Iterable[Callable[..., Any]]) -> Registry:
    """A registry of just these marked functions: for tests."""
    found = _Found()
    for function in functions:
        _add(function, getattr(function, MARK), getattr(function, "__module__", "?"), found)
    return found.registry()


def _load_entry(entry: Any, found: _Found) -> None:
    try:
        module = entry.load()
    except Exception as error:
        text = f"the installed handlers {entry.value} cannot be imported: {_described(error)}"
        place = found.place(f"entry point {entry.value}", 1)
        found.diagnostics.append(Diagnostic(code="FR223", summary=text, span=place))
        return
    _collect(module, entry.value, found)


def _open_package(folder: Path) -> None:
    """Make the project's `plugins/` the package `flowrun_plugins`, so that its files can import each other
    (`from .database import …`). `sys.path` is not touched; what an earlier project left is forgotten."""
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]
    package = ModuleType(_PACKAGE)
    package.__path__ = [str(folder.absolute())]
    sys.modules[_PACKAGE] = package
    importlib.invalidate_caches()


def _load_file(path: Path, root: Path, found: _Found) -> None:
    name = path.relative_to(root).as_posix()
    with suppress(OSError, ValueError):
        found.documents[name] = Document(name, path.read_text(), None)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for what was asked for
            module = importlib.import_module(f"{_PACKAGE}.{path.stem}")
    except (Exception, SystemExit) as error:
        place = found.place(name, _own_line(error, path))
        text = f"the plugin cannot be imported: {_described(error)}"
        found.diagnostics.append(Diagnostic(code="FR223", summary=text, span=place))
        return
    _collect(module, name, found)


def _described(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}".rstrip(": ")


def _own_line(error: BaseException, path: Path) -> int:
    """The last line of the plugin itself that the error came through."""
    line = error.lineno or 1 if isinstance(error, SyntaxError) else 1
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path.absolute()):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _collect(module: ModuleType, where: str, found: _Found) -> None:
    for value in list(vars(module).values()):
        mark = inspect.getattr_static(value, MARK, None)
        if isinstance(mark, HandlerMark) and getattr(value, "__module__", None) == module.__name__:
            _add(value, mark, where, found)


def _add(function: Callable[..., Any], mark: HandlerMark, where: str, found: _Found) -> None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    line = code.co_firstlineno if code is not None else 1
    place = found.place(where, line)
    if mark.name in found.places:
        first = Related("the first one is here", found.places[mark.name])
        text = f'handler "{mark.name}" is defined twice'
        found.diagnostics.append(Diagnostic(code="FR221", summary=text, span=place, related=(first,)))
        return
    try:
        if code is None:
            raise TypeError("it is no function")
        if _NAME.fullmatch(mark.name) is None:
            raise TypeError("a name is words of letters, digits, - and _, joined by dots")
        handler, signature = _bind(function, mark, f"{where}:{line}")
    except Exception as error:  # reading annotations runs the plugin's code
        reason = str(error) if isinstance(error, TypeError | NameError) else _described(error)
        reason = reason.strip().rpartition("\n")[2]  # msgspec ends with the type that it cannot take
        text = f'handler "{mark.name}" cannot be called by flows: {reason}'
        found.diagnostics.append(Diagnostic(code="FR222", summary=text, span=place))
        return
    found.places[mark.name] = place
    found.handlers[mark.name], found.signatures[mark.name] = handler, signature


def _bind(function: Callable[..., Any], mark: HandlerMark, location: str) -> tuple[Handler, Signature]:
    """The function as a `Handler`, and its signature. Raises TypeError if it is not of the right form."""
    hints = typing.get_type_hints(function)
    inputs = list(inspect.signature(function).parameters.values())
    if not inputs or inputs[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise TypeError("its first parameter must be the Context")
    named = [p for p in inputs[1:] if p.kind is inspect.Parameter.KEYWORD_ONLY]
    rest = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inputs)
    if len(named) + rest + 1 != len(inputs):
        raise TypeError("its parameters after the Context must be keyword-only: (ctx, *, …)")
    types = {_public(p.name): hints.get(p.name, Any) for p in named}
    returns = hints.get("return", Any)
    schemas, definitions = msgspec.json.schema_components([*types.values(), returns], ref_template=_REFERENCE)
    signature = Signature(
        name=mark.name,
        parameters=tuple(
            Parameter(name=_public(p.name), required=p.default is inspect.Parameter.empty, schema=schema)
            for p, schema in zip(named, schemas, strict=False)
        ),
        accepts_any=rest,
        returns=schemas[-1],
        effect=mark.effect,
        doc=inspect.getdoc(function) or "",
        location=location,
        definitions=definitions,
    )
    names = {_public(p.name): p.name for p in named}
    return _Bound(function, types, names, rest, returns), signature


def _public(name: str) -> str:
    """`from_` is `from` for flows: Python has the word already."""
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


class _Bound:
    """A plugin's function as a `Handler`: JSON values in, JSON values out."""

    def __init__(
        self,
        function: Callable[..., Any],
        types: Mapping[str, Any],
        names: Mapping[str, str],
        rest: bool,
        returns: Any,
    ) -> None:
        self._function = function
        self._types = types
        self._names = names
        self._rest = rest
        self._check_result = msgspec.json.Decoder(returns).decode
        self._is_async = inspect.iscoroutinefunction(function)
        parameters = inspect.signature(function).parameters
        self._required = [name for name, own in names.items() if parameters[own].default is inspect.Parameter.empty]

    async def __call__(self, context: Context, inputs: Mapping[str, Any]) -> Any:
        arguments = self._arguments(inputs)
        if self._is_async:
            result = await self._function(context, **arguments)
        else:
            result = await _in_thread(lambda: self._function(context, **arguments))
        if isinstance(result, Awaitable):
            result = await result
        try:
            # Through JSON, so that what later steps read is what a resumed run will read.
            encoded = msgspec.json.encode(result)
            self._check_result(encoded)
            return msgspec.json.decode(encoded)
        except msgspec.ValidationError as error:
            raise TerminalError("invalid_output", f"the result does not fit its annotation: {error}") from None
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise TerminalError("invalid_output", f"the result is no JSON value: {error}") from None

    def _arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        arguments = {}
        for name, value in inputs.items():
            if name in self._types:
                try:
                    arguments[self._names[name]] = msgspec.convert(value, self._types[name])
                except msgspec.ValidationError as error:
                    raise TerminalError("invalid_input", f'parameter "{name}": {error}') from None
            elif self._rest:
                arguments[name] = value
            else:
                raise TerminalError("invalid_input", f'there is no parameter "{name}"')
        for name in self._required:
            if name not in inputs:
                raise TerminalError("invalid_input", f'parameter "{name}" is missing')
        return arguments


async def _in_thread(call: Callable[[], Any]) -> Any:
    """Run in a thread of its own. A daemon: a call that hangs must not keep the process from ending."""
    import asyncio  # `validate` looks at plugins without ever calling one: a tenth of its time

    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def resolve(result: Any, error: BaseException | None) -> None:
        if future.done():
            return  # late: the attempt has timed out, its result is ignored
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration | SystemExit | asyncio.CancelledError):
            future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:  # whatever it is, it belongs to the caller and not to this thread
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, result, failure)

    threading.Thread(target=run, daemon=True, name="handler").start()
    return await future


def listed(registry: Registry) -> Iterator[Signature]:
    """All signatures, by name."""
    for name in sorted(registry.signatures):
        yield registry.signatures[name]
