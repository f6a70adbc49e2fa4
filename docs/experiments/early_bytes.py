"""Bytes arrive before the server has accepted the connection."""

import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
print("sent:", client.send(b"early"), "bytes")
served, _ = listener.accept()
print("accepted, then received:", served.recv(99))
