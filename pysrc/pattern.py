"""The bytes that a load client sends, and knows when they come back."""

from __future__ import annotations

import random

#: Not a multiple of any message size in use, so that neighbouring messages differ: an answer that
#: belongs to another message is seen. A prime.
PERIOD = 1_048_573

#: Bytes that can be taken from the block in one piece, wherever they begin.
PIECE = 262_144

#: Distance of two connections in the block; a prime too, so that they meet nowhere soon.
STRIDE = 7_919


def make_block() -> memoryview:
    """One block for all connections: each begins somewhere else in it, and goes round."""
    block = random.Random(20_250_101).randbytes(PERIOD)
    return memoryview(block + block[:PIECE])


def start_of(connection: int) -> int:
    """Where the stream of a connection begins in the block."""
    return connection * STRIDE % PERIOD
