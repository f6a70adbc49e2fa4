"""Closing one of two listeners of a port resets its queue."""

import errno
import select
import socket

one = socket.create_server(
    ("127.0.0.1", 0), backlog=128, reuse_port=True
)
address = one.getsockname()
two = socket.create_server(address, backlog=128, reuse_port=True)
clients = [socket.create_connection(address) for _ in range(100)]
one.close()

reset = select.poll()
for client in clients:
    reset.register(client, 0)  # POLLERR and POLLHUP only
reset.poll()
results = set()
for client in clients:
    client.setblocking(False)
    try:
        client.recv(99)
    except OSError as error:
        results.add(errno.errorcode[error.errno])
print("recv of 100 clients:", *sorted(results))
