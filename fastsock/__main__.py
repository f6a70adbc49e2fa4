"""``python -m fastsock`` is the command ``fastsock``."""

from fastsock.cli import main

main()
