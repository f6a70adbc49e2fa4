"""Everything that runs without the GIL; imports nothing of the package's Python."""

from importlib.machinery import PathFinder

# Python finds the package in the current directory first, so the source shadows an installed one.
if PathFinder.find_spec("worker", [f"{__path__[0]}/server"]) is None:
    from pathlib import Path

    here = Path(__path__[0])
    if (here / "server/worker.pyx").exists():
        raise ImportError(
            f"the extension modules in {here.parent.parent} are not built for this Python.\n"
            "To build them: `make build` or `pip install -e .`; to use an installed one: cd /",
            name="fastsock._native",
        )
