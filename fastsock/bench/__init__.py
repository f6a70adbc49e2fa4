"""Interleaved comparison of servers, behind `fastsock bench`."""
