"""The server: `fastsock.Server` and `fastsock.serve()`."""
