"""Stages of an open loop, and connections that are opened one after the other."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from load_runs import QUIET, assert_good, native_server

import fastsock
from fastsock.client.options import LoadOptions
from fastsock.client.stages import MAX_STAGES, Stage, Stages

KIND = Stages()


def stages_in(text: Any) -> tuple[Stage, ...]:
    return KIND.check("stages", text)


def test_the_grammar() -> None:
    expected = (Stage(10, 1000, 1000), Stage(0.5, 1000, 10_000), Stage(120, 1e4, 0.5))
    assert stages_in("10s@1k, 500ms@1k..10k ,2min@10k/s..0.5") == expected
    assert stages_in(["10@1000", "500ms@1k..10k/s", "2min@1e4..0.5"]) == expected
    assert stages_in(expected) == expected
    assert ", ".join(map(str, expected)) == "10s@1k/s, 500ms@1k/s..10k/s, 2min@10k/s..0.5/s"
    assert stages_in(", ".join(map(str, expected))) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not DURATION@RATE"),
        ("10s", "'10s' is not DURATION@RATE"),
        ("@1k", "'@1k' is not DURATION@RATE"),
        ("10s@", "'10s@' is not DURATION@RATE"),
        ("10s@1k,", "'' is not DURATION@RATE"),
        ("1k@10s", "is not a duration"),
        ("10s@1k-10k", "did you mean 10s@1k..10k?"),
        ("10s@1k..", "rate '' is not a rate"),
        ("10s@1k...2k", "did you mean 10s@1k..2k"),
        ("0s@1k", "duration 0s is out of range"),
        ("10s@0", "rate 0 is out of range"),
        ("10s@0..1k", "rate 0 is out of range"),
        ("10s@-1", "did you mean|is not a rate"),
        (",".join(["1s@1"] * (MAX_STAGES + 1)), "expected at most 100"),
        ("20days@1", "is not a duration"),
        ("400h@1, 400h@1", "out of range"),
    ],
)
def test_bad_stages_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stages_in(text)


@pytest.mark.parametrize("value", [5, b"10s@1k", None])
def test_stages_of_another_type_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="expected a str such as"):
        stages_in(value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 5}, "stages does not go with rate"),
        ({"duration": 5}, "stages does not go with duration"),
        ({"messages": 5}, "stages does not go with messages"),
        ({"depth": 5}, "depth does not go with rate or stages"),
        ({"mode": "receive"}, "do not go with mode 'receive'"),
    ],
)
def test_what_does_not_go_with_stages(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LoadOptions(**{"stages": "1s@1k", **options})


def due_in(stages: tuple[Stage, ...], warmup: float) -> list[float]:
    """How many messages are due in each stage, by the integral of the rate."""
    due = list(itertools.accumulate(stage.messages for stage in stages))
    before = warmup * stages[0].rate_from
    return [end - start for start, end in itertools.pairwise([before, *(before + d for d in due)])]


@pytest.mark.parametrize("number", range(6))
def test_each_stage_offers_the_integral_of_its_rate(server: fastsock.Server, number: int) -> None:
    """Whatever the stages, with any number of threads, and with a warm-up that is not counted."""
    dice = random.Random(number)
    rates = [dice.choice([200, 1000, 3000.5, 5000]) for _ in range(6)]
    stages = tuple(
        Stage(dice.choice([0.05, 0.111, 0.2]), start, dice.choice([start, end]))
        for start, end in itertools.pairwise(rates)
    )
    report = fastsock.load(
        server.endpoint,
        stages=list(map(str, stages)),
        connections=3,
        threads=dice.choice([1, 3]),
        warmup=dice.choice([0, 0.05]),
        **QUIET,
    )
    assert_good(report)
    assert report.stages is not None
    for seen, expected in zip(report.stages, due_in(stages, report.options["warmup"]), strict=True):
        assert abs(seen.offered - expected) <= 1.001
        assert seen.messages == seen.offered == seen.latency.count
        assert seen.messages_per_s == pytest.approx(expected / (seen.end - seen.start), abs=25)
    assert sum(seen.offered for seen in report.stages) == report.offered == report.messages
    assert report.duration == pytest.approx(sum(stage.duration for stage in stages))
    assert report.offered_per_s == pytest.approx(report.offered / report.duration, rel=0.01)


def test_random_arrivals_follow_the_stages(server: fastsock.Server) -> None:
    """Five deviations of a Poisson number are not exceeded by chance."""
    text = "300ms@1k, 300ms@1k..9k, 300ms@9k"
    options: dict[str, Any] = {"stages": text, "arrivals": "poisson", "connections": 4, **QUIET}
    report = fastsock.load(server.endpoint, threads=2, seed=7, **options)
    assert report.stages is not None
    for seen, expected in zip(report.stages, (300, 1500, 2700), strict=True):
        assert abs(seen.offered - expected) < 5 * expected**0.5
    again = fastsock.load(server.endpoint, threads=2, seed=7, **options)
    assert [seen.offered for seen in report.stages] == [seen.offered for seen in again.stages or ()]


def test_datagrams_have_stages() -> None:
    with fastsock.Server("udp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, stages="100ms@1k, 200ms@1k..5k", **QUIET)
    assert [seen.offered for seen in report.stages or ()] == [100, 600]


def test_a_stage_without_steady_state_is_named() -> None:
    """A linear stage is not judged: its latency may grow with the rate."""
    report = run_on_slow_server("500ms@100, 1s@3k")
    codes = [reason.code for reason in report.reasons]
    assert "overload" in codes or "not_steady" in codes
    assert all("stage 1," not in reason for reason in report.reasons)


def run_on_slow_server(stages: str) -> fastsock.LoadReport:
    """Load a server that answers about 1000 messages a second."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # the client gives the rest up
            while not over.wait(0.001) and (data := connection.recv(64, socket.MSG_WAITALL)):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        host, port = listener.getsockname()
        report = fastsock.load(f"tcp://{host}:{port}", stages=stages, **QUIET)
        over.set()
        thread.join(10)
    return report


def test_a_stage_that_was_cut_short_has_its_own_rate(server: fastsock.Server) -> None:
    """And one that did not begin is not there."""

    def on_interval(row: Any) -> None:
        if row.end > 0.35:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(fastsock.LoadInterrupted) as caught:
        fastsock.load(
            server.endpoint,
            stages="200ms@1k, 50s@2k, 1s@3k",
            on_interval=on_interval,
            interval=0.1,
            warmup=0,
            **QUIET,
        )
    first, second = caught.value.report.stages or ()
    assert (first.offered, first.end) == (200, 0.2)
    assert second.end == caught.value.report.duration
    assert second.messages_per_s == pytest.approx(2000, rel=0.05)


def test_the_text_has_a_line_for_each_stage(server: fastsock.Server) -> None:
    report = fastsock.load(server.endpoint, stages="100ms@1k, 100ms@1k..2k", **QUIET)
    lines = [line for line in str(report).splitlines() if line.startswith("stage")]
    assert [line.split()[1] for line in lines] == ["100ms@1k/s:", "100ms@1k/s..2k/s:"]
    assert "open loop, 2 stages" in str(report)
    assert report.as_dict()["options"]["stages"] == "100ms@1k/s, 100ms@1k/s..2k/s"


# --- connections, opened one after the other ------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_connections_are_opened_evenly(threads: int) -> None:
    """The server sees them one after the other: the last long after the first."""
    accepted: list[float] = []
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        kept = []
        for _ in range(6):
            kept.append(listener.accept()[0])
            accepted.append(time.monotonic())
        over.wait(20)
        for each in kept:
            each.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        host, port = listener.getsockname()
        report = fastsock.load(
            f"tcp://{host}:{port}",
            connections=6,
            threads=threads,
            ramp_up=0.6,
            messages=6,
            wait="block",
            timeout=0.2,
        )
        over.set()
        thread.join(20)
    assert report.connect_latency.count == 6
    assert accepted[-1] - accepted[0] >= 0.25


def test_connections_that_end_meanwhile_are_errors() -> None:
    """A server may close a connection that has not been loaded yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        host, port = listener.getsockname()
        report = fastsock.load(
            f"tcp://{host}:{port}",
            connections=2,
            ramp_up=0.3,
            messages=2,
            timeout=0.2,
            wait="block",
        )
        thread.join(10)
    assert report.errors["closed_early"] == 1


def test_a_server_that_refuses_is_not_asked_slowly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    report = fastsock.load(f"tcp://127.0.0.1:{port}", connections=3, ramp_up=50, messages=3)
    assert report.errors["refused"] == 3


def test_ctrl_c_ends_the_opening() -> None:
    with native_server() as (_, endpoint):
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(fastsock.LoadInterrupted) as caught:
            fastsock.load(endpoint, connections=100, ramp_up=50, wait="block")
    assert caught.value.report.messages == 0


def test_the_progress_of_a_run_begins_with_its_connections(server: fastsock.Server) -> None:
    told: list[float] = []
    fastsock.load(
        server.endpoint,
        connections=3,
        ramp_up=0.5,
        duration=0.2,
        warmup=0,
        progress=told.append,
        wait="block",
    )
    assert told[0] < 0.4
    assert told[-1] > 0.5
    assert told == sorted(told)


def test_a_download_of_a_quota_has_no_ramp_up() -> None:
    with pytest.raises(ValueError, match="ramp_up does not go with messages in mode 'receive'"):
        LoadOptions(mode="receive", messages=5, ramp_up=1)


def test_a_quota_of_more_than_a_month_is_refused() -> None:
    with pytest.raises(ValueError, match="take more than 30 days"):
        LoadOptions(messages=10**10, rate=1)


def test_datagrams_have_no_ramp_up() -> None:
    with pytest.raises(ValueError, match="ramp_up goes with streams"):
        fastsock.load("udp://127.0.0.1:9", ramp_up=1)
