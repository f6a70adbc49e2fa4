"""What runs add to Locust's own statistics, in bulk."""

from __future__ import annotations

import time

from locust.env import Environment
from locust.stats import StatsEntry, StatsError

from fastsock._native.client.histogram import Histogram
from fastsock.client.hdr import step_of
from fastsock.client.options import LoadOptions
from fastsock.client.report import Interval
from fastsock.locust.user_class import UserClass
from fastsock.units import format_size


def _entry_key(user_class: UserClass, options: LoadOptions) -> tuple[str, str]:
    """Name and method (Locust's column Type)."""
    unit = " (us)" if options.mode == "echo" else ""
    name = f"{user_class.name} {options.mode} {format_size(options.size)}{unit}"
    return name, user_class.endpoint.scheme


def log_interval(
    environment: Environment, user_class: UserClass, options: LoadOptions, row: Interval
) -> None:
    stats = environment.stats
    name, method = _entry_key(user_class, options)
    histogram = row.histograms.get("intended", row.histograms.get("sent"))
    entry = StatsEntry(stats, name, method)
    # Answers that came after the window count, as do those of the server.
    _count(entry, row.messages if histogram is None else len(histogram), row)
    entry.total_content_length = entry.num_requests * options.size
    if histogram is None:
        entry.num_none_requests = entry.num_requests
    else:
        _fill(entry, histogram)
    if entry.num_requests:
        stats.entries[name, method].extend(entry)
        stats.total.extend(entry)
    if connects := row.histograms.get("connect"):
        entry = StatsEntry(stats, f"{user_class.name} connect (us)", method)
        _count(entry, len(connects), row)
        _fill(entry, connects)
        stats.entries[entry.name, method].extend(entry)  # not in the total: it is no message


def _count(entry: StatsEntry, count: int, row: Interval) -> None:
    """So many requests, shared out over the seconds of an interval that has just ended."""
    now, length = time.time(), max(row.end - row.start, 1e-3)
    entry.num_requests = count
    entry.last_request_timestamp = now
    begin, before = now - length, 0
    for second in range(int(begin), int(now) + 1):
        upto = round(count * min(1.0, (second + 1 - begin) / length))
        entry.num_reqs_per_sec[second] += upto - before
        before = upto


def _fill(entry: StatsEntry, histogram: Histogram) -> None:
    """The response times in microseconds, in the histogram's own steps: 0.1 %, or 1 us.

    Locust's steps, which round to two digits, are for entries of milliseconds.
    """
    summary = histogram.summary_us()
    if not summary["count"]:
        return
    entry.min_response_time = round(summary["min"])
    entry.max_response_time = round(summary["max"])
    entry.total_response_time = round(summary["mean"] * summary["count"])
    for index, count in histogram.counts():
        highest = min(step_of(index)[0] / 1e3, summary["max"])
        entry.response_times[round(highest)] += count


def log_failures(
    environment: Environment, user_class: UserClass, options: LoadOptions, error: str, count: int
) -> None:
    stats = environment.stats
    name, method = _entry_key(user_class, options)
    for entry in (stats.entries[name, method], stats.total):
        entry.num_failures += count
        entry.num_fail_per_sec[int(time.time())] += count
    key = StatsError.create_key(method, name, error)
    failure = stats.errors.setdefault(key, StatsError(method, name, error))
    failure.occurrences += count - 1
    failure.occurred()
