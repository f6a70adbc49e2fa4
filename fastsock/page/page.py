"""One HTML page about one or several runs: no network, no script, everything from files escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from fastsock.client.percentiles import name_of
from fastsock.client.saved import Saved
from fastsock.client.series import shown
from fastsock.page import charts, elements
from fastsock.page.drawn import drawn_of, which_are_drawn
from fastsock.page.elements import escaped
from fastsock.page.run import Run, count, cut, duration, edges
from fastsock.page.style import CSS
from fastsock.units import format_duration, format_rate, format_size, plural

#: Rows that a table of runs has at most.
_MOST_ROWS = 500
_DISTRIBUTIONS = {
    "latency": "intended",
    "latency_from_send": "sent",
    "latency_without_away": "without the client's time",
    "send_delay": "send delay",
    "connect": "connect",
}
#: Whether a step of a search was kept.
_KEPT = {True: "yes", False: "no", None: "unknown"}
_NOT_SHOWN = "- where fewer than ten answers are above: a matter of chance."


def runs_of(saved: Iterable[Saved]) -> list[Run]:
    """The runs of what was read, by their labels or files; those of a series by their numbers.

    Raises:
        ValueError: one is damaged.

    """
    found = []
    for each in saved:
        for number, document in enumerate(each.runs, 1):
            file = each.path if len(each.runs) == 1 else f"{each.path} {number}"
            name = f"run {number}" if each.series else ""
            found.append(_read(document, file, name, each.path))
    names = Counter(run.name for run in found)
    return [run.with_file() if names[run.name] > 1 else run for run in found]


def _read(document: Mapping[str, Any], file: str, name: str, group: str) -> Run:
    """The run; all that is told of it is made once, so that damage is found here."""
    try:
        run = Run.of(document, file, name, group)
        for _ in chain(_told(run), run.cells(), run.figures()):
            pass
        _distributions(run)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        text = cut(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{file} is damaged: {text}") from None
    return run


class Opening(NamedTuple):
    """What a page of several runs begins with, in the place of their verdict."""

    title: str
    where: str
    parts: Iterable[str]


def of(
    runs: Sequence[Run],
    series: Mapping[str, Any] | None = None,
    opening: Opening | None = None,
) -> str:
    """The page; `series` is the document of which the runs are."""
    if len(runs) == 1 and series is None:
        body = _one(runs[0])
    else:
        body = _several(runs, opening or _opening(runs, series))
    title = runs[0].name if len(runs) == 1 else plural(len(runs), "run")
    title = opening.title if opening else title
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<link rel="icon" href="data:,">\n'
        f"<title>fastsock: {escaped(title)}</title>\n<style>{CSS}</style>\n</head>\n"
        "<body>\n<main>\n" + "".join(f"{part}\n" for part in body) + "</main>\n</body>\n</html>\n"
    )


# --- one run ------------------------------------------------------------------------------------


def _one(run: Run) -> Iterator[str]:
    document = run.document
    yield elements.header(run.name, _where(run))
    yield from _verdict(run)
    yield f"<p>{escaped(run.load())}</p>"
    figures = "".join(
        f"<div><dt>{escaped(title)}</dt><dd>{escaped(value)}"
        f"{f'<small>{escaped(remark)}</small>' if remark else ''}</dd></div>"
        for title, value, remark in run.figures()
    )
    yield f'<dl class="figures">{figures}</dl>'
    yield from _latency(run)
    yield from _time([run])
    yield from _stages(run)
    yield from _histogram([run])
    yield from _end(run)
    yield elements.footer([document])


def _where(run: Run) -> str:
    document = run.document
    started = cut(document["started_at"], 40).replace("T", " ").replace("Z", " UTC")
    address = document.get("address")
    endpoint = cut(document["endpoint"])
    where = endpoint if not address or address in endpoint else f"{endpoint} ({cut(address)})"
    return f"{where}, {started}" if started else where


def _verdict(run: Run) -> Iterator[str]:
    text = run.verdict
    if run.targets:
        text += f"; {elements.of_targets(len(run.targets), len(run.missed))}"
    look = "bad" if not run.valid or run.missed else "doubt" if run.verdict != "Valid" else ""
    yield f'<div class="verdict {look}"><strong>{escaped(text)}</strong>'
    if run.verdict == "Validity unknown":
        yield "<p>This client does not observe itself.</p>"
    if run.reasons:
        yield elements.bullets(run.reasons)
    if run.targets:
        yield elements.targets_table(run.targets)
    yield "</div>"
    for note in run.notes:
        yield f'<p class="small">Note: {escaped(note)}.</p>'


def _latency(run: Run) -> Iterator[str]:
    if run.latency is None:
        if run.distributions:
            yield elements.details("Table of percentiles", _distributions(run))
        return
    shown = ["latency"]
    if run.open_loop and "latency_from_send" in run.distributions:
        shown.append("latency_from_send")
    names = [_DISTRIBUTIONS[each] if run.open_loop else "latency" for each in shown]
    told = ", ".join(
        f"{name_of(percent)} {duration(run.percentile(percent))}"
        for percent in run.percents
        if run.percentile(percent) is not None
    )
    curves = [charts.Curve(run, each, number) for number, each in enumerate(shown)]
    label = f"Latency by percentile: {told or 'too few answers'}, max {duration(run.max)}"
    yield "<h2>Latency by percentile</h2>"
    caption = "Thin where fewer than ten answers are above: a matter of chance."
    if run.open_loop:
        caption = (
            "Intended: from the time at which a message was to be sent, so that waiting to be sent "
            f"counts; sent: from the time at which it was sent. {caption}"
        )
    picture = charts.percentiles(curves, label)
    yield elements.figure(picture, elements.key_of(names) if len(names) > 1 else "", caption)
    yield elements.details("Table of percentiles", _distributions(run))


def _distributions(run: Run) -> str:
    known = {name: run.distributions[name] for name in _DISTRIBUTIONS if name in run.distributions}
    summaries = run.document["latency_us"]
    fields = {
        "latency": "from_intended_send",
        "latency_from_send": "from_actual_send",
        "latency_without_away": "from_intended_send_without_away",
    }
    if not run.open_loop:
        known.pop("latency_from_send", None)  # the same
    names = [
        "latency" if n == "latency" and not run.open_loop else _DISTRIBUTIONS[n] for n in known
    ]
    rows: list[list[str]] = [["count", *(count(each.count) for each in known.values())]]
    for key in ("min", "mean"):
        rows.append([key, *(_summary(summaries, fields.get(n, n), key) for n in known)])
    for percent in run.percents:
        values = [
            "-" if each.is_chance(percent) else duration(each.percentile(percent))
            for each in known.values()
        ]
        if percent <= 99.9 or set(values) != {"-"}:
            rows.append([name_of(percent), *values])
    rows.append(["max", *(_summary(summaries, fields.get(n, n), "max") for n in known)])
    return elements.table("Percentiles", ["", *names], rows) + f'<p class="small">{_NOT_SHOWN}</p>'


def _summary(summaries: Mapping[str, Any], field: str, key: str) -> str:
    return duration((summaries.get(field) or {}).get(key))


def _time(runs: Sequence[Run]) -> Iterator[str]:
    shown = [run for run in runs if run.rows]
    if not shown:
        return
    alone = shown[0] if len(runs) == 1 else None
    yield "<h2>Over time</h2>"
    rates = [row.rate for run in shown for row in run.rows]
    largest = max(
        (row.max for run in shown for row in run.rows if row.max is not None), default=None
    )
    label = (
        f"Over time: {format_rate(min(rates))} to {format_rate(max(rates))}, largest latency "
        f"{duration(largest)}, {plural(sum(row.errors for r in shown for row in r.rows), 'error')}"
    )
    joined = max(run.joined for run in shown)
    captions = []
    key = _run_key(runs, shown) if alone is None else elements.parts_key(alone)
    if alone is not None:
        if alone.open_loop:
            captions.append("Dashed: the offered rate.")
        if alone.stages:
            captions.append("Numbers: stages, every other one shaded.")
        if alone.after_window is not None:
            late = plural(alone.after_window.messages, "answer")
            captions.append(f"Diamonds: {late} that came after the window.")
    if joined > 1:
        captions.append(
            f"Up to {joined} intervals are one point: the largest p99 and max, the middle p50."
        )
    numbered = [(at, run) for at, run in enumerate(runs) if run.rows]
    picture = charts.over_time(numbered, label, alone=alone is not None)
    yield elements.figure(picture, key, " ".join(captions))
    if alone is not None:
        yield elements.details("Table of intervals", _intervals(alone))


def _intervals(run: Run) -> str:
    rows = [
        [
            f"{row.start:g}s to {row.end:g}s",
            format_rate(row.rate),
            count(row.messages),
            count(row.errors),
            count(row.outstanding),
            duration(row.p50),
            duration(row.p99),
            duration(row.max),
        ]
        for row in run.rows
    ]
    last = run.after_window
    if last is not None:
        figures = (last.messages, last.errors, last.outstanding)
        latencies = (last.p50, last.p99, last.max)
        rows.append(["after the window", "-", *map(count, figures), *map(duration, latencies)])
    titles = ["interval", "rate", "messages", "errors", "outstanding", "p50", "p99", "max"]
    return elements.table("Intervals", titles, rows)


def _stages(run: Run) -> Iterator[str]:
    if not run.stages:
        return
    yield "<h2>Stages</h2>"
    rows = [
        [
            f"{number}  {stage.name}",
            count(stage.offered),
            count(stage.messages),
            format_rate(stage.rate),
            *(duration(stage.latency.get(key)) for key in ("p50", "p99", "p99.9", "max")),
        ]
        for number, stage in enumerate(run.stages, 1)
    ]
    titles = ["stage", "offered", "messages", "rate", "p50", "p99", "p99.9", "max"]
    yield elements.table("Stages", titles, rows)


def _histogram(runs: Sequence[Run]) -> Iterator[str]:
    shown = [run for run in runs if run.latency is not None]
    if not shown:
        return
    low = min(each.latency.percentile(0) for each in shown if each.latency)
    high = max(each.latency.percentile(100) for each in shown if each.latency)
    label = f"Histogram of latency, from {duration(low)} to {duration(high)}"
    key = _run_key(runs, shown) if len(runs) > 1 else ""
    yield "<h2>Histogram</h2>"
    yield elements.figure(charts.histogram(runs, label), key, "Both scales are logarithmic.")
    if len(runs) == 1:
        borders = edges(runs)
        counts = runs[0].latency.bins(borders) if runs[0].latency else []
        rows = [
            [f"{duration(start)} to {duration(end)}", count(number)]
            for start, end, number in zip(borders, borders[1:], counts, strict=False)
            if number
        ]
        yield elements.details(
            "Table of the histogram", elements.table("Histogram", ["latency", "messages"], rows)
        )


def _counters(run: Run) -> Iterator[str]:
    document = run.document
    facts = list(run.counts())
    for kind, number in (document.get("datagrams") or {}).items():
        facts.append((f"datagrams {cut(kind)}", count(number)))
    outages = document.get("outages")
    if outages:
        text = count(outages["count"])
        if outages["count"]:
            text += (
                f", {format_duration(outages['seconds'])} in all, longest "
                f"{format_duration(outages['longest_s'])}, "
                f"{count(outages['messages'])} messages without an answer"
            )
        facts.append(("outages", text))
    tcp = document.get("tcp")
    if tcp:
        facts.append(("segments sent again", count(tcp["retransmits"])))
        facts.append(("TCP round trip", duration(tcp["rtt_us"])))
    server = document.get("server_cpu_s")
    if server is not None and document["messages"]:
        facts.append(("server CPU per message", duration(server / document["messages"] * 1e6)))
    yield "<h2>Counters</h2>"
    yield elements.facts(facts)


def _evidence(run: Run) -> Iterator[str]:
    client, host = run.document.get("client"), run.document["host"]
    facts: list[tuple[str, str]] = []
    if client:
        facts.append(("busy", f"{client['busy']:.0%} of the window"))
        for key, title in (
            ("away_s", "away"),
            ("delayed_s", "waited for a CPU"),
            ("late_s", "sent late by more than 1ms"),
            ("longest_s", "longest time away or waiting"),
            ("throttled_s", "throttled by its CPU quota"),
            ("stolen_s", "stolen by the hypervisor"),
        ):
            value = client.get(key)
            facts.append((title, "not told" if value is None else _rounded(value)))
    if run.document.get("merged"):  # of several machines
        yield elements.facts(facts)
        return
    quota = host.get("cpu_quota")
    for title, value in (
        ("CPU", f"{host.get('cpu')}, {host.get('cpus')} usable"),
        ("CPU quota", None if quota is None else f"{quota:g} CPUs"),
        ("governor", host.get("governor")),
        ("load average", host.get("load_average")),
        ("kernel", f"Linux {host.get('kernel')}, {host.get('machine')}"),
        ("software", f"fastsock {host.get('fastsock')}, Python {host.get('python')}"),
    ):
        if value is not None:
            facts.append((title, cut(value)))
    yield elements.facts(facts)


def _rounded(seconds: float) -> str:
    return format_duration(float(f"{seconds:.3g}")) if seconds > 0 else "none"


def _options(run: Run) -> Iterator[tuple[str, str]]:
    for name, value in run.options.items():
        text = cut(value)
        if value is None:
            continue
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif name == "size":
            text = format_size(value)
        elif name == "rate":
            text = format_rate(value)
        elif name in ("duration", "warmup", "timeout", "loss_timeout"):
            text = format_duration(value)
        yield cut(name, 60).replace("_", " "), text


def _merged(run: Run) -> Iterator[str]:
    parts = run.document.get("merged")
    if not parts:
        return
    rows = [
        [
            cut(part["label"] or part["file"]),
            cut(part["host"].get("cpu"), 60),
            count(part["connections"] or 0),
            count(part["messages"]),
            format_rate(part["messages_per_s"]),
            "yes" if part["valid"] else "NO",
        ]
        for part in parts
    ]
    yield "<h2>Merged runs</h2>"
    titles = ["run", "CPU", "connections", "messages", "rate", "valid"]
    yield elements.table("Merged runs", titles, rows)


def _end(run: Run) -> Iterator[str]:
    yield from _counters(run)
    yield from _merged(run)
    yield "<h2>The client and its machine</h2>"
    yield from _evidence(run)
    yield elements.details("Options of the run", elements.facts(_options(run)))


# --- several runs -------------------------------------------------------------------------------


def _opening(runs: Sequence[Run], series: Mapping[str, Any] | None) -> Opening:
    kinds = {"repeat": "Repeated runs", "confidence": "Runs to a confidence", "find_max": "Search"}
    title, where = plural(len(runs), "run"), ""
    if series is not None:
        title = cut(series.get("label") or kinds.get(str(series.get("kind")), "Series of runs"))
        where = f"{plural(len(runs), 'run')} of {cut(series.get('endpoint') or '?')}"
    search = (series or {}).get("find_max")
    if isinstance(search, dict):
        return Opening(title, where, _search(search))
    asked = (series or {}).get("confidence")
    parts = _verdicts(runs, asked)
    return Opening(title, where, chain(parts, _confidence(asked, len(runs)) if asked else ()))


def _several(runs: Sequence[Run], opening: Opening) -> Iterator[str]:
    yield elements.header(opening.title, opening.where)
    yield from opening.parts
    loads = {run.load() for run in runs}
    if len(loads) == 1:
        yield f"<p>Each: {escaped(loads.pop())}</p>"
    yield "<h2>Figures</h2>"
    shown = drawn_of(runs)
    yield _table_of(runs, shown)
    if len(runs) > len(shown):
        yield f'<p class="small">{escaped(which_are_drawn(runs, shown))}</p>'
    answered = [each for each in shown if each.latency is not None]
    if answered:
        yield "<h2>Latency by percentile</h2>"
        curves = [
            charts.Curve(run, "latency", number)
            for number, run in enumerate(shown)
            if run.latency is not None
        ]
        label = "Latency by percentile: " + "; ".join(
            f"{cut(run.name, 60)} p99 {duration(run.percentile(99.0))}" for run in answered
        )
        caption = "Thin where fewer than ten answers are above: a matter of chance."
        yield elements.figure(charts.percentiles(curves, label), _run_key(shown, answered), caption)
        yield elements.details("Table of percentiles", _percentiles_of(answered))
    yield from _time(shown)
    yield from _histogram(shown)
    yield "<h2>Each run</h2>"
    for number, run in enumerate(shown):
        title = f"{elements.swatch(number)}{escaped(run.name)}"
        told = "".join(_told(run)).replace("h2>", "h3>")  # below "Each run"
        yield f'<details class="run"><summary>{title}</summary>{told}</details>'
    yield elements.footer([run.document for run in shown])


def _told(run: Run) -> Iterator[str]:
    """All that is told of one run among several."""
    yield f'<p class="small">{escaped(_where(run))}</p>'
    yield from _verdict(run)
    yield f"<p>{escaped(run.load())}</p>"
    yield from _stages(run)
    if run.rows:
        yield elements.details("Table of intervals", _intervals(run))
    yield from _end(run)


def _verdicts(runs: Sequence[Run], confidence: Mapping[str, Any] | None) -> Iterator[str]:
    wrong = [run for run in runs if not run.valid]
    missed = [run for run in runs if run.missed]
    unknown = [run for run in runs if run.verdict == "Validity unknown"]
    text = "Every run is valid"
    if wrong:
        text = f"{len(wrong)} of {plural(len(runs), 'run')} not valid"
    elif unknown:
        text = f"The validity of {plural(len(unknown), 'run')} is unknown"
    if any(run.targets for run in runs):
        text += (
            f"; {plural(len(missed), 'run')} missed a target" if missed else "; no target missed"
        )
    unsure = confidence is not None and not confidence["converged"]
    if unsure:
        text += "; the figures are not known as well as was asked for"
    look = "bad" if wrong or missed or unsure else "doubt" if unknown else ""
    yield f'<div class="verdict {look}"><strong>{escaped(text)}</strong>'
    yield elements.bullets(
        f"{run.name}: {run.reasons[0]}" for run in wrong[: charts.MOST_RUNS] if run.reasons
    )
    yield "</div>"


def _confidence(asked: Mapping[str, Any], runs: int) -> Iterator[str]:
    """How well the figures were to be known, and are."""
    reached = "Reached" if asked["converged"] else "Not reached"
    yield (
        f"<p>Asked for: the rate, and p99 where there are latencies, within "
        f"{asked['within_percent']:g}% at {asked['level_percent']:g}%, with at most "
        f"{plural(asked['most'], 'run')}. {reached} after {plural(runs, 'run')}.</p>"
    )
    yield elements.facts((metric, _known(metric, asked[metric])) for metric in ("rate", "p99"))


def _search(search: Mapping[str, Any]) -> Iterator[str]:
    """What a search has found, and its steps: the runs but for a closed loop at the start."""
    looks = {"found": "", "highest": "", "client_limited": "doubt"}
    look = looks.get(cut(search.get("stopped")), "bad")
    text = escaped(cut(search.get("text") or "?"))
    yield f'<div class="verdict {look}"><strong>{text}</strong></div>'
    try:
        rows = [
            f"<tr><td>run {step['run'] + 1:d}</td>"
            f'<td class="number">{format_rate(step["rate"])}</td>'
            f'<td class="number">{_KEPT[step["kept"]]}</td>'
            f"<td>{escaped(cut(step['why'] or ''))}</td></tr>"
            for step in search["steps"]
        ]
    except (LookupError, TypeError, ValueError):
        rows = []  # damaged: the runs are told all the same
    if rows:
        yield "<h2>Steps</h2>"
        yield elements.scrolled_table("Steps", ["step", "rate", "kept", "why not"], rows, texts=1)


def _known(metric: str, interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "not known"
    low, estimate, high = (shown(metric, interval[key]) for key in ("low", "estimate", "high"))
    return f"{estimate}, between {low} and {high}: within {interval['half_width_percent']:.3g}%"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else cut(value)


def _table_of(runs: Sequence[Run], drawn: Sequence[Run]) -> str:
    titles = ["run", "rate", "p50", "p99", "p99.9", "errors", "valid"]
    rows = []
    for run in runs[:_MOST_ROWS]:
        cells = "".join(f'<td class="number">{escaped(cell)}</td>' for cell in run.cells())
        swatch = elements.swatch(drawn.index(run)) if run in drawn else ""
        rows.append(f"<tr><td>{swatch}{escaped(run.name)}</td>{cells}</tr>")
    more = len(runs) - len(rows)
    note = f" {plural(more, 'more run')} left out." if more else ""
    return (
        elements.scrolled_table("Runs", titles, rows) + f'<p class="small">{_NOT_SHOWN}{note}</p>'
    )


def _percentiles_of(runs: Sequence[Run]) -> str:
    percents = sorted({percent for run in runs for percent in run.percents})
    titles = ["run", *map(name_of, percents), "max"]
    rows = [
        [
            run.name,
            *(duration(run.percentile(percent)) for percent in percents),
            duration(run.max),
        ]
        for run in runs
    ]
    return elements.table("Percentiles", titles, rows)


def _run_key(runs: Sequence[Run], drawn: Sequence[Run]) -> str:
    """The runs that a picture has, each with the look of its place among all."""
    items = "".join(
        f"<li>{elements.swatch(at)}{escaped(run.name)}</li>"
        for at, run in enumerate(runs)
        if run in drawn
    )
    return f'<ul class="key">{items}</ul>'


# --- HTML ---------------------------------------------------------------------------------------
