"""The load client: `fastsock.load()`."""
