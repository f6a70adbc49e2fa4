"""SO_REUSEPORT after listen: workers join, a second start fails."""

import errno
import socket

first = socket.create_server(("127.0.0.1", 0))
first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
address = first.getsockname()

worker = socket.create_server(address, reuse_port=True)
print("worker: listening")
try:
    socket.create_server(address)
except OSError as error:
    print("second start:", errno.errorcode[error.errno])
