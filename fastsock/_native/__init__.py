"""Everything that runs without the GIL; imports nothing of the package's Python."""
