"""Pictures of load runs as SVG to put into an HTML page; matplotlib draws them.

Each is drawn twice, for wide and for narrow screens, so that its text is legible on both; the page
shows one of them. Colours are CSS variables, for light and dark, and no text comes from a file.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from fastsock.client.percentiles import name_of
from fastsock.page.run import Run, edges
from fastsock.units import format_duration, format_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Runs that one picture has; each has a colour, and the second half a dashed line.
MOST_RUNS = 8

#: The CSS variables of the page, and the colours that stand for them while matplotlib draws.
_VARIABLES = ("ink", "muted", "line", "shade", "bad", *(f"s{n}" for n in range(1, MOST_RUNS + 1)))
_STANDS_FOR = {name: f"#a1b2{number:02x}" for number, name in enumerate(_VARIABLES)}
INK, MUTED, LINE, SHADE, BAD, *SERIES = _STANDS_FOR.values()

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # which matplotlib brings; the page has its own, and none wider
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text: a smaller file, in the font of the page
    "svg.hashsalt": "fastsock",  # ids would be random without
}

_LOWEST = 0.05  # us, on a logarithmic axis
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 26, 22  # around the axes, in pixels


class Size(NamedTuple):
    name: str
    width: int
    taller: float


SIZES = (Size("narrow", 360, 1.0), Size("wide", 840, 1.25))


class Panel(NamedTuple):
    """One pair of axes in a picture; the height is that of the axes, in pixels."""

    title: str
    height: int
    paint: Callable[[Axes, Size], None]
    has_x_labels: bool = True


def check() -> None:
    """Raise ModuleNotFoundError if no page can be drawn; the message says how to install it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("a page needs matplotlib: pip install 'fastsock[report]'")


#: The looks of p50, p99 and max of one run.
PART_COLORS = {"p50": "s1", "p99": "s2", "max": "s7"}
PARTS: dict[str, Any] = {key: {"color": _STANDS_FOR[each]} for key, each in PART_COLORS.items()}


def look(number: int) -> tuple[str, bool]:
    """The name of the colour of a run, and whether its line is dashed."""
    return f"s{number % MOST_RUNS + 1}", number % MOST_RUNS >= MOST_RUNS // 2


# --- what is drawn ------------------------------------------------------------------------------


class Curve(NamedTuple):
    run: Run
    distribution: str
    number: int  # of its look


def percentiles(curves: Sequence[Curve], label: str) -> str:
    """Latency over the percentile, on a scale of nines; thin where it is a matter of chance."""
    found = [each.run.distributions[each.distribution] for each in curves]
    most = max(max(each.count for each in found), 10)

    def paint(axes: Axes, size: Size) -> None:
        for curve, distribution in zip(curves, found, strict=True):
            points = [(way, max(value, _LOWEST)) for way, value in distribution.curve()]
            style = _line(curve.number)
            thin: dict[str, Any] = {**style, "linewidth": 0.9}
            axes.plot(*zip(*points, strict=True), **thin)
            known = [
                point for point in points if not distribution.is_chance(100 * (1 - 1 / point[0]))
            ]
            if known:
                axes.plot(*zip(*known, strict=True), **style)
        axes.set_xscale("log")
        axes.set_xlim(1, most * 1.15)
        nines = [2.0, *(10.0**power for power in range(1, 13) if 10**power <= most)]
        labels = [f"{100 - 100 / way:.12g}" for way in nines]
        if size.name == "narrow" and len(nines) > 6:  # no room for all
            labels[-2::-2] = [""] * len(labels[-2::-2])
        _x_ticks(axes, nines, labels)
        _latencies(axes, [y for each in found for y in (each.percentile(0), each.percentile(100))])

    return _picture("percentiles", label, [Panel("latency", 190, paint)], "percentile")


def histogram(runs: Sequence[Run], label: str) -> str:
    """Counts of latencies, both on a logarithmic scale; with p50 and p99 where it is one run."""
    borders = edges(runs)
    counts = [run.latency.bins(borders) if run.latency else [] for run in runs]
    most = max(max(each, default=1) for each in counts)

    def paint(axes: Axes, size: Size) -> None:
        for number, bins in enumerate(counts):
            color = _STANDS_FOR[look(number)[0]]
            if not bins:
                continue
            if len(runs) == 1:
                heights = [each or 0.5 for each in bins]
                axes.stairs(heights, borders, baseline=0.5, fill=True, color=color, alpha=0.25)
                axes.stairs(heights, borders, baseline=0.5, color=color, linewidth=1.4)
            else:
                heights = [each or math.nan for each in bins]
                axes.stairs(heights, borders, baseline=None, **{**_line(number), "linewidth": 1.4})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(borders[0], borders[-1])
        axes.set_ylim(0.5, most * (4 if len(runs) == 1 else 2))
        tens = [10.0**power for power in range(16) if 10**power <= most * 2]
        tens = tens[:: math.ceil(len(tens) / 5)]
        _ticks(axes.yaxis, tens, [format_rate(ten).removesuffix("/s") for ten in tens])
        places = round_values(borders[0], borders[-1], 5 if size.name == "narrow" else 9)
        _x_ticks(axes, places, [format_duration(place / 1e6) for place in places])
        if len(runs) == 1:
            _mark_percentiles(axes, runs[0])

    return _picture("histogram", label, [Panel("messages", 150, paint)], "latency")


def over_time(numbered: Sequence[tuple[int, Run]], label: str, *, alone: bool) -> str:
    """Rate, latency and, where there are any, errors, of runs with the numbers of their looks.

    `alone`, p50, p99, max, the offered rate and the stages of the one run; else p99 of each.
    """
    runs = [run for _, run in numbered]
    one = runs[0] if alone else None
    known = parts_of(runs, alone=alone)
    start = min(run.rows[0].start for run in runs)
    end = max(run.rows[-1].end for run in runs)
    unit, name = _unit_of_time(end)

    def rates(axes: Axes, size: Size) -> None:
        for number, run in numbered:
            borders = [run.rows[0].start / unit, *(row.end / unit for row in run.rows)]
            values = [row.rate for row in run.rows]
            style = _line(number)
            if one:
                axes.stairs(values, borders, fill=True, color=style["color"], alpha=0.16)
            axes.stairs(values, borders, baseline=None, **style)
        for first, last, rate_from, rate_to in _offered(one):
            axes.plot(
                [first / unit, last / unit],
                [rate_from, rate_to],
                color=INK,
                linewidth=1.1,
                linestyle=(0, (3, 2)),
            )
        top = max(axes.dataLim.ymax, 1e-9) * (1.25 if one and one.stages else 1.1)
        axes.set_ylim(0, top)
        places = even_values(top, 4)
        _ticks(axes.yaxis, places, [format_rate(place).removesuffix("/s") for place in places])
        frame(axes, size)
        if one:
            _number_stages(axes, one, unit)

    def latencies(axes: Axes, size: Size) -> None:
        values = []
        for number, run in numbered:
            places = [(row.start + row.end) / 2 / unit for row in run.rows]
            for key in known:
                seen = [getattr(row, key) for row in run.rows]
                values += [value for value in seen if value is not None]
                style = PARTS[key] if alone else _line(number)
                mark: dict[str, Any] = (
                    {"marker": "o", "markersize": 2.5} if len(places) <= 30 else {}
                )
                heights = [math.nan if value is None else max(value, _LOWEST) for value in seen]
                axes.plot(places, heights, **style, **mark)
                late = one.after_window if one else None
                if late is not None and getattr(late, key) is not None:
                    values.append(getattr(late, key))
                    axes.plot(
                        [end / unit + (end - start) / unit * 0.03],
                        [values[-1]],
                        marker="D",
                        markersize=5,
                        color=style["color"],
                        markerfacecolor="none",
                    )
        _latencies(axes, values or [1.0])
        frame(axes, size)

    def errors(axes: Axes, size: Size) -> None:
        for number, run in numbered:
            borders = [run.rows[0].start / unit, *(row.end / unit for row in run.rows)]
            color = BAD if alone else _line(number)["color"]
            axes.stairs([row.errors for row in run.rows], borders, fill=alone, color=color)
        top = max(axes.dataLim.ymax, 1.0) * 1.15
        axes.set_ylim(0, top)
        places = [place for place in even_values(top, 2) if place == int(place)]
        _ticks(axes.yaxis, places, [format_rate(place).removesuffix("/s") for place in places])
        frame(axes, size)

    def frame(axes: Axes, size: Size) -> None:
        """The axis of time, and the stages."""
        late = one is not None and one.after_window is not None
        room = (end - start) * 0.06 if late else 0.0
        axes.set_xlim(start / unit, (end + room) / unit)
        if late:
            axes.axvspan(end / unit, (end + room) / unit, color=SHADE, linewidth=0)
            axes.axvline(end / unit, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        for stage in one.stages[::2] if one else ():
            axes.axvspan(stage.start / unit, stage.end / unit, color=SHADE, linewidth=0, zorder=0)
        places = even_values((end - start) / unit, 5 if size.name == "narrow" else 10)
        _x_ticks(axes, places, [f"{place:g}" for place in places])

    panels = [Panel("messages per second", 100, rates, False)]
    failed = any(row.errors for run in runs for row in run.rows)
    if known:
        panels.append(Panel(f"latency: {', '.join(known)}", 130, latencies, False))
    if failed:
        panels.append(Panel("errors", 40, errors, False))
    panels[-1] = panels[-1]._replace(has_x_labels=True)
    return _picture("over-time", label, panels, f"{name} since the window began")


def parts_of(runs: Sequence[Run], *, alone: bool) -> list[str]:
    """The latencies over time that are drawn: of merged runs the largest alone is known."""
    found = [
        key
        for key in PART_COLORS
        if any(getattr(row, key) is not None for run in runs for row in run.rows)
    ]
    return found if alone else found[-2:][:1]  # of p99 and max


# --- axes ---------------------------------------------------------------------------------------


def round_values(low: float, high: float, most: int) -> list[float]:
    """At most so many of 1, 2 and 5 times a power of ten between two values, or powers alone."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = [step * 10.0**power for power in powers for step in steps]
        found = [value for value in every if low <= value <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def even_values(high: float, most: int) -> list[float]:
    """0 and at most so many equal steps up to a value."""
    power = 10.0 ** (math.floor(math.log10(high)) - 2)
    steps = (step * power * ten for ten in (1, 10, 100, 1000) for step in (1, 2, 5))
    step = next(each for each in steps if each * most >= high)
    return [float(f"{step * number:.9g}") for number in range(int(high / step) + 1)]


def _latencies(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of microseconds that holds the values, and two labels at least."""
    low, high = max(min(values), _LOWEST) / 1.15, max(*values, _LOWEST) * 1.15
    while len(round_values(low, high, 6)) < 2:
        low, high = low / 1.2, high * 1.2
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    places = round_values(low, high, 6)
    _ticks(axes.yaxis, places, [format_duration(float(f"{place / 1e6:.6g}")) for place in places])


def _ticks(axis: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_ticks(places, labels=labels)
    axis.set_minor_locator(NullLocator())


def _x_ticks(axes: Axes, places: Sequence[float], labels: Sequence[str]) -> None:
    """The last label ends at its place where the middle of it would leave the picture."""
    _ticks(axes.xaxis, places, labels)
    for place, tick in zip(places, axes.xaxis.get_major_ticks(), strict=True):
        across, _ = axes.transLimits.transform(axes.transScale.transform((place, 1)))
        if across > 0.96:
            tick.label1.set_horizontalalignment("right")


def _mark_percentiles(axes: Axes, run: Run) -> None:
    low, high = axes.get_xlim()
    for percent in (50.0, 99.0):
        value = run.percentile(percent)
        if value is not None:
            last = math.log(value / low) > 0.85 * math.log(high / low)
            axes.axvline(value, color=INK, linewidth=1, linestyle=(0, (3, 2)))
            axes.annotate(
                name_of(percent),
                (value, 1),
                (-4 if last else 4, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                horizontalalignment="right" if last else "left",
                verticalalignment="top",
                color=INK,
            )


def _number_stages(axes: Axes, run: Run, unit: float) -> None:
    if len(run.stages) > 20:
        return
    for number, stage in enumerate(run.stages, 1):
        axes.annotate(
            str(number),
            ((stage.start + stage.end) / 2 / unit, 1),
            xycoords=("data", "axes fraction"),
            verticalalignment="top",
            horizontalalignment="center",
            color=MUTED,
        )


def _offered(run: Run | None) -> Iterator[tuple[float, float, float, float]]:
    """The offered rate: from, to, and the rate then."""
    if run is None:
        return
    for stage in run.stages:
        yield stage.start, stage.end, stage.rate_from, stage.rate_to
    if not run.stages and run.offered is not None:
        yield run.rows[0].start, run.rows[-1].end, run.offered, run.offered


def _unit_of_time(seconds: float) -> tuple[float, str]:
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * unit:
            return unit, name
    return 1.0, "seconds"


def _line(number: int) -> dict[str, Any]:
    color, dashed = look(number)
    return {"color": _STANDS_FOR[color], "linestyle": (0, (4, 2)) if dashed else "-"}


# --- SVG ----------------------------------------------------------------------------------------


def _picture(name: str, label: str, panels: Sequence[Panel], below: str = "") -> str:
    """The panels one below the other, as SVG for both widths. `name` is unique on its page."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not a user's own style
        matplotlib.rcParams.update(_STYLE)
        return "".join(_drawn(name, label, panels, below, size) for size in SIZES)


def _drawn(name: str, label: str, panels: Sequence[Panel], below: str, size: Size) -> str:
    from matplotlib.figure import Figure

    heights = [panel.height * size.taller for panel in panels]
    feet = [_BOTTOM if panel.has_x_labels else 10 for panel in panels]
    foot = 14 if below else 0
    height = sum(heights) + sum(feet) + _TOP * len(panels) + foot
    figure = Figure(figsize=(size.width / 72, height / 72))  # an SVG of matplotlib has 72 dpi
    top = height
    width = size.width - _LEFT - _RIGHT
    for panel, tall, beneath in zip(panels, heights, feet, strict=True):
        bottom = top - _TOP - tall
        axes = figure.add_axes(
            (_LEFT / size.width, bottom / height, width / size.width, tall / height)
        )
        axes.tick_params(labelbottom=panel.has_x_labels)
        panel.paint(axes, size)
        figure.text(0.0, (top - 13) / height, panel.title, color=INK, fontweight="bold")
        top = bottom - beneath
    if below:
        figure.text(
            _LEFT / size.width + width / size.width / 2,
            3 / height,
            below,
            color=MUTED,
            horizontalalignment="center",
        )
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue(), f"{name}-{size.name}", size, round(height), label)


def _inline(svg: str, name: str, size: Size, height: int, label: str) -> str:
    """The drawing as an element of an HTML page: small, with unique ids and the page's colours."""
    body = svg[svg.index("</defs>") + len("</defs>") : svg.rindex("</svg>")]  # after its <style>
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'\bid="|"#|url\(#', lambda found: f"{found[0]}{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"font: (?:(\d+) )?([\d.]+px) [^;\"]*", _font, body)
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)
    body = re.sub(r"\s*\n\s*", " ", body)
    for variable, color in _STANDS_FOR.items():
        body = body.replace(color, f"var(--{variable})")
    return (
        f'<svg class="{size.name}" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {size.width} {height}" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f"{body.strip()}</svg>\n"
    )


def _font(found: re.Match[str]) -> str:
    """The form of older releases of matplotlib, without its family."""
    weight, size = found.groups()
    return f"font-size: {size}" + (f"; font-weight: {weight}" if weight else "")
