"""accept returns a connection that the client has reset."""

import errno
import socket
import struct

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
reset_on_close = struct.pack("ii", 1, 0)  # RST instead of FIN
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
client.close()

dead, _ = listener.accept()
print("accepted")
try:
    dead.getpeername()
except OSError as error:
    print("getpeername:", errno.errorcode[error.errno])
try:
    dead.recv(99)
except OSError as error:
    print("recv:", errno.errorcode[error.errno])
