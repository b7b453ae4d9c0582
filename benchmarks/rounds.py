"""Interleaved rounds: each contestant once a round, because a shared machine drifts, and then it drifts for all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.meters import Reading


class BenchError(Exception):
    """A contestant did not do its work; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured. `part` is the part of a case's messages."""

    rounds: int = 3
    part: float = 1.0
    peers: bool = True

    def of(self, messages: int) -> int:
        """So many, at this scale."""
        return max(4, round(messages * self.part))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a contestant did in one round. The CPU is of one message, in microseconds."""

    rate: float
    worker_us: float
    broker_us: float
    store_us: float
    peak_mb: float
    latencies_ms: Sequence[float] = ()

    @property
    def cpu_us(self) -> float:
        """Of worker, broker and store together."""
        return self.worker_us + self.broker_us + self.store_us

    def percentile_ms(self, percent: int) -> float:
        """Of the latencies: 50 for the median."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """`measure` does one round, from empty queues on. Raises BenchError."""

    name: str
    guarantees: str
    measure: Callable[[], Figures]


@dataclass(slots=True)
class Results:
    """The rounds of each contestant, None where it failed; and why it did."""

    contestants: Sequence[Contestant]
    rounds: dict[str, list[Figures | None]]
    faults: list[str] = field(default_factory=list)

    def of(self, name: str, measure: Callable[[Figures], float]) -> list[float]:
        """One figure of all rounds."""
        return [measure(figures) for figures in self.rounds[name] if figures is not None]

    def ratios(self, name: str, base: str, measure: Callable[[Figures], float]) -> list[float]:
        """That figure against the base's, within each round; without those that were too short for the meters."""
        pairs = zip(self.rounds[name], self.rounds[base], strict=True)
        both = [(measure(one), measure(other)) for one, other in pairs if one is not None and other is not None]
        return [one / other for one, other in both if other]


def figures(messages: int, before: Reading, after: Reading, peak_mb: float, latencies_ms: Sequence[float]) -> Figures:
    """From the meters at the first and at the last of the messages."""
    return Figures(
        rate=messages / (after.at - before.at),
        worker_us=(after.worker_s - before.worker_s) / messages * 1e6,
        broker_us=(after.broker_s - before.broker_s) / messages * 1e6,
        store_us=(after.store_s - before.store_s) / messages * 1e6,
        peak_mb=peak_mb,
        latencies_ms=latencies_ms,
    )


def interleave(contestants: Sequence[Contestant], rounds: int) -> Results:
    """Measure them all in turn, so many times."""
    results = Results(contestants, {contestant.name: [] for contestant in contestants})
    for number in range(1, rounds + 1):
        for contestant in contestants:
            try:
                results.rounds[contestant.name].append(contestant.measure())
            except BenchError as error:
                results.rounds[contestant.name].append(None)
                results.faults.append(f"{contestant.name}, round {number}: {error}")
    return results


def rate_table(results: Results, *, what: str, base: str) -> Iterator[str]:
    """Markdown: how many a second, against the base, and what one costs."""
    yield from _table(results, base, f"{what}/s", lambda figures: figures.rate, "{:,.0f}")


def latency_table(results: Results, *, base: str) -> Iterator[str]:
    """Markdown: the 99th percentile, against the base, and what a message costs."""
    median = _Aside("p50 ms", lambda figures: figures.percentile_ms(50), "{:.1f}")
    yield from _table(results, base, "p99 ms", lambda figures: figures.percentile_ms(99), "{:.1f}", median)


def cost_table(results: Results, *, what: str, base: str) -> Iterator[str]:
    """Markdown: the CPU that a message takes of all, against the base, which a shared machine moves less than rates."""
    rate = _Aside(f"{what}/s", lambda figures: figures.rate, "{:,.0f}")
    yield from _table(results, base, "CPU µs of all", lambda figures: figures.cpu_us, "{:,.0f}", rate)


@dataclass(frozen=True, slots=True)
class _Aside:
    """A column before that of what is compared, in which only the median stands."""

    what: str
    measure: Callable[[Figures], float]
    form: str


def _table(
    results: Results,
    base: str,
    what: str,
    measure: Callable[[Figures], float],
    form: str,
    aside: _Aside | None = None,
) -> Iterator[str]:
    beside = "" if aside is None else f" {aside.what} |"
    yield (
        f"| |{beside} {what}, median (min–max) | × {base}, a round | CPU µs a message: worker · broker · store "
        "| peak MB | guarantees |"
    )
    yield f"| --- |{' --- |' if aside else ''} --- | --- | --- | --- | --- |"
    for contestant in results.contestants:
        name = contestant.name
        if not results.of(name, measure):
            yield f"| {name} |{' |' if aside else ''} failed | | | | {contestant.guarantees} |"
            continue
        cells = [name]
        if aside is not None:
            cells.append(aside.form.format(statistics.median(results.of(name, aside.measure))))
        cells.append(_spread(results.of(name, measure), form))
        ratios = results.ratios(name, base, measure) if base in results.rounds else []
        cells.append(_spread(ratios, "{:.2f}") if ratios else "")
        cells.append(" · ".join(f"{cost:.0f}" for cost in _costs(results, name)))
        cells.append(f"{statistics.median(results.of(name, lambda each: each.peak_mb)):.0f}")
        yield f"| {' | '.join([*cells, contestant.guarantees])} |"
    for fault in results.faults:
        yield f"\n{fault}"


def _costs(results: Results, name: str) -> Iterator[float]:
    measures: list[Callable[[Figures], float]] = [
        lambda each: each.worker_us,
        lambda each: each.broker_us,
        lambda each: each.store_us,
    ]
    for measure in measures:
        yield statistics.median(results.of(name, measure))


def _spread(values: list[float], form: str) -> str:
    return f"{form} ({form}–{form})".format(statistics.median(values), min(values), max(values))
