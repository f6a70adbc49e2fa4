"""The README's picture: relative rates in the main cases, and CPU time per echo.

Drawn by ``python -m benchmarks.table`` from the results that it makes the tables of.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsock.bench.picture import NATIVE, figure, median
from fastsock.bench.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE = "C epoll"
#: From top to bottom: names in the results, and names in the picture. Absent servers are left out.
SERVERS = {
    "fastsock epoll": "fastsock epoll",
    "fastsock poll": "fastsock poll",
    "fastsock io_uring": "fastsock io_uring",
    REFERENCE: REFERENCE,
    "C io_uring": "C io_uring",
    "libuv": "libuv (C)",
    "Go": "Go",
    "uvloop Protocol": "uvloop Protocol",
    "stdlib selectors": "Python selectors",
    "asyncio Protocol": "asyncio Protocol",
    "stdlib threads": "Python threads",
    "stdlib asyncio": "asyncio streams",
    "gevent": "gevent",
    "trio": "trio",
}
#: The case of each panel, from left to right and from top to bottom; the last is CPU time.
PANELS = {
    "1 connection": "1 connection, 64 B",
    "64 connections": "64 connections, 64 B",
    "16 x 64 KiB": "16 connections, 64 KiB",
}
COST = "64 connections, 64 B"
COLUMNS, BAR_LINE = 2, 16


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a bar for each server in each panel."""
    cases = {case["name"]: case for case in document["cases"]}
    panels = {
        heading: dict(rates(cases[name])) for heading, name in PANELS.items() if name in cases
    }
    panels["CPU us per echo"] = dict(costs(cases[COST]))
    present = {name for values in panels.values() for name in values}
    servers = [name for name in SERVERS if name in present]
    rows = ceil(len(panels) / COLUMNS)
    method = document["method"]
    told = (
        "Rates: higher is better. CPU time, with 64 connections: lower is better. 64-byte messages "
        f"where no size is given; medians of {method['windows']} windows of "
        f"{method['window_s']:g} s, taken in turns"
    )
    title = f"Rate relative to {REFERENCE}, and CPU time"
    shown = [cases[name] for name in {*PANELS.values(), COST} if name in cases]
    document = document | {"cases": shown}
    sizes = 0, rows * (30 + BAR_LINE * len(servers))
    with figure(path, sizes, title, document, told) as (drawing, _):
        grid = drawing.subplots(rows, COLUMNS, sharey=True, squeeze=False)
        places = [axes for row in grid for axes in row]
        for axes, (heading, values) in zip(places, panels.items(), strict=False):
            draw_bars(axes, heading, servers, values)
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        for row in grid:
            row[0].set_yticks(range(len(servers)), [SERVERS[name] for name in servers])
        grid[0][0].set_ylim(len(servers) - 0.5, -0.5)


def rates(case: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Each server's rate relative to that of the C loop; none where it did not take part."""
    for result in case["results"] if case["reference"] == REFERENCE else ():
        if ratio := result["rate_ratio"]:  # None where a rate is 0
            yield result["name"], ratio["median"]


def costs(case: dict[str, Any]) -> Iterator[tuple[str, float]]:
    value = median("server_cpu_us_per_echo")
    for result in case["results"]:
        if cost := value(result):
            yield result["name"], cost


def draw_bars(axes: Axes, heading: str, servers: list[str], values: dict[str, float]) -> None:
    axes.set_title(heading)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelbottom=False)
    axes.set_xlim(0, 1.5 * max(values.values(), default=1))  # with room for the figures
    for place, name in enumerate(servers):
        text = "-"
        if name in values:
            own = name.startswith(NATIVE)
            color = LIGHT["blue" if own else "grey" if name == REFERENCE else "pale"]
            (bar,) = axes.barh(place, values[name], height=0.66, color=color)
            bar.set_gid(f"{heading}: {name}")
            text = f"{values[name]:.2f}"
        axes.annotate(
            text,
            (values.get(name, 0), place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold" if name.startswith(NATIVE) else "normal",
        )
