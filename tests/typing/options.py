"""What mypy must accept, and what it must refuse: an ignore that is not needed is an error.

Checked by `make lint`, and never run.
"""

import fastsock

fastsock.serve("tcp://127.0.0.1:0", workers=4, engine="epoll", buffer_size="64k", busy_poll="auto")
fastsock.Server(("127.0.0.1", 0), cpus=None, idle_timeout=1, drain_timeout="5s", allow=["::1"])
fastsock.load("tcp://127.0.0.1:7", mode="send", wait="auto", size=64, duration="500ms", rate=None)

fastsock.serve(wokers=4)  # type: ignore[call-arg]
fastsock.serve(engine="asyncio")  # type: ignore[arg-type]
fastsock.serve(service="daytime")  # type: ignore[arg-type]
fastsock.serve(workers="4")  # type: ignore[arg-type]
fastsock.Server(wokers=4)  # type: ignore[call-arg]
fastsock.Server(engine="asyncio")  # type: ignore[arg-type]
fastsock.load("tcp://127.0.0.1:7", mode="upload")  # type: ignore[arg-type]
fastsock.load("tcp://127.0.0.1:7", wait="sleep")  # type: ignore[arg-type]
fastsock.load("tcp://127.0.0.1:7", conections=4)  # type: ignore[call-arg]
