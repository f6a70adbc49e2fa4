"""The programs that fastsock is measured against.

Servers: ``epoll_echo`` and ``uring_echo`` (C), ``uv_echo`` (C, on libuv), ``go_echo`` (Go),
``protocol_echo.py`` (asyncio and uvloop), ``coroutine_echo.py`` (gevent and trio). Each takes
``HOST PORT`` (numeric IPv4, port 0 picks a free one), echoes TCP until SIGTERM or SIGINT, and says
``listening on tcp://HOST:PORT (NAME)`` on stderr once it can be connected to.

``udp_echo`` (C) does the same for UDP, a datagram for each.

Load client: ``epoll_client`` (C), which prints one line of JSON.

All of them are correct first: no byte is lost, memory per connection is bounded, half-close is
answered in full. A server that skips this work is faster, and not comparable.
"""
