"""Tests of histograms as text, with the PyPI package hdrhistogram as the oracle; of corrected ones.

The oracle reads our texts and we read the oracle's. A text has no exact min and max, so what is
read has those of its steps, and our highest value is ten minutes, not the end of its step.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import example, given
from hypothesis import strategies as st
from test_histogram import HIGHEST, LISTS, PERCENTS, PROFILE, VALUES, oracle, ours

from fastsock._native.client.histogram import Histogram
from fastsock.client.hdr import decode, encode

SETTINGS = (0, 3, 100, HIGHEST, 1.0)
COUNTS = st.dictionaries(
    st.integers(0, 24_669), st.integers(1, 2**40) | st.sampled_from([2**55, 2**56]), max_size=40
)


def text_of(
    numbers: bytes,
    settings: Iterable[float] = SETTINGS,
    cookies: tuple[int, int] = (0x1C849314, 0x1C849313),
    lengths: tuple[int, int] = (0, 0),
    after: bytes = b"",
) -> str:
    """A text whose lengths are wrong by `lengths`."""
    inner = struct.pack(">IIIIQQd", cookies[1], len(numbers) + lengths[1], *settings)
    data = zlib.compress(inner + numbers) + after
    return base64.b64encode(struct.pack(">II", cookies[0], len(data) + lengths[0]) + data).decode()


def assert_same(read: Histogram, values: list[int]) -> None:
    reference = oracle(values)
    assert len(read) == len(values)
    assert read.counts() == ours(values).counts()
    for percent in PERCENTS:
        expected = min(reference.get_value_at_percentile(percent), HIGHEST)
        assert read.percentile(percent) == expected


@PROFILE
@given(st.lists(VALUES, max_size=200))
@example([])
@example([0])
@example([64])
@example([0, 128])
@example([HIGHEST, HIGHEST - 1, 1])
def test_each_reads_the_others_text(values: list[int]) -> None:
    """We and the oracle read each other's text, and no count is lost."""
    text = encode(ours(values))
    reference = oracle(values)
    read = HdrHistogram.decode(text)
    assert read.get_total_count() == len(values)
    for percent in PERCENTS:
        assert read.get_value_at_percentile(percent) == reference.get_value_at_percentile(percent)
    assert_same(decode(text), values)
    assert_same(decode(reference.encode().decode()), values)


def test_the_text_is_the_oracles() -> None:
    """The bytes are the same. (One empty step alone is 0 in ours and in the Java reference.)"""
    values = [10, 1000, 1000, 70_000, 70_000_000, HIGHEST]
    assert encode(ours(values)) == oracle(values).encode().decode()


@PROFILE
@given(COUNTS)
def test_large_counts_come_back(counts: dict[int, int]) -> None:
    """Counts of up to nine bytes come back, and the oracle reads them too."""
    histogram = Histogram()
    histogram.add_counts(counts.items())
    assert dict(histogram.counts()) == counts
    assert decode(encode(histogram)).counts() == histogram.counts()
    assert HdrHistogram.decode(encode(histogram)).get_total_count() == sum(counts.values())


@PROFILE
@given(LISTS)
def test_what_is_read_has_the_summary_of_its_steps(values: list[int]) -> None:
    """min, mean and max of a read histogram are at most a step away from the exact ones."""
    exact, read = ours(values).summary_us(), decode(encode(ours(values))).summary_us()
    assert read["min"] <= exact["min"] <= max(read["min"] * 1.001, read["min"] + 0.063)
    assert read["mean"] == pytest.approx(exact["mean"], rel=0.001, abs=0.064)
    assert read["max"] * 0.999 - 0.063 <= exact["max"] <= read["max"]


def test_an_empty_histogram() -> None:
    """Without values the text is read as a histogram without values."""
    assert len(decode(encode(Histogram()))) == 0
    assert decode(encode(Histogram())).summary_us() == {"count": 0}
    assert len(decode(text_of(b""))) == 0


def test_the_count_with_nine_bytes() -> None:
    """The largest count of all is read and written whole."""
    histogram = Histogram()
    histogram.add_counts([(0, 2**63 - 1)])
    assert len(decode(encode(histogram))) == 2**63 - 1


GOOD = encode(ours([1000, 2000, HIGHEST]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "buffer", id="empty"),
        pytest.param("ä" * 8, "ASCII", id="not ASCII"),
        pytest.param("no base64!", "base64|padding|alphabet", id="not base64"),
        pytest.param(GOOD[:-4], "compressed bytes where", id="cut off"),
        pytest.param(GOOD + "AAAA", "base64|padding|where", id="longer"),
        pytest.param(text_of(b"\2", cookies=(0x1C849301, 0x1C849313)), "begins with", id="V1"),
        pytest.param(
            text_of(b"\2", cookies=(0x1C849314, 0x1C849301)), "begin with", id="V1 inside"
        ),
        pytest.param(text_of(b"\2", lengths=(1, 0)), "compressed bytes where", id="length"),
        pytest.param(text_of(b"\2", lengths=(0, 1)), "bytes of counts where", id="inner length"),
        pytest.param(text_of(b"\2", after=b"\0"), "more than", id="bytes after the zlib data"),
        pytest.param(text_of(b"\2\x80"), "cut off", id="the last count is cut off"),
        pytest.param(text_of(b"\2", (1, 3, 100, HIGHEST, 1.0)), "settings", id="offset"),
        pytest.param(text_of(b"\2", (0, 2, 100, HIGHEST, 1.0)), "2 significant", id="digits"),
        pytest.param(text_of(b"\2", (0, 3, 1, HIGHEST, 1.0)), "from 1 to", id="lowest"),
        pytest.param(text_of(b"\2", (0, 3, 100, 2**40, 1.0)), f"to {2**40}", id="highest"),
        pytest.param(text_of(b"\2", (0, 3, 100, HIGHEST, 2.0)), "settings", id="ratio"),
        pytest.param(text_of(b"\0" * 24_671), "ten minutes", id="an index too high"),
        pytest.param(text_of(b"\xff" * 9 + b"\2"), "too large", id="a run too long"),
        pytest.param(text_of(b"\xfe" + b"\xff" * 8 + b"\2"), "too large", id="total too large"),
        pytest.param(text_of(b"\0" * 1_000_000), "cut off or too long", id="too many counts"),
    ],
)
def test_bad_text(text: str, reason: str) -> None:
    """A text that is damaged or has other settings is a ValueError of one line."""
    with pytest.raises(ValueError, match=f"^not a histogram .*({reason})") as caught:
        decode(text)
    assert "\n" not in str(caught.value)


@PROFILE
@given(st.binary() | st.binary(max_size=20).map(lambda data: text_of(data).encode()))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Arbitrary text, and arbitrary counts in a good frame, give a histogram or a ValueError."""
    try:
        histogram = decode(data.decode("latin-1"))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert decode(encode(histogram)).counts() == histogram.counts()


@pytest.mark.parametrize("counts", [[(-1, 1)], [(24_670, 1)], [(0, -1)], [(0, 2**62)] * 2])
def test_impossible_counts(counts: list[tuple[int, int]]) -> None:
    """A step that does not exist, and a count that does not fit, are a ValueError."""
    with pytest.raises(ValueError, match=r"stands for more than|is negative or too large"):
        Histogram().add_counts(counts)


@PROFILE
@given(st.lists(VALUES, max_size=50), st.lists(st.tuples(VALUES, VALUES), max_size=50))
@example([], [])
@example([500], [(HIGHEST, 0)])
@example([], [(65, 64)])
@example([1471], [(0, 1471)])
def test_corrected_is_recording_the_corrected_values(
    kept: list[int], moved: list[tuple[int, int]]
) -> None:
    """Moved values are counted where they were moved to, and nowhere else."""
    before, after = [value for value, _ in moved], [value for _, value in moved]
    whole, moved_from, moved_to = ours(kept + before), ours(before), ours(after)
    corrected = whole.corrected(moved_from, moved_to)
    expected = ours(kept + after)
    assert corrected.counts() == expected.counts()
    assert len(corrected) == len(expected)
    found, exact = corrected.summary_us(), expected.summary_us()
    assert found.pop("mean", 0) == pytest.approx(exact.pop("mean", 0))
    if not exact["count"]:
        assert found == exact
        return
    # The histograms do not tell which values of a step were moved.
    low, least = round(found["min"] * 1e3), round(exact["min"] * 1e3)  # nanoseconds, exact
    high, most = round(found["max"] * 1e3), round(exact["max"] * 1e3)
    assert low <= least <= max(low * 1.001, low + 63)
    assert high * 0.999 - 63 <= most <= high
    if not moved or max(before) < max(kept, default=0) * 0.99 - 64:
        assert high == most
    for percent in PERCENTS:
        assert corrected.percentile(percent) >= expected.percentile(percent)
    assert len(whole) == len(kept) + len(before)  # unchanged


def test_corrected_without_moved_values_is_a_copy() -> None:
    """With nothing moved the summary stays what it was, exactly."""
    histogram = ours([70, 1001, 5_000_001])
    copy = histogram.corrected(Histogram(), Histogram())
    assert copy.summary_us() == histogram.summary_us()
    copy.record(1)
    assert len(histogram) == 3


def test_a_moved_value_that_was_never_recorded() -> None:
    """A value that the histogram does not have cannot be moved."""
    with pytest.raises(ValueError, match="does not have all values"):
        ours([1000]).corrected(ours([5000]), ours([1000]))
    with pytest.raises(TypeError):
        ours([1]).corrected(None, Histogram())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "percent", "above"),
    [
        (0, 99, 0),
        (1, 0, 0),
        (1, 100, 0),
        (1000, 99, 10),
        (999, 99, 10),
        (900, 99, 9),
        (10_000, 99.9, 10),
        (20, 50, 10),
    ],
)
def test_how_many_values_are_above_a_percentile(count: int, percent: float, above: int) -> None:
    """Equal values count too: the rank decides."""
    assert ours([1000] * count).count_above(percent) == above
    assert ours(list(range(0, count * 100, 100))).count_above(percent) == above


def test_above_a_percentile_out_of_range() -> None:
    """A percentile outside 0 to 100 is a ValueError."""
    with pytest.raises(ValueError, match="not between 0 and 100"):
        Histogram().count_above(101)
