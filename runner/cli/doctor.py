"""`flowrun doctor`: what is wrong with this set-up, and how to mend it."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from runner import __version__
from runner.app import Project, load_project, open_store, open_transport, store_file
from runner.cli import options, output
from runner.environment import check_environment
from runner.errors import SettingsError, StoreError, TransportError
from runner.lang.load import Sources
from runner.lang.report import printable
from runner.message import new_id
from runner.plan import BrokerFacts, Plan
from runner.ports import AnyStore, AnyTransport
from runner.records import RunState
from runner.settings import Settings, load_settings, mask_url
from runner.times import format_duration

MOST_SKEW_S = 2.0
MANY = 1000
LEAST_FREE_BYTES = 200 * 1024 * 1024
OLDEST_BROKER = (3, 10)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `hint` says how to mend it."""

    status: Literal["ok", "warning", "error"]
    about: str
    text: str
    hint: str = ""
    code: int = 1
    """The exit code of an error."""


@click.command("doctor")
@options.settings
@options.as_json
def command(root: Path, broker: str | None, store: str | None, as_json: bool) -> None:
    """Look at settings, flows, plugins, store and broker, and say what is wrong and how to mend it.

    Changes nothing, but that it opens the store, which brings its tables up to date.

    Exit codes: 0 nothing is wrong (warnings too), 1 something is, 2 settings, 69 broker or store unreachable.
    """
    settings = load_settings(root, broker=broker, store=store)
    findings = asyncio.run(_examine(settings))
    if as_json:
        shown = [{"status": f.status, "about": f.about, "text": f.text, "hint": f.hint or None} for f in findings]
        output.echo(output.json_value(shown))
    else:
        for line in _text(findings):
            output.echo(line)
    raise SystemExit(max((f.code for f in findings if f.status == "error"), default=0))


async def _examine(settings: Settings) -> list[Finding]:
    project = load_project(settings.root, project=settings.project) if Sources(settings.root).flow_files() else None
    findings = [Finding("ok", "flowrun", f"{__version__}, Python {platform.python_version()}, {platform.system()}")]
    findings += _files(settings, project)
    findings += [finding async for finding in _store(settings)]
    plan = project.compilation.plan if project is not None else None
    findings += [finding async for finding in _broker(settings, plan)]
    return findings


def _text(findings: list[Finding]) -> Iterator[str]:
    marks = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}
    width = max(len(finding.about) for finding in findings)
    for finding in findings:
        mark, colour = marks[finding.status]
        yield f"{output.paint(mark, colour)} {finding.about.ljust(width)}  {printable(finding.text)}"
        if finding.hint:
            yield f"  {''.ljust(width)}  → {printable(finding.hint)}"
    errors = sum(finding.status == "error" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    yield ""
    yield "All is well." if not errors + warnings else f"{errors} wrong, {warnings} to look at."


# --- files


def _files(settings: Settings, project: Project | None) -> Iterator[Finding]:
    if project is None:
        yield Finding("error", "flows", f"no flow files found in {settings.root / 'flows'}", "flowrun init DIR", 2)
        return
    compilation, registry = project.compilation, project.registry
    if registry is not None:
        for diagnostic in registry.diagnostics:
            yield Finding("error", "plugins", f"{diagnostic.span}: {diagnostic.summary}", diagnostic.help or "")
        if not registry.diagnostics:
            yield Finding("ok", "plugins", f"{len(registry.signatures)} handlers can be imported")
    if compilation.plan is None:
        yield Finding("error", "flows", f"{compilation.errors} errors", "flowrun validate shows them")
        return
    yield Finding("ok", "flows", f"{len(compilation.plan.programs)} handlers, {len(compilation.plan.events)} events")
    try:
        plan = compilation.plan
        guarded = [each for each in plan.projections.values() if each.bearer is not None]
        check_environment([*plan.programs.values(), *plan.ingress, *guarded])
    except SettingsError as error:
        yield Finding("error", "environment", error.message, error.hint or "", 2)
    else:
        yield Finding("ok", "environment", "all variables and secrets that the flows use are set")


# --- the store


async def _store(settings: Settings) -> AsyncIterator[Finding]:
    try:
        async with open_store(settings, store_file(settings)) as store:
            for finding in [*await _store_facts(settings, store), *await _backlog(store)]:
                yield finding
    except StoreError as error:
        yield Finding("error", "store", error.message, error.hint or "", error.exit_code)


async def _store_facts(settings: Settings, store: AnyStore) -> list[Finding]:
    facts = await store.facts()
    where = mask_url(settings.store)
    found = [Finding("ok", "store", f"{facts.product} {facts.version}, schema {facts.schema_version}, {where}")]
    if abs(facts.clock_skew_s) > MOST_SKEW_S:
        text = f"the store's clock is {facts.clock_skew_s:+.1f} s off ours"
        found.append(Finding("warning", "clock", text, "timers and leases go by clocks: run NTP on both machines"))
    if facts.free_bytes is not None and facts.free_bytes < LEAST_FREE_BYTES:
        text = f"{facts.free_bytes // 1024**2} MiB are free where the store lies"
        found.append(Finding("warning", "disk", text, "make room: without it no run can go on"))
    return found


async def _backlog(store: AnyStore) -> list[Finding]:
    backlog = await store.backlog()
    found = [Finding("ok", "runs", f"{backlog.runs} going on, {backlog.outbox} messages to be published")]
    if backlog.suspects:
        text = f"{backlog.suspects} runs are suspects: processes died while they had them"
        found.append(Finding("warning", "runs", text, "flowrun runs list; each runs alone until it ends"))
    for state in (RunState.COMPENSATION_FAILED, RunState.FAILED):
        count = len(await store.runs(limit=MANY, state=state))
        if count:
            what = f"{count}{' or more' if count == MANY else ''} ended as {state}"
            found.append(Finding("warning", "runs", what, f"flowrun runs list --state {state}; mend, then runs retry"))
    if backlog.dead_letters:
        found.append(Finding("warning", "dead letters", str(backlog.dead_letters), "flowrun dlq list"))
    for row in await store.refused(3):
        text = f"{row.outgoing.routing_key} {row.outgoing.properties.message_id}: {row.reason}"
        hint = "it goes out once the broker's objects are mended: flowrun plan --diff"
        found.append(Finding("warning", "outbox", text, hint))
    if backlog.refused > 3:
        found.append(Finding("warning", "outbox", f"and {backlog.refused - 3} more that no queue takes"))
    return found


# --- the broker


async def _broker(settings: Settings, plan: Plan | None) -> AsyncIterator[Finding]:
    try:
        async with open_transport(settings, store_file(settings)) as transport:
            facts = await transport.facts(f"{settings.project}.doctor.{new_id()}")
            for finding in _broker_facts(settings, facts):
                yield finding
            if plan is not None:
                for finding in await _topology(transport, plan):
                    yield finding
    except (TransportError, SettingsError) as error:
        yield Finding("error", "broker", error.message, error.hint or "", error.exit_code)


def _broker_facts(settings: Settings, facts: BrokerFacts) -> Iterator[Finding]:
    shown = f"{facts.product} {facts.version}, round trip {format_duration(facts.round_trip_s)}"
    yield Finding("ok", "broker", f"{shown}, {', '.join(map(mask_url, settings.brokers))}")
    if facts.product == "embedded":
        return
    if facts.product == "RabbitMQ" and _version(facts.version) < OLDEST_BROKER:
        yield Finding("error", "broker", "flowrun needs RabbitMQ 3.10 or newer: quorum queues that dead-letter")
    if facts.blocked:
        yield Finding("error", "broker", "it takes no messages: short of memory or disk", "rabbitmqctl status")
        return
    if settings.topology == "declare" and not facts.may_configure:
        hint = f"rabbitmqctl set_permissions …; or topology: verify in flowrun.yaml, for {settings.project}.*"
        yield Finding("error", "permissions", "the user may not declare queues", hint)
    if not facts.may_publish:
        yield Finding("error", "permissions", "the user may not publish", "grant it the write right")
    if facts.may_publish and (facts.may_configure or settings.topology != "declare"):
        yield Finding("ok", "permissions", "declare and publish" if facts.may_configure else "publish")
    if facts.product == "RabbitMQ" and _version(facts.version) >= (4, 0):
        text = "a quorum queue drops a message after 20 returns; flowrun's queues let it fall into the dead letters"
        yield Finding("ok", "delivery limit", text)


async def _topology(transport: AnyTransport, plan: Plan) -> list[Finding]:
    differences = await transport.compare(plan.topology)
    found = [
        Finding("error", d.kind, f"{d.name}: {d.detail}", "flowrun plan --diff") for d in differences if d.is_drift
    ]
    missing = sum(d.change == "additive" for d in differences)
    if missing:
        found.append(Finding("ok", "topology", f"{missing} objects are not there yet: flowrun start makes them"))
    elif not found:
        found.append(Finding("ok", "topology", "as planned"))
    return found


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
