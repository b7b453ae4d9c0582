"""Flow files that went wrong: a file of the corpus, mutated as its seed says. The same seed makes the same file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = [path.read_bytes() for path in sorted((ROOT / "flows").glob("*.yaml"))]
CORPUS += [path.read_bytes() for path in sorted((ROOT / "tests/diagnostics/cases").rglob("*.yaml")) if path.is_file()]
SCHEMAS = {path.name: path.read_bytes() for path in sorted((ROOT / "schemas").glob("*.json"))}
BYTES_MOST = 40_000
TOKEN = re.compile(rb"[\w.]+|\s+|[^\w\s]")
VALUE = re.compile(rb"(?<=: )[^\n,}\]{\[]+")
PLAIN = re.compile(rb"(?m)^(\s*)(.*)$")


def mutant(seed: int) -> tuple[bytes, dict[str, bytes]]:
    """A flow file, and the schema files beside it."""
    chance = random.Random(seed)
    schemas = dict(SCHEMAS)
    text = chance.choice(CORPUS)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        text = chance.choice(MUTATIONS)(text, chance)[:BYTES_MOST]
    if chance.random() < 0.2:
        name = chance.choice(sorted(schemas))
        schemas[name] = chance.choice((_bytes, _line, _swap, _scalar, _schema))(schemas[name], chance)
    return text, schemas


# --- by bytes, lines and tokens


def _bytes(text: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, or cut off, or random ones put in."""
    found = bytearray(text or b" ")
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(found))
        match chance.randrange(4):
            case 0:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at:at] = bytes(chance.choices(b"{}[]:,-#&*!|>'\"%@`?\n\t\r \\~<=", k=chance.randint(1, 6)))
            case 2:
                del found[at : at + chance.randint(1, 20)]
                found += b" "
            case 3:
                found[at:at] = chance.randbytes(chance.randint(1, 6))
    return bytes(found)


def _line(text: bytes, chance: random.Random) -> bytes:
    """A line left out, doubled, moved, or indented in another way."""
    lines = text.split(b"\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(5):
        case 0:
            del lines[one : one + chance.randint(1, 3)]
        case 1:
            lines[one:one] = lines[one : one + chance.randint(1, 5)] * chance.choice((1, 1, 200))
        case 2:
            lines[one], lines[other] = lines[other], lines[one]
        case 3:
            lines[one] = b" " * chance.randint(0, 12) + lines[one].lstrip()
        case 4:
            lines[one:other] = [chance.choice((b"  ", b"\t", b" ")) + line for line in lines[one:other]]
    return b"\n".join(lines)


def _swap(text: bytes, chance: random.Random) -> bytes:
    """A word of this file in the place of another, or one of another file."""
    tokens = TOKEN.findall(text) or [b""]
    others = TOKEN.findall(chance.choice(CORPUS)) or [b""]
    for _ in range(chance.randint(1, 5)):
        tokens[chance.randrange(len(tokens))] = chance.choice(chance.choice((tokens, others)))
    return b"".join(tokens)


def _graft(text: bytes, chance: random.Random) -> bytes:
    """A stretch of lines of another file."""
    lines, others = text.split(b"\n"), chance.choice(CORPUS).split(b"\n")
    at, start = chance.randrange(len(lines)), chance.randrange(len(others))
    lines[at:at] = others[start : start + chance.randint(1, 40)]
    return b"\n".join(lines)


# --- by what stands there


def _scalar(text: bytes, chance: random.Random) -> bytes:
    """Other values for some keys."""
    for _ in range(chance.randint(1, 4)):
        places = list(VALUE.finditer(text))
        if places:
            place = chance.choice(places)
            text = text[: place.start()] + chance.choice(SCALARS)(chance) + text[place.end() :]
    return text


def _template(text: bytes, chance: random.Random) -> bytes:
    """Another expression in a template."""
    places = list(re.finditer(rb"\{\{.*?\}\}", text))
    if not places:
        return text
    place = chance.choice(places)
    return text[: place.start()] + b"{{ " + _expression(chance) + b" }}" + text[place.end() :]


def _schema(text: bytes, chance: random.Random) -> bytes:
    """A payload schema that refers to itself, or is hard to match."""
    places = list(re.finditer(rb"\{\$ref: [^}]*\}|\"type\": \"string\"|\{type: \w+\}|\{type: \w+", text))
    if not places:
        return text
    place = chance.choice(places)
    written = chance.choice(SCHEMA_PARTS)
    inner = place.group().startswith(b'"') or not place.group().endswith(b"}")
    return text[: place.start()] + (written[1:-1] if inner else written) + text[place.end() :]


def _bomb(text: bytes, chance: random.Random) -> bytes:
    """Anchors that multiply, merges of merges."""
    depth, width = chance.randint(2, 30), chance.randint(2, 12)
    kind = chance.randrange(3)
    lines = [b"x-0: &a0 {k: v}" if kind else b"x-0: &a0 [x, y]"]
    for n in range(1, depth):
        alias = b"*a%d" % (n - 1)
        inner = b", ".join([alias] * width)
        written = (b"[%s]" % inner, b"{<<: [%s], k%d: v}" % (inner, n), b"{<<: %s, k: %s}" % (alias, alias))[kind]
        lines.append(b"x-%d: &a%d %s" % (n, n, written))
    use = chance.choice((b"", b"\nhandlers: {h: {steps: [{set: *a%d}]}}" % (depth - 1)))
    return b"\n".join((*lines, text)) + use


def _deep(text: bytes, chance: random.Random) -> bytes:
    """Something nested deeply, somewhere."""
    at = chance.randrange(len(text) + 1)
    depth = chance.choice((10, 60, 99, 100, 101, 500, 5000))
    opening, closing = chance.choice(((b"[", b"]"), (b"{a: ", b"}"), (b"- ", b""), (b"? ", b"")))
    return text[:at] + opening * depth + b"x" + closing * depth + text[at:]


def _expression(chance: random.Random) -> bytes:
    depth = chance.choice((3, 50, 400, 3000))
    return chance.choice(
        (
            b"(" * depth + b"1" + b")" * depth,
            b"not " * depth + b"event",
            b"-" * depth + b"1",
            b"event" + b".a" * depth,
            b"event" + b"[0]" * depth,
            b"1" + b" + 1" * depth,
            b"1" + b" and event.a" * depth,
            b"event" + b" | default(1)" * depth,
            b"[" * depth + b"]" * depth,
            b"{'a': " * depth + b"1" + b"}" * depth,
            b"9" * depth + b" * 9",
            b"9 ** 9 ** 9 ** 9",
            b"'x' * 999999999999",
            b"range(999999999999) | list | length",
            b"1 if " * depth + b"1",
            b"a ~ " * depth + b"a",
            b"event.a == 1 or " * depth + b"1",
            b"'" + b"a" * depth,
            b"event.__class__.__mro__",
            b"event.a is " + b"not " * depth + b"none",
            b"\xf0\x9f\x98\x80 | upper",
            b"{% for x in y %}",
            b"{{ {{ event }} }}",
        )
    )


SCALARS: Sequence[Callable[[random.Random], bytes]] = (
    lambda c: b"9" * c.choice((5, 20, 400, 401, 4301, 9000)),
    lambda c: c.choice((b".nan", b"-.inf", b"1e999", b"0x" + b"f" * 400, b"-0", b"1e-999", b"0o777", b"~", b"")),
    lambda c: b"x" * c.choice((255, 256, 5000, 30000)),
    lambda c: b"a." * c.choice((5, 200, 5000)) + b"a",
    lambda c: b'"' + c.choice((b"\\ud800", b"\\x00", b"\\u202e", b"\\", b"\xf0\x9f\x98\x80", b"\xcc\x81" * 99)) + b'"',
    lambda c: c.choice((b"PT99999999999999H", b"9" * 30 + b"d", b"1h" * 50, b"-1s", b"0s", b"1.5.5s", b"P", b"1e9s")),
    lambda c: b'"{{ ' + _expression(c).replace(b'"', b"'") + b' }}"',
    lambda c: c.choice(
        (b"true", b"[]", b"{}", b"[[]]", b"{a: {b: {}}}", b"*a", b"&a x", b"!!python/object:x y", b"|", b">")
    ),
    lambda c: c.choice((b"'#.#.#.#.#.*'", b"'*'", b"'" + b"#." * 60 + b"#'", b"*.*.*", b"a..b", b".", b"'a b'")),
    lambda c: c.choice((b"'*/0 * * * *'", b"'0 0 30 2 *'", b"'@yearly'", b"'" + b"1," * 3000 + b"1 * * * *'")),
    lambda c: b"POST /" + c.choice((b"{a}/" * 99, b"{" * 999, b"%00", b"../" * 9, b"{a}{a}{a}")),
)
SCHEMA_PARTS = (
    b'{"$ref": "#"}',
    b'{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}',
    b'{"$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}, "c": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"}',
    b'{"allOf": [{"$ref": "#"}, {"$ref": "#"}]}',
    b'{"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}}]}',
    b'{"$ref": "../schemas/order-placed.schema.json#/properties/nothing"}',
    b'{"$ref": "order-placed.schema.json"}',
    b'{"$ref": "https://example.com/x.json"}',
    b'{"$ref": "file:///etc/passwd"}',
    b'{"$ref": 3}',
    b'{"$dynamicRef": "#x", "$dynamicAnchor": "x"}',
    b'{"$id": "https://example.com/", "$ref": "x"}',
    b'{"pattern": "^(a+)+$"}',
    b'{"pattern": "(x+x+)+y", "const": "%s"}' % (b"x" * 60),
    b'{"pattern": "((a{1,100}){1,100}){1,100}"}',
    b'{"pattern": "(?=(a+))\\\\1b|[[:alpha:]]{99999}"}',
    b'{"pattern": "("}',
    b'{"patternProperties": {"(a|aa)+$": true}}',
    b'{"enum": [%s]}' % b", ".join(b'"v%d"' % n for n in range(2000)),
    b'{"type": ["null", "string", "integer", "array", "object", "boolean", "number"]}',
    b'{"type": "object", "required": [%s]}' % b", ".join(b'"r%d"' % n for n in range(500)),
    b'{"minimum": 1e400}',
    b'{"multipleOf": 0}',
    b'{"maxLength": -1}',
    b'{"$schema": "http://json-schema.org/draft-03/schema"}',
    b'{"items": %sfalse%s}' % (b'{"items": ' * 80, b"}" * 80),
    b'{"anyOf": [%s]}'
    % b", ".join(b'{"type": "object", "properties": {"p%d": {"const": %d}}}' % (n, n) for n in range(300)),
)
MUTATIONS: Sequence[Callable[[bytes, random.Random], bytes]] = (
    _bytes, _line, _line, _swap, _swap, _graft, _scalar, _scalar, _template, _template, _schema, _schema, _bomb, _deep,
)  # fmt: skip
