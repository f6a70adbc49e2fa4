"""The kernel cuts the backlog down to net.core.somaxconn."""

import socket
import struct
from pathlib import Path

listener = socket.socket()
listener.listen(1_000_000)
info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
(backlog,) = struct.unpack_from("I", info, 28)  # tcpi_sacked
limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
print("backlog is net.core.somaxconn:", backlog == limit)
