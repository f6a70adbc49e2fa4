"""Two sends, one recv: a stream has no messages."""

import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()

client.sendall(b"one")
client.sendall(b"two")
# Wait until all 6 bytes are there, and leave them there.
served.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL)
print("received:", served.recv(99))
