"""Pictures of comparisons, as SVG or PNG; matplotlib is imported only when one is drawn.

The same results always give the same file. Line style and marker tell servers apart as colours do.
A picture is as wide as a phone: 360 units, panels one under the other, text of 12 units.
"""

from __future__ import annotations

import importlib.util
import io
import textwrap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastsock.bench.svg import LIGHT, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")

#: In units of the SVG, 72 an inch: of the picture, and of a line of its text and of its title.
WIDTH, LINE, TITLE_LINE = 360, 15, 18
#: Characters of a line in a wide font.
CHARACTERS, TITLE_CHARACTERS = 52, 40

#: Engines that work alike have one colour and marker, native or in the standard library.
LOOKS = {
    "epoll": ("blue", "o"),
    "selectors": ("blue", "o"),
    "io_uring": ("purple", "P"),
    "poll": ("sky", "s"),
    "threads": ("orange", "^"),
    "fork": ("vermilion", "v"),
    "asyncio": ("green", "D"),
    "serial": ("ink", "X"),
}
NATIVE, TWIN = "fastsock ", "stdlib "

_STYLE: Any = {
    "figure.facecolor": LIGHT["plate"],
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 12,
    "text.color": LIGHT["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["grey"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 1,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: a smaller file, which can be searched
    "svg.hashsalt": "fastsock",  # ids would be random without
}

Value = Callable[[dict[str, Any]], float | None]


def check(path: str) -> None:
    """Raise if no picture can be drawn to `path`.

    Raises:
        ValueError: another suffix than .svg or .png.
        ModuleNotFoundError: matplotlib is missing; the message says how to install it.

    """
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(
            f"picture {path!r} ends with none of {', '.join(SUFFIXES)}; "
            f"write {Path(path).with_suffix(SUFFIXES[0])}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("a picture needs matplotlib: pip install 'fastsock[report]'")


@contextmanager
def figure(
    path: str | Path, sizes: tuple[float, float], title: str, document: dict[str, Any], method: str
) -> Iterator[tuple[Figure, float]]:
    """An empty figure in the style of all pictures; saved at the end.

    From top to bottom: the title, room for a legend, the panels, then method, machine and versions.
    `sizes` are the heights of legend and panels; the panels' top is given as a share of the whole.
    """
    check(str(path))
    import matplotlib
    from matplotlib.figure import Figure

    if any(result["problems"] for case in document["cases"] for result in case["results"]):
        title += " (some figures are not valid)"
    head = textwrap.wrap(title, TITLE_CHARACTERS)
    foot = [*textwrap.wrap(method, CHARACTERS), *textwrap.wrap(provenance(document), CHARACTERS)]
    below = 16 + LINE * len(foot)
    total = 20 + TITLE_LINE * len(head) + sum(sizes) + below
    top = (below + sizes[1]) / total
    with matplotlib.rc_context(_STYLE):
        drawing = Figure(figsize=(WIDTH / 72, total / 72), layout="constrained")
        drawing.set_layout_engine(
            "constrained", rect=(0.01, below / total, 0.98, sizes[1] / total), h_pad=4 / 72
        )
        for place, line in enumerate(head):
            y = 1 - (10 + TITLE_LINE * place) / total
            drawing.text(8 / WIDTH, y, line, va="top", fontsize=14, fontweight="bold")
        for place, line in enumerate(foot):
            drawing.text(8 / WIDTH, (below - 12 - LINE * place) / total, line, va="top")
        yield drawing, top
        if Path(path).suffix == ".svg":
            drawn = io.StringIO()
            drawing.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
            text = f"{method}. {provenance(document)}."
            Path(path).write_text(readable(drawn.getvalue(), title, text))
        else:
            drawing.savefig(path, dpi=150)


def provenance(document: dict[str, Any]) -> str:
    """Machine, versions, commit if known, and date of a ``fastsock.bench`` document."""
    host, commit = document["host"], document.get("commit")
    cpus = "1 CPU" if host["cpus"] == 1 else f"{host['cpus']} CPUs"
    parts = [
        f"{host['cpu']}, {cpus}",
        f"Linux {host['kernel']}",
        f"Python {host['python']}",
        f"fastsock {host['fastsock']}" + (f" ({commit})" if commit else ""),
        document["date"][:10],
    ]
    return "; ".join(parts)


# --- the engines of a server over the number of connections -------------------------------------


def median(key: str) -> Value:
    return lambda result: float(result[key]["median"]) if result[key] else None


def memory_mib(result: dict[str, Any]) -> float | None:
    memory = result["memory_bytes"]
    return memory["connected"] / 2**20 if memory else None


def count(value: float, _: object = None) -> str:
    return with_unit(value, ("", "k", "M"), 1000).replace(" ", "")


def microseconds(value: float, _: object = None) -> str:
    return with_unit(value, ("us", "ms", "s"), 1000)


def mebibytes(value: float, _: object = None) -> str:
    return with_unit(value, ("MiB", "GiB"), 1024)


def with_unit(value: float, units: tuple[str, ...], factor: int) -> str:
    """`value`, given in the first unit, with the unit that keeps the number short."""
    for unit in units[:-1]:
        if value < factor:
            return f"{value:g} {unit}"
        value /= factor
    return f"{value:g} {units[-1]}"


class Panel(NamedTuple):
    name: str
    scale: str
    value: Value
    text: Callable[[float, object], str]


PANEL_HEIGHT, LEGEND_LINE = 165, 17

PANELS = (
    Panel("Messages per second", "linear", median("messages_per_s"), count),
    Panel("Latency, 99th percentile", "log", median("p99_us"), microseconds),
    Panel("Server CPU per echo", "linear", median("server_cpu_us_per_echo"), microseconds),
    Panel("Memory, all connected", "log", memory_mib, mebibytes),
)


def draw_engines(document: dict[str, Any], path: str | Path) -> None:
    """Draw rate, p99, CPU per echo and memory over the connections, a line for each server."""
    method = document["method"]
    size = document["cases"][0]["case"]["size"]
    absent = "".join(f"; {name}: {why}" for name, why in left_out(document).items())
    sizes = LEGEND_LINE * ceil(len(servers(document)) / 2), PANEL_HEIGHT * len(PANELS)
    told = (
        f"{size}-byte messages; medians of {method['windows']} windows of "
        f"{method['window_s']:g} s, taken in turns{absent}"
    )
    with figure(path, sizes, "One echo server, every engine", document, told) as (drawing, top):
        panels = drawing.subplots(len(PANELS))
        for axes, panel in zip(panels, PANELS, strict=True):
            draw_panel(axes, panel, document)
        panels[-1].set_xlabel("connections")
        legend(drawing, panels[0], top)


def draw_panel(axes: Axes, panel: Panel, document: dict[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    axes.set_title(panel.name)
    axes.set_xscale("log")
    drawn = [draw_line(axes, panel, document, server) for server in servers(document)]
    counts = sorted({case["case"]["connections"] for case in document["cases"]})
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    if not any(drawn):
        axes.set_yticks([])
        return
    axes.set_yscale(panel.scale)
    if panel.scale == "linear":
        axes.set_ylim(bottom=0)
    else:
        low, high = axes.get_ylim()
        axes.set_ylim(*around(low, high))
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(panel.text)


def around(low: float, high: float) -> tuple[float, float]:
    """The nearest labels of a log axis outside: 1, 2 or 5 times a power of ten."""
    steps = [step * 10.0**power for power in range(-3, 12) for step in (1, 2, 5)]
    return steps[bisect_right(steps, low) - 1], steps[bisect_left(steps, high)]


def draw_line(axes: Axes, panel: Panel, document: dict[str, Any], server: str) -> bool:
    """Draw what is known of a server; return whether anything is."""
    points = [
        (case["case"]["connections"], panel.value(result))
        for case in document["cases"]
        for result in case["results"]
        if result["name"] == server
    ]
    known = [(x, y) for x, y in points if y is not None]
    native = server.startswith(NATIVE)
    name, marker = look(server)
    color = LIGHT[name]
    (line,) = axes.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=color,
        marker=marker,
        markersize=5,
        markerfacecolor=color if native else LIGHT["plate"],
        linewidth=1.6,
        linestyle="-" if native else (0, (4, 1.5)),
        label=server,
        clip_on=not known,  # without points its box is none, and the layout gives up
    )
    line.set_gid(f"{panel.name}: {server}")
    return bool(known)


def servers(document: dict[str, Any]) -> list[str]:
    """Names of all servers, each once, in the order of their first case."""
    names = [result["name"] for case in document["cases"] for result in case["results"]]
    return list(dict.fromkeys(names))


def left_out(document: dict[str, Any]) -> dict[str, str]:
    """Engines that do not take part in every case, and why."""
    return {
        engine_of(server): why
        for case in document["cases"]
        for server, why in case["left_out"].items()
    }


def engine_of(server: str) -> str:
    return server.removeprefix(NATIVE).removeprefix(TWIN)


def look(server: str) -> tuple[str, str]:
    """Name of the colour, and marker; those of a rival are grey."""
    return LOOKS.get(engine_of(server), ("grey", "*"))


def legend(drawing: Figure, axes: Axes, bottom: float) -> None:
    """One legend for all panels; `bottom` is a share of the picture's height."""
    drawing.legend(
        *axes.get_legend_handles_labels(),
        loc="lower left",
        bbox_to_anchor=(0.02, bottom),
        ncols=2,
        handlelength=2.2,
        columnspacing=1,
        borderaxespad=0.5,
        borderpad=0,
        labelspacing=0.2,
    )
