"""The bytes that a load client sends and expects back."""

from __future__ import annotations

import random

#: A prime, so not a multiple of any message size: neighbouring messages differ, and an answer that
#: belongs to another message is noticed.
PERIOD = 1_048_573

#: Bytes that can be taken from the block in one piece, at any start.
PIECE = 262_144

#: Distance of two connections in the block; a prime too, so that no two have one start.
STRIDE = 7_919


def make_block() -> memoryview:
    """Return one block for all connections: each has its own start in it, and wraps around."""
    block = random.Random(20_250_101).randbytes(PERIOD)
    return memoryview(block + block[:PIECE])


def start_of(connection: int) -> int:
    """Return where the stream of a connection begins in the block."""
    return connection * STRIDE % PERIOD
