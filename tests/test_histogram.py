"""Tests of the latency histogram, with the PyPI package hdrhistogram as the oracle.

Both have the same layout: lowest 100 ns, highest 10 minutes, 3 significant digits. The oracle
reports a percentile as the highest value of its step. Ours does too, but never more than the
largest value recorded, so it is compared with min(oracle, largest value). The oracle rounds min and
max to their steps. Ours are exact, so they are compared with the values themselves.
"""

from __future__ import annotations

import math

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastsock._native.client.histogram import Histogram

HIGHEST = 600_000_000_000  # ns, 10 minutes
PERCENTS = (0.001, 1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0)
NAMES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9, "p99_99": 99.99}

#: Values of every magnitude, and those at the edges of steps and buckets.
VALUES = st.one_of(
    st.integers(0, HIGHEST),
    st.integers(0, 200_000),
    st.builds(
        lambda bits, offset: min(max((1 << bits) + offset, 0), HIGHEST),
        st.integers(0, 39),
        st.integers(-65, 65),
    ),
)
LISTS = st.lists(VALUES, min_size=1, max_size=200)
PROFILE = settings(max_examples=100, deadline=None)


def ours(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def oracle(values: list[int]) -> HdrHistogram:
    histogram = HdrHistogram(100, HIGHEST, 3)
    for value in values:
        assert histogram.record_value(value)
    return histogram


def contents(histogram: Histogram) -> tuple[object, ...]:
    percentiles = [histogram.percentile(percent) for percent in PERCENTS]
    return (len(histogram), percentiles, histogram.summary_us())


@PROFILE
@given(LISTS)
@example([0])
@example([63, 64, 127, 128])
@example([131_071, 131_072])
@example([HIGHEST])
def test_percentiles_are_the_oracles(values: list[int]) -> None:
    """Every percentile is the oracle's, or the largest value if that is smaller."""
    histogram, reference = ours(values), oracle(values)
    assert len(histogram) == reference.get_total_count()
    for percent in PERCENTS:
        expected = min(reference.get_value_at_percentile(percent), max(values))
        assert histogram.percentile(percent) == expected


@PROFILE
@given(LISTS)
def test_the_summary_is_exact_where_it_can_be(values: list[int]) -> None:
    """count, min, mean and max are exact; the percentiles are those of percentile()."""
    histogram = ours(values)
    summary = histogram.summary_us()
    assert summary["count"] == len(values)
    assert summary["min"] == min(values) / 1e3
    assert summary["max"] == max(values) / 1e3
    assert summary["mean"] == pytest.approx(math.fsum(values) / len(values) / 1e3)
    for name, percent in NAMES.items():
        assert summary[name] == histogram.percentile(percent) / 1e3


@PROFILE
@given(st.lists(st.lists(VALUES, max_size=50), max_size=5))
def test_merging_is_recording_all(parts: list[list[int]]) -> None:
    """Added histograms, empty ones too, equal one with all the values."""
    merged = Histogram()
    for part in parts:
        merged.add(ours(part))
    whole = ours([value for part in parts for value in part])
    assert len(merged) == len(whole)
    mean, expected = merged.summary_us().pop("mean", 0), whole.summary_us().pop("mean", 0)
    assert mean == pytest.approx(expected)  # sums of floats, in another order
    assert [merged.percentile(p) for p in PERCENTS] == [whole.percentile(p) for p in PERCENTS]
    for name in ("count", "min", "max", *NAMES):
        assert merged.summary_us().get(name) == whole.summary_us().get(name)


@PROFILE
@given(LISTS, st.floats(0, 100))
def test_percentiles_are_close_to_the_truth(values: list[int], percent: float) -> None:
    """A percentile is at least the true value, and less than 0.1 % or 64 ns above it."""
    rank = max(1, int(percent / 100 * len(values) + 0.5))
    true = sorted(values)[rank - 1]
    found = ours(values).percentile(percent)
    assert true <= found <= max(true * 1.001, true + 63)


@PROFILE
@given(LISTS)
def test_percentiles_never_fall(values: list[int]) -> None:
    """Percentiles never fall; the lowest is at least min, and 100 is max."""
    histogram = ours(values)
    found = [histogram.percentile(percent) for percent in (0.0, *PERCENTS)]
    assert found == sorted(found)
    assert found[0] >= min(values)
    assert found[-1] == max(values)


@pytest.mark.parametrize("value", [HIGHEST + 1, HIGHEST * 2, 2**63 - 1])
def test_too_long_counts_as_ten_minutes(value: int) -> None:
    """A value above ten minutes counts as ten minutes."""
    histogram = ours([1000, value])
    assert len(histogram) == 2
    assert histogram.percentile(100) == HIGHEST
    assert histogram.summary_us()["max"] == HIGHEST / 1e3
    assert histogram.summary_us()["mean"] == pytest.approx((1000 + HIGHEST) / 2 / 1e3)


@pytest.mark.parametrize("value", [-1, -(2**63)])
def test_a_negative_value_counts_as_zero(value: int) -> None:
    """A negative value, from a clock that goes back, counts as 0."""
    histogram = ours([value])
    assert len(histogram) == 1
    assert histogram.percentile(100) == 0
    assert histogram.summary_us()["min"] == 0


def test_an_empty_histogram() -> None:
    """Without values the summary has only a count of 0, and every percentile is 0."""
    histogram = Histogram()
    assert len(histogram) == 0
    assert histogram.summary_us() == {"count": 0}
    assert [histogram.percentile(percent) for percent in PERCENTS] == [0] * len(PERCENTS)


def test_merging_with_nothing_changes_nothing() -> None:
    """Adding an empty histogram changes nothing; one added to an empty one gives a copy."""
    histogram = ours([100, 5_000, 70_000])
    before = contents(histogram)
    histogram.add(Histogram())
    assert contents(histogram) == before
    empty = Histogram()
    empty.add(histogram)
    assert contents(empty) == before
    assert contents(histogram) == before


def test_merging_with_itself_doubles() -> None:
    """A histogram added to itself has every value twice."""
    histogram = ours([100, 5_000, 70_000])
    histogram.add(histogram)
    assert contents(histogram) == contents(ours([100, 5_000, 70_000] * 2))


@pytest.mark.parametrize("percent", [-0.001, 100.001, float("nan"), float("inf"), -float("inf")])
def test_a_percentile_out_of_range(percent: float) -> None:
    """A percentile outside 0 to 100 is a ValueError, also without values."""
    for histogram in (Histogram(), ours([1])):
        with pytest.raises(ValueError, match="not between 0 and 100"):
            histogram.percentile(percent)


def test_wrong_types() -> None:
    """A value of a wrong type, or too large, is an error and changes nothing."""
    histogram = Histogram()
    for value in ("1", None, [1]):
        with pytest.raises(TypeError):
            histogram.record(value)  # type: ignore[arg-type]
    for other in (None, [1], 1):
        with pytest.raises(TypeError):
            histogram.add(other)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        histogram.record(2**63)
    assert len(histogram) == 0
