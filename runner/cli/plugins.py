"""`flowrun plugins`."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import click

from runner.cli import options, output
from runner.errors import SettingsError
from runner.lang import report
from runner.plan import Signature
from runner.registry import discover, listed

_SKELETON = '''"""Handlers of {group}."""

from runner import Context, handler


@handler("{name}")
def {function}(ctx: Context, *, text: str) -> dict[str, str]:
    """Say what it does. `ctx.idempotency_key` is the same for every attempt of this step."""
    ctx.logger.info("%s", text)
    return {{"text": text}}
'''


@click.group("plugins")
def command() -> None:
    """List handler plugins, or begin a new one."""


@command.command("list")
@options.project_dir
@options.as_json
def list_command(root: Path, as_json: bool) -> None:
    """List the handlers that flows can `use`, with their signatures."""
    registry = discover(root)
    if as_json:
        output.echo(output.json_value([_json(signature) for signature in listed(registry)]))
    else:
        rows = [(s.name, text_of(s), s.location) for s in listed(registry)]
        for line in output.table(["HANDLER", "SIGNATURE", "WHERE"], rows):
            output.echo(line)
    for line in report.full(registry.diagnostics, {}, output.paint):
        output.echo(line, err=True)
    raise SystemExit(1 if registry.diagnostics else 0)


@command.command("new")
@click.argument("name")
@options.project_dir
def new_command(name: str, root: Path) -> None:
    """Write plugins/GROUP.py with a first handler NAME, like inventory.reserve."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise SettingsError(f'"{name}" is not a handler\'s name', hint="words joined by dots: inventory.reserve")
    group, _, last = name.rpartition(".")
    group = re.sub(r"\W", "_", group or last)
    path = root / "plugins" / f"{group}.py"
    if path.exists():
        raise SettingsError(f"{path} stands already", hint="add the handler there")
    function = re.sub(r"\W", "_", last)
    if not function.isidentifier() or keyword.iskeyword(function):
        function = "call"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _SKELETON.format(
            group=group,
            name=name,
            function=function,
        )
    )
    output.echo(f"wrote {path}")
    output.echo(f"In a flow: - {{use: {name}, with: {{text: hello}}}}")


def text_of(signature: Signature) -> str:
    """`(sku: string, quantity: integer) -> object`."""
    parameters = [f"{p.name}{'' if p.required else '?'}: {_type_of(p.schema, signature)}" for p in signature.parameters]
    if signature.accepts_any:
        parameters.append("…")
    return f"({', '.join(parameters)}) -> {_type_of(signature.returns, signature)}"


def _type_of(schema: object, signature: Signature) -> str:
    if not isinstance(schema, dict) or not schema:
        return "any"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(_type_of(branch, signature) for branch in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(repr(option) for option in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"list of {_type_of(schema['items'], signature)}"
    return kind if isinstance(kind, str) else " | ".join(kind)


def _json(signature: Signature) -> dict[str, object]:
    return {
        "name": signature.name,
        "parameters": [{"name": p.name, "required": p.required, "schema": p.schema} for p in signature.parameters],
        "accepts_any": signature.accepts_any,
        "returns": signature.returns,
        "definitions": signature.definitions,
        "effect": signature.effect,
        "doc": signature.doc,
        "location": signature.location,
    }
