"""A closed listener frees the port; connections stay."""

import errno
import socket

listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
client = socket.create_connection(address)
served, _ = listener.accept()
listener.close()

try:
    socket.socket().bind(address)
except OSError as error:
    print("no SO_REUSEADDR:", errno.errorcode[error.errno])
again = socket.create_server(address)  # sets SO_REUSEADDR
print("with SO_REUSEADDR: listening")
client.sendall(b"still connected")
print("server received:", served.recv(99))
