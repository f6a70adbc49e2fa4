"""The io_uring engine."""
