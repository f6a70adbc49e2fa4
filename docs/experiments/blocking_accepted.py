"""O_NONBLOCK is not inherited from the listener."""

import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
listener.setblocking(False)
served, _ = listener.accept()
print("listener blocks:", listener.getblocking())
print("accepted socket blocks:", served.getblocking())
