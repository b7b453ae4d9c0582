"""ARCHITECTURE, The map: who may import whom. Reads every import, late ones too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# layer | modules | may import. A layer may import itself only where it says so; a package's own files always may.
LAYERS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "words": (
        ("source", "diagnostics", "expressions", "filters", "values",
         "plan", "message", "records", "errors", "outcome", "handler", "times",
         "topics", "masking", "delays"),
        frozenset({"words"}),
    ),
    "ports": (("ports",), frozenset({"words"})),
    "shared": (("sqlite_file", "sql"), frozenset({"words", "shared"})),
    "steps": (("steps",), frozenset({"words", "ports"})),
    "transports": (("transports",), frozenset({"words", "ports", "shared"})),
    "stores": (("stores",), frozenset({"words", "ports", "shared"})),
    "handlers": (("handlers",), frozenset({"words", "ports"})),
    "lang": (("lang",), frozenset({"words", "ports", "steps"})),
    "engine": (("engine",), frozenset({"words", "ports", "steps"})),
    "clock": (("clock",), frozenset()),
    "wiring": (
        ("settings", "environment", "registry", "app", "archive", "supervisor", "watchdog"),
        frozenset({"words", "ports", "shared", "steps", "transports", "stores", "handlers", "lang", "engine", "clock",
                   "wiring"}),
    ),
    "public": (("runner",), frozenset({"words"})),
    "door": (("__main__",), frozenset({"faces"})),  # `python -m runner` is the cli
}  # fmt: skip
FACES = ("cli", "web", "testing")
STARTS = ("cli", "web")
"""The one face that another begins: `flowrun start` serves HTTP."""
BELOW_FACES = frozenset(LAYERS) - {"door"}

# package | where alone it may be imported
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "aio_pika": ("transports.rabbitmq",),
    "aiormq": ("transports.rabbitmq",),
    "pamqp": ("transports.rabbitmq",),
    "yarl": ("transports.rabbitmq",),
    "asyncpg": ("handlers.sql", "stores.postgres", "stores.postgres_presence", "stores.postgres_writer"),
    "yaml": ("lang",),
    "cronsim": ("engine.scheduler", "lang"),
    "jinja2": ("expressions", "filters", "values", "lang.infer", "lang.rules.projections"),
    "jsonschema_rs": ("lang",),
    "sqlite3": ("sqlite_file", "stores", "transports.embedded", "handlers.sql"),
    "click": ("cli",),
    "starlette": ("web",),
    "uvicorn": ("web",),
}


@dataclass(frozen=True)
class Import:
    """`file` imports `target`; names are dotted, without `runner.` for our own modules."""

    module: str
    target: str
    line: int
    ours: bool

    def __str__(self) -> str:
        return f"runner.{self.module}:{self.line} imports {self.target}"


def module_name(path: Path, root: Path) -> str:
    """`engine.run`; a package by its own name, the outermost as `runner`."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "runner"


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, module, names taken from it), wherever it stands, `import_module("…")` included."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                yield node.lineno, module if node.level == 0 else "." * node.level, tuple(n.name for n in names)
            case ast.ImportFrom():
                yield node.lineno, "." * node.level, ()
            case ast.Import(names=names):
                for name in names:
                    yield node.lineno, name.name, ()
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                          args=[ast.Constant(value=str(name)), *_]):  # fmt: skip
                yield node.lineno, name, ()


def read(root: Path) -> list[Import]:
    files = [path for path in sorted(root.rglob("*.py")) if "templates" not in path.parts]
    known = {module_name(path, root) for path in files}
    found = []
    for path in files:
        own = module_name(path, root)
        for line, module, names in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            assert not module.startswith("."), f"{path}:{line}: a relative import hides its arrow"
            if module == "runner" or module.startswith("runner."):
                base = module.removeprefix("runner").removeprefix(".")
                inner = [f"{base}.{name}".lstrip(".") for name in names]
                modules = {name for name in inner if name in known}
                if len(modules) < len(inner) or not inner:
                    modules.add(base or "runner")
                found += [Import(own, target, line, True) for target in sorted(modules)]
            else:
                found.append(Import(own, module, line, False))
    return found


def layer_of(module: str) -> str:
    top = module.split(".")[0]
    if top in FACES:
        return "faces"
    return next((name for name, (modules, _) in LAYERS.items() if top in modules), "?")


def wrong_arrows(imports: list[Import]) -> list[str]:
    """Imports of ours that the table does not allow."""
    wrong = []
    for one in imports:
        if not one.ours or one.module.split(".")[0] == one.target.split(".")[0]:
            continue
        if (one.module.split(".")[0], one.target.split(".")[0]) == STARTS:
            continue
        of, to = layer_of(one.module), layer_of(one.target)
        allowed = BELOW_FACES if of == "faces" else LAYERS[of][1] if of in LAYERS else frozenset()
        if to not in allowed:
            wrong.append(f"{one} ({of} → {to})")
    return wrong


def foreign_arrows(imports: list[Import]) -> list[str]:
    """Imports of third-party packages where they do not belong."""
    wrong = []
    for one in imports:
        places = THIRD_PARTY.get(one.target.split(".")[0])
        if one.ours or places is None:
            continue
        if not any(one.module == place or one.module.startswith(f"{place}.") for place in places):
            wrong.append(str(one))
    return wrong


IMPORTS = read(ROOT / "runner")


def test_every_module_has_its_layer() -> None:
    modules = {one.module for one in IMPORTS} | {one.target for one in IMPORTS if one.ours}
    assert {module for module in modules if layer_of(module) == "?"} == set()


def test_no_import_goes_against_the_table() -> None:
    assert wrong_arrows(IMPORTS) == []


def test_third_party_packages_stay_where_they_belong() -> None:
    assert foreign_arrows(IMPORTS) == []


def test_the_machines_never_import_each_other() -> None:
    crossing = {("lang", "engine"), ("engine", "lang")}
    assert [str(one) for one in IMPORTS if (layer_of(one.module), layer_of(one.target)) in crossing and one.ours] == []


@pytest.mark.parametrize("layer", ["words", "wiring", "engine", "lang"])
def test_a_layer_has_no_import_cycles(layer: str) -> None:
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        # Importing the package itself, for what its __init__ says, is no arrow to its files.
        if one.ours and layer_of(one.module) == layer_of(one.target) == layer and one.module != one.target:
            graph.setdefault(one.module, set()).add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a cycle: {' → '.join(error.args[1])}") from None


# --- the test itself notices


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("source.py", "from runner.ports import Store"),
        ("plan.py", "def f():\n    import runner.engine.run"),
        ("engine/run.py", "from runner.lang.compile import compile_project"),
        ("engine/run.py", "from runner import lang"),
        ("lang/load.py", "if 1:\n    from runner.engine import retry"),
        ("steps/use.py", "from runner.stores.sqlite import SqliteStore"),
        ("transports/embedded.py", "from runner.stores import sqlite"),
        ("stores/sqlite.py", "import importlib\nimportlib.import_module('runner.app')"),
        ("clock.py", "from runner.times import rfc3339"),
        ("registry.py", "from runner.cli import main"),
        ("__init__.py", "from runner.app import App"),
    ],
)
def test_a_wrong_arrow_is_noticed(file: str, line: str, tmp_path: Path) -> None:
    made(tmp_path, file, line)
    assert len(wrong_arrows(read(tmp_path))) == 1


@pytest.mark.parametrize(
    ("file", "line"),
    [("app.py", "import yaml"), ("engine/run.py", "def f():\n    from jinja2 import nodes"), ("lang/load.py",
     "import click"),
     ("stores/sqlite.py", "import aio_pika.abc"), ("handlers/http.py", "import sqlite3")],
)  # fmt: skip
def test_a_foreign_package_is_noticed(file: str, line: str, tmp_path: Path) -> None:
    made(tmp_path, file, line)
    assert len(foreign_arrows(read(tmp_path))) == 1


def made(root: Path, file: str, text: str) -> None:
    """A small project of the same shape with this one file's text."""
    names = ["__init__", "source", "plan", "ports", "times", "app", "clock", "registry", "engine/run", "engine/retry",
             "lang/compile", "lang/load", "steps/use", "stores/sqlite", "transports/embedded", "handlers/http",
             "cli/main"]  # fmt: skip
    for name in names:
        path = root / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.touch()
    (root / file).write_text(text)
