"""The README's picture: relative rates in the main cases, and CPU time per echo.

Drawn by ``python -m benchmarks.table`` from the results that it makes the tables of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsock.bench.picture import BLUE, GREY, NATIVE, figure, median, title

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
#: The case of each panel.
PANELS = {
    "64 connections": "64 connections, 64 B",
    "1000 connections": "1000 connections, 64 B",
    "1 connection": "1 connection, 64 B",
    "16 x 64 KiB": "16 connections, 64 KiB",
    "64 reconnecting": "64 connections, connect, echo, close, 64 B",
}
COST = "64 connections, 64 B"

_OTHERS = "#b0b0b0"


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a bar for each server in each panel."""
    cases = {case["name"]: case for case in document["cases"]}
    panels = {
        heading: dict(rates(cases[name])) for heading, name in PANELS.items() if name in cases
    }
    present = {name for values in panels.values() for name in values}
    servers = [name for name in SERVERS if name in present]
    with figure(path, 2 + 1.35 * (len(panels) + 1), 1.15 + 0.24 * len(servers)) as drawing:
        row = drawing.subplots(1, len(panels) + 1, sharey=True)
        for axes, (heading, values) in zip(row[:-1], panels.items(), strict=True):
            draw_bars(axes, heading, servers, values)
            axes.axvline(1, color=GREY, linewidth=0.8, zorder=0.5)
        draw_bars(row[-1], "CPU us per echo", servers, dict(costs(cases[COST])))
        row[0].set_yticks(range(len(servers)), [SERVERS[name] for name in servers])
        row[0].invert_yaxis()
        method = document["method"]
        title(
            drawing,
            "Echo servers: rate relative to a plain C epoll loop, and CPU time",
            document,
            "higher rates are better; 64-byte messages unless said otherwise; reconnecting: one "
            "connection a message; CPU time at 64 connections; medians of "
            f"{method['windows']} windows of {method['window_s']:g} s, taken in turns",
        )


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
    axes.set_title(heading, fontsize=9)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set_xlim(0, 1.3 * max(values.values(), default=1))  # with room for the figures
    for place, name in enumerate(servers):
        text = "-"
        if name in values:
            color = BLUE if name.startswith(NATIVE) else GREY if name == REFERENCE else _OTHERS
            (bar,) = axes.barh(place, values[name], height=0.66, color=color)
            bar.set_gid(f"{heading}: {name}")
            text = f"{values[name]:.2f}"
        axes.annotate(
            text,
            (values.get(name, 0), place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if name.startswith(NATIVE) else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
