"""A buffer size is doubled; accepted sockets inherit options."""

import socket

listener = socket.create_server(("127.0.0.1", 0))
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
size = listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
print("SO_RCVBUF: set 8192, got", size)

listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()
option = served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
print("TCP_NODELAY of the accepted socket:", option)
