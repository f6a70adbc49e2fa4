"""A full queue does not refuse: the client waits."""

import socket

listener = socket.create_server(("127.0.0.1", 0), backlog=1)
address = listener.getsockname()
queued = [socket.create_connection(address) for _ in range(2)]
print("connected:", len(queued))
try:
    socket.create_connection(address, timeout=0.5)
except TimeoutError:
    print("third client: no answer in 0.5 s")
