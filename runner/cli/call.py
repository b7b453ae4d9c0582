"""`flowrun call`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from runner.app import open_transport, prepare, store_file
from runner.cli import options, output
from runner.cli.compiled import compiled
from runner.cli.payload import MisfitError, read_payload
from runner.clock import SystemClock
from runner.diagnostics import did_you_mean
from runner.engine.intake import read_answer
from runner.errors import EnvelopeError, NotFoundError, TransportError
from runner.lang.report import printable
from runner.message import Delivery, new_id
from runner.plan import Command, Plan
from runner.records import Answer, Error
from runner.settings import Settings, load_settings
from runner.steps import command as commands
from runner.steps.emit import Emitter, PayloadError
from runner.times import parse_duration_s

TIMED_OUT = 3


@click.command("call")
@click.argument("command_name", metavar="COMMAND")
@click.option("--data", required=True, metavar="JSON|@FILE|-", help="The request.")
@click.option("--id", "ident", help="The command's id. Default: a new one; the same id is executed once.")
@click.option("--timeout", help="How long to wait for the reply. Default: the command's.")
@options.settings
@options.as_json
def command(
    command_name: str,
    data: str,
    ident: str | None,
    timeout: str | None,
    root: Path,
    broker: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Send a command, wait for the reply and print it.

    Exit codes: 0 a result, 1 a failed reply, or a request that does not fit, 3 no reply in time, 69 broker
    unreachable.
    """
    settings = load_settings(root, broker=broker, store=store)
    plan = compiled(root, settings.project).plan
    declared = _declared(plan, command_name)
    wait_s = declared.timeout_s if timeout is None else parse_duration_s(timeout)
    if wait_s is None:
        raise click.BadParameter(f'"{timeout}" is not a duration; for example 10s', param_hint="--timeout")
    request = read_payload("--data", data)
    answer = asyncio.run(_call(settings, plan, declared, request, ident or new_id(), wait_s))
    raise SystemExit(_show(answer, as_json=as_json))


def _declared(plan: Plan, name: str) -> Command:
    declared = plan.commands.get(name)
    if declared is None:
        hint = did_you_mean(name, plan.commands) or f"declared: {', '.join(sorted(plan.commands)) or 'none'}"
        raise NotFoundError(f'there is no command "{name}"', hint=hint)
    return declared


async def _call(settings: Settings, plan: Plan, declared: Command, request: Any, ident: str, wait_s: float) -> Answer:
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    now = SystemClock().now()
    emitter = Emitter(project=settings.project, source=f"/flowrun/{settings.project}/cli")
    async with open_transport(settings, store_file(settings)) as transport:
        await prepare(settings, transport, plan.topology)
        async with transport.private_queue(f"{settings.project}.call.{new_id()}", came.put_nowait) as queue:
            deadline = now + timedelta(seconds=wait_s)
            try:
                message = commands.build(declared, request, emitter, ident, now, deadline, queue)
            except PayloadError as error:
                raise MisfitError(f"--data: {error}", hint="nothing was sent") from None
            [reason] = await transport.publish([message])
            if reason is not None and not reason.startswith("unroutable"):
                raise TransportError(f"{declared.name} was not taken: {reason}")
            if reason is not None:
                nobody = Error(type="no_handler", message=f"no queue takes {declared.name}", retryable=False)
                return Answer(command_id=ident, error=nobody)
            try:
                async with asyncio.timeout(wait_s):
                    return read_answer(await came.get())
            except TimeoutError:
                late = Error(type="timeout", message=f"no reply within {wait_s:g} s", retryable=True)
                return Answer(command_id=ident, error=late)
            except EnvelopeError as error:
                raise TransportError(f"the reply cannot be read: {error}") from None


def _show(answer: Answer, *, as_json: bool) -> int:
    error = answer.error
    if as_json:
        shown = {"result": answer.result} if error is None else {"error": output.error_json(error)}
        output.echo(output.json_value(shown))
    elif error is None:
        output.echo(output.json_value(answer.result))
    else:
        output.echo(printable(f"{output.paint('failed', 'red')}  {error.type}: {error.message}"), err=True)
    if error is None:
        return 0
    return TIMED_OUT if error.type == "timeout" else 1
