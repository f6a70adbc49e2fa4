"""Histograms as text: HdrHistogram's V2 compressed format, in base64.

https://github.com/HdrHistogram/HdrHistogram (`encodeIntoCompressedByteBuffer`) is the reference.
Numbers are big-endian. The text is a cookie, a length and so many bytes of zlib data. These hold a
header and the counts of the steps up to the highest value. Each count is a ZigZag LEB128 number;
a negative number -n stands for n steps without values.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator

from fastsock._native.client.histogram import Histogram

HALF_BITS, _UNIT_BITS = 10, 6  # of the layout (histogram.pxd)
_COMPRESSED, _PLAIN = 0x1C849304, 0x1C849303
_WORD_SIZE = 0xF0  # bits of a cookie; V2 writes 1 there and reads any number
_OUTER = struct.Struct(">II")  # cookie, length of the zlib data
#: Cookie, length of the counts; the settings: normalizing index offset, significant digits, lowest
#: and highest value in ns, ratio of integers to values.
_INNER = struct.Struct(">IIIIQQd")
_SETTINGS = (0, 3, 100, 600_000_000_000, 1.0)
#: A malicious text could grow to gigabytes; this is 25 * 1024 numbers of 9 bytes, and one more.
_MAX_BYTES = _INNER.size + 25 * 1024 * 9 + 1


def encode(histogram: Histogram) -> str:
    """One line of ASCII text that every HdrHistogram implementation reads."""
    numbers = bytearray()
    following = 0
    for index, count in histogram.counts():
        without = index - following
        if without:
            numbers += _number(-without if without > 1 else 0)
        numbers += _number(count)
        following = index + 1
    if not numbers:
        numbers += _number(0)  # the step of the highest value, which is 0 without values
    plain = _INNER.pack(_PLAIN | 0x10, len(numbers), *_SETTINGS) + numbers
    compressed = zlib.compress(plain)
    return base64.b64encode(_OUTER.pack(_COMPRESSED | 0x10, len(compressed)) + compressed).decode()


def decode(text: str) -> Histogram:
    """The histogram in the text of an `encode`, also of another implementation's.

    Its min, mean and max are those of its steps: the format has no more.

    Raises:
        ValueError: the text is damaged, or its histogram has other settings than ours.

    """
    histogram = Histogram()
    try:
        histogram.add_counts(_counts(_plain_data(text)))
    except (ValueError, OverflowError, struct.error, zlib.error) as error:
        raise ValueError(f"not a histogram in HdrHistogram's V2 format: {error}") from None
    return histogram


def step_of(index: int) -> tuple[int, int]:
    """The highest value of a step, by its index, and the one in its middle; nanoseconds."""
    bucket = max((index >> HALF_BITS) - 1, 0)
    step = index - (bucket << HALF_BITS)
    width = 1 << (bucket + _UNIT_BITS)
    return (step + 1) * width - 1, step * width + width // 2


def _plain_data(text: str) -> bytes:
    """The bytes of the counts, checked by length and header."""
    data = base64.b64decode(text, validate=True)
    cookie, length = _OUTER.unpack_from(data)
    compressed = data[_OUTER.size :]
    if cookie & ~_WORD_SIZE != _COMPRESSED:
        raise ValueError(f"it begins with {cookie:#x}")
    if length != len(compressed):
        raise ValueError(f"{len(compressed)} compressed bytes where {length} are announced")
    unpacker = zlib.decompressobj()
    plain = unpacker.decompress(compressed, _MAX_BYTES)
    if not unpacker.eof:
        raise ValueError("the compressed data are cut off or too long")
    if unpacker.unused_data:
        raise ValueError("it has more than the compressed data")
    cookie, length, *settings = _INNER.unpack_from(plain)
    if cookie & ~_WORD_SIZE != _PLAIN:
        raise ValueError(f"the compressed data begin with {cookie:#x}")
    if length != len(plain) - _INNER.size:
        raise ValueError(f"{len(plain) - _INNER.size} bytes of counts where {length} are announced")
    if tuple(settings) != _SETTINGS:
        _, digits, lowest, highest, _ = settings
        raise ValueError(
            f"its settings differ: {digits} significant digits from {lowest} to {highest} ns"
        )
    return plain[_INNER.size :]


def _counts(data: bytes) -> Iterator[tuple[int, int]]:
    index = 0
    for number in _numbers(data):
        if number < 0:
            index -= number
        else:
            yield index, number
            index += 1


def _number(value: int) -> bytes:
    """A ZigZag LEB128 number: 7 bits a byte, the lowest first; a ninth byte has 8 bits."""
    zigzag = value << 1 if value >= 0 else (-value << 1) - 1
    encoded = bytearray()
    while zigzag >= 0x80 and len(encoded) < 8:
        encoded.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    encoded.append(zigzag)
    return bytes(encoded)


def _numbers(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        if shift == 56:
            value |= byte << shift
        else:
            value |= (byte & 0x7F) << shift
            if byte & 0x80:
                shift += 7
                continue
        yield -(value + 1 >> 1) if value & 1 else value >> 1
        value = shift = 0
    if shift:
        raise ValueError("the last count is cut off")
