"""``python -m fastsock`` is the command ``fastsock``."""

import sys


def main() -> None:
    try:
        import fastsock._native  # noqa: F401  says whether the extension modules are built
        from fastsock.cli import main as run
    except ImportError as error:
        if error.name not in ("fastsock._native", "click"):
            raise
        hint = "; type `pip install click`" if error.name == "click" else ""
        sys.exit(f"fastsock: {error}{hint}")
    run()


if __name__ == "__main__":
    main()
