"""Draw what waits where in each engine: ``python docs/pictures/engine_pictures.py``.

Writes the engine-*.svg of this directory for docs/engines.md; tests/test_figures.py compares them.
An SVG is 360 units wide and has its own background, in light and dark, so that its text can be
read on a phone whatever the page's colours are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
WIDTH = 360
SHOWN = 480  # pixels, where there is room

STYLE = """\
svg { --plate: #fff; --kernel: #e9f0f8; --server: #f7f0e2; --ink: #1a1a1a; --line: #737373;
  --box: #fff; --bytes: #0072b2; --call: #ffe3b8; --edge: #b35900 }
@media (prefers-color-scheme: dark) {
  svg { --plate: #16191d; --kernel: #202b38; --server: #302a20; --ink: #eee; --line: #969696;
    --box: #16191d; --bytes: #56b4e9; --call: #583a0c; --edge: #f0a63c }
}
text { font: 12.5px system-ui, sans-serif; fill: var(--ink) }
.name { font-weight: bold }
.middle { text-anchor: middle }
.plate { fill: var(--plate) }
.kernel { fill: var(--kernel) }
.server { fill: var(--server) }
.box { fill: var(--box); stroke: var(--line) }
.call { fill: var(--call); stroke: var(--edge); stroke-width: 1.5 }
.bytes { fill: var(--bytes) }
.line { stroke: var(--line); fill: none }
.way { stroke: var(--edge); stroke-width: 1.5; fill: none; marker-end: url(#tip) }
#tip path { fill: var(--edge) }"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    of = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{of}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, kind: str) -> str:
    size = f'width="{width:g}" height="{height:g}" rx="4"'
    return f'<rect x="{x:g}" y="{y:g}" {size} class="{kind}"/>'


def box(x: float, y: float, width: float, *lines: str, kind: str = "box") -> str:
    """A box with lines of text, 17 units each, in its middle."""
    height = 8 + 17 * len(lines)
    words = (
        text(x + width / 2, y + 17 + 17 * n, line, "middle") for n, line in enumerate(lines) if line
    )
    return "\n".join((rectangle(x, y, width, height, kind), *words))


def call(x: float, y: float, width: float, *lines: str) -> str:
    """A thread or process, and the call in which it waits."""
    return box(x, y, width, *lines, kind="call")


def socket(x: float, y: float, name: str, count: int = 0, width: float = 54) -> str:
    """A socket in the kernel, with `count` parts of its receive queue filled."""
    squares = (rectangle(x + width - 13 - 11 * n, y + 8, 9, 9, "bytes") for n in range(count))
    return "\n".join((rectangle(x, y, width, 25, "box"), text(x + 8, y + 17, name), *squares))


def clients(names: str, places: Sequence[float], bottom: float = 68) -> Iterable[str]:
    """The clients above the kernel, each with a line down to its socket."""
    yield text(10, 25, "clients", "name")
    for name, x in zip(names, places, strict=True):
        yield f'<circle cx="{x:g}" cy="21" r="12" class="box"/>'
        yield text(x, 25.5, name, "middle")
        yield f'<path d="M{x:g} 33V{bottom:g}" class="line"/>'


def kernel(height: float, name: str = "kernel") -> str:
    """The band of the kernel, below the clients, with its name at the top."""
    return f"{rectangle(4, 42, WIDTH - 8, height, 'kernel')}\n{text(10, 59, name, 'name')}"


def server(x: float, y: float, width: float, height: float, name: str) -> str:
    """The band of a process, with its name at the bottom."""
    return (
        f"{rectangle(x, y, width, height, 'server')}\n{text(x + 6, y + height - 8, name, 'name')}"
    )


def way(*points: tuple[float, float]) -> str:
    """An arrow along the points."""
    return f'<path d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}" class="way"/>'


def picture(height: float, title: str, description: str, *parts: str) -> str:
    """The whole SVG; its last line explains the signs."""
    foot = (
        rectangle(10, height - 19, 9, 9, "bytes"),
        text(25, height - 10, "received bytes"),
        rectangle(132, height - 21, 22, 13, "call"),
        text(160, height - 10, "thread or process that waits"),
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
            f'width="{SHOWN}" height="{height * SHOWN / WIDTH:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>\n{STYLE}\n</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8Z"/></marker></defs>',
            rectangle(0, 0, WIDTH, height, "plate"),
            *parts,
            *foot,
            "</svg>\n",
        )
    )


def serial() -> str:
    return picture(
        244,
        "The serial engine",
        "One thread waits in recv on the socket of client A. B and C wait in the accept queue.",
        kernel(90),
        rectangle(170, 52, 176, 72, "box"),
        *clients("ABC", (100, 224, 292)),
        socket(73, 68, "A"),
        socket(197, 68, "B", 1),
        socket(265, 68, "C", 2),
        text(258, 115, "accept queue", "middle"),
        server(4, 138, WIDTH - 8, 76, "server: one thread"),
        call(55, 152, 90, "recv(A)"),
        way((100, 152), (100, 95)),
        text(166, 162, "accept() for B comes"),
        text(166, 179, "when A has ended"),
    )


def threads() -> str:
    return picture(
        286,
        "The threads engine",
        "One thread waits in poll on the listener. The threads of A and B wait in recv, that "
        "of C waits in send, because C does not read.",
        kernel(90),
        *clients("ABC", (137, 217, 304)),
        box(14, 68, 74, "accept", "queue"),
        socket(110, 68, "A"),
        socket(190, 68, "B"),
        socket(277, 68, "C", 1),
        text(304, 108, "send buffer", "middle"),
        text(304, 124, "is full", "middle"),
        server(4, 138, WIDTH - 8, 118, "server: one process"),
        call(10, 154, 82, "accepting", "thread", "poll()"),
        call(102, 154, 70, "thread A", "recv()"),
        call(182, 154, 70, "thread B", "recv()"),
        call(262, 154, 84, "thread C", "send()"),
        way((51, 154), (51, 113)),
        way((137, 154), (137, 95)),
        way((217, 154), (217, 95)),
        way((304, 154), (304, 130)),
        text(102, 214, "each has a stack and a buffer;"),
        text(102, 231, "C stops only its own thread"),
    )


def fork() -> str:
    children = (("A", 166), ("B", 242), ("C", 318))
    return picture(
        256,
        "The fork engine",
        "The parent waits in poll on the listener and on the ends of its children. Each child is a "
        "process that waits in recv on its own socket.",
        kernel(60),
        *clients("ABC", [x for _, x in children]),
        box(14, 68, 98, "accept queue"),
        *(socket(x - 27, 68, name) for name, x in children),
        server(4, 108, 120, 84, "parent"),
        call(10, 120, 108, "poll(): listener", "and children"),
        way((63, 120), (63, 95)),
        *(
            part
            for name, x in children
            for part in (
                server(x - 36, 108, 72, 84, f"child {name}"),
                call(x - 31, 120, 62, "process", "recv()"),
                way((x, 120), (x, 95)),
            )
        ),
        rectangle(4, 198, WIDTH - 8, 27, "server"),
        text(10, 216, "shared memory: the counters of each child"),
    )


LOOP_SOCKETS = (("A", 117, 0), ("B", 183, 2), ("C", 249, 0), ("D", 315, 1))


def loop_sockets() -> Iterable[str]:
    yield from clients("ABCD", [x for _, x, _ in LOOP_SOCKETS], 72)
    yield socket(18, 72, "listener", width=66)
    yield from (socket(x - 27, 72, name, count) for name, x, count in LOOP_SOCKETS)


def poll() -> str:
    places = (("listener", 51), *((name, x) for name, x, _ in LOOP_SOCKETS))
    return picture(
        264,
        "The poll engine",
        "One thread waits in poll. It gives the kernel a list of all sockets at each call, and the "
        "kernel looks at each of them, also at those that are idle.",
        kernel(64),
        *loop_sockets(),
        server(4, 112, WIDTH - 8, 120, "server: one thread"),
        *(box(x - 33, 132, 66, name) for name, x in places),
        *(way((x, 132), (x, 99)) for _, x in places),
        text(16, 176, "At each call the list goes to the kernel,"),
        text(16, 193, "and it looks at every socket."),
        call(196, 202, 150, "poll(the list)"),
    )


def epoll() -> str:
    return picture(
        312,
        "The engines epoll and selectors",
        "The kernel keeps the list of all sockets, and a second list of those that are ready, B "
        "and D. One thread waits in epoll_wait, which returns those two.",
        kernel(150),
        rectangle(10, 64, 340, 56, "line"),
        *loop_sockets(),
        text(16, 114, "interest list"),
        way((183, 97), (183, 150)),
        way((315, 97), (315, 136), (256, 150)),
        rectangle(148, 146, 142, 37, "line"),
        box(156, 152, 54, "B"),
        box(228, 152, 54, "D"),
        text(82, 169, "ready list"),
        server(4, 198, WIDTH - 8, 84, "server: one thread"),
        call(159, 216, 120, "epoll_wait()"),
        way((219, 216), (219, 186)),
        text(16, 228, "a record for each"),
        text(16, 245, "connection"),
    )


def asyncio() -> str:
    places = (94, 190, 286)
    return picture(
        334,
        "The engine asyncio",
        "The loop waits in epoll_wait. Each connection has a coroutine that waits for its stream; "
        "the transport and the stream in between pass the bytes on.",
        kernel(60),
        *clients("ABC", places),
        *(
            socket(x - 27, 68, name, 2 * (name == "B"))
            for name, x in zip("ABC", places, strict=True)
        ),
        server(4, 108, WIDTH - 8, 196, "server: one thread"),
        call(115, 122, 150, "loop: epoll_wait()"),
        way((190, 122), (190, 95)),
        *(
            part
            for x in places
            for part in (
                box(x - 45, 154, 90, "transport"),
                way((x, 179), (x, 192)),
                box(x - 45, 192, 90, "stream"),
                way((x, 217), (x, 230)),
                box(x - 45, 230, 90, "coroutine:", "await read()"),
            )
        ),
    )


def io_uring() -> str:
    operations = (("listener", 60, 88), ("A", 158, 58), ("B", 230, 58), ("C", 302, 58))
    return picture(
        316,
        "The engine io_uring",
        "One accept and a recv for each connection are pending in the kernel. The results come "
        "into a ring in shared memory. One thread waits in io_uring_enter.",
        kernel(110),
        *clients("ABC", (158, 230, 302)),
        *(
            part
            for name, x, width in operations
            for part in (
                socket(x - width / 2, 68, name, width=width),
                f'<path d="M{x} 93V102" class="line"/>',
                box(x - width / 2, 102, width, "accept" if name == "listener" else "recv"),
            )
        ),
        text(16, 145, "pending operations"),
        rectangle(4, 158, WIDTH - 8, 68, "kernel"),
        rectangle(4, 192, WIDTH - 8, 34, "server"),
        box(12, 164, 106, "to submit:", "send to B"),
        box(128, 164, 106, "results:", "received of B"),
        box(244, 164, 104, "buffers:", ""),
        *(rectangle(256 + 17 * n, 188, 9, 9, "box" if n else "bytes") for n in range(5)),
        text(244, 219, "shared memory", "name"),
        server(4, 232, WIDTH - 8, 54, "server: one thread"),
        call(168, 244, 178, "io_uring_enter()"),
        way((230, 127), (206, 163)),
        way((205, 206), (205, 243)),
        way((168, 256), (65, 256), (65, 209)),
    )


PICTURES = {
    f"engine-{draw.__name__.replace('_', '-')}.svg": draw
    for draw in (serial, threads, fork, poll, epoll, asyncio, io_uring)
}


def main() -> None:
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw())


if __name__ == "__main__":
    main()
