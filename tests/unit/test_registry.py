"""LANGUAGE §8: how plugins are found, and how a flow's values become theirs and theirs become a flow's."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec
import pytest

from runner.errors import RetryableError, TerminalError
from runner.handler import Context, handler
from runner.registry import Registry, bind, discover, listed

CONTEXT = Context(
    run_id="r", step_id="s", attempt=1, idempotency_key="r/s", deadline=None, correlation_id="c",
    logger=logging.getLogger("test"),
)  # fmt: skip


async def call(function: Callable[..., Any], **inputs: Any) -> Any:
    registry = bind([function])
    assert registry.diagnostics == ()
    (bound,) = registry.handlers.values()
    return await bound(CONTEXT, inputs)


async def refused(function: Callable[..., Any], **inputs: Any) -> TerminalError:
    with pytest.raises(TerminalError) as caught:
        await call(function, **inputs)
    assert caught.value.type == "invalid_input"
    return caught.value


# --- discovery


def project(root: Path, **plugins: str) -> Registry:
    (root / "plugins").mkdir(exist_ok=True)
    for name, text in plugins.items():
        (root / "plugins" / f"{name}.py").write_text("from runner import Context, handler\n" + text)
    return discover(root)


ONE = """
@handler("{name}")
async def f(ctx: Context, *, n: int) -> int:
    '''Doubles.'''
    return 2 * n
"""


async def test_plugins_share_what_they_import_from_each_other_and_from_no_other_project(tmp_path: Path) -> None:
    shared = ONE.format(name="a.one") + "\nseen = []\n"
    uses = "from .a import seen\n" + ONE.format(name="b.one") + "\nseen.append(1)\n"
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
        assert project(root, a=shared, b=uses).diagnostics == ()
    import flowrun_plugins.a

    assert flowrun_plugins.a.seen == [1]
    assert flowrun_plugins.a.__file__ == str(second / "plugins" / "a.py")


async def test_marked_functions_of_the_projects_plugins_are_found(tmp_path: Path) -> None:
    registry = project(tmp_path, a=ONE.format(name="a.double"), b=ONE.format(name="b.double") + "\ndef g(): ...\n")
    assert registry.diagnostics == ()
    assert {"a.double", "b.double"} <= set(registry.handlers)
    assert await registry.handlers["a.double"](CONTEXT, {"n": 2}) == 4
    signature = registry.signatures["a.double"]
    assert (signature.location, signature.doc, signature.effect) == ("plugins/a.py:3", "Doubles.", True)
    assert [(p.name, p.required, p.schema) for p in signature.parameters] == [("n", True, {"type": "integer"})]
    assert signature.returns == {"type": "integer"}


def test_the_bundled_handlers_are_always_there() -> None:
    registry = discover(None)
    assert {"log", "http.request", "sql.query", "sql.execute", "email.send"} <= set(registry.handlers)
    effects = {name: signature.effect for name, signature in registry.signatures.items()}
    assert not effects["log"]
    assert not effects["sql.query"]
    assert effects["sql.execute"]
    names = [signature.name for signature in listed(registry)]
    assert names == sorted(names)


def test_a_project_without_plugins_is_fine(tmp_path: Path) -> None:
    assert discover(tmp_path).diagnostics == ()


def test_what_is_imported_from_elsewhere_is_not_found_again(tmp_path: Path) -> None:
    registry = project(tmp_path, a="from runner.handlers.log import *\nfrom runner.handlers import log as mine\n")
    assert registry.diagnostics == ()


def test_effect_false_is_kept(tmp_path: Path) -> None:
    text = "@handler('look', effect=False)\ndef f(ctx: Context) -> None: ...\n"
    assert project(tmp_path, a=text).signatures["look"].effect is False


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("\nimport nothing_of_this_name\n", "nothing_of_this_name", 3),
        ("\n\n1 / 0\n", "ZeroDivisionError", 4),
        ("\nraise SystemExit(3)\n", "SystemExit: 3", 3),
        ("\ndef f(:\n", "SyntaxError", 3),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_a_diagnostic_with_its_line(
    tmp_path: Path, text: str, said: str, line: int
) -> None:
    registry = project(tmp_path, bad=text, good=ONE.format(name="good"))
    (diagnostic,) = registry.diagnostics
    assert diagnostic.code == "FR223"
    assert said in diagnostic.summary
    assert (diagnostic.span.filename, diagnostic.span.start.line) == ("plugins/bad.py", line)
    assert "good" in registry.handlers, "the others are found all the same"


def test_a_name_that_is_taken_is_a_diagnostic_that_shows_both(tmp_path: Path) -> None:
    registry = project(tmp_path, a=ONE.format(name="x"), b="\n\n" + ONE.format(name="x"))
    (diagnostic,) = registry.diagnostics
    assert (diagnostic.code, diagnostic.span.filename, diagnostic.span.start.line) == ("FR221", "plugins/b.py", 5)
    assert diagnostic.related[0].span.filename == "plugins/a.py"
    assert registry.signatures["x"].location == "plugins/a.py:3"


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        ("", "Context"),
        ("*, a: int", "Context"),
        ("ctx: Context, a: int", "keyword-only"),
        ("ctx: Context, *args: int", "keyword-only"),
        ("ctx: Context, *, a: Unknown", "Unknown"),
        ("ctx: Context, *, a: Context | object()", ""),
    ],
)
def test_a_function_that_flows_cannot_call_is_a_diagnostic(tmp_path: Path, signature: str, said: str) -> None:
    imports = "from __future__ import annotations\nfrom runner import Context, handler\n"
    text = f"{imports}@handler('x')\ndef f({signature}): ...\n"
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "bad.py").write_text(text)
    registry = discover(tmp_path)
    (diagnostic,) = registry.diagnostics
    assert diagnostic.code == "FR222"
    assert said in diagnostic.summary
    assert diagnostic.span.start.line == 3
    assert "x" not in registry.handlers


# --- calling


async def test_async_functions_run_on_the_loop_and_plain_ones_in_a_thread() -> None:
    @handler("a")
    async def on_loop(ctx: Context) -> bool:
        return threading.current_thread() is threading.main_thread()

    @handler("b")
    def in_thread(ctx: Context) -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await call(on_loop) is True
    assert await call(in_thread) is False


async def test_a_thread_that_hangs_blocks_neither_the_loop_nor_other_calls() -> None:
    release, hanging = threading.Event(), threading.Barrier(21)

    @handler("hang")
    def hang(ctx: Context, *, n: int) -> int:
        if n < 20:
            hanging.wait(10)
            release.wait(10)
        return n

    tasks = [asyncio.create_task(call(hang, n=n)) for n in range(20)]
    await asyncio.to_thread(hanging.wait, 10)
    assert await call(hang, n=20) == 20
    assert not any(task.done() for task in tasks)
    release.set()
    assert await asyncio.gather(*tasks) == list(range(20))


async def test_cancelling_a_call_in_a_thread_returns_at_once() -> None:
    release, entered = threading.Event(), threading.Event()

    @handler("hang")
    def hang(ctx: Context) -> None:
        entered.set()
        release.wait(10)

    task = asyncio.create_task(call(hang))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()


@pytest.mark.parametrize("error", [ValueError("x"), TerminalError("t", "m", n=1), RetryableError("r", "m", 3.0)])
async def test_what_a_thread_raises_is_raised_to_the_caller(error: Exception) -> None:
    @handler("bad")
    def bad(ctx: Context) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await call(bad)
    assert caught.value is error


# --- input


class Address(msgspec.Struct):
    street: str
    zip: str | None = None


@dataclasses.dataclass
class Money:
    amount: int
    currency: Literal["EUR", "USD"] = "EUR"


class Line(TypedDict):
    sku: str
    quantity: int


@handler("order")
async def order(
    ctx: Context, *, to: Address, pay: Money, lines: list[Line], speed: Literal["fast", "slow"] = "slow",
    note: str | None = None, at: datetime | None = None, extra: Any = None,
) -> Any:  # fmt: skip
    assert isinstance(to, Address)
    assert isinstance(pay, Money)
    assert at is None or isinstance(at, datetime)
    return [to, [pay.amount, pay.currency], lines, speed, note, at, extra]


GOOD: dict[str, Any] = {
    "to": {"street": "Main"}, "pay": {"amount": 5, "currency": "USD"}, "lines": [{"sku": "a", "quantity": 1}],
}  # fmt: skip


async def test_values_become_what_the_annotations_say() -> None:
    assert await call(order, **GOOD, at="2026-01-01T00:00:00Z", extra={"x": [1, None]}) == [
        {"street": "Main", "zip": None}, [5, "USD"], [{"sku": "a", "quantity": 1}], "slow", None,
        "2026-01-01T00:00:00Z", {"x": [1, None]},
    ]  # fmt: skip


async def test_parameters_that_are_not_given_have_their_defaults() -> None:
    result = await call(order, **{**GOOD, "pay": {"amount": 1}})
    assert result[1] == [1, "EUR"]
    assert result[3:] == ["slow", None, None, None]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"to": {}}, "street"),
        ({"to": "Main"}, '"to"'),
        ({"pay": {"amount": "5"}}, "amount"),
        ({"pay": {"amount": 5, "currency": "CHF"}}, "currency"),
        ({"lines": [{"sku": "a"}]}, "quantity"),
        ({"lines": {}}, '"lines"'),
        ({"lines": None}, '"lines"'),
        ({"speed": "medium"}, '"speed"'),
        ({"note": 5}, '"note"'),
        ({"at": "noon"}, '"at"'),
        ({"colour": "red"}, '"colour"'),
    ],
)
async def test_values_that_do_not_fit_are_invalid_input_with_the_parameters_name(
    change: dict[str, Any], said: str
) -> None:
    assert said in (await refused(order, **{**GOOD, **change})).message


async def test_a_parameter_that_is_required_must_be_given() -> None:
    assert '"pay"' in (await refused(order, to=GOOD["to"], lines=[])).message


async def test_a_trailing_underscore_frees_a_word_of_pythons() -> None:
    @handler("mail")
    async def mail(ctx: Context, *, from_: str, to: str, id_: int = 0) -> list[Any]:
        return [from_, to, id_]

    assert await call(mail, **{"from": "a", "to": "b", "id_": 5}) == ["a", "b", 5]
    assert [p.name for p in bind([mail]).signatures["mail"].parameters] == ["from", "to", "id_"]
    await refused(mail, from_="a", to="b")


async def test_fields_take_whatever_has_no_parameter_of_its_own() -> None:
    @handler("log")
    async def log(ctx: Context, *, level: Literal["info", "error"] = "info", **fields: Any) -> Any:
        return [level, fields]

    assert await call(log, level="error", a=1, b=[None]) == ["error", {"a": 1, "b": [None]}]
    assert bind([log]).signatures["log"].accepts_any
    await refused(log, level="loud")


# --- output


@pytest.mark.parametrize(
    ("result", "json"),
    [
        (Address("Main"), {"street": "Main", "zip": None}),
        (Money(5), {"amount": 5, "currency": "EUR"}),
        ((1, (2, 3)), [1, [2, 3]]),
        ({1: "a"}, {"1": "a"}),
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        ([Address("a", "b")], [{"street": "a", "zip": "b"}]),
        (None, None),
        (b"x", "eA=="),
        (2**70, 2**70),
    ],
)
async def test_a_result_becomes_a_json_value(result: Any, json: Any) -> None:
    @handler("give")
    async def give(ctx: Context) -> Any:
        return result

    got = await call(give)
    assert got == json
    assert type(got) is type(json)


@pytest.mark.parametrize("result", [object(), {None: 1}, "\ud800", [lambda: 1]])
async def test_a_result_that_is_none_is_invalid_output(result: Any) -> None:
    @handler("give")
    async def give(ctx: Context) -> Any:
        return result

    with pytest.raises(TerminalError) as caught:
        await call(give)
    assert caught.value.type == "invalid_output"


async def test_a_result_that_contains_itself_is_invalid_output() -> None:
    @handler("give")
    async def give(ctx: Context) -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    with pytest.raises(TerminalError) as caught:
        await call(give)
    assert caught.value.type == "invalid_output"


async def test_a_plain_function_may_return_an_awaitable() -> None:
    async def later() -> int:
        return 5

    @handler("give")
    def give(ctx: Context) -> Any:
        return later()

    assert await call(give) == 5
