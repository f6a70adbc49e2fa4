"""recv returns 0 bytes at the end; the client still reads."""

import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()

client.shutdown(socket.SHUT_WR)
print("server received:", served.recv(99))
print("and again:", served.recv(99))
served.sendall(b"the answer")
print("client received:", client.recv(99))
