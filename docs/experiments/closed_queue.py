"""Closing the listener resets the connections in its queue."""

import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
print("sent:", client.send(b"a request"), "bytes")
listener.close()
try:
    client.recv(99)
except ConnectionResetError:
    print("ECONNRESET")
