"""Tests of human units on the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fastsock.cli.parameters import KindType
from fastsock.options import Rate, Seconds, Size
from fastsock.units import (
    format_bits,
    format_duration,
    format_rate,
    format_size,
    parse_count,
    parse_duration,
    parse_rate,
    parse_size,
    plural,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("64", 64),
        ("64B", 64),
        ("64k", 65536),
        ("64K", 65536),
        ("64KiB", 65536),
        ("64 KiB", 65536),
        (" 64k ", 65536),
        ("1.5k", 1536),
        ("0.1k", 102),
        ("1e3", 1000),
        ("1_000", 1000),
        (".5k", 512),
        ("2M", 2 * 1024**2),
        ("2MiB", 2 * 1024**2),
        ("3G", 3 * 1024**3),
        ("3GiB", 3 * 1024**3),
        ("9007199254740993", 2**53 + 1),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    """A size is a whole number of bytes, in multiples of 1024."""
    assert parse_size(text) == size
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0.0),
        ("10k/s", 10_000.0),
        ("10k", 10_000.0),
        ("1.5M/s", 1_500_000.0),
        ("2M", 2_000_000.0),
        ("7/s", 7.0),
        ("0.5", 0.5),
        (".5k/s", 500.0),
        ("1e6", 1_000_000.0),
        ("1_000k/s", 1_000_000.0),
    ],
)
def test_rates_are_decimal(text: str, rate: float) -> None:
    """A rate is messages per second, in multiples of 1000, and "/s" may be left out."""
    assert parse_rate(text) == rate
    assert type(parse_rate(text)) is float


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("500us", 0.0005),
        ("300us", 0.0003),
        ("0.3ms", 0.0003),
        ("20ms", 0.02),
        ("30s", 30.0),
        ("30", 30.0),
        ("1.5", 1.5),
        ("5e-05", 0.00005),
        (".1s", 0.1),
        (".1", 0.1),
        ("1e3us", 0.001),
        ("1_000.000_1", 1000.0001),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1h", 3600.0),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    """A duration is seconds, without rounding noise, and a plain number already is."""
    assert parse_duration(text) == seconds
    assert type(parse_duration(text)) is float


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("64", 64), ("10k", 10_000), ("1.5k", 1500), ("2M", 2_000_000), ("1e3", 1000)],
)
def test_counts_are_whole(text: str, count: int) -> None:
    """A count is a whole number, in multiples of 1000."""
    assert parse_count(text) == count
    assert type(parse_count(text)) is int


@pytest.mark.parametrize(
    ("text", "units", "message"),
    [
        ("1.5", True, "n '1.5' is not a whole number"),
        ("1KiB", True, "n '1KiB' is not a count; write a number and one of k, M, G, as in 10k"),
        ("1k", False, "n '1k' is not a whole number; write it without a unit, as in 1000"),
    ],
)
def test_a_count_is_refused(text: str, units: bool, message: str) -> None:
    """A count has no part of one, and may have no units at all."""
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_count(text, "n", units=units)


def test_plural() -> None:
    """One is not several."""
    assert [plural(n, "worker") for n in range(3)] == ["0 workers", "1 worker", "2 workers"]


@pytest.mark.parametrize(
    ("parse", "unit"),
    [(parse_size, "KiB"), (parse_rate, "k/s"), (parse_duration, "ms")],
)
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "+1", "nan", "inf", "-inf", "k", ".", "1x", "1 2", "٣", "1e", "0x10"),
        *("1\n\n2", ".e3", "._1", "_1", "1_", "1__0", "1_.0", "1,000"),
    ],
)
def test_nonsense_is_refused(parse: Callable[[str], float], unit: str, text: str) -> None:
    """What is not a number of at least 0 with a unit is one line that lists the units."""
    with pytest.raises(ValueError, match=unit) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_size, "1k/s"),
        (parse_size, "1ms"),
        (parse_rate, "1KiB"),
        (parse_rate, "1m"),
        (parse_rate, "1k/m"),
        (parse_duration, "1M"),
        (parse_duration, "1k"),
        (parse_duration, "1d"),
    ],
)
def test_units_of_another_family_are_refused(parse: Callable[[str], float], text: str) -> None:
    """A unit that belongs elsewhere is refused, with those that do not."""
    with pytest.raises(ValueError, match=r"(write a number and one of|did you mean)"):
        parse(text)


@pytest.mark.parametrize(
    ("parse", "text", "meant"),
    [
        (parse_size, "64KB", "64KiB"),
        (parse_size, "1.5 gb", "1.5GiB"),
        (parse_duration, "5sec", "5s"),
        (parse_duration, "10 MS", "10ms"),
        (parse_duration, "50\u00b5s", "50us"),
        (parse_rate, "10K/s", "10k/s"),
        (parse_rate, "100rps", "100/s"),
    ],
)
def test_other_spellings_name_the_unit(
    parse: Callable[[str], float], text: str, meant: str
) -> None:
    """A spelling of other tools is refused with ours, which reads back."""
    with pytest.raises(ValueError, match="; did you mean") as caught:
        parse(text)
    assert str(caught.value).endswith(f"; did you mean {meant}?")
    parse(meant)


@pytest.mark.parametrize("text", ["1.5", "1.5B", "0.001"])
def test_a_fraction_of_a_byte_is_refused(text: str) -> None:
    """Bytes come whole."""
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size(text)


@pytest.mark.parametrize("parse", [parse_size, parse_rate, parse_duration])
@pytest.mark.parametrize("text", ["1e999", "9" * 5000])
def test_what_overflows_is_refused(parse: Callable[[str], float], text: str) -> None:
    """A number beyond a float is too large, and the message stays short."""
    with pytest.raises(ValueError, match="too large") as caught:
        parse(text)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize("text", ["9223372036854775808", "8589934592G", "1e30"])
def test_a_size_beyond_ssize_t_is_refused(text: str) -> None:
    """A size fits what the kernel counts in."""
    with pytest.raises(ValueError, match="at most 9223372036854775807 bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (format_size, 0, "0B"),
        (format_size, 64, "64B"),
        (format_size, 1000, "1000B"),
        (format_size, 65536, "64KiB"),
        (format_size, 1536, "1.5KiB"),
        (format_size, 1024**2 - 1, "1MiB"),
        (format_size, 5 * 1024**4, "5120GiB"),
        (format_rate, 0, "0/s"),
        (format_rate, 0.25, "0.25/s"),
        (format_rate, 999.4, "999/s"),
        (format_rate, 999.6, "1k/s"),
        (format_rate, 10_000, "10k/s"),
        (format_rate, 1_234_567, "1.23M/s"),
        (format_duration, 0, "0us"),
        (format_duration, 0.0005, "500us"),
        (format_duration, 0.00000025, "0.25us"),
        (format_duration, 0.0009999, "1ms"),
        (format_duration, 0.0123, "12.3ms"),
        (format_duration, 30, "30s"),
        (format_duration, 59.99, "1min"),
        (format_duration, 90, "1.5min"),
        (format_duration, 7200, "2h"),
    ],
)
def test_printing_keeps_three_digits_and_the_unit(
    show: Callable[[float], str], value: float, text: str
) -> None:
    """A value prints in the largest unit that leaves a digit before the point."""
    assert show(value) == text


@pytest.mark.parametrize("show", [format_size, format_rate, format_duration])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_printing_refuses_what_cannot_be_read(show: Callable[[float], str], value: float) -> None:
    """Only what can be read back is printed."""
    with pytest.raises(ValueError, match="not a finite number of at least 0"):
        show(value)


@given(st.integers(0, 2**62))
def test_sizes_read_back_within_one_percent(size: int) -> None:
    """A printed size reads back as the same size, to three digits."""
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.01)


@given(st.floats(0, 1e15))
def test_rates_read_back_within_one_percent(rate: float) -> None:
    """A printed rate reads back as the same rate, to three digits."""
    assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=0.01)


@given(st.floats(0, 1e12))
def test_durations_read_back_within_one_percent(seconds: float) -> None:
    """A printed duration reads back as the same duration, to three digits."""
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.01)


@given(st.text())
def test_text_is_a_unit_or_a_value_error(text: str) -> None:
    """Any text at all is a finite number of at least 0, or a ValueError of one line."""
    for parse in (parse_size, parse_rate, parse_duration):
        try:
            assert 0 <= parse(text) < math.inf
        except ValueError as error:
            assert str(error).isprintable()


@click.command()
@click.option("--size", type=KindType(Size(0, 1 << 40), "size"), default=64)
@click.option("--rate", type=KindType(Rate(0, 1e9), "rate"), default=0.5)
@click.option("--duration", type=KindType(Seconds(0, 1e6), "duration"), default="2s")
def show(**options: Any) -> None:
    click.echo(repr(options))


def test_options_take_units() -> None:
    """Options turn units into bytes, messages per second and seconds."""
    result = CliRunner().invoke(show, ["--size", "1k", "--rate", "1k/s", "--duration", "1m"])
    assert result.output == "{'size': 1024, 'rate': 1000.0, 'duration': 60.0}\n"


def test_options_take_numbers_as_defaults() -> None:
    """A default may be a number or text."""
    result = CliRunner().invoke(show, [])
    assert result.output == "{'size': 64, 'rate': 0.5, 'duration': 2.0}\n"


def test_a_bad_option_is_a_usage_error() -> None:
    """A bad unit exits with 2 and names the option and what was expected."""
    result = CliRunner().invoke(show, ["--size", "1x"])
    assert result.exit_code == 2
    assert "--size" in result.output
    assert "'1x' is not a size" in result.output


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0bit/s"),
        (999, "999bit/s"),
        (1000, "1kbit/s"),
        (9.414e9, "9.41Gbit/s"),
        (1.5e12, "1500Gbit/s"),
    ],
)
def test_format_bits(rate: float, text: str) -> None:
    """Throughput is printed in decimal bits, as networks are."""
    assert format_bits(rate) == text
