"""Pictures of comparisons, as SVG or PNG; matplotlib is imported only when one is drawn.

The same results always give the same file. The colours are those of Okabe and Ito, which
colour-blind readers can tell apart; line style and marker tell servers apart too.
"""

from __future__ import annotations

import importlib.util
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")

BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
ORANGE, VERMILION, PURPLE = "#E69F00", "#D55E00", "#CC79A7"
GREY, INK = "#767676", "#1a1a1a"

#: Engines that work alike have one colour and marker, native or in the standard library.
LOOKS = {
    "epoll": (BLUE, "o"),
    "selectors": (BLUE, "o"),
    "io_uring": (PURPLE, "P"),
    "poll": (SKY, "s"),
    "threads": (ORANGE, "^"),
    "fork": (VERMILION, "v"),
    "asyncio": (GREEN, "D"),
    "serial": (INK, "X"),
}
NATIVE, TWIN = "fastsock ", "stdlib "

_STYLE: Any = {
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
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
def figure(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, in the style of all pictures; saved at the end."""
    check(str(path))
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        drawing = Figure(figsize=(width, height), layout="constrained")
        yield drawing
        nameless = {"Date": None, "Creator": None} if Path(path).suffix == ".svg" else None
        drawing.savefig(path, dpi=150, metadata=nameless)


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
    return "  ·  ".join(parts)


def title(drawing: Figure, text: str, document: dict[str, Any], method: str) -> None:
    """The title, and below it in small print machine, versions and method."""
    height = drawing.get_figheight()
    if any(result["problems"] for case in document["cases"] for result in case["results"]):
        text += " (some figures are not valid)"
    drawing.text(0.01, 1 - 0.1 / height, text, va="top", fontsize=13, fontweight="bold")
    small = f"{provenance(document)}\n{method}"
    drawing.text(0.01, 1 - 0.38 / height, small, va="top", fontsize=7, linespacing=1.4)
    drawing.set_layout_engine("constrained", rect=(0.005, 0, 0.99, 1 - 0.75 / height))


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
    with figure(path, 9, 6.6) as drawing:
        panels = drawing.subplots(2, 2, sharex=True)
        for axes, panel in zip(panels.flat, PANELS, strict=True):
            draw_panel(axes, panel, document)
        for axes in panels[1]:
            axes.set_xlabel("connections")
        legend(drawing, panels[0][0])
        title(
            drawing,
            "One echo server, every engine",
            document,
            f"{size}-byte messages; medians of {method['windows']} windows of "
            f"{method['window_s']:g} s, taken in turns{absent}",
        )


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
    color, marker = look(server)
    (line,) = axes.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=color,
        marker=marker,
        markersize=5,
        markerfacecolor=color if native else "white",
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
    """Colour and marker; those of a rival are grey."""
    return LOOKS.get(engine_of(server), (GREY, "*"))


def legend(drawing: Figure, axes: Axes) -> None:
    """One legend for all panels."""
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside right upper", handlelength=3)
