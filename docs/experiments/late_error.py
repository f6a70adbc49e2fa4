"""The first send after the client has gone succeeds."""

import errno
import select
import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()

client.close()
print("first send took:", served.send(b"lost"), "bytes")
reset = select.poll()
reset.register(served, 0)  # POLLERR and POLLHUP only
reset.poll()
try:
    served.send(b"x")
except OSError as error:
    print("second send:", errno.errorcode[error.errno])
