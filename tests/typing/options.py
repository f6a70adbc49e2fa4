"""What type checkers must accept, and what they must refuse.

Checked by `make lint` with mypy and with pyright, and never run. An ignore that is not needed, as
an error was accepted, is an error itself.
"""

import socket
from pathlib import Path

import fastsock

ENDPOINT = "tcp://127.0.0.1:7"


def accepted() -> None:
    stats = fastsock.serve()
    fastsock.serve("tcp://127.0.0.1:0", workers=4, engine="epoll", buffer_size="64k", fds=[3])
    fastsock.serve(ENDPOINT, busy_poll="auto", ready=lambda server: print(server.endpoint.port))
    fastsock.Server(("127.0.0.1", 0), cpus=None, idle_timeout=1, drain_timeout="5s", allow=["::1"])
    fastsock.load(ENDPOINT, mode="send", wait="auto", size=64, duration="500ms", rate=None)
    fastsock.load(ENDPOINT, targets=["p99<1ms", "errors==0"], percentiles=(50, 99.9))
    fastsock.load(ENDPOINT, progress=lambda seconds: print(f"{seconds:.1f}"), messages="1k")
    accepted: int = stats.accepted
    print(accepted)

    with fastsock.Server("tcp://127.0.0.1:0") as server:
        with socket.create_connection(server.address) as sock:
            sock.sendall(b"hello")
        sock.connect(server.address)
        host: str = server.host
        port: int = server.port
        report = fastsock.load(server.endpoint, connections=64, size=64, duration=2)
        assert report.latency.p99 < 500 and report.valid, report
        refused: int = report.errors["refused"]
        reasons: list[str] = [reason.code for reason in report.reasons]
        print(host, port, report, refused, reasons, server.stats())
        try:
            fastsock.load(fastsock.Endpoint("tcp", "localhost", 7), label="one")
        except fastsock.LoadInterrupted as interrupted:
            Path("report").write_text(str(interrupted.report.messages_per_s))


async def accepted_async() -> fastsock.LoadReport:
    async with fastsock.Server("tcp://127.0.0.1:0", service="echo") as server:
        return await fastsock.load_async(server.endpoint, rate="10k/s", arrivals="poisson")


def refused() -> None:
    fastsock.serve(wokers=4)  # type: ignore[call-arg]
    fastsock.serve(workers="4")  # type: ignore[arg-type]
    fastsock.serve(engine="asyncio")  # type: ignore[arg-type]
    fastsock.serve(service="daytime")  # type: ignore[arg-type]
    fastsock.serve(7007)  # type: ignore[arg-type]
    fastsock.serve(ready=1)  # type: ignore[arg-type]
    fastsock.Server(wokers=4)  # type: ignore[call-arg]
    fastsock.Server(workers="4")  # type: ignore[arg-type]
    fastsock.Server(engine="asyncio")  # type: ignore[arg-type]
    fastsock.Server(ready=print)  # type: ignore[call-arg]
    fastsock.load()  # type: ignore[call-arg]
    fastsock.load(ENDPOINT, print)  # type: ignore[call-arg]
    fastsock.load(ENDPOINT, conections=4)  # type: ignore[call-arg]
    fastsock.load(ENDPOINT, connections="4")  # type: ignore[arg-type]
    fastsock.load(ENDPOINT, mode="upload")  # type: ignore[arg-type]
    fastsock.load(ENDPOINT, wait="sleep")  # type: ignore[arg-type]
    fastsock.load(ENDPOINT, targets=1)  # type: ignore[arg-type]
    fastsock.load(ENDPOINT, percentiles=["p50"])  # type: ignore[list-item]
    fastsock.load(ENDPOINT, engine="epoll")  # type: ignore[call-arg]
    fastsock.laod(ENDPOINT)  # type: ignore[attr-defined]
    print(fastsock.load(ENDPOINT).latency.p95)  # type: ignore[attr-defined]


async def refused_async() -> None:
    await fastsock.load_async(ENDPOINT, conections=4)  # type: ignore[call-arg]
    await fastsock.load_async(ENDPOINT, connections="4")  # type: ignore[arg-type]
    await fastsock.load_async(ENDPOINT, mode="upload")  # type: ignore[arg-type]
    await fastsock.load_async(ENDPOINT, wait="sleep")  # type: ignore[arg-type]
    print(fastsock.load_async(ENDPOINT).valid)  # type: ignore[attr-defined]
