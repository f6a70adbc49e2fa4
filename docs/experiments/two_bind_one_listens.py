"""SO_REUSEADDR lets two sockets bind a port; one may listen."""

import errno
import socket


def new_socket():
    new = socket.socket()
    new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return new


one, two, three = new_socket(), new_socket(), new_socket()
one.bind(("127.0.0.1", 0))
two.bind(one.getsockname())
print("two sockets are bound")
one.listen()
try:
    two.listen()
except OSError as error:
    print("second listen:", errno.errorcode[error.errno])
try:
    three.bind(one.getsockname())
except OSError as error:
    print("third bind:", errno.errorcode[error.errno])
