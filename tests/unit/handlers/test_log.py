import logging
from typing import Any

import pytest

from runner.handler import Context
from runner.handlers.log import log


@pytest.fixture
def ctx() -> Context:
    return Context(
        run_id="run",
        step_id="say",
        attempt=1,
        idempotency_key="key",
        deadline=None,
        correlation_id="correlation",
        logger=logging.getLogger("test"),
    )


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="test")


async def test_message_is_logged_with_its_fields(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    await log(ctx, message="order placed", order_id="o-1", total=3.5, items=["a"], paid=None)

    assert caplog.messages == ['order placed order_id="o-1" total=3.5 items=["a"] paid=null']
    assert caplog.records[0].levelno == logging.INFO


async def test_fields_stand_apart_on_the_record(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    await log(ctx, message="m", order_id="o-1")

    assert vars(caplog.records[0])["fields"] == {"order_id": "o-1"}


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
async def test_level_is_the_records(level: Any, ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    await log(ctx, message="m", level=level)

    assert caplog.records[0].levelname == level.upper()


async def test_names_of_record_attributes_may_be_fields(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    await log(ctx, message="m", name="Ada", args=[1], exc_info="none")

    assert caplog.messages == ['m name="Ada" args=[1] exc_info="none"']


async def test_percent_signs_are_only_text(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    await log(ctx, message="100 %s done")

    assert caplog.messages == ["100 %s done"]


async def test_message_that_is_no_text_stands_as_json(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    await log(ctx, message={"order_id": "o-1"})

    assert caplog.messages == ['{"order_id":"o-1"}']


async def test_message_cannot_forge_a_second_line(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    await log(ctx, message="a\nERROR forged\x1b[31m", note="b\u2028c")

    assert caplog.messages == ['a\\nERROR forged\\x1b[31m note="b\\u2028c"']
