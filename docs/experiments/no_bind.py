"""listen without bind: any port, on all addresses."""

import socket

listener = socket.socket()
listener.listen()
address, port = listener.getsockname()
print("address:", address)
print("has a port:", port > 0)
