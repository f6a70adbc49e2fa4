"""From the results of the threads of a run to its report."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from fastsock._native.client.histogram import Histogram
from fastsock.client import hdr, target_results, verdict
from fastsock.client.evidence import ClientEvidence, Taken
from fastsock.client.intervals import Collector
from fastsock.client.options import LoadOptions
from fastsock.client.report import (
    DATAGRAM_COUNTS,
    Latency,
    LoadReport,
    Outages,
    StageFigures,
    TcpStory,
)
from fastsock.endpoint import Endpoint, SocketAddress
from fastsock.host import host_facts


class Results:
    """What the threads of a run have counted, together."""

    def __init__(
        self,
        threads: Sequence[dict[str, Any]],
        histograms: Sequence[Mapping[str, Histogram]],
        collector: Collector | None,
    ) -> None:
        self._threads = threads
        self._start_ns = min(each["window_start_ns"] for each in threads)
        self._end_ns = max(each["window_end_ns"] for each in threads)
        self._duration = max(self._end_ns - self._start_ns, 0) / 1e9
        # First: it adds what is left to the histograms.
        self._intervals = collector.finish(self._duration) if collector else None
        self._histograms = {name: _merged(histograms, name) for name in histograms[0]}

    def report(
        self,
        target: Endpoint,
        options: LoadOptions,
        tried: Sequence[SocketAddress],
        started_at: datetime,
        taken: Taken,
        interrupted_by: signal.Signals | None,
    ) -> LoadReport:
        seen = self._seen(target, options, tried, taken, interrupted_by)
        shown = self._shown(options, seen.latency_without_away)
        latencies = {name: Latency.of(each, options.percentiles) for name, each in shown.items()}
        report = LoadReport(
            endpoint=str(target),
            options=options.as_dict(),
            duration=self._duration,
            messages=seen.messages,
            bytes=seen.messages * options.size,
            latency=latencies.get("latency", Latency()),
            latency_from_send=latencies.get("latency_from_send", Latency()),
            latency_without_away=latencies.get("latency_without_away", Latency()),
            connect_latency=latencies.get("connect", Latency()),
            send_delay=latencies.get("send_delay", Latency()),
            histograms={name: hdr.encode(each) for name, each in shown.items()},
            started_at=started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            address=str(tried[-1]),
            offered_per_s=options.offered_per_s,
            offered=seen.offered if options.open_loop else None,
            answered_in_window=seen.in_window,
            errors=seen.errors,
            lost_bytes=seen.lost,
            corrupt_bytes=seen.corrupt,
            no_eof=seen.no_eof,
            datagrams=seen.datagrams,
            outages=self._outages() if options.on_disconnect == "reconnect" else None,
            tcp=self._tcp(),
            reasons=verdict.reasons_of(seen),
            notes=verdict.notes_of(seen),
            client=seen.client,
            server_cpu=_server_cpu(self._threads[0]["server_cpu_ns"]),
            intervals=self._intervals,
            stages=self._stages(options),
            host=host_facts(),
        )
        targets = target_results.results_of(options.targets, report, shown)
        return replace(report, targets=targets)

    def _seen(
        self,
        target: Endpoint,
        options: LoadOptions,
        tried: Sequence[SocketAddress],
        taken: Taken,
        interrupted_by: signal.Signals | None,
    ) -> verdict.Seen:
        errors = sum((Counter(each["errors"]) for each in self._threads), Counter[str]())
        latency = self._histograms["from_intended"]
        opened = len(self._histograms["connects"]) > 0
        return verdict.Seen(
            options=options,
            where=" and ".join(map(str, tried)),
            duration=self._duration,
            messages=self._total("messages"),
            offered=self._total("offered"),
            in_window=self._total("in_window"),
            errors=errors,
            other_errno=max(each["other_errno"] for each in self._threads),
            silent=target.is_stream and opened and self._total("received_bytes") == 0,
            given_up=self._total("given_up"),
            no_eof=self._total("no_eof"),
            cut_off=self._total("cut_off"),
            lost=self._total("lost_bytes"),
            corrupt=self._total("corrupt_bytes"),
            datagrams=None if target.is_stream else self._datagrams(),
            latency=latency,
            latency_without_away=latency.corrected(
                self._histograms["moved_from"], self._histograms["moved_to"]
            ),
            trends=self._trends(),
            client=self._client(options, taken),
            interrupted_by=interrupted_by,
        )

    def _total(self, name: str) -> int:
        return int(sum(each.get(name, 0) for each in self._threads))

    def _shown(self, options: LoadOptions, without_away: Histogram) -> dict[str, Histogram]:
        """The distributions in which anything was recorded, by their names in the report."""
        shown = {"connect": self._histograms["connects"]}
        if options.mode == "echo":
            shown["latency"] = self._histograms["from_intended"]
            shown["latency_from_send"] = self._histograms["from_send"]
            shown["latency_without_away"] = without_away
        if options.open_loop:
            shown["send_delay"] = self._histograms["send_delay"]
        return {name: each for name, each in shown.items() if len(each)}

    def _trends(self) -> list[list[tuple[int, float]]]:
        stages = zip(*(each["stages"] for each in self._threads), strict=True)
        return [_added([each["trend"] for each in stage]) for stage in stages]

    def _stages(self, options: LoadOptions) -> tuple[StageFigures, ...] | None:
        if not options.stages:
            return None
        figures, start = [], 0.0
        for number, stage in enumerate(options.stages):
            if number and start >= self._duration:
                break  # the run was ended before
            latency = self._histograms[f"stage {number}"]
            seen = [each["stages"][number] for each in self._threads]
            figures.append(
                StageFigures(
                    stage=str(stage),
                    start=start,
                    end=min(start + stage.duration, self._duration),
                    rate_from=stage.rate_from,
                    rate_to=stage.rate_to,
                    offered=sum(each["offered"] for each in seen),
                    messages=sum(each["messages"] for each in seen),
                    latency=Latency.of(latency, options.percentiles),
                )
            )
            start += stage.duration
        return tuple(figures)

    def _client(self, options: LoadOptions, taken: Taken) -> ClientEvidence:
        # A thread is idle from when its last connection was closed.
        idle_ns = sum(
            each["idle_ns"] + self._end_ns - each["window_end_ns"] for each in self._threads
        )
        threads = len(self._threads)
        busy = 1 - idle_ns / 1e9 / self._duration / threads if self._duration else 0.0
        away, delayed, late = (
            sum(each["away_by_cause_ns"][cause] for each in self._threads) / 1e9
            for cause in range(3)
        )
        return ClientEvidence(
            busy=max(0.0, busy),
            away_s=away,
            delayed_s=delayed,
            late_s=late,
            longest_s=max(each["longest_away_ns"] for each in self._threads) / 1e9,
            throttled_s=taken.throttled,
            stolen_s=taken.stolen,
            schedstat=all(each["schedstat"] for each in self._threads),
            spinning_threads=threads if options.wait == "spin" else 0,
            cpus=len(os.sched_getaffinity(0)),
        )

    def _datagrams(self) -> dict[str, int]:
        return {
            kind: sum(each["datagrams"][kind] for each in self._threads) for kind in DATAGRAM_COUNTS
        }

    def _outages(self) -> Outages:
        each = [thread["outages"] for thread in self._threads]
        return Outages(
            count=sum(outages["count"] for outages in each),
            seconds=sum(outages["total_ns"] for outages in each) / 1e9,
            longest_s=max(outages["longest_ns"] for outages in each) / 1e9,
            messages=sum(outages["messages"] for outages in each),
        )

    def _tcp(self) -> TcpStory | None:
        each = [thread["tcp"] for thread in self._threads if thread.get("tcp")]
        connections = sum(tcp["connections"] for tcp in each)
        if not connections:
            return None
        smallest = [tcp["min_rtt_us"] for tcp in each if tcp["min_rtt_us"] is not None]
        return TcpStory(
            connections=connections,
            retransmits=sum(tcp["retransmits"] for tcp in each),
            rtt_us=sum(tcp["rtt_us_sum"] for tcp in each) / connections,
            max_rtt_us=max(tcp["rtt_us_max"] for tcp in each),
            min_rtt_us=min(smallest, default=None),
        )


def _merged(histograms: Sequence[Mapping[str, Histogram]], name: str) -> Histogram:
    merged = Histogram()
    for each in histograms:
        merged.add(each[name])
    return merged


def _added(trends: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Of all threads, part by part."""
    return [
        (sum(count for count, _ in part), sum(total for _, total in part))
        for part in zip(*trends, strict=True)
    ]


def _server_cpu(ns: int | None) -> float | None:
    """Seconds, never less than 0: the last tick of a child that ends in the window is not seen."""
    return None if ns is None else max(ns, 0) / 1e9
