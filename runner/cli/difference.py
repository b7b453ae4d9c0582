"""`flowrun plan --diff`: the plan beside the live broker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runner.app import open_transport, standing_store, store_file
from runner.cli import output
from runner.errors import NotFoundError
from runner.lang.report import printable
from runner.plan import Binding, Difference, Exchange, Plan, Queue, Topology
from runner.settings import Settings, mask_url

_SIGNS = {"none": "=", "additive": "+", "needs drain": "~", "destructive": "!", "unknown": "?", "left over": "-"}
_COLOURS = {"+": "green", "~": "yellow", "!": "red", "-": "bright_black", "=": "bright_black", "?": "bright_black"}


async def compare(settings: Settings, plan: Plan) -> tuple[Sequence[Difference], Sequence[Difference]]:
    """How the plan's objects stand; and those that were declared once, still stand, and are planned no more."""
    before = await _declared(settings)
    async with open_transport(settings, store_file(settings)) as transport:
        planned = await transport.compare(plan.topology)
        old = await transport.compare(_without(before, plan.topology))
    return planned, [difference for difference in old if difference.change != "additive"]


async def _declared(settings: Settings) -> Topology:
    try:
        store = standing_store(settings)
    except NotFoundError:
        return Topology(exchanges=(), queues=(), bindings=())
    async with store:
        return await store.declared()


def _without(before: Topology, now: Topology) -> Topology:
    exchanges: dict[str, Exchange] = {e.name: e for e in before.exchanges}
    queues: dict[str, Queue] = {q.name: q for q in before.queues}
    bindings: dict[str, Binding] = {str(b): b for b in before.bindings}
    for exchange in now.exchanges:
        exchanges.pop(exchange.name, None)
    for queue in now.queues:
        queues.pop(queue.name, None)
    for binding in now.bindings:
        bindings.pop(str(binding), None)
    return Topology(
        exchanges=tuple(exchanges.values()), queues=tuple(queues.values()), bindings=tuple(bindings.values())
    )


def text(settings: Settings, planned: Sequence[Difference], left_over: Sequence[Difference]) -> Iterator[str]:
    """For people: what would change, and a sum."""
    yield output.paint(f"project {settings.project} on {', '.join(map(mask_url, settings.brokers))}", "bold")
    yield ""
    shown = [(d, d.change) for d in planned if d.change not in ("none", "unknown")]
    rows = [*shown, *((d, "left over") for d in left_over)]
    width = max((len(f"{d.kind} {d.name}") for d, _ in rows), default=0)
    for difference, change in rows:
        sign = _SIGNS[change]
        name = printable(f"{difference.kind} {difference.name}")
        line = f"  {sign} {name.ljust(width)}  {change.ljust(11)}  {_detail(difference, change)}"
        yield output.paint(line.rstrip(), _COLOURS[sign])
    if rows:
        yield ""
    yield _sum(planned, left_over)


def _detail(difference: Difference, change: str) -> str:
    held = f" ({difference.messages} messages in it)" if difference.messages else ""
    if change == "left over":
        what = {"queue": "no handler reads it any more", "binding": "what comes by it is passed over"}
        return f"{what.get(difference.kind, 'nothing uses it any more')}{held}; flowrun leaves it"
    return printable(difference.detail) + held


def _sum(planned: Sequence[Difference], left_over: Sequence[Difference]) -> str:
    def count(*changes: str) -> int:
        return sum(d.change in changes for d in planned)

    parts = (
        f"{count('additive')} to add",
        f"{count('needs drain')} to drain, delete and make anew",
        f"{count('destructive')} destructive",
        f"{len(left_over)} left over",
        f"{count('none', 'unknown')} as planned",
    )
    return ", ".join(parts) + "."


def as_json(planned: Sequence[Difference], left_over: Sequence[Difference]) -> list[dict[str, object]]:
    """For programs: kind, name, change, detail and messages of each."""
    return [
        {"kind": d.kind, "name": d.name, "change": change, "detail": d.detail, "messages": d.messages}
        for d, change in [*((d, d.change) for d in planned), *((d, "left over") for d in left_over)]
    ]
