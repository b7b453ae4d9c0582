"""How the bench makes a table and a chart of rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from xml.etree import ElementTree

from benchmarks import orders, plot
from benchmarks.rounds import BenchError, Contestant, Figures, cost_table, interleave, latency_table, rate_table


def contestant(name: str, rates: list[float | None], seen: list[str]) -> Contestant:
    left: Iterator[float | None] = iter(rates)

    def measure() -> Figures:
        seen.append(name)
        rate = next(left)
        if rate is None:
            raise BenchError("it did not come")
        latencies = [rate / 10] * 99 + [rate]
        return Figures(rate=rate, worker_us=1, broker_us=2, store_us=3, peak_mb=4, latencies_ms=latencies)

    return Contestant(name=name, guarantees="none", measure=measure)


def test_rounds_are_interleaved() -> None:
    seen: list[str] = []
    interleave([contestant("a", [1, 2], seen), contestant("b", [3, 4], seen)], 2)
    assert seen == ["a", "b", "a", "b"]


def test_a_ratio_is_taken_within_a_round() -> None:
    """The machine was twice as fast in the second: that says nothing of either."""
    results = interleave([contestant("a", [200, 400, 600], []), contestant("b", [100, 200, 300], [])], 3)
    rows = list(rate_table(results, what="events", base="b"))
    assert rows[2] == "| a | 400 (200–600) | 2.00 (2.00–2.00) | 1 · 2 · 3 | 4 | none |"


def test_a_round_that_fails_is_left_out_and_told_of() -> None:
    results = interleave([contestant("a", [200, None], []), contestant("b", [100, 100], [])], 2)
    rows = list(rate_table(results, what="events", base="b"))
    assert rows[2].startswith("| a | 200 (200–200) | 2.00 (2.00–2.00) |")
    assert rows[-1] == "\na, round 2: it did not come"


def test_who_never_made_it_has_a_row_all_the_same() -> None:
    results = interleave([contestant("a", [None], [])], 1)
    for table in (rate_table(results, what="events", base="b"), latency_table(results, base="b")):
        rows = list(table)
        assert "| failed |" in rows[2]
        assert rows[2].count("|") == rows[0].count("|")


def test_a_latency_table_has_the_median_and_the_99th_percentile() -> None:
    results = interleave([contestant("a", [20], [])], 1)
    assert list(latency_table(results, base="a"))[2].startswith("| a | 2.0 | 20.0 (20.0–20.0) | 1.00 (1.00–1.00) |")


def test_a_cost_table_compares_the_cpu_of_all_three_and_has_the_rate() -> None:
    results = interleave([contestant("a", [20], [])], 1)
    assert list(cost_table(results, what="events", base="a"))[2].startswith("| a | 20 | 6 (6–6) | 1.00 (1.00–1.00) |")


def test_a_chart_is_xml_whatever_the_names_are() -> None:
    chart = plot.chart("a & b", {"flowrun, <x>": [1.0, 2.0], "zero": [0.0]}, "{:.0f}")
    assert "a & b" in "".join(ElementTree.fromstring(chart).itertext())


def test_an_order_is_found_in_whatever_it_is_wrapped_into() -> None:
    order = orders.order(7)
    orders.check(orders.priced(order))
    wrapped: list[Callable[[bytes], bytes]] = [
        lambda body: body,
        lambda body: b'[["' + body.replace(b'"', b'\\"') + b'"], {}]',
    ]
    assert {orders.sent_ns(wrap(orders.encode(order))) for wrap in wrapped} == {order["sent_ns"]}
