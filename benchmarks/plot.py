"""Results as a bar chart in SVG, one file a case, in `benchmarks/plots`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from benchmarks.rounds import Figures, Results, Scale

FOLDER = Path(__file__).parent / "plots"
WIDTH, LABEL, ROW, TOP = 720, 250, 26, 40
BARS = WIDTH - LABEL - 90
OURS, THEIRS, WHISKER = "#2563eb", "#9ca3af", "#111827"


def rates(name: str, title: str, results: Results, scale: Scale) -> Iterator[str]:
    """Messages a second: the longer, the better. Nothing is drawn at another than the full scale."""
    yield from _draw(name, title, results, scale, lambda figures: figures.rate, "{:,.0f}")


def latencies(name: str, title: str, results: Results, scale: Scale) -> Iterator[str]:
    """The 99th percentile: the shorter, the better."""
    yield from _draw(name, title, results, scale, lambda figures: figures.percentile_ms(99), "{:.1f}")


def costs(name: str, title: str, results: Results, scale: Scale) -> Iterator[str]:
    """The CPU that a message takes: the shorter, the better."""
    yield from _draw(name, title, results, scale, lambda figures: figures.cpu_us, "{:,.0f}")


def _draw(
    name: str, title: str, results: Results, scale: Scale, measure: Callable[[Figures], float], form: str
) -> Iterator[str]:
    if scale != Scale():
        return
    FOLDER.mkdir(exist_ok=True)
    values = {each.name: results.of(each.name, measure) for each in results.contestants}
    (FOLDER / f"{name}.svg").write_text(chart(title, {key: found for key, found in values.items() if found}, form))
    yield f"\n![{title}](plots/{name}.svg)"


def chart(title: str, values: dict[str, list[float]], form: str) -> str:
    """A bar for each median, a line from the least to the most."""
    longest = max(max(found) for found in values.values())
    height = TOP + ROW * len(values) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, found) in enumerate(values.items()):
        y = TOP + ROW * number
        median, low, high = (BARS * value / longest for value in (statistics.median(found), min(found), max(found)))
        colour = OURS if name.startswith("flowrun") else THEIRS
        lines += [
            f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{y + 2}" width="{median:.1f}" height="{ROW - 8}" fill="{colour}"/>',
            f'<path d="M{LABEL + low:.1f} {y + 11}H{LABEL + high:.1f}" stroke="{WHISKER}" stroke-width="2"/>',
            f'<text x="{LABEL + high + 8:.1f}" y="{y + 15}">{form.format(statistics.median(found))}</text>',
        ]
    return "\n".join([*lines, "</svg>\n"])
